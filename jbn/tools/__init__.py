"""The life of a model beside its training step: re-exports only."""

from jbn.tools.average import average_stats as average_stats
from jbn.tools.convert.equinox import from_equinox as from_equinox
from jbn.tools.convert.equinox import to_equinox as to_equinox
from jbn.tools.convert.haiku import from_haiku as from_haiku
from jbn.tools.convert.haiku import to_haiku as to_haiku
from jbn.tools.convert.keras import from_keras as from_keras
from jbn.tools.convert.keras import to_keras as to_keras
from jbn.tools.convert.pytorch import from_torch as from_torch
from jbn.tools.convert.pytorch import to_torch as to_torch
from jbn.tools.convert_model import convert_model as convert_model
from jbn.tools.fold import fold as fold
from jbn.tools.folding.folded_kernels import fold_into_next as fold_into_next
from jbn.tools.folding.folded_kernels import fold_into_previous as fold_into_previous
from jbn.tools.folding.folded_kernels import fold_padding as fold_padding
from jbn.tools.inspection.report import report as report
from jbn.tools.interception import converted as converted
from jbn.tools.optimizers import decay_mask as decay_mask
from jbn.tools.optimizers import freeze as freeze
from jbn.tools.percentiles import activation_percentiles as activation_percentiles
from jbn.tools.recalibrate import recalibrate as recalibrate
from jbn.tools.tune_inference import InferenceChoice as InferenceChoice
from jbn.tools.tune_inference import tune_inference as tune_inference
