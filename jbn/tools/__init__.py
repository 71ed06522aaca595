"""The life of a model beside its training step: re-exports only."""

from jbn.tools.average import average_stats as average_stats
from jbn.tools.fold import fold as fold
from jbn.tools.folding.folded_kernels import fold_into_next as fold_into_next
from jbn.tools.folding.folded_kernels import fold_into_previous as fold_into_previous
from jbn.tools.folding.folded_kernels import fold_padding as fold_padding
