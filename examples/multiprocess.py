"""Training by several processes, each with its part of every minibatch.

Two processes on one computer: one command in each of two terminals.

    python examples/multiprocess.py --coordinator 127.0.0.1:12345 --processes 2 --process-id 0
    python examples/multiprocess.py --coordinator 127.0.0.1:12345 --processes 2 --process-id 1

On several computers the coordinator is the address of process 0, and a port free there. A cluster says
all this in the environment of its processes, where `jax.distributed.initialize` reads it:

    srun --ntasks 4 python examples/multiprocess.py        Slurm; likewise mpirun of Open MPI
    python examples/multiprocess.py                        on every worker of a Cloud TPU

Without flags and without a cluster it is one process with the whole minibatch:

    python examples/multiprocess.py

All of them have the same losses and running statistics, at first to the rounding of float32; after
hundreds of steps to fewer digits, for then a rounding error has moved the first activation across the
zero of its ReLU. The network and its step are those of `sync_batch_norm.py`, without an `axis_name`:
under `jax.jit` a minibatch is one array wherever its parts lie, and its statistics are of all of it.
"""

from shared import flags

parser = flags.parser(
    "Training by several processes, each with its part of every minibatch.",
    of_batch="images in a minibatch, a multiple of the number of devices",
    learning_rate=0.01,
    of_rate="of SGD with momentum 0.9",
)
parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
parser.add_argument("--processes", type=flags.whole(1), help="number of processes")
parser.add_argument("--process-id", type=flags.whole(0), help="which of them this is, from 0")
parser.add_argument(
    "--timeout",
    type=flags.whole(1),
    default=60,
    help="seconds without a word from the other processes before this one ends too, at first and later "
    "(default: %(default)s)",
)
if __name__ == "__main__":
    parser.parse_args()  # before the imports that take seconds, so that --help does not

import argparse
import functools
import json
import socket
from collections.abc import Sequence

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

import jbn
from models.linen_mlp import MLP
from shared import data, runs, training

sgd = functools.partial(optax.sgd, momentum=0.9)
network = training.Linen(MLP(functools.partial(jbn.linen.BatchNorm, momentum=0.9)))


def check_flags(args: argparse.Namespace) -> None:
    """Leaves with one line where the flags that take the place of a cluster do not fit together."""
    given = [flag is not None for flag in (args.coordinator, args.processes, args.process_id)]
    if any(given) and not all(given):
        parser.error("--coordinator, --processes and --process-id: must be given together")
    if not any(given):
        return
    host, _, port = args.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        parser.error(f"argument --coordinator: must be HOST:PORT, got {args.coordinator}")
    if args.process_id >= args.processes:
        parser.error(
            f"argument --process-id: must be from 0 to {args.processes - 1}, got {args.process_id}"
        )
    if args.process_id == 0:
        # Where JAX itself finds the port taken it may crash.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            with socket.socket(family) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind((host.strip("[]"), int(port)))
        except OSError as error:
            parser.error(
                f"argument --coordinator: cannot listen at {args.coordinator}: {error.strerror}"
            )


def connect(args: argparse.Namespace) -> None:
    """Makes this process one of those that the flags or a cluster's environment speak of, if any.

    On a CPU the processes then speak to each other by Gloo, JAX's default there. A process whose
    others do not come, or are lost later, is ended by JAX after `--timeout` seconds.
    """
    limits = {
        "initialization_timeout": args.timeout,
        "heartbeat_timeout_seconds": args.timeout,
        "shutdown_timeout_seconds": args.timeout,
    }
    if args.coordinator is not None:
        # JAX's default is to listen on every network that the computer is part of.
        limits["coordinator_bind_address"] = args.coordinator
    try:
        jax.distributed.initialize(args.coordinator, args.processes, args.process_id, **limits)
    except ValueError as error:
        # The answer where there are no flags and no known cluster.
        if args.coordinator is not None or "coordinator_address" not in str(error):
            raise


def train(args: argparse.Namespace, digits: data.Digits) -> tuple[training.State, runs.Run]:
    """Trains on the minibatches of which each process holds a part; the state is on all of them."""
    index, processes = jax.process_index(), jax.process_count()
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(AxisType.Auto,))
    whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("batch"))
    state = training.create_state(network, digits.train_images, args.seed, sgd)
    state = jax.tree.map(lambda v: jax.make_array_from_process_local_data(whole, np.asarray(v)), state)
    options = {"network": network, "learning_rate": args.learning_rate, "optimizer": sgd}
    compiled = jax.jit(functools.partial(training.train_step, **options), out_shardings=whole)

    def step(state, *minibatch):
        # Every process has all digits here; with more data it would read no more than its part.
        parts = (np.split(array, processes)[index] for array in minibatch)
        arrays = (jax.make_array_from_process_local_data(rows, part) for part in parts)
        # On a CPU, with more devices than cores, steps in flight can block one another.
        return jax.block_until_ready(compiled(state, *arrays))

    def predict(state, images):
        # All of it is here: no other process is needed.
        return training.predict(jax.device_get(state), images, network=network)

    with tqdm(total=args.epochs, unit="epoch", disable=index > 0) as bar:
        state, run = runs.record(state, step, predict, digits, args, bar, seed=args.seed)
    return jax.device_get(state), run


def main(argv: Sequence[str] | None = None) -> runs.Run:
    """Trains, prints what the processes must agree on, and writes it from process 0."""
    args, digits = data.start(parser, argv)
    check_flags(args)
    connect(args)
    devices, index, processes = jax.device_count(), jax.process_index(), jax.process_count()
    if args.batch_size % devices:
        parser.error(
            f"argument --batch-size: must be a multiple of {devices}, the number of devices, "
            f"got {args.batch_size}"
        )
    state, run = train(args, digits)
    digest = ", ".join(
        f"{layer} {name} {np.mean(value):.6f}"
        for layer, stats in state.batch_stats.items()
        for name, value in stats.items()
    )
    name = f"process {index} of {processes}"
    print(f"{name}: loss {run.train_loss[-1]:.6f}, test accuracy {run.test_accuracy[-1]:.1%}")
    print(f"{name}: running statistics on average: {digest}")
    if index == 0:
        results = {
            "processes": processes,
            "devices": devices,
            "losses": run.train_loss,
            "accuracy": run.test_accuracy[-1],
            "params": state.params,
            "batch_stats": state.batch_stats,
        }
        path = args.out / "multiprocess.json"
        path.write_text(json.dumps(results, default=np.ndarray.tolist), encoding="utf-8")
        print(f"{path}: losses, accuracy, parameters and running statistics")
    return run


if __name__ == "__main__":
    main()
