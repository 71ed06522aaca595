"""`python -m benchmarks [command] [arguments]`: one or all of them; --list prints their names."""

import importlib
import os
import subprocess
import sys

BENCHMARKS = ("numerics", "exactness", "layer", "train_step", "compile_time", "memory", "devices")
APART = ("programs",)  # in environments of their own: only by name
HOST_DEVICES = {"devices": 8}


def main(argv: list[str] | None = None) -> None:
    """Runs the command that the first argument names, all that need no other environment without one.

    Args:
        argv: the command line without the program; whatever follows the name is passed on.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv == ["--list"]:
        print(*BENCHMARKS, *APART, sep="\n")
    elif not argv or argv[0].startswith("-"):
        for name in BENCHMARKS:
            # Each in a process of its own: JAX can be set up once only, and no command's threads
            # and compiled programs are to weigh on the times of another.
            subprocess.run([sys.executable, "-m", "benchmarks", name, *argv], check=True)
    elif argv[0] in BENCHMARKS + APART:
        run(*argv)
    else:
        sys.exit(f"no benchmark {argv[0]!r}; there are: {', '.join(BENCHMARKS + APART)}")


def run(name: str, *argv: str) -> None:
    """One command in this process; JAX is imported only here, after the devices are chosen."""
    if name in HOST_DEVICES:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        flag, flags = "--xla_force_host_platform_device_count", os.environ.get("XLA_FLAGS", "")
        if flag not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} {flag}={HOST_DEVICES[name]}".strip()
    importlib.import_module(f"benchmarks.{name}").main(list(argv))


if __name__ == "__main__":
    main()
