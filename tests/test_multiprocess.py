"""Two real processes train as one does, and none of them outlives its test, whatever fails."""

import argparse
import functools
import json
import os
import re
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import jax
import numpy as np
import pytest
from tqdm import tqdm

from gallery import ROOT, close, example

LIMIT = 120
# At a larger rate it might show that a rounding error took one activation across the zero of its ReLU.
SMALL = {"epochs": 2, "batch_size": 256, "learning_rate": 1e-3}


def environment(devices):
    """This process's, without its devices, a cluster it may run on, and proxies to reach itself by."""
    foreign = re.compile(r"SLURM|OMPI|KUBERNETES|JAX_|.*_proxy", re.IGNORECASE)
    kept = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    count = f"--xla_force_host_platform_device_count={devices}"
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    return {**kept, **quick, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": count}


@contextmanager
def pair(folder, *flags, devices=1):
    """Starts two processes that meet at a free port; on leaving, both have ended.

    Args:
        folder: gets a folder for each, their --out, with what they print as `log`.
        flags: of each process.
        devices: of each process.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    with ExitStack() as stack:
        processes = []
        for index, own in enumerate(flags):
            (folder / str(index)).mkdir()
            log = stack.enter_context((folder / str(index) / "log").open("wb"))
            command = [sys.executable, "examples/multiprocess.py", *small, "--coordinator", address]
            command += ["--processes", "2", "--process-id", str(index), "--out", folder / str(index)]
            options = {"cwd": ROOT, "env": environment(devices), "stdin": subprocess.DEVNULL}
            process = subprocess.Popen([*command, *own], stdout=log, stderr=log, **options)
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        yield processes


def printed(folder):
    return [(folder / i / "log").read_text(encoding="utf-8", errors="replace") for i in "01"]


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_processes_train_as_one(devices, tmp_path, standard_promotion):
    with pair(tmp_path, [], [], devices=devices) as processes:
        multiprocess, training = example("multiprocess"), example("shared.training")
        digits, network = multiprocess.data.load(), multiprocess.network
        options = {"network": network, "learning_rate": SMALL["learning_rate"]}
        step = functools.partial(training.train_step, **options, optimizer=multiprocess.sgd)
        predict = functools.partial(training.predict, network=network)
        state = training.create_state(network, digits.train_images, 0, multiprocess.sgd)
        arguments = digits, argparse.Namespace(**SMALL), tqdm(disable=True)
        state, run = example("shared.runs").record(state, step, predict, *arguments, seed=0)
        assert [process.wait(LIMIT) for process in processes] == [0, 0], printed(tmp_path)
    results = json.loads((tmp_path / "0" / "multiprocess.json").read_text(encoding="utf-8"))
    assert [results["processes"], results["devices"]] == [2, 2 * devices]
    alone = {"losses": run.train_loss, "params": state.params, "batch_stats": state.batch_stats}
    is_list = {"is_leaf": lambda v: isinstance(v, list)}
    for name, expected in alone.items():
        together = jax.tree.map(np.asarray, results[name], **is_list)
        close(together, jax.tree.map(np.asarray, expected, **is_list), rtol=1e-6, atol=1e-6)
    assert results["accuracy"] == run.test_accuracy[-1]
    assert np.ptp(results["losses"]) > 0.01
    # Process 1 writes nothing, and what both print for the eye to compare is the same.
    assert not (tmp_path / "1" / "multiprocess.json").exists()
    first, second = (re.findall(r"process \d of 2: (.*\d)", text) for text in printed(tmp_path))
    assert len(first) == 2 and first == second


@pytest.mark.slow
def test_a_peer_that_never_comes(tmp_path):
    with pair(tmp_path, ["--timeout", "5"], ["--epochs", "none"]) as processes:
        waiting, failing = (process.wait(LIMIT) for process in processes)
    assert failing == 2 and waiting != 0
    assert "DEADLINE_EXCEEDED" in printed(tmp_path)[0]


def test_wrong_flags_give_one_line(capsys):
    multiprocess = example("multiprocess")
    both = ["--processes", "2", "--process-id", "0"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"127.0.0.1:{server.getsockname()[1]}"
        wrong = {
            ("--processes", "2"): "--coordinator, --processes and --process-id: must be given together",
            ("--coordinator", "here", *both): "argument --coordinator: must be HOST:PORT, got here",
            ("--coordinator", "here:7", *both[:3], "2"): "--process-id: must be from 0 to 1, got 2",
            ("--coordinator", taken, *both): f"cannot listen at {taken}: Address already in use",
        }
        for flags, message in wrong.items():
            with pytest.raises(SystemExit, match="2"):
                multiprocess.check_flags(multiprocess.parser.parse_args(flags))
            assert capsys.readouterr().err.splitlines()[-1].endswith(message)
