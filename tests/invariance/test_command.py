"""`rbench run` on stored candidates: found under --data, whole, and one line where they are nowhere."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from command import rbench


def test_a_released_set_under_data(data_folder: Path, tmp_path: Path) -> None:
    if not (data_folder / "invariance").is_dir():
        pytest.skip("no folder invariance under RBENCH_DATA")
    words = ("run", "--model", "mnist-standard", "--threat", "invariance-linf-0.3", "--data", str(data_folder), "--json")
    done = rbench(*words, "--results", str(tmp_path / "results"), RBENCH_DATA="", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["n"], found["objective"], found["robust"]["n"]) == (100, "invariance", 21)
    assert found["invariance"]["agreement"]["count"] == round(21 * found["robust"]["accuracy"])
    assert len(found["verdicts"]) == 100  # candidates that people still call what they were carry verdicts too
    assert not (tmp_path / "cache").exists()
    assert (tmp_path / "results" / "site" / "tradeoff.html").is_file()
    done = rbench(*words, "--n", "5", "--results", str(tmp_path / "results"))
    assert done.returncode == 2
    assert done.stderr.startswith("rbench: n=5 with threat invariance-linf-0.3; expected no n: it brings its own 100 examples")


def test_nowhere_and_offline(tmp_path: Path) -> None:
    """A proxy that is not there stands for a network that is not there."""
    started = time.monotonic()
    nothing = {"RBENCH_DATA": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "https_proxy": "http://127.0.0.1:1"}
    done = rbench("run", "--model", "mnist-standard", "--threat", "invariance-l0", "--results", str(tmp_path / "results"), **nothing)
    assert time.monotonic() - started < 30
    assert done.returncode == 1
    assert done.stderr.startswith("rbench: invariance(l0): l0.npz is not in ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()
