"""What every command prints and writes: flags, Markdown tables, bars, JSON that says where it ran."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import statistics
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

FOLDER = Path(__file__).parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "dm-haiku", "equinox", "keras", "torch")
VARIABLES = ("XLA_", "JAX_", "MALLOC_", "OMP_")  # of the environment, which figures may depend on

Rows = Mapping[str, Mapping[str, str]]


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The flags of all commands, for one of them to add its own."""
    out = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--out", type=Path, default=FOLDER / "results", help="a folder")
    return out


def positive(text: str) -> int:
    """An argument that counts something."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def progress(items: Iterable[Any], about: str, number: int | None = None) -> Iterable[Any]:
    """The items, with a bar on a terminal; their number where they do not know it."""
    return tqdm(items, about, number, leave=False, disable=None)


def scientific(value: float) -> str:
    """Two digits: 2.3e-7, 2.4, 3.2e2, NaN, and 0 for none."""
    text = f"{value:.1e}".replace("nan", "NaN") if value else "0"
    return text.replace("e+00", "").replace("e+0", "e").replace("e-0", "e-")


def span(values: Sequence[float], form: str = ".2f") -> str:
    """The median and the range of what several runs gave; one figure where they print the same."""
    median, extremes = format(np.median(values), form), extent(values, form)
    return f"{median} ({extremes})" if " to " in extremes else median


def extent(values: Sequence[float], form: str = ",") -> str:
    """The smallest and the largest; one figure where they print the same."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def geometric_means(rows: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """By name that every row has: the geometric mean over the rows, in every run."""
    first, *others = rows.values()
    return {
        name: [
            statistics.geometric_mean(run)
            for run in zip(*(r[name] for r in rows.values()), strict=True)
        ]
        for name in first
        if all(name in row for row in others)
    }


def table(title: str, first: str, rows: Rows) -> str:
    """A Markdown table under its title, a row per name, its columns aligned.

    Args:
        title: what the cells are.
        first: the heading of the names.
        rows: the cells of each row by column; a row may lack some.
    """
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [[first, *columns]]
    lines += [[name, *(row.get(column, "") for column in columns)] for name, row in rows.items()]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = [[cell.ljust(w) for cell, w in zip(line, widths, strict=True)] for line in lines]
    return "\n".join([f"{title}:", "", *(f"| {' | '.join(cells)} |" for cells in padded)])


def environment() -> dict[str, Any]:
    """What the figures may depend on. jbn is the checkout that this file lies in."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    installed = {d.name: d.version for d in importlib.metadata.distributions() if d.name in PACKAGES}
    return {
        "machine": {
            "platform": f"{platform.system()} {platform.machine()}",
            "processors": os.cpu_count(),
            "cpu": model[1] if model else platform.processor(),
            "jax device": jax.devices()[0].device_kind,
            "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        },
        "versions": {"python": platform.python_version(), "jbn": project["version"], **installed},
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)},
    }


def write(
    name: str,
    argv: Sequence[str],
    folder: Path,
    figures: Mapping[str, Any],
    tables: Sequence[str],
) -> dict[str, Any]:
    """Prints the tables, writes them to NAME.md and the figures to NAME.json; returns what that holds.

    Args:
        name: of the command.
        argv: its arguments, which are written with the date, the machine and the versions.
        folder: where to.
        figures: what was measured.
        tables: of `table`.
    """
    results = {
        "command": shlex.join(["python", "-m", "benchmarks", name, *argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **environment(),
        **figures,
    }
    print(*tables, sep="\n\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text("\n\n".join(tables) + "\n")
    # JSON has no NaN: it is written as a string.
    strict = json.loads(json.dumps(results), parse_constant=str)
    (folder / f"{name}.json").write_text(json.dumps(strict, indent=1) + "\n")
    return results
