"""Arrays of budgets in a user's file: .npy, .npz with one array, or .safetensors with one tensor."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rbench_core.errors import FileError, SpecError
from rbench_core.files import reason, sha256_bytes


def read_array(name: str) -> tuple[Tensor, str]:
    """Budgets ≥ 0 as float32, (c, h, w) or (n, c, h, w), and the digest of their values and shape. Raises FileError, SpecError."""
    path = Path(name).expanduser()
    try:
        state = path.stat()
    except OSError as error:
        raise FileError(f"{path}: {reason(error)}") from error
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)
def _read(path: Path, changed: int, size: int) -> tuple[Tensor, str]:
    array = _checked(_opened(path), path)
    return torch.from_numpy(array), sha256_bytes(f"{array.shape}".encode() + array.astype("<f4").tobytes())


def _checked(array: Any, path: Path) -> Any:
    if array.ndim not in (3, 4) or 0 in array.shape or array.dtype.kind not in "fiu":
        raise SpecError(
            f"{path}: budgets of shape {array.shape}, {array.dtype}", expected="numbers of shape (c, h, w), (1, h, w) or (n, c, h, w)"
        )
    if not np.isfinite(array).all():
        raise SpecError(f"{path}: a budget is NaN or infinite", expected="half-widths, finite numbers from 0 on")
    if array.min() < 0:
        raise SpecError(f"{path}: a budget is negative, {array.min():g}", expected="half-widths, finite numbers from 0 on")
    return np.ascontiguousarray(array, dtype=np.float32)


def _opened(path: Path) -> Any:
    """The one array of the file. Raises FileError."""
    readers: dict[str, Callable[[Path], dict[str, Any]]] = {
        ".npy": lambda file: {"": np.load(file, allow_pickle=False)},
        ".npz": lambda file: dict(np.load(file, allow_pickle=False)),
        ".safetensors": _safetensors,
    }
    try:
        found = readers[path.suffix](path)
    except Exception as error:  # numpy and safetensors raise their own kinds for damaged files
        raise FileError(f"{path} cannot be read as {path.suffix}: {error}") from error
    if len(found) != 1:
        raise FileError(f"{path} holds {len(found)} arrays: {', '.join(sorted(found))[:80]}", expected="one, the budgets")
    return next(iter(found.values()))


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(path))
