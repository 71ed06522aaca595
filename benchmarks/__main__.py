"""`python -m benchmarks [name] [arguments]`: one benchmark, or all of them; --list prints the names."""

import importlib
import os
import subprocess
import sys

BENCHMARKS = (
    "numerics",
    "exactness",
    "layer",
    "devices",
    "train_step",
    "compile_time",
    "memory",
    "programs",
)
HOST_DEVICES = {"devices": 8}


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark that the first argument names, all where it names none.

    Args:
        argv: the command line without the program; whatever follows the name is passed on.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv == ["--list"]:
        print(*BENCHMARKS, sep="\n")
    elif not argv or argv[0].startswith("-"):
        for name in BENCHMARKS:
            # Each in a process of its own: JAX can be set up once only, and no benchmark's threads
            # and compiled programs are to weigh on the times of another.
            subprocess.run([sys.executable, "-m", "benchmarks", name, *argv], check=True)
    elif argv[0] in BENCHMARKS:
        run(*argv)
    else:
        sys.exit(f"no benchmark {argv[0]!r}; there are: {', '.join(BENCHMARKS)}")


def run(name: str, *argv: str) -> None:
    """One benchmark in this process; JAX is imported only here, after the devices are chosen."""
    if name in HOST_DEVICES:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        flag, flags = "--xla_force_host_platform_device_count", os.environ.get("XLA_FLAGS", "")
        if flag not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} {flag}={HOST_DEVICES[name]}".strip()
    importlib.import_module(f"benchmarks.{name}").main(list(argv))


if __name__ == "__main__":
    main()
