"""What one layer sends: its all-reduces, read off the compiled program."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import peers, ways
from benchmarks.equality import LAYERS

PROGRAMS = ("forward", "forward + backward", "inference")
CASES = ("shard_map", "shard_map, mask", "shard_map, 2 groups", "jit, batch sharded")
ALL_REDUCE = re.compile(r"= (.*?) all-reduce(?:-start)?\(")
OTHERS = re.compile(r" (all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|\w+_computations?)=(\{[^}]*\}|%?[\w.-]+)")


def computations(hlo: str) -> dict[str, list[str]]:
    """The lines of every computation of a module by its name, the entry's under ENTRY too."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            head = line.split()
            lines = found[head[head[0] == "ENTRY"].lstrip("%")] = []
            if head[0] == "ENTRY":
                found["ENTRY"] = lines
        else:
            lines.append(line)
    return found


def payload(shapes: str) -> int:
    """Bytes of a result: one array, or a tuple of them, as HLO writes their shapes."""
    arrays = re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", shapes)
    return sum(int(bits) // 8 * math.prod(map(int, filter(None, n.split(",")))) for bits, n in arrays)


def executed(
    module: dict[str, list[str]], choose: Callable[..., list[int]], name: str = "ENTRY"
) -> list[int]:
    """Bytes of each all-reduce that one run of a computation makes; the body of a loop runs once.

    Args:
        module: from `computations`.
        choose: `min` or `max`: which branch a conditional takes, by its number of all-reduces.
        name: the computation.
    """
    found = []
    for line in module[name]:
        if match := ALL_REDUCE.search(line):
            found.append(payload(match[1]))
            continue
        called = [n for group in CALLED.findall(line) for n in re.findall(r"[\w.-]+", group)]
        runs = [executed(module, choose, n) for n in called]
        if " conditional(" in line:
            runs = [choose(runs, key=lambda sent: (len(sent), sum(sent)))]
        found += [size for run in runs for size in run]
    return found


def measure(hlo: str) -> dict[str, Any]:
    """Fewest and most all-reduces of a run, their bytes, those in the program, other collectives."""
    module = computations(hlo)
    fewest, most = executed(module, min), executed(module, max)
    return {
        "executed": [len(fewest), len(most)],
        "bytes": [sum(fewest), sum(most)],
        "sizes": most,
        "in the program": len(ALL_REDUCE.findall(hlo)),
        "others": OTHERS.findall(hlo),
    }


def program(library: str, case: str, kind: str, channels: int) -> str:
    """The compiled program of one layer on float32 input; its gradient is that of x alone.

    That of the parameters is summed over the devices with synchronization and without.
    """
    options: dict[str, Any] = {"use_running_average": kind == "inference"}
    if not case.startswith("jit"):
        options["axis_name"] = "i"
    if case.endswith("groups"):
        options["axis_index_groups"] = ways.GROUPS
    layer = LAYERS[library](**options)

    def run(params, batch_stats, x, mask, dy):
        def apply(x):
            return peers.linen(layer, x, params, batch_stats, mask)

        if kind != "forward + backward":
            return apply(x)
        y, vjp, new = jax.vjp(apply, x, has_aux=True)
        return (y, *vjp(dy)), new

    mesh, rows, whole = ways.mesh(), P("i"), P()
    specs = (whole, whole, rows, rows, rows)
    if not case.startswith("jit"):
        out = rows, rows if case.endswith("groups") else whole
        run = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)

    def abstract(shape, spec, dtype: Any = jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    x, vector = abstract((2 * ways.DEVICES, 4, 4, channels), rows), abstract((channels,), whole)
    mask = abstract((*x.shape[:-1], 1), rows, jnp.bool) if case.endswith("mask") else None
    arguments = {"scale": vector, "bias": vector}, {"mean": vector, "var": vector}, x, mask, x
    return jax.jit(run).lower(*arguments).compile().as_text() or ""


def communication(library: str, case: str, channels: int) -> dict[str, dict[str, Any]]:
    """What one layer sends in each of the three programs."""
    return {kind: measure(program(library, case, kind, channels)) for kind in PROGRAMS}
