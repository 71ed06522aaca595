"""`python -m benchmarks [name] [arguments]`: one benchmark, or all of them; --list prints the names."""

import sys

from benchmarks import numerics

BENCHMARKS = {"numerics": numerics.main}


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark that the first argument names, all where it names none.

    Args:
        argv: the command line without the program; whatever follows the name is passed on.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv == ["--list"]:
        print(*BENCHMARKS, sep="\n")
        return
    names = list(BENCHMARKS)
    if argv and not argv[0].startswith("-"):
        names, argv = argv[:1], argv[1:]
    if names[0] not in BENCHMARKS:
        sys.exit(f"no benchmark {names[0]!r}; there are: {', '.join(BENCHMARKS)}")
    for name in names:
        BENCHMARKS[name](argv)


if __name__ == "__main__":
    main()
