"""The life of a model beside its training step: re-exports only."""

from jbn.tools.average import average_stats as average_stats
from jbn.tools.inspection.report import report as report
from jbn.tools.optimizers import decay_mask as decay_mask
from jbn.tools.optimizers import freeze as freeze
from jbn.tools.percentiles import activation_percentiles as activation_percentiles
