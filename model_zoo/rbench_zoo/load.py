"""From a card to a model: weights found, their digest checked before they are opened, every key and shape accounted for."""

from __future__ import annotations

import contextlib
import hashlib
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from rbench_core.errors import CardError, FileError, ModelError
from rbench_core.files import atomic_write, cache_folder, canonical_json, read_checked, reason, sha256_bytes, sha256_file
from rbench_zoo import architectures
from rbench_zoo.architectures import Layers, Normalise
from rbench_zoo.card import Card
from rbench_zoo.catalogue import BUILT_IN
from rbench_zoo.factory import from_file, from_package, guarded

WEIGHTS = Path(__file__).parent / "weights"
PATIENCE = 10.0  # seconds that a download may stand still
LARGEST = 1 << 31  # bytes of a weights file that is fetched


def load_model(card: Card) -> nn.Module:
    """The card's net with its weights, in eval mode, its input layer in front of it. Raises ModelError, FileError, CardError."""
    net = build(card)
    _fill(net, _tensors_of(card), card)
    count = sum(parameter.numel() for parameter in net.parameters())
    if card.parameters not in (None, count):
        raise CardError(f"{card.path}: parameters = {card.parameters}", expected=f"{count}, as the net has")
    return with_input(net, card).eval()


def build(card: Card) -> nn.Module:
    """The net without its weights and input layer. Raises ModelError, UsageError. The global random generator is left as it was."""
    spec, beside = card.architecture.factory, _file_beside(card)
    factory, _ = from_package(spec) if beside is None else from_file(beside, spec.rpartition(":")[2])
    with guarded(f"card {card.name}: {spec}"), torch.random.fork_rng(devices=[]):
        net = factory(**card.architecture.arguments)
    if not isinstance(net, nn.Module):
        raise ModelError(f"card {card.name}: {spec} returned {type(net).__name__}", expected="a torch.nn.Module")
    return net


def with_input(net: nn.Module, card: Card) -> nn.Module:
    """The net behind the input layer that its card asks for; the net itself where that is 0..1."""
    scaling = card.architecture.scaling
    if scaling is None:
        return net
    whole = nn.Sequential()
    whole.add_module("input", Normalise(scaling.mean, scaling.std))
    whole.add_module("net", net)
    return whole


def model_digest(module: nn.Module, card: Card) -> str:
    """SHA-256 of what decides the logits of a model that `load_model` returned: nothing editorial, neither names nor figures."""
    scaling = card.architecture.scaling
    net = module if scaling is None else module.get_submodule("net")
    architecture = net.table if _is_ours(net) else _code(card)
    classes = getattr(net, "classes", card.architecture.arguments.get("classes"))
    return content_digest(net, architecture, scaling=None if scaling is None else [scaling.mean, scaling.std], classes=classes)


def _is_ours(net: nn.Module) -> TypeGuard[Layers]:
    """Whether the table says all: a subclass from elsewhere may compute something else."""
    return isinstance(net, Layers) and type(net).__module__.startswith(f"{architectures.__name__}.")


def _code(card: Card) -> dict[str, Any]:
    """What stands in for the table of any other net: the text of the factory's file and what it is called with."""
    spec, beside = card.architecture.factory, _file_beside(card)
    text = from_package(spec)[1] if beside is None else beside.read_text(encoding="utf-8", errors="replace")
    return {"source": text, "factory": spec.rpartition(":")[2], "arguments": card.architecture.arguments}


def _file_beside(card: Card) -> Path | None:
    """The Python file beside the card, for a factory "FILE.py:NAME"."""
    file = card.architecture.factory.rpartition(":")[0]
    return card.path.parent / file if file.endswith(".py") else None


def content_digest(net: nn.Module, architecture: Any, *, scaling: Any = None, classes: int | None = None) -> str:
    """SHA-256 of the tensors and buffers by name, type, shape and bytes, and of the architecture as JSON-able content."""
    state = hashlib.sha256(canonical_json({"architecture": architecture, "input": scaling, "classes": classes}).encode())
    for name, tensor in sorted(_named(net)):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        state.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
        state.update(flat.view(torch.uint8).numpy().data)
    return state.hexdigest()


def _named(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from net.named_parameters(remove_duplicate=False)
    yield from net.named_buffers(remove_duplicate=False)


# --- weights ------------------------------------------------------------------------------------------------------------------------


def weights_bytes(card: Card) -> bytes:
    """The weights file, whose digest is that of the card. Looked for beside the card, in RBENCH_WEIGHTS by digest, at its url."""
    sha256 = card.weights.sha256
    path = _beside(card) or _in_mirror(card)
    if path is not None:
        return read_checked(path, sha256)
    if card.weights.url is not None:
        return _fetched(card.weights.url, sha256)
    mirror = os.environ.get("RBENCH_WEIGHTS", "").strip()
    looked = f"{_folders(card)[0]} and in RBENCH_WEIGHTS ({mirror or 'not set'})"
    fix = "Set RBENCH_WEIGHTS to a folder that holds the file; its name does not matter."
    raise ModelError(f"{card.name}: no weights with SHA-256 {sha256[:12]}… in {looked}", fix=fix)


def _folders(card: Card) -> list[Path]:
    return [WEIGHTS] if card.path.parent == BUILT_IN else [card.path.parent, card.path.parent / "weights"]


def _beside(card: Card) -> Path | None:
    if card.weights.file is None:
        return None
    return next((folder / card.weights.file for folder in _folders(card) if (folder / card.weights.file).is_file()), None)


def _in_mirror(card: Card) -> Path | None:
    """A file of the mirror with the card's digest, whatever its name; files of the card's name are tried first."""
    named = os.environ.get("RBENCH_WEIGHTS", "").strip()
    if not named:
        return None
    found = sorted(Path(named).expanduser().rglob("*.safetensors"), key=lambda path: (path.name != card.weights.file, str(path)))
    for path in found:
        with contextlib.suppress(FileError):  # one unreadable file is no reason to miss the right one
            if sha256_file(path) == card.weights.sha256:
                return path
    return None


def _fetched(url: str, sha256: str) -> bytes:
    """The file at the address, kept in the user's cache under its digest. Raises ModelError, FileError."""
    kept = cache_folder() / "weights" / f"{sha256}.safetensors"
    if kept.is_file():
        return read_checked(kept, sha256)
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            data: bytes = answer.read(LARGEST + 1)
    except OSError as error:
        fix = "Go online, or set RBENCH_WEIGHTS to a folder that holds the file."
        raise ModelError(f"{url}: {getattr(error, 'reason', None) or reason(error)}", fix=fix) from error
    if sha256_bytes(data) != sha256:
        raise FileError(f"{url}: SHA-256 is {sha256_bytes(data)[:12]}…", expected=f"{sha256[:12]}…, as its card says")
    with contextlib.suppress(FileError):  # a full or read-only cache costs a download next time, nothing more
        atomic_write(kept, data)
    return data


def _tensors_of(card: Card) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(weights_bytes(card))
    except safetensors.SafetensorError as error:
        raise ModelError(f"{card.name}: its weights are no safetensors file ({error})") from error
    return tensors


def _fill(net: nn.Module, tensors: dict[str, Tensor], card: Card) -> None:
    """Put the tensors into the net; every key, shape and type must agree. Raises ModelError.

    Only a batch norm's counter may be absent: torch 0.4 did not write it, and no forward pass in eval mode reads it.
    """
    own = net.state_dict()
    wrong = [f"{key} is missing" for key in own.keys() - tensors.keys() if not key.endswith("num_batches_tracked")]
    wrong += [f"{key} is not of this net" for key in tensors.keys() - own.keys()]
    both = [(key, _form(tensors[key]), _form(own[key])) for key in own.keys() & tensors.keys()]
    wrong += [f"{key} is {given} instead of {wanted}" for key, given, wanted in both if given != wanted]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ModelError(f"{card.name}: the weights do not fit {card.architecture.factory}: {min(wrong)}{more}")
    net.load_state_dict(tensors, strict=False)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
