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

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

import data
import jbn
import learning_curves
import report
from linen_training import State

DEVICES = 8
AXIS = "devices"
COUNT_FLAG = "--xla_force_host_platform_device_count"
COMPARED_STEPS = 10
TOLERANCE = 1e-5

Step = Callable[[State, Any, Any], tuple[State, Any]]
# Adam would divide the gradients by their size, and magnify the rounding errors of the small ones.
sgd = functools.partial(optax.sgd, momentum=0.9)


class MLP(nn.Module):
    """The network; with an `axis_name` its batch norm layers are synchronized."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images (N, H, W, 1) to logits (N, 10); `train` normalizes with the batch's statistics."""
        x = x.reshape(len(x), -1)
        for _ in range(2):
            # Batch norm would subtract a bias with the mean.
            x = nn.Dense(128, use_bias=False)(x)
            norm = jbn.linen.BatchNorm(
                use_running_average=not train, momentum=0.9, axis_name=self.axis_name
            )
            x = nn.relu(norm(x))
        return nn.Dense(10)(x)


def create_state(images: np.ndarray, seed: int) -> State:
    """Initial parameters, running statistics and optimizer state; there is no axis here."""
    variables = MLP(AXIS).init(jax.random.key(seed), images[:1], train=False)
    params = variables["params"]
    return State(params, variables["batch_stats"], sgd(0.0).init(params))


def train_step(
    state: State,
    images: jax.Array,
    labels: jax.Array,
    *,
    model: MLP,
    learning_rate: float,
    axis_name: str | None = None,
) -> tuple[State, jax.Array]:
    """One step of SGD: the new state, and the loss before it.

    Where there is an `axis_name`, `images` and `labels` are one device's, and the gradients and the
    loss are averaged over the devices, whether or not the layers are synchronized.
    """
    params = state.params
    if axis_name is not None:
        # The gradient of a device's own copy. That of shared parameters jax.shard_map would sum over
        # the devices unasked, and jax.pmap would not.
        params = jax.lax.pcast(params, axis_name, to="varying")

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), updated["batch_stats"]

    (value, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
    if axis_name is not None:
        value, grads = jax.lax.pmean((value, grads), axis_name)
    updates, opt_state = sgd(learning_rate).update(grads, state.opt_state)
    return State(optax.apply_updates(state.params, updates), batch_stats, opt_state), value


def synchronized(mesh: Mesh, learning_rate: float) -> dict[str, Step]:
    """The three ways to run a step on all devices."""
    on_all = functools.partial(train_step, model=MLP(), learning_rate=learning_rate)
    on_each = functools.partial(
        train_step, model=MLP(AXIS), learning_rate=learning_rate, axis_name=AXIS
    )
    specs = (P(), P(AXIS), P(AXIS))
    whole, *split = (NamedSharding(mesh, spec) for spec in specs)
    jitted = jax.jit(on_all, in_shardings=(whole, *split), out_shardings=whole)
    sharded = jax.jit(jax.shard_map(on_each, mesh=mesh, in_specs=specs, out_specs=P()))
    devices = list(mesh.devices.flat)
    mapped = jax.pmap(on_each, AXIS, in_axes=(None, 0, 0), out_axes=None, devices=devices)

    def with_pmap(state, *arrays):
        return mapped(state, *(a.reshape(len(devices), -1, *a.shape[1:]) for a in arrays))

    return {"jax.jit": jitted, "jax.shard_map": sharded, "jax.pmap": with_pmap}


def one_at_a_time(step: Step) -> Step:
    """Waits for each step: with more devices than cores, steps in flight can block one another."""
    return lambda *args: jax.block_until_ready(step(*args))


def unsynchronized(mesh: Mesh, learning_rate: float) -> tuple[Step, Callable[[State], State]]:
    """The step of each device for itself, and what merges the running statistics.

    These have a first axis, of devices, in the state that the two functions take.
    """
    step = functools.partial(train_step, model=MLP(), learning_rate=learning_rate, axis_name=AXIS)

    def on_each(state, images, labels):
        own = jax.tree.map(lambda v: v[0], state.batch_stats)
        state, loss = step(state._replace(batch_stats=own), images, labels)
        return state._replace(batch_stats=jax.tree.map(lambda v: v[None], state.batch_stats)), loss

    def merge(state):
        own = jax.tree.map(lambda v: v[0], state.batch_stats)
        return state._replace(batch_stats=jbn.tools.average_stats(own, AXIS))

    shard_map = functools.partial(jax.shard_map, mesh=mesh)
    states = State(P(), P(AXIS), P())
    mapped = shard_map(on_each, in_specs=(states, P(AXIS), P(AXIS)), out_specs=(states, P()))
    return jax.jit(mapped), jax.jit(shard_map(merge, in_specs=(states,), out_specs=P()))


@jax.jit
def predict(state: State, images: jax.Array) -> Any:
    """Logits, with the running statistics: synchronized layers need no axis for that."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return MLP(AXIS).apply(variables, images, train=False)


def compare(steps: dict[str, Step], state: State, digits: data.Digits, batches: np.ndarray) -> None:
    """Prints how far the other ways are from the first after a few steps; leaves if too far.

    A few, for in the end a rounding error moves some activation across the zero of its ReLU, and from
    there two runs part in any case.
    """

    def numbers(step, state):
        losses = []
        for batch in batches:
            state, loss = step(state, digits.train_images[batch], digits.train_labels[batch])
            losses.append(loss)
        return jax.device_get([*losses, *jax.tree.leaves((state.params, state.batch_stats))])

    wanted, *others = (numbers(step, state) for step in steps.values())
    names = list(steps)
    print(f"losses, parameters and statistics of {len(batches)} steps, difference from {names[0]}:")
    for name, actual in zip(names[1:], others, strict=True):
        difference = max(np.max(np.abs(a - b)) for a, b in zip(actual, wanted, strict=True))
        print(f"{name:13}  {difference:.1e}")
        if not difference <= TOLERANCE:
            sys.exit(f"{name}: expected a difference of at most {TOLERANCE:g}, got {difference:g}")


def host_devices() -> list[Any]:
    """Eight devices on the host's processor; leaves with one line where there are fewer."""
    flags = os.environ.get("XLA_FLAGS", "")
    if COUNT_FLAG not in flags:
        # Read when JAX first looks for devices, not when it is imported.
        os.environ["XLA_FLAGS"] = f"{flags} {COUNT_FLAG}={DEVICES}"
    devices = jax.devices("cpu")
    if len(devices) < DEVICES:
        sys.exit(f"expected {DEVICES} devices, got {len(devices)}: leave {COUNT_FLAG} out of XLA_FLAGS")
    return devices[:DEVICES]


def main(argv: Sequence[str] | None = None) -> list[report.Run]:
    """Compares the ways, trains in all of them; returns the runs in the order of the table."""
    parser = report.flags(
        "Synchronized batch norm with jit, shard_map and pmap, and batch norm without synchronization.",
        batch_size=2,
        of_batch=f"images of a minibatch on each of {DEVICES} devices",
        learning_rate=0.01,
        of_rate="of SGD with momentum 0.9",
    )
    args, digits = report.parse(parser, argv, devices=DEVICES)
    devices, rate = host_devices(), args.learning_rate
    mesh = jax.make_mesh((DEVICES,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    batches = next(data.shuffled_epochs(len(digits.train_images), args.minibatch, 1, args.seed))
    with jax.default_device(devices[0]):
        start = create_state(digits.train_images, args.seed)
        alone = jax.jit(functools.partial(train_step, model=MLP(), learning_rate=rate))
        steps = {"one device": alone, **synchronized(mesh, rate)}
        steps = {name: one_at_a_time(step) for name, step in steps.items()}
        compare(steps, start, digits, batches[:COMPARED_STEPS])

        step, merge = unsynchronized(mesh, rate)
        each = jax.tree.map(lambda v: jnp.stack([v] * DEVICES), start.batch_stats)
        settings: list[Any] = [(name, step, start, predict) for name, step in steps.items()]
        last = one_at_a_time(step), start._replace(batch_stats=each), lambda s, x: predict(merge(s), x)
        settings.append(("unsynchronized", *last))
        runs = []
        with tqdm(total=len(settings) * args.epochs, unit="epoch") as bar:
            for name, step, state, logits in settings:
                _, run = report.record(name, rate, state, step, logits, digits, args, bar)
                runs.append(run)
    print(report.table(runs))
    shown = {"synchronized": runs[1], "unsynchronized": runs[-1]}
    size = f"{DEVICES} x {args.batch_size} images"
    drawn = [run._replace(name=f"{name}, {size}") for name, run in shown.items()]
    learning_curves.draw(drawn, args.out / "sync_batch_norm.png")
    return runs


if __name__ == "__main__":
    main()
