"""Batch normalization for JAX: exact, differentiable every way, on one device or many."""

from jbn._batch_norm import batch_norm as batch_norm
from jbn._batch_norm import init as init
from jbn._moments import Moments as Moments
from jbn._moments import moments as moments
from jbn._normalize import normalize as normalize
from jbn._running import update_running as update_running
