"""What GPUs and TPUs are given to run, without having one: flax beside jbn. BYTES, NOT TIMES.

    python -m benchmarks programs

XLA's compilers for both run without the hardware, and the programs say how often a layer goes over x,
what a step of ResNet-50 moves, how much memory a gradient needs and how many all-reduces a layer makes.
Each compiler is an extra of its own, `programs-gpu` and `programs-tpu`, and runs in a process of its
own; what is not installed is named, and its figures of an earlier run are kept.
"""

import datetime
import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.programs import figures
from benchmarks.programs.chips import COMPILERS, PLATFORMS
from benchmarks.shared import report

PARTS = ("layers", "networks", "memory", "all-reduces")
PACKAGES = ("jax", "jaxlib", "flax", "jax-cuda12-plugin", "libtpu")

Found = dict[str, dict[str, Any]]


def measured(
    on: str, chips: Sequence[str], parts: Sequence[str], quick: bool
) -> Iterator[tuple[str, str, Any]]:
    """Chip, part and figures, one after the other, from a process for the compiler of a platform.

    Raises:
        RuntimeError: the process has failed; it says why on stderr.
    """
    environment = {**os.environ, **COMPILERS[on].environment, "JAX_PLATFORMS": "cpu"}
    settings = json.dumps({"chips": chips, "parts": parts, "quick": quick})
    command = [sys.executable, "-m", "benchmarks.programs.worker", settings]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield tuple(json.loads(line))
    if process.returncode:
        raise RuntimeError(f"the compiler's process for {', '.join(chips)} has failed")


def missing(on: str) -> str:
    """What to do about a compiler that is not here."""
    chips = ", ".join(chip for chip in PLATFORMS if PLATFORMS[chip] == on)
    install = f'pip install -e ".[{COMPILERS[on].extra}]"'
    return f"{chips}: the compiler is not installed: {install}, on Linux on x86-64"


def load(path: Path) -> Found:
    """The figures of an earlier run by chip and part, if there are any."""
    return json.loads(path.read_text())["programs"] if path.exists() else {}


def main(argv: Sequence[str] | None = None) -> Found:
    """Measures, prints, writes programs.json, .md and .png; returns the figures by chip and part."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = report.parser("programs", __doc__)
    parser.add_argument("--targets", nargs="+", choices=PLATFORMS, default=[*PLATFORMS])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small networks and stacks: minutes on a TPU's compiler too",
    )
    options = parser.parse_args(argv)
    # The compilers' packages make JAX look for the hardware.
    jax.config.update("jax_platforms", "cpu")
    path = options.out / "programs.json"
    found = load(path)
    came_from = {
        "command": shlex.join(["python", "-m", "benchmarks", "programs", *argv]),
        "versions": {
            d.name: d.version for d in importlib.metadata.distributions() if d.name in PACKAGES
        },
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for on, compiler in COMPILERS.items():
        chips = [chip for chip in options.targets if PLATFORMS[chip] == on]
        if chips and not compiler.installed:
            print(missing(on))
        elif chips:
            for chip, part, values in measured(on, chips, options.parts, options.quick):
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                found.setdefault(chip, {})[part] = {"date": now, **came_from, "figures": values}
                print(f"{chip}: {part}")
                write(path, found)
    if found:
        tables = "\n\n".join(figures.tables(found))
        print(tables)
        (options.out / "programs.md").write_text(tables + "\n")
        figures.picture(found, options.out / "programs.png")
    return found


def write(path: Path, found: Found) -> None:
    """All that is known."""
    content = {"what": "bytes of compiled programs, no times", "programs": found}
    path.write_text(json.dumps(content, indent=1) + "\n")
