"""Is a layer on many devices the layer on one? jbn's and Flax's.

    python -m benchmarks devices
    python -m benchmarks devices --only vmap     # only the ways whose names hold the text

`jbn.linen.BatchNorm` and `flax.linen.BatchNorm` on 8 host devices, which the command makes, against
float64 over all samples, in every way to run on several devices. Not timed: host devices are threads of
one CPU. What is sent between real ones, `programs` reads off their compilers' programs.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.devices import equality, ways
from benchmarks.shared import report

LIBRARIES = tuple(equality.LAYERS)


def equality_table(found: Mapping[str, Any]) -> str:
    """Rows ways; jbn's worst of all masks in each dtype, Flax's by mask."""

    def cell(results: Iterable[Any]) -> str:
        results = list(results)
        if any(isinstance(result, str) for result in results):
            return "raises"
        return report.scientific(float(np.max([list(result.values()) for result in results])))

    rows = {}
    for name, row in found.items():
        own = {f"jbn, {dtype}": cell(row["jbn"][dtype].values()) for dtype in equality.DTYPES}
        peer = {f"flax, float32, {m}": cell([row["flax"]["float32"][m]]) for m in equality.MASKS}
        rows[name] = own | peer
    title = (
        "The worst error of y, dx, dscale, dbias and the running mean and variance, jbn's of all masks"
    )
    return report.table(title, "way", rows)


def raised(found: Mapping[str, Any]) -> list[str]:
    """What is raised by whom, once each."""
    lines = [
        f"{library} raises, {name}: {result}"
        for name, row in found.items()
        for library, by_dtype in row.items()
        for by_mask in by_dtype.values()
        for result in by_mask.values()
        if isinstance(result, str)
    ]
    return list(dict.fromkeys(lines))


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Measures, prints, writes devices.json and .md; returns what the first of them holds."""
    parser = report.parser("devices", __doc__)
    parser.add_argument("--only", default="", help="text: the ways whose names hold it")
    options = parser.parse_args(argv)
    if jax.device_count() < ways.DEVICES:
        sys.exit(f"{ways.DEVICES} devices are needed; `python -m benchmarks devices` makes them")
    chosen = {name: way for name, way in (ways.WAYS | ways.GROUPED).items() if options.only in name}
    if not chosen:
        parser.error(f"no way holds {options.only!r}: {', '.join(ways.WAYS | ways.GROUPED)}")

    equal = {
        name: {library: equality.equality(library, name, way, options.seed) for library in LIBRARIES}
        for name, way in report.progress(chosen.items(), "equality")
    }
    figures = {"seed": options.seed, "devices": ways.DEVICES, "shape": equality.SHAPE, "errors": equal}
    tables = [equality_table(equal), *raised(equal)]
    return report.write("devices", argv, options.out, figures, tables)
