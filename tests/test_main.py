"""`python -m jbn report`: what it prints, and one line on stderr where it fails."""

import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization

import jbn
from jbn.__main__ import main

PARAMS, STATS = jbn.init(3)
VARIABLES = {"params": {"norm": PARAMS}, "batch_stats": {"norm": STATS}}


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "a.msgpack").write_bytes(serialization.to_bytes(VARIABLES))
    return tmp_path / "a.msgpack"


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def fails(capsys, *arguments):
    """The one line that the program ends with."""
    with pytest.raises(SystemExit) as ended:
        main(["report", *map(str, arguments)])
    assert capsys.readouterr().err == "" and "\n" not in ended.value.code
    assert ended.value.code.startswith("jbn report: ")
    return ended.value.code.removeprefix("jbn report: ")


def test_as_a_program(checkpoint):
    done = python("-m", "jbn", "report", str(checkpoint))
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == f"{checkpoint}\n\n{jbn.tools.report(VARIABLES)}\n"


def test_a_failure_of_the_program_has_no_traceback(tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", VARIABLES)
    for file in tmp_path.rglob("d/*"):
        file.write_bytes(b"")
    done = python("-m", "jbn", "report", str(tmp_path / "a"))
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"jbn report: {tmp_path / 'a'}: no checkpoint that can be read, of ")
    assert len(line) < 300 + len(str(tmp_path))


@pytest.mark.slow
def test_help_imports_no_more_than_jbn_does():
    lines = python("-X", "importtime", "-m", "jbn", "report", "--help")
    assert "--data-stats" in lines.stdout and "(default: 0.001)" in lines.stdout
    imported = {line.rpartition("|")[2].strip() for line in lines.stderr.splitlines()}
    assert "argparse" in imported and not imported & {"orbax.checkpoint", "matplotlib"}


def test_against_data_with_a_picture(checkpoint, tmp_path, capsys):
    np.savez(tmp_path / "data.npz", **{"norm/mean": np.ones(3), "norm/var": np.ones(3)})
    options = ["--data-stats", str(tmp_path / "data.npz"), "--picture", str(tmp_path / "a.png")]
    main(["report", str(checkpoint), *options, "--dead", "2", "--epsilon", "3"])
    row = capsys.readouterr().out.splitlines()[3].split()
    assert row == ["norm", "3", "3", "3", "0", "3", "0.5", "1", "to", "1", "50.0%"]
    assert (tmp_path / "a.png").is_file()


class TestFailures:
    def test_missing(self, tmp_path, capsys):
        assert fails(capsys, tmp_path / "a") == f"{tmp_path / 'a'}: No such file or directory"

    def test_truncated(self, checkpoint, capsys):
        checkpoint.write_bytes(checkpoint.read_bytes()[:-7])
        line = fails(capsys, checkpoint)
        assert line.startswith(f"{checkpoint}: no checkpoint that can be read, of Flax's msgpack, ")
        assert line.endswith(": Unpack failed: incomplete input")

    def test_no_batch_norm(self, tmp_path, capsys):
        np.savez(tmp_path / "a.npz", **{"params/dense/bias": np.ones(3)})
        assert fails(capsys, tmp_path / "a.npz").startswith(f"{tmp_path}/a.npz: no batch norm found: ")

    def test_data_of_another_model(self, checkpoint, tmp_path, capsys):
        np.savez(tmp_path / "a.npz", **{"other/mean": np.ones(3), "other/var": np.ones(3)})
        line = fails(capsys, checkpoint, "--data-stats", tmp_path / "a.npz")
        assert line.endswith("`data_stats` must have layers of `variables`, norm; got other")
        line = fails(capsys, checkpoint, "--data-stats", tmp_path / "none")
        assert line == f"{tmp_path / 'none'}: No such file or directory"

    def test_no_directory(self, tmp_path, capsys):
        assert "a directory without the _METADATA of Orbax" in fails(capsys, tmp_path)

    @pytest.mark.parametrize("name", ["none/a.png", "a.doc"])
    def test_picture(self, name, checkpoint, tmp_path, capsys):
        line = fails(capsys, checkpoint, "--picture", tmp_path / name)
        assert line.startswith(f"{tmp_path / name}: ")

    def test_no_command(self, capsys):
        with pytest.raises(SystemExit, match="2"):
            main([])
        assert capsys.readouterr().err.splitlines()[-1].endswith("arguments are required: COMMAND")
