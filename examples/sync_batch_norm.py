"""Synchronized batch norm: one training loop three ways, and what training is like without it.

    python examples/sync_batch_norm.py

Eight devices train one network (Dense 128 - BatchNorm - ReLU, twice, and Dense 10; flax.linen, SGD)
with 2 images on each, and the three ways to run a step on all of them give the same numbers:

    jax.jit        over arrays sharded by image: to the program the minibatch is one array, and there
                   is nothing to synchronize: the layers need no `axis_name`
    jax.shard_map  the program of one device; `axis_name` makes the layers look at all of them
    jax.pmap       likewise

Without `axis_name` in a shard_map each device normalizes by its own two images. Of two values that
leaves only which one is larger: every channel becomes -1 and 1. (Convolutions, whose statistics are
also over the positions in an image, lose less.) Each device then has running statistics of its own,
which `jbn.tools.average_stats` merges for the evaluation.

The devices are threads of this computer's processor: the accuracies mean something, the times do not.
"""

from shared import flags

DEVICES = 8
parser = flags.parser(
    "Synchronized batch norm with jit, shard_map and pmap, and batch norm without synchronization.",
    batch_size=2,
    of_batch=f"images of a minibatch on each of {DEVICES} devices",
    learning_rate=0.01,
    of_rate="of SGD with momentum 0.9",
)
if __name__ == "__main__":
    parser.parse_args()  # before the imports that take seconds, so that --help does not

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

import jbn
from models.linen_mlp import MLP
from shared import data, pictures, report, runs, training
from shared.training import State

AXIS = "devices"
COUNT_FLAG = "--xla_force_host_platform_device_count"
COMPARED_STEPS = 10
TOLERANCE = 1e-5

Step = Callable[[State, Any, Any], tuple[State, Any]]
# Adam would divide the gradients by their size, and magnify the rounding errors of the small ones.
sgd = functools.partial(optax.sgd, momentum=0.9)
batch_norm = functools.partial(jbn.linen.BatchNorm, momentum=0.9)
unnamed = training.Linen(MLP(batch_norm))
named = training.Linen(MLP(functools.partial(batch_norm, axis_name=AXIS)))


class Way(NamedTuple):
    """How to train: the state before the first step, a step, and (state, images) -> logits."""

    start: State
    step: Step
    predict: Callable[[State, Any], jax.Array]


def synchronized(mesh: Mesh, learning_rate: float) -> dict[str, Step]:
    """The three ways to run a step on all devices."""
    step = functools.partial(training.train_step, learning_rate=learning_rate, optimizer=sgd)
    on_all = functools.partial(step, network=unnamed)
    on_each = functools.partial(step, network=named, axis_name=AXIS)
    specs = (P(), P(AXIS), P(AXIS))
    whole, *split = (NamedSharding(mesh, spec) for spec in specs)
    jitted = jax.jit(on_all, in_shardings=(whole, *split), out_shardings=whole)
    sharded = jax.jit(jax.shard_map(on_each, mesh=mesh, in_specs=specs, out_specs=P()))
    devices = list(mesh.devices.flat)
    mapped = jax.pmap(on_each, AXIS, in_axes=(None, 0, 0), out_axes=None, devices=devices)

    def with_pmap(state, *arrays):
        return mapped(state, *(a.reshape(len(devices), -1, *a.shape[1:]) for a in arrays))

    return {"jax.jit": jitted, "jax.shard_map": sharded, "jax.pmap": with_pmap}


def unsynchronized(mesh: Mesh, learning_rate: float) -> tuple[Step, Callable[[State], State]]:
    """The step of each device for itself, and what merges the running statistics.

    These have a first axis, of devices, in the state that the two functions take.
    """

    def on_each(state, images, labels):
        own = jax.tree.map(lambda v: v[0], state.batch_stats)
        state, loss = training.train_step(
            state._replace(batch_stats=own),
            images,
            labels,
            network=unnamed,
            learning_rate=learning_rate,
            optimizer=sgd,
            axis_name=AXIS,
        )
        return state._replace(batch_stats=jax.tree.map(lambda v: v[None], state.batch_stats)), loss

    def merge(state):
        own = jax.tree.map(lambda v: v[0], state.batch_stats)
        return state._replace(batch_stats=jbn.tools.average_stats(own, AXIS))

    shard_map = functools.partial(jax.shard_map, mesh=mesh)
    states = State(P(), P(AXIS), P())
    mapped = shard_map(on_each, in_specs=(states, P(AXIS), P(AXIS)), out_specs=(states, P()))
    return jax.jit(mapped), jax.jit(shard_map(merge, in_specs=(states,), out_specs=P()))


def one_at_a_time(step: Step) -> Step:
    """Waits for each step: with more devices than cores, steps in flight can block one another."""
    return lambda *args: jax.block_until_ready(step(*args))


def compare(ways: dict[str, Way], digits: data.Digits, batches: np.ndarray) -> None:
    """Prints how far the other ways are from the first after a few steps; leaves if too far.

    A few, for in the end a rounding error moves some activation across the zero of its ReLU, and from
    there two runs part in any case.
    """

    def numbers(way):
        state, losses = way.start, []
        for batch in batches:
            state, loss = way.step(state, digits.train_images[batch], digits.train_labels[batch])
            losses.append(loss)
        return jax.device_get([*losses, *jax.tree.leaves((state.params, state.batch_stats))])

    wanted, *others = map(numbers, ways.values())
    names = list(ways)
    print(f"losses, parameters and statistics of {len(batches)} steps, difference from {names[0]}:")
    for name, actual in zip(names[1:], others, strict=True):
        difference = max(np.max(np.abs(a - b)) for a, b in zip(actual, wanted, strict=True))
        print(f"{name:13}  {difference:.1e}")
        if not difference <= TOLERANCE:
            sys.exit(f"{name}: expected a difference of at most {TOLERANCE:g}, got {difference:g}")


def host_devices() -> list[Any]:
    """Eight devices on the host's processor; leaves with one line where there are fewer."""
    given = os.environ.get("XLA_FLAGS", "")
    if COUNT_FLAG not in given:
        # Read when JAX first looks for devices, not when it is imported.
        os.environ["XLA_FLAGS"] = f"{given} {COUNT_FLAG}={DEVICES}"
    devices = jax.devices("cpu")
    if len(devices) < DEVICES:
        sys.exit(f"expected {DEVICES} devices, got {len(devices)}: leave {COUNT_FLAG} out of XLA_FLAGS")
    return devices[:DEVICES]


def main(argv: Sequence[str] | None = None) -> dict[str, runs.Run]:
    """Compares the ways, and trains in all of them; returns the runs."""
    args, digits = data.start(parser, argv)
    devices, rate, seed = host_devices(), args.learning_rate, args.seed
    minibatch = DEVICES * args.batch_size
    mesh = jax.make_mesh((DEVICES,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    batches = next(data.minibatches(len(digits.train_images), minibatch, 1, seed))
    alone = functools.partial(training.train_step, network=unnamed, learning_rate=rate, optimizer=sgd)
    predict = functools.partial(training.predict, network=unnamed)
    results = {}
    with jax.default_device(devices[0]):
        start = training.create_state(unnamed, digits.train_images, seed, sgd)
        # Where a step leaves it; elsewhere the second step would compile anew.
        on_all = jax.device_put(start, NamedSharding(mesh, P()))
        ways = {"one device": Way(start, one_at_a_time(alone), predict)}
        for name, step in synchronized(mesh, rate).items():
            ways[name] = Way(on_all, one_at_a_time(step), predict)
        compare(ways, digits, batches[:COMPARED_STEPS])

        step, merge = unsynchronized(mesh, rate)
        each = jax.tree.map(lambda v: np.stack([v] * DEVICES), start.batch_stats)
        own = on_all._replace(batch_stats=jax.device_put(each, NamedSharding(mesh, P(AXIS))))
        ways["unsynchronized"] = Way(own, one_at_a_time(step), lambda s, x: predict(merge(s), x))
        with tqdm(total=len(ways) * args.epochs, unit="epoch") as bar:
            for name, way in ways.items():
                bar.set_description(name)
                options = {"seed": seed, "batch_size": minibatch}
                _, results[name] = runs.record(
                    way.start, way.step, way.predict, digits, args, bar, **options
                )
    print(report.table_of_runs({(name, ""): [run] for name, run in results.items()}))
    shown = {"synchronized": results["jax.jit"], "unsynchronized": results["unsynchronized"]}
    size = f"{DEVICES} x {args.batch_size} images"
    figure = pictures.learning_curves({(name, size): [run] for name, run in shown.items()})
    pictures.save(figure, args.out / "sync_batch_norm.png")
    return results


if __name__ == "__main__":
    main()
