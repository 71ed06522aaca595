"""How fast is one batch norm layer?"""

from benchmarks.layer.command import main as main
