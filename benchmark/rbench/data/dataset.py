"""A slice of a data set as tensors, the digest of the whole it was cut from, and the checks of what a user hands over."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from rbench.data.readers import Raw
from rbench_core.errors import UsageError
from rbench_core.files import canonical_json


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """The first n images of a split, in its fixed order, with labels.

    x (n, C, H, W) in [0, 1]. `size` counts the whole split here and `digest` is the SHA-256 of its content, whatever the slice, so that
    slices share their verdicts; names do not enter it. `note` says what is missing or special. With `open_classes` the names are
    only as many as the labels show: a model may have more classes. `of`: the data set beside which pages show it, of candidates that a
    threat brings.
    """

    name: str
    x: Float[Tensor, "n c h w"]
    y: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    digest: str
    split: str
    note: str | None = None
    size: int = 0
    open_classes: bool = False
    of: str | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.x.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.x)


def content_digest(images: Shaped[np.ndarray, "n c h w"], labels: Shaped[np.ndarray, " n"], scale: int) -> str:
    """SHA-256 over shapes, types, scale and the bytes of images and labels (little endian, row-major)."""
    arrays = [np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")) for array in (images, labels)]
    head = canonical_json({"scale": scale, "arrays": [[list(array.shape), array.dtype.name] for array in arrays]})
    state = hashlib.sha256(head.encode())
    for array in arrays:
        state.update(array.data)
    return state.hexdigest()


def from_raw(raw: Raw, *, name: str, classes: tuple[str, ...], split: str, note: str | None, n: int | None) -> Dataset:
    """The first n rows of a published split as float32 in [0, 1]; the digest is that of all rows."""
    x = torch.from_numpy(raw.images[:n].astype(np.float32)) / raw.scale
    y = torch.from_numpy(raw.labels[:n].astype(np.int64))
    digest = content_digest(raw.images, raw.labels, raw.scale)
    return Dataset(name, x, y, classes, digest, split, note, size=len(raw.labels))


def images(x: Any) -> Float[Tensor, "n c h w"]:
    """A user's images as a float32 copy on the CPU. Raises UsageError for another rank, type or range."""
    tensor = _tensor(x, "x")
    if tensor.ndim != 4 or 0 in tensor.shape:
        raise UsageError(f"x has the shape {tuple(tensor.shape)}", expected="(n, C, H, W), none of them 0")
    if not tensor.is_floating_point():
        raise UsageError(f"x is {_kind(tensor)}", expected="floats in [0, 1]", fix="For grey levels 0..255 pass x.float() / 255.")
    if not tensor.isfinite().all():
        raise UsageError("x holds NaN or infinite values", expected="floats in [0, 1]")
    low, high = tensor.min().item(), tensor.max().item()
    if low < 0 or high > 1:
        fix = "For grey levels 0..255 pass x / 255." if low >= 0 else "Normalisation is a layer of the model: pass the raw images."
        raise UsageError(f"x goes from {low:.4g} to {high:.4g}", expected="values in [0, 1]", fix=fix)
    return tensor.to("cpu", torch.float32, copy=True).contiguous()


def labels(y: Any, rows: int) -> Int64[Tensor, " n"]:
    """A user's labels as an int64 copy on the CPU. Raises UsageError unless they are whole numbers from 0 on, one per row."""
    tensor = _tensor(y, "y")
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise UsageError(f"y is {_kind(tensor)}", expected="class indices, as integers", fix="If they are whole numbers pass y.long().")
    if tensor.ndim != 1 or len(tensor) != rows:
        raise UsageError(f"y has the shape {tuple(tensor.shape)}", expected=f"({rows},), one label per image")
    if tensor.min() < 0:
        raise UsageError(f"y holds the label {int(tensor.min())}", expected="class indices from 0 on")
    return tensor.to("cpu", torch.int64, copy=True)


def _tensor(value: Any, which: str) -> Tensor:
    try:
        return torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{which} is {type(value).__name__}", expected="a tensor or an array") from error


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
