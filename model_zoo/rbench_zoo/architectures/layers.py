"""A net from a table of layers: data, so that a card can carry it and a digest can be taken of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

# how many numbers may follow the word
KINDS = {"conv": (2, 4), "linear": (1, 1), "maxpool": (1, 1), **dict.fromkeys(("batchnorm", "relu", "elu", "flatten"), (0, 0))}
FORMS = '["conv", out, kernel, stride=1, padding=0], ["linear", out], ["maxpool", side], ["batchnorm"], ["relu"], ["elu"] or ["flatten"]'


class Layers(nn.Sequential):
    """Layers one after another, on images of `shape` (C, H, W) in [0, 1], to logits (rows, classes).

    A row of the table is ["conv", out, kernel, stride, padding], ["linear", out], both with bias, ["maxpool", side] (its own stride),
    ["batchnorm"] (on channels, eps 1e-5), ["relu"], ["elu"] or ["flatten"] (channel, row, column order); what goes in is worked out.
    State-dict keys are the row numbers ("0.weight", …), as in a plain nn.Sequential; `names` gives rows other keys: {"0": "conv1"}.
    `table` is the net with every number filled in: equal tables are equal functions of the weights.
    """

    def __init__(self, layers: Sequence[Sequence[str | int]], shape: Sequence[int], names: Mapping[str, str] | None = None) -> None:
        size = tuple(_positive(number, "shape") for number in shape)
        if len(size) != 3:
            raise ValueError(f"shape = {list(shape)}; expected [channels, height, width]")
        modules, table = [], []
        for i, row in enumerate(layers):
            module, full, size = _layer(i, row, size)
            modules.append(module)
            table.append(full)
        if len(size) != 1:
            raise ValueError(f"the table ends with {size} numbers per image; expected one row of logits, so end with flatten or linear")
        super().__init__()
        for name, module in zip(_keys(len(modules), names or {}), modules, strict=True):
            self.add_module(name, module)
        self.shape, self.classes, self.table = tuple(shape), size[0], table


class Normalise(nn.Module):
    """(x - mean) / std per channel: the input layer of a net whose card says so."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Float[Tensor, "rows c h w"]) -> Float[Tensor, "rows c h w"]:
        return (x - self.mean) / self.std


def _keys(count: int, names: Mapping[str, str]) -> list[str]:
    """The state-dict key of every row. Raises ValueError for a row that is not there and for keys that clash."""
    keys = {str(i): str(i) for i in range(count)}
    if unknown := sorted(names.keys() - keys.keys()):
        raise ValueError(f"names has {unknown[0]!r}; expected row numbers from 0 to {count - 1}")
    found = [str(name) for name in {**keys, **names}.values()]
    if len(set(found)) < count or not all(name and "." not in name for name in found):
        raise ValueError(f"names = {dict(names)}; expected different words without dots")
    return found


def _layer(i: int, row: Sequence[str | int], size: tuple[int, ...]) -> tuple[nn.Module, list[Any], tuple[int, ...]]:
    """Row i as a module, the row with every number filled in, and the size of what comes out. Raises ValueError."""
    kind, numbers = (str(row[0]), list(row[1:])) if row else ("", [])
    low, high = KINDS.get(kind, (1, 0))
    if not low <= len(numbers) <= high or any(type(number) is not int for number in numbers):
        raise ValueError(f"layer {i} is {list(row)}; expected {FORMS}")
    counts = [int(number) for number in numbers]
    if kind == "conv":
        return _conv(i, counts, size)
    if kind == "linear":
        return _linear(i, counts[0], size)
    if kind in ("maxpool", "batchnorm"):
        return _on_image(i, kind, counts, size)
    if kind == "flatten":
        return nn.Flatten(), ["flatten"], (_product(size),)
    return nn.ReLU() if kind == "relu" else nn.ELU(), [kind], size


def _conv(i: int, counts: list[int], size: tuple[int, ...]) -> tuple[nn.Module, list[Any], tuple[int, ...]]:
    out, kernel, stride, padding = [*counts, *(1, 0)[len(counts) - 2 :]]
    if len(size) != 3 or min(out, kernel, stride) < 1 or padding < 0:
        raise ValueError(f"layer {i}, conv {counts}, on {size}; expected channels, kernel and stride from 1 on, on an image")
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in size[1:])
    if min(height, width) < 1:
        raise ValueError(f"layer {i}: a kernel of {kernel} does not fit on {size[1]}×{size[2]} with padding {padding}")
    module = nn.Conv2d(size[0], out, kernel, stride, padding)
    return module, ["conv", size[0], out, kernel, stride, padding], (out, height, width)


def _linear(i: int, out: int, size: tuple[int, ...]) -> tuple[nn.Module, list[Any], tuple[int, ...]]:
    if len(size) != 1 or out < 1:
        raise ValueError(f"layer {i}, linear {out}, on {size}; expected a flat input (put flatten before it) and an output from 1 on")
    return nn.Linear(size[0], out), ["linear", size[0], out], (out,)


def _on_image(i: int, kind: str, counts: list[int], size: tuple[int, ...]) -> tuple[nn.Module, list[Any], tuple[int, ...]]:
    """Max pooling with its side as stride, or batch norm: both need channels, rows and columns."""
    if len(size) != 3:
        raise ValueError(f"layer {i}, {kind}, on {size}; expected an image, so put it before flatten")
    if kind == "batchnorm":
        return nn.BatchNorm2d(size[0]), ["batchnorm", size[0]], size
    side = counts[0]
    if not 1 <= side <= min(size[1:]):
        raise ValueError(f"layer {i}: a pool of {side} does not fit on {size[1]}×{size[2]}")
    return nn.MaxPool2d(side), ["maxpool", side], (size[0], size[1] // side, size[2] // side)


def _product(size: tuple[int, ...]) -> int:
    total = 1
    for side in size:
        total *= side
    return total


def _positive(number: object, what: str) -> int:
    if type(number) is not int or number < 1:
        raise ValueError(f"{what} holds {number!r}; expected whole numbers from 1 on")
    return number
