"""A card's weights as tensors: found beside it, in a mirror or at its address, and opened only after their digest was checked.

Nothing in a weights file is executed: it is safetensors, or a state dict that torch's weights_only loader accepts.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from rbench_core.download import fetched
from rbench_core.errors import FileError, ModelError
from rbench_core.files import cache_folder, looks_like_html, read_checked, sha256_file
from rbench_zoo.card import Card, Original
from rbench_zoo.catalogue import BUILT_IN

WEIGHTS = Path(__file__).parent / "weights"


def tensors_of(card: Card) -> dict[str, Tensor]:
    """The tensors by their keys in the net. Looked for beside the card, in RBENCH_WEIGHTS by digest, at its address, as the original.

    Raises ModelError, FileError.
    """
    weights = card.weights
    path = _beside(card) or _in_mirror(weights.file or "", weights.sha256)
    if path is not None:
        return _safetensors(read_checked(path, weights.sha256), card, path)
    if weights.url is not None:
        return _safetensors(_fetched(weights.url, weights.sha256), card, weights.url)
    if weights.original is not None:
        return _from_original(weights.original, card)
    raise _absent(card)


def _absent(card: Card) -> ModelError:
    mirror = os.environ.get("RBENCH_WEIGHTS", "").strip()
    looked = f"{_folders(card)[0]} and in RBENCH_WEIGHTS ({mirror or 'not set'})"
    why = "" if card.weights.needs_mirror is None else f"It cannot be downloaded: {card.weights.needs_mirror.rstrip('.')}. "
    fix = f"{why}Set RBENCH_WEIGHTS to a folder that holds the file; its name does not matter."
    return ModelError(f"{card.name}: no weights with SHA-256 {card.weights.sha256[:12]}… in {looked}", fix=fix)


def _folders(card: Card) -> list[Path]:
    return [WEIGHTS] if card.path.parent == BUILT_IN else [card.path.parent, card.path.parent / "weights"]


def _beside(card: Card) -> Path | None:
    if card.weights.file is None:
        return None
    return next((folder / card.weights.file for folder in _folders(card) if (folder / card.weights.file).is_file()), None)


def _kept(url: str, sha256: str) -> Path:
    """Where a download is kept."""
    return cache_folder() / "weights" / f"{sha256}{PurePosixPath(url).suffix}"


def at_hand(card: Card) -> list[tuple[Path, str]]:
    """The files that the card's weights are read from without a mirror or a download, each with the digest it must have; unread."""
    beside, weights = _beside(card), card.weights
    found = [] if beside is None else [(beside, weights.sha256)]
    places = [(weights.url, weights.sha256), *([(weights.original.url, weights.original.sha256)] if weights.original else [])]
    kept = [(_kept(url, sha256), sha256) for url, sha256 in places if url is not None]
    return found + [(path, sha256) for path, sha256 in kept if path.is_file()]


def _in_mirror(name: str, sha256: str, suffix: str = ".safetensors") -> Path | None:
    """A file of the mirror with that digest and suffix, whatever its name; files of the usual name are tried first."""
    named = os.environ.get("RBENCH_WEIGHTS", "").strip()
    if not named:
        return None
    found = sorted(Path(named).expanduser().rglob(f"*{suffix}"), key=lambda path: (path.name != name, str(path)))
    for path in found:
        with contextlib.suppress(FileError):  # one unreadable file is no reason to miss the right one
            if sha256_file(path) == sha256:
                return path
    return None


def _fetched(url: str, sha256: str) -> bytes:
    """The file at the address, kept in the user's cache under its digest. Raises ModelError, FileError."""
    fix = "Go online, or set RBENCH_WEIGHTS to a folder that holds the file."
    return fetched(url, sha256, _kept(url, sha256), error=ModelError, fix=fix)


def _safetensors(data: bytes, card: Card, where: object) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        page = "it looks like an HTML page" if looks_like_html(data) else str(error)
        raise ModelError(f"{card.name}: its weights are no safetensors file ({where}: {page})") from error
    return tensors


def _from_original(original: Original, card: Card) -> dict[str, Tensor]:
    """The original's tensors with the keys that the net has. Raises ModelError, FileError."""
    path = PurePosixPath(original.url)
    found = _in_mirror(path.name, original.sha256, path.suffix)
    data = _fetched(original.url, original.sha256) if found is None else read_checked(found, original.sha256)
    where = original.url if found is None else found
    if original.format == "safetensors":
        tensors: Any = _safetensors(data, card, where)
    else:
        tensors = _unpickled(data, card, where)
        tensors = tensors if original.entry is None else _entry(tensors, original.entry, card, where)
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ModelError(f"{card.name}: {where} is no plain state dict", expected="tensors by name" + _has(tensors))
    return dict(_unprefixed(tensors, original.prefix))


def _unpickled(data: bytes, card: Card, where: object) -> Any:
    """What a file of torch.save holds, as far as torch's weights_only loader reads it: tensors and plain containers, no code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: an error says the same
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if looks_like_html(data):
            raise ModelError(f"{card.name}: {where} looks like an HTML page", expected="a state dict") from error
        words = str(error).partition("WeightsUnpickler error:")[2] or str(error)
        what = f"{card.name}: {where} holds more than tensors: {' '.join(words.split())[:120]}"
        raise ModelError(what, expected="a state dict for torch.load(weights_only=True)", fix="Nothing of it was executed.") from error
    except Exception as error:  # a damaged file makes torch, zipfile and pickle raise whatever they please
        words = " ".join(str(error).split())[:160]
        raise ModelError(f"{card.name}: {where} cannot be read: {type(error).__name__}: {words}", expected="a state dict") from error


def _entry(found: Any, entry: str, card: Card, where: object) -> Any:
    if not isinstance(found, dict) or entry not in found:
        raise ModelError(f"{card.name}: {where} has no entry {entry!r}", expected="a checkpoint" + _has(found))
    return found[entry]


def _has(found: Any) -> str:
    """What an object is, for a complaint."""
    keys = f" with {', '.join(map(repr, list(found)[:4]))}" if isinstance(found, dict) else ""
    return f", and it is a {type(found).__name__}{keys}"


def _unprefixed(tensors: dict[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Keys without the prefix; a key that does not have it keeps its name, and then fits no net."""
    for key, value in tensors.items():
        yield key.removeprefix(prefix), value
