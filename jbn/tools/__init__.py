"""The life of a model beside its training step: re-exports only."""

from jbn.tools.average import average_stats as average_stats
from jbn.tools.recalibrate import recalibrate as recalibrate
from jbn.tools.tune_inference import InferenceChoice as InferenceChoice
from jbn.tools.tune_inference import tune_inference as tune_inference
