"""Whether a layer on many devices is the layer on one."""

from benchmarks.devices.command import main as main
