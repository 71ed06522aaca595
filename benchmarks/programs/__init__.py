"""What GPUs and TPUs are given to run: bytes, memory and all-reduces of programs, not times."""

from benchmarks.programs.command import main as main
