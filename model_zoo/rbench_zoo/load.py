"""From a card to a model: the net built, every key and shape of its weights accounted for, and the digest that identifies it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from rbench_core.code import from_file, from_package, guarded
from rbench_core.errors import CardError, ModelError
from rbench_core.files import canonical_json
from rbench_zoo import architectures
from rbench_zoo.architectures import Layers, Normalise
from rbench_zoo.card import Card
from rbench_zoo.fetch import tensors_of


def load_model(card: Card) -> nn.Module:
    """The card's net with its weights, in eval mode, its input layer in front of it. Raises ModelError, FileError, CardError."""
    net = build(card)
    _fill(net, tensors_of(card), card)
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
