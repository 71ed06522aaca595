"""What every benchmark shares: flags, console, tables, verdicts, and JSON that says where it ran."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Column, Table

HERE = Path(__file__).parent
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "dm-haiku", "equinox", "keras", "torch")


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The flags of all benchmarks, for one of them to add its own."""
    out = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=doc)
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--out", type=Path, default=HERE / "results", help="a folder")
    return out


def console() -> Console:
    """Where the tables and the progress go."""
    terminal = Console()
    # A table folded at 80 columns in a log is unreadable.
    return terminal if terminal.is_terminal else Console(width=150)


def table(
    title: str,
    first: str,
    rows: Mapping[str, Mapping[str, Any]],
    limit: Callable[[str], float] | None = None,
) -> Table:
    """One row per name.

    Args:
        title: the heading.
        first: the heading of the names.
        rows: the cells of each row by column; a number is printed as an error, text as it is.
        limit: the largest error that a row may have: what exceeds it is red, NaN included.
    """
    columns = [*next(iter(rows.values())), *(["target of jbn"] if limit else [])]
    out = Table(Column(first, no_wrap=True), *columns, title=title, title_justify="left")
    for name, row in rows.items():
        bound = limit(name) if limit else np.inf
        cells = (
            v if isinstance(v, str) else f"{v:.1e}" if v <= bound else f"[red]{v:.1e}"
            for v in row.values()
        )
        out.add_row(name, *cells, *([f"{bound:g}"] if limit else []))
    return out


def verdict(values: Sequence[float], target: float) -> dict[str, Any]:
    """The worst of `values` and whether it meets the target, as a NaN never does."""
    worst = float(np.max(values))
    return {"worst": worst, "target": target, "met": worst <= target}


def verdict_at_least(values: Sequence[float], target: float) -> dict[str, Any]:
    """The same of figures that are to be large."""
    worst = float(np.min(values))
    return {"worst": worst, "target": target, "met": worst >= target}


def print_verdicts(out: Console, targets: Mapping[str, Mapping[str, Any]], digits: int = 2) -> None:
    """A line per target, its figure with so many significant digits."""
    for name, result in targets.items():
        met = "met" if result["met"] else "[red]NOT MET"
        out.print(f"{name}: {result['worst']:.{digits}g}, target {result['target']:g}: {met}")


def bars(axes: Any, values: Mapping[str, float], texts: Mapping[str, str]) -> None:
    """A horizontal bar per name on matplotlib's axes, the first on top, each with its text."""
    drawn = axes.barh(list(values), list(values.values()))
    axes.bar_label(drawn, [texts[name] for name in values], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.45)


def environment() -> dict[str, Any]:
    """What the figures may depend on. jbn is the checkout that this file lies in."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    installed = {d.name: d.version for d in importlib.metadata.distributions() if d.name in PACKAGES}
    return {
        "machine": {
            "platform": f"{platform.system()} {platform.machine()}",
            "processors": os.cpu_count(),
            "cpu": model[1] if model else platform.processor(),
            "jax device": jax.devices()[0].device_kind,
        },
        "versions": {"python": platform.python_version(), "jbn": project["version"], **installed},
    }


def write(name: str, argv: Sequence[str], folder: Path, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Writes NAME.json: the command, the date, the environment and the figures; returns all of it."""
    results = {
        "command": shlex.join(["python", "-m", "benchmarks", name, *argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **environment(),
        **figures,
    }
    folder.mkdir(parents=True, exist_ok=True)
    # JSON has no NaN: it is written as a string.
    strict = json.loads(json.dumps(results), parse_constant=str)
    (folder / f"{name}.json").write_text(json.dumps(strict, indent=1) + "\n")
    return results
