"""What the tests of commands share: types, the shape of an error, and nets that misbehave in a way that one line of Python says."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

Done = subprocess.CompletedProcess[str]
Command = Callable[..., Done]
Ask = Callable[..., Done]
Reported = Callable[..., dict[str, Any]]
Behaving = Callable[[str], str]
Write = Callable[[str], str]

PLAN = "pgd(steps=5)"

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

NET = """
import os, sys, time

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.calls = make(), 0

    def forward(self, x):
        self.calls += 1
        return out(self, x)

def model():
    return Net().eval()

NAN = float("nan")

def off(x):  # where somebody has changed the image: digits have the grey levels 0, 1/16, ..., 1
    return (x * 16 != (x * 16).round()).flatten(1).any(1, keepdim=True)

def out(self, x):
"""
"""After MEANS and with a body for `out`: a module whose forward pass is that body, `self.net` being the nearest-mean net."""


def one_line(done: Done, code: int, *hints: str) -> str:
    """The one line of an error; bounded, printable, and without what only a slip of ours would say."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr[:2000]
    assert done.stderr.startswith("rbench: ")
    assert done.stderr.endswith("\n")
    line = done.stderr[:-1]
    assert len(line) < 1500
    assert line.isprintable(), line
    assert "Traceback" not in line
    assert "RBENCH_DEBUG" not in line, line  # foreseen
    for hint in hints:
        assert hint in line, line
    return line


def statuses(found: dict[str, Any]) -> list[str]:
    return [row["status"] for row in found["verdicts"]]


def codes(found: dict[str, Any]) -> set[str]:
    return {warning["code"] for warning in found["warnings"]}
