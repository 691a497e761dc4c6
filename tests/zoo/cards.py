"""Cards for tests: the text of a small one with its weights, written into a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from rbench_core.catalogue import read_toml
from rbench_zoo.architectures import SmallCNN
from rbench_zoo.card import Card, parse

CARD = """
schema = 1
name = "{name}"
title = "A small net"
dataset = "digits"
parameters = {parameters}
[architecture]
factory = "rbench_zoo.architectures:SmallCNN"
channels = [2, 3]
hidden = 5
input = "0..1"
[weights]
file = "{file}"
sha256 = "{sha256}"
[training]
recipe = "linf-at"
seed = 0
[source]
paper = "arXiv:1706.06083"
reported = [{{ threat = "linf(eps=0.3)", attack = "PGD-40", robust_accuracy = 0.5, n = 10000, where = "Table 1" }}]
"""


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """The weights of a small net, drawn by a seed."""
    draw = torch.Generator().manual_seed(seed)
    return {key: torch.randn(value.shape, generator=draw) / 4 for key, value in SmallCNN((2, 3), 5).state_dict().items()}


def write_weights(path: Path, values: dict[str, Tensor]) -> str:
    """Save the tensors; returns the file's SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = safetensors.torch.save(values)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def write_card(folder: Path, name: str = "small", seed: int = 0, changes: dict[str, str] | None = None) -> Path:
    """A card `NAME.toml` with its weights beside it; `changes` replace texts of the card."""
    values = tensors(seed)
    sha256 = write_weights(folder / f"{name}.safetensors", values)
    text = CARD.format(name=name, file=f"{name}.safetensors", sha256=sha256, parameters=sum(value.numel() for value in values.values()))
    for old, new in (changes or {}).items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def read_card(path: Path) -> Card:
    return parse(read_toml(path), path)
