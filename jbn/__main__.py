"""The command line: `python -m jbn report CHECKPOINT`."""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> None:
    """Does what the arguments say; a failure is one line on stderr and an exit status that is not 0."""
    parser = argparse.ArgumentParser(prog="python -m jbn", description="Batch normalization for JAX.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "report",
        help="a table of the batch norm layers in a checkpoint",
        description="A table of the batch norm layers in a checkpoint, and what is wrong with them. "
        "Its columns are explained at jbn.tools.report.",
    )
    add = command.add_argument
    add("checkpoint", type=Path, help="file of Flax's msgpack or NumPy's npz, or directory of Orbax")
    add("--data-stats", type=Path, metavar="CHECKPOINT", help="of statistics of data, to compare with")
    add("--picture", type=Path, metavar="FILE", help="draw histograms of scale, means and deviations")
    add("--epsilon", type=float, default=1e-5, help="of the layers (default: %(default)s)")
    add("--dead", type=float, default=1e-3, help="bound of |scale| (default: %(default)s)")
    add("--drift", type=float, default=0.5, help="deviations that are a finding (default: %(default)s)")
    args = parser.parse_args(argv)

    from jbn import tools
    from jbn.tools.inspection.checkpoint import read_checkpoint

    with failing_in_a_line(args.checkpoint):
        variables = read_checkpoint(args.checkpoint)
    data_stats = None
    if args.data_stats is not None:
        with failing_in_a_line(args.data_stats):
            data_stats = read_checkpoint(args.data_stats)
    with failing_in_a_line(args.checkpoint):
        limits = {"epsilon": args.epsilon, "dead": args.dead, "drift": args.drift}
        report = tools.report(variables, data_stats, **limits)
        print(f"{args.checkpoint}\n\n{report}")
    if args.picture is not None:
        with failing_in_a_line(args.picture):
            report.picture(args.picture)


@contextlib.contextmanager
def failing_in_a_line(path: Path) -> Iterator[None]:
    """Ends the program with one line on stderr, where something is wrong with this file."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        reason = getattr(error, "strerror", None) or error
        sys.exit(f"jbn report: {path}: {reason}")


if __name__ == "__main__":
    # Where one of Orbax's reads fails, each other one that was under way adds a traceback of its own.
    sys.unraisablehook = lambda _: None
    main()
