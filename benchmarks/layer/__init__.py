"""How fast one batch norm layer is."""

from benchmarks.layer.command import main as main
