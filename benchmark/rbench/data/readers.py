"""Published image files as arrays: idx (.gz or unpacked), CIFAR-10 batches (binary or pickled), scikit-learn's digits.

Nothing of a file is executed: the pickled batches are read by an unpickler that knows stand-ins only. A file that is truncated, of
another kind or hostile gives one DataError. numpy alone, no torch.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import pickle
import struct
import zlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from rbench_core.errors import DataError
from rbench_core.files import reason

LARGEST = 1 << 28  # bytes of one file once unpacked; the largest published one (MNIST's training images) has 47 MB
DIGITS, DIGITS_TEST = 1797, 500
DAMAGED = "The file is truncated or damaged, or of another data set: fetch it again."


class Raw(NamedTuple):
    """A whole split as published: grey levels 0..scale and labels."""

    images: UInt8[np.ndarray, "n c h w"]
    labels: UInt8[np.ndarray, " n"]
    scale: int


# --- idx: MNIST and Fashion-MNIST ---------------------------------------------------------------------------------------------------


def read_idx_pair(images_path: Path, labels_path: Path) -> Raw:
    """Images (n, 1, H, W) and labels from a pair of idx files, unpacked or .gz. Raises DataError."""
    images, labels = (parse_idx(_bytes(path), path) for path in (images_path, labels_path))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(f"{images_path}: shape {images.shape}, and {labels_path.name}: {labels.shape}", expected="one label per image")
    return Raw(images[:, None], labels, 255)


def parse_idx(data: bytes, path: Path) -> UInt8[np.ndarray, "..."]:
    """An idx file of unsigned bytes: two zero bytes, type 8, rank, then big-endian sizes. Raises DataError when the length disagrees."""
    if len(data) < 4 or data[:3] != b"\0\0\x08" or not 1 <= data[3] <= 4 or len(data) < 4 + 4 * data[3]:
        raise DataError(f"{path}: not an idx file of bytes", fix="Fetch it again.")
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    start, size = 4 + 4 * data[3], int(np.prod(shape, dtype=object))
    if len(data) - start != size:
        raise DataError(f"{path}: {len(data) - start:,} bytes of content", expected=f"{size:,} for shape {shape}", fix=DAMAGED)
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _bytes(path: Path) -> bytes:
    """A file's content, inflated when it is gzip, at most LARGEST bytes. Raises DataError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            data: bytes = stream.read(LARGEST + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: {error}", fix=DAMAGED) from error
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}") from error
    if len(data) > LARGEST:
        raise DataError(f"{path}: more than {LARGEST:,} bytes", expected="a published file of this data set")
    return data


# --- CIFAR-10 -----------------------------------------------------------------------------------------------------------------------

CIFAR_RECORD = 1 + 3 * 32 * 32


def read_cifar(batches: Sequence[Path]) -> Raw:
    """Images (n, 3, 32, 32) and labels of one or more batch files, `.bin` or pickled, one after another. Raises DataError."""
    parts = [_cifar_bin(path) if path.suffix == ".bin" else _cifar_pickle(path) for path in batches]
    return Raw(np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]), 255)


def _cifar_bin(path: Path) -> tuple[UInt8[np.ndarray, "n 3 32 32"], UInt8[np.ndarray, " n"]]:
    data = _bytes(path)
    if not data or len(data) % CIFAR_RECORD:
        raise DataError(f"{path}: {len(data):,} bytes", expected=f"a multiple of {CIFAR_RECORD:,}", fix=DAMAGED)
    records = np.frombuffer(data, np.uint8).reshape(-1, CIFAR_RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def _cifar_pickle(path: Path) -> tuple[UInt8[np.ndarray, "n 3 32 32"], UInt8[np.ndarray, " n"]]:
    try:
        table = _Unpickler(io.BytesIO(_bytes(path)), encoding="bytes").load()
        table = {key.decode() if isinstance(key, bytes) else key: value for key, value in table.items()}
        images, labels = table["data"].array(), np.array(table["labels"])
        if labels.dtype != np.int64 or labels.shape != images.shape[:1] or labels.min() < 0 or labels.max() > 255:
            raise ValueError("labels and images do not match")
        return images.reshape(-1, 3, 32, 32), labels.astype(np.uint8)
    except DataError:
        raise
    except Exception as error:  # an unpickler fails in many ways; each of them means that this is no batch file
        raise DataError(f"{path}: {type(error).__name__}: {error}", expected="a batch of cifar-10-batches-py") from error


class _Array:
    """Stands in for a pickled ndarray, so that no state of the file reaches numpy's C code unchecked."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.kind, self.fortran, self.data = state

    def array(self) -> UInt8[np.ndarray, "n p"]:
        if self.kind.code not in ("u1", "|u1") or self.fortran or len(self.shape) != 2 or not isinstance(self.data, bytes):
            raise ValueError("the images are no (n, 3072) array of bytes")
        return np.frombuffer(self.data, np.uint8).reshape(self.shape)


class _Kind:
    """Stands in for a pickled dtype: only its code is kept."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Builds dicts, lists, numbers, bytes and the stand-ins above; any other global of the file is refused unseen."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct"):
                return lambda *_: _Array()
            case "numpy", "ndarray":
                return _Array
            case "numpy", "dtype":
                return _Kind
            case "_codecs", "encode":  # how Python 3 writes bytes in the old pickle protocol
                return lambda text, *_: text.encode("latin1")
        raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which no batch needs")


# --- digits -------------------------------------------------------------------------------------------------------------------------


def read_digits(split: str) -> Raw:
    """scikit-learn's 1,797 handwritten digits, grey levels 0..16, in a split of ours that no random generator can move.

    The rule: order the indices i of `load_digits` by the SHA-256 of the text `rbench digits <i>`; the first 500 are the test set, in that
    order, the other 1,297 the training set. Neither classes nor writers are balanced by it: a writer may stand in both parts.
    """
    table = _digits_table()
    if table.shape != (DIGITS, 65) or table.min() < 0 or table[:, :64].max() > 16 or table[:, 64].max() > 9:
        wanted = f"({DIGITS}, 65) with grey levels 0..16 and labels 0..9"
        raise DataError(f"scikit-learn's digits have the shape {table.shape}", expected=wanted)
    order = sorted(range(DIGITS), key=lambda i: hashlib.sha256(f"rbench digits {i}".encode()).digest())
    rows = table[order[:DIGITS_TEST] if split == "test" else order[DIGITS_TEST:]].astype(np.uint8)
    return Raw(rows[:, :64].reshape(-1, 1, 8, 8), rows[:, 64], 16)


def _digits_table() -> Int64[np.ndarray, "rows columns"]:
    """(1797, 65): 64 grey levels, then the label. Reads the file itself: importing sklearn.datasets costs 1.4 s of CPU."""
    spec = find_spec("sklearn")  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise DataError("digits: scikit-learn, which carries them, is not installed", fix="Run: pip install scikit-learn")
    path = Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    if path.is_file():
        try:
            return np.array(list(csv.reader(io.StringIO(_bytes(path).decode("ascii")))), dtype=np.float64).astype(np.int64)
        except ValueError as error:
            raise DataError(f"{path}: {error}", expected="65 numbers per line", fix="Install scikit-learn again.") from error
    from sklearn.datasets import load_digits  # a release that keeps the file elsewhere

    digits = load_digits()
    return np.column_stack([digits.data, digits.target]).astype(np.int64)
