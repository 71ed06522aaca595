"""Batch normalization for JAX: exact, differentiable every way, on one device or many."""

from jbn import linen as linen
from jbn import nnx as nnx
from jbn import tools as tools
from jbn._backward import batch_norm_backward as batch_norm_backward
from jbn._batch_norm import batch_norm as batch_norm
from jbn._batch_norm import init as init
from jbn._form import Form as Form
from jbn._moments import moments as moments
from jbn._norm import Norm as Norm
from jbn._norm import plain as plain
from jbn._normalize import normalize as normalize
from jbn._remat import remat_policy as remat_policy
from jbn._running import update_running as update_running
from jbn._statistics import Moments as Moments
from jbn.variants.batch_group import batch_group as batch_group
from jbn.variants.conditional import conditional as conditional
from jbn.variants.domains import domains as domains
from jbn.variants.frozen import frozen as frozen
from jbn.variants.ghost import ghost as ghost
from jbn.variants.inplace import inplace as inplace
from jbn.variants.renorm import renorm as renorm
from jbn.variants.streaming import streaming as streaming
from jbn.variants.timesteps import timesteps as timesteps
from jbn.variants.warmup import crossq_warmup as crossq_warmup
from jbn.variants.warmup import ioffe_warmup as ioffe_warmup
from jbn.variants.weighted_inference import weighted_inference as weighted_inference
