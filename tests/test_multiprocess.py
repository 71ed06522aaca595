"""Two real processes train as one does, and none of them outlives its test, whatever fails."""

import importlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
LIMIT = 120
# At a larger rate it might show that a rounding error took one activation across the zero of its ReLU.
SMALL = ("--epochs", "2", "--batch-size", "256", "--learning-rate", "1e-3")


def environment(devices=1):
    """This process's, without its devices, a cluster it may run on, and proxies to reach itself by."""
    foreign = re.compile(r"SLURM|OMPI|KUBERNETES|JAX_|.*_proxy", re.IGNORECASE)
    kept = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    count = f"--xla_force_host_platform_device_count={devices}"
    return {**kept, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": count}


def pair(*flags):
    """The flags of two processes that meet at a free port of the loopback interface."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    both = ("--coordinator", address, "--processes", "2", "--process-id")
    return [(*flags, *both, index) for index in ("0", "1")]


class Example:
    """A running example, and what it has printed; `folder` is its --out."""

    def __init__(self, process, folder):
        self.process, self.folder = process, folder

    @property
    def printed(self):
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    @property
    def results(self):
        return json.loads((self.folder / "multiprocess.json").read_text(encoding="utf-8"))

    def end(self):
        self.process.kill()
        self.process.wait()


@contextmanager
def started(folder, *flags, devices=1):
    """Starts an example for each of `flags`; on leaving, all of them have ended."""
    with ExitStack() as stack:
        examples = []
        for index, own in enumerate(flags):
            out = folder / str(index)
            out.mkdir()
            log = stack.enter_context((out / "log").open("wb"))
            process = subprocess.Popen(
                [sys.executable, "examples/multiprocess.py", "--out", out, *own],
                cwd=ROOT,
                env=environment(devices),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            examples.append(Example(process, out))
            stack.callback(examples[-1].end)
        yield examples


def wait(examples, until=lambda example: example.process.poll() is not None, limit=LIMIT):
    """Waits until something holds for every example; fails, with what they printed, at the limit."""
    deadline = time.monotonic() + limit
    while not all(until(example) for example in examples):
        if time.monotonic() > deadline:
            pytest.fail(f"still waiting after {limit} s\n{printed(examples)}")
        time.sleep(0.1)


def printed(examples):
    return "\n".join(f"--- process {i}\n{example.printed}" for i, example in enumerate(examples))


def close(actual, wanted):
    """Equal to 1e-6, in nested dicts of numbers and lists."""
    if isinstance(wanted, dict):
        assert actual.keys() == wanted.keys()
        for name in wanted:
            close(actual[name], wanted[name])
    else:
        np.testing.assert_allclose(actual, wanted, rtol=1e-6, atol=1e-6)


def equal(examples):
    """The first example, alone, and the first of the others, together, agree."""
    wait(examples)
    codes = [example.process.returncode for example in examples]
    assert codes == [0] * len(examples), printed(examples)
    alone, together = (example.results for example in examples[:2])
    for name in ("losses", "accuracy", "params", "batch_stats"):
        close(together[name], alone[name])
    assert not (examples[2].folder / "multiprocess.json").exists()
    assert np.ptp(together["losses"]) > 0.01
    return alone, together


def test_two_processes_equal_one(tmp_path):
    with started(tmp_path, SMALL, *pair(*SMALL)) as examples:
        alone, together = equal(examples)
    assert [alone["processes"], together["processes"], together["devices"]] == [1, 2, 2]
    # What is printed for the eye to compare.
    first, second = (re.findall(r"process \d of 2: (.*\d)", e.printed) for e in examples[1:])
    assert len(first) == 2 and first == second
    loss = float(first[0].split()[1].rstrip(","))
    assert loss == pytest.approx(alone["losses"][-1], abs=2e-6)


@pytest.mark.slow
def test_two_processes_of_two_devices_equal_one(tmp_path):
    with started(tmp_path, SMALL, *pair(*SMALL), devices=2) as examples:
        assert equal(examples)[1]["devices"] == 4


def test_a_peer_that_never_comes(tmp_path):
    waiting, failing = pair(*SMALL, "--timeout", "5")
    with started(tmp_path, waiting, (*failing, "--epochs", "none")) as examples:
        wait(examples)
    assert examples[1].process.returncode == 2
    last = examples[1].printed.splitlines()[-1]
    assert last.endswith("argument --epochs: must be a whole number, at least 1, got none")
    assert examples[0].process.returncode != 0
    assert "DEADLINE_EXCEEDED" in examples[0].printed


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_peer_lost_on_the_way(tmp_path, lost):
    with started(tmp_path, *pair("--epochs", "100000", "--timeout", "5")) as examples:
        wait(examples[:1], lambda example: "| 2/100000" in example.printed)
        examples[lost].end()
        wait(examples, limit=60)
    assert examples[1 - lost].process.returncode not in (0, None)


def test_batch_that_the_devices_cannot_share(tmp_path):
    with started(tmp_path, ("--batch-size", "33"), devices=2) as examples:
        wait(examples)
    message = "--batch-size: must be a multiple of 2, the number of devices, got 33"
    assert examples[0].process.returncode == 2
    assert examples[0].printed.splitlines()[-1].endswith(message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--processes", "2"], "--coordinator, --processes and --process-id: must be given together"),
        (
            ["--coordinator", "here", "--processes", "2", "--process-id", "0"],
            "argument --coordinator: must be HOST:PORT, got here",
        ),
        (
            ["--coordinator", "here:70000", "--processes", "2", "--process-id", "0"],
            "argument --coordinator: must be HOST:PORT, got here:70000",
        ),
        (
            ["--coordinator", "here:7000", "--processes", "2", "--process-id", "2"],
            "argument --process-id: must be from 0 to 1, got 2",
        ),
        (["--processes", "0"], "argument --processes: must be a whole number, at least 1, got 0"),
        (["--timeout", "0"], "argument --timeout: must be a whole number, at least 1, got 0"),
    ],
)
def test_wrong_flags_give_one_line(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "examples")
    with pytest.raises(SystemExit) as exit_info:
        importlib.import_module("multiprocess").main([*flags, "--out", str(tmp_path)])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {message}")


def test_a_port_that_is_taken_gives_one_line(tmp_path, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        flags = ["--coordinator", address, "--processes", "2", "--process-id", "0"]
        message = f"argument --coordinator: cannot listen at {address}: Address already in use"
        test_wrong_flags_give_one_line(flags, message, tmp_path, monkeypatch, capsys)
