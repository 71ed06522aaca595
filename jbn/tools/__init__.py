"""The life of a model beside its training step: re-exports only."""

from jbn.tools.average import average_stats as average_stats
