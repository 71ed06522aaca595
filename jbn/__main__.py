"""The command line: `python -m jbn report CHECKPOINT`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the arguments say; a failure is one line on stderr and an exit status that is not 0."""
    parser = argparse.ArgumentParser(prog="jbn", description="Batch normalization for JAX.")
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

    try:
        variables, data_stats = (
            None if path is None else read_checkpoint(path)
            for path in (args.checkpoint, args.data_stats)
        )
        options = {"epsilon": args.epsilon, "dead": args.dead, "drift": args.drift}
        report = tools.report(variables, data_stats, **options)
        print(f"{args.checkpoint}\n\n{report}")
        if args.picture is not None:
            report.picture(args.picture)
    except (OSError, ValueError, ImportError) as error:
        print(f"jbn report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
