"""Models of a few lines as files, the way a user brings them, and processes that may be killed."""

from __future__ import annotations

import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from end_to_end.children import Nursery
from rbench.cli.app import main

MEANS = """
import torch
from torch import nn
from rbench.data import load

def make():
    data = load("digits", split="train")
    means = torch.stack([data.x[data.y == c].mean(0).flatten() for c in range(10)])
    layer = nn.Linear(64, 10)
    with torch.no_grad():
        layer.weight.copy_(8 * means)
        layer.bias.copy_(-4 * means.square().sum(1))
    return nn.Sequential(nn.Flatten(), layer).eval()
"""
"""A net without training: logits 8·(x·m − |m|²/2) for the mean m of each class, which is the nearest mean. About 91 % right on digits."""

Write = Callable[[str], str]


@pytest.fixture(scope="session")
def means(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`FILE.py:make` of the nearest-mean net."""
    path = tmp_path_factory.mktemp("models") / "means.py"
    path.write_text(MEANS)
    return f"{path}:make"


@pytest.fixture
def model_file(tmp_path: Path) -> Write:
    """Writes a file of a model: MEANS, then the text given; returns `FILE.py:model`, which the text must define."""

    def write(text: str) -> str:
        path = tmp_path / "net.py"
        path.write_text(MEANS + textwrap.dedent(text))
        return f"{path}:model"

    return write


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    children = Nursery()
    yield children
    children.close()


Done = subprocess.CompletedProcess[str]
Command = Callable[..., Done]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """`rbench ARGS` in this process: the function behind the installed script, with file descriptors captured."""

    def call(*args: object) -> Done:
        capfd.readouterr()
        code = main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        return Done(["rbench", *map(str, args)], code, out, err)

    return call
