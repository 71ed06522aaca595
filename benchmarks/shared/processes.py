"""A command run several times, in processes of their own: how far its figures differ."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.shared import report


def add_flag(parser: argparse.ArgumentParser, runs: int) -> None:
    """The number of runs."""
    text = f"in processes of their own, whose range is reported (default {runs})"
    parser.add_argument("--runs", type=report.positive, default=runs, help=text)


def repeated(
    name: str,
    argv: Sequence[str],
    runs: int,
    measure: Callable[[], dict[str, Any]],
    **environment: str,
) -> dict[str, Any]:
    """What `measure` returns, its leaves lists with one figure of each run.

    Args:
        name, argv: the command and its arguments.
        runs: how many; a single one is made in this process.
        measure: returns nested dicts.
        environment: variables of the processes.
    """
    if runs == 1:
        return _listed(measure())
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks", name, *argv, "--runs", "1", "--out", folder]
        found = []
        for _ in range(runs):
            subprocess.run(
                command,
                cwd=report.FOLDER.parent,
                env={**os.environ, **environment},
                stdout=subprocess.DEVNULL,
                check=True,
            )
            found.append(json.loads((Path(folder) / f"{name}.json").read_text())["figures"])
    return _joined(found)


def _listed(figures: Any) -> Any:
    if isinstance(figures, dict):
        return {key: _listed(value) for key, value in figures.items()}
    return [figures]


def _joined(runs: Sequence[Any]) -> Any:
    if isinstance(runs[0], dict):
        return {key: _joined([run[key] for run in runs]) for key in runs[0]}
    return [figure for run in runs for figure in run]
