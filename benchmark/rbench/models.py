"""A model made ready for evaluation: found, put into eval mode, frozen, probed, and given back as it came.

Finding a model executes code: a factory file, an entry point and a registry's factory are Python that the user chose to run, with the
user's rights. Weights alone (safetensors) execute nothing.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rbench.data.dataset import Dataset
from rbench.probe import Images, Logits, Warnings, answer, check_classes, probe_batch, suspicions, warning, word
from rbench_core.code import from_file, guarded, importable
from rbench_core.errors import ModelError, UsageError
from rbench_zoo import catalogue
from rbench_zoo.architectures import Layers
from rbench_zoo.card import Card
from rbench_zoo.load import content_digest, load_model, model_digest


@dataclass(frozen=True, slots=True)
class Found:
    """A model as it was found: its module, the data set of its card (None: the user says), and `source`, which `wrap` reads.

    gradient: False where the card says that none of use comes back, so that plans leave gradient attacks out.
    """

    module: nn.Module
    name: str
    title: str
    dataset: str | None
    source: dict[str, Any]
    gradient: bool = True


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A model ready for attacks: float32 images in [0, 1] on `device` to float32 logits (rows, classes), frozen, in eval mode.

    `probe` are its logits on the probe batch, empty where one of them is not finite. `card` is a snapshot for the store.
    """

    module: nn.Module
    name: str
    title: str
    digest: str
    card: dict[str, Any]
    classes: int
    parameters: int
    device: torch.device
    probe: list[list[float]] = field(repr=False)
    warnings: Warnings


# --- finding ------------------------------------------------------------------------------------------------------------------------


def find(model: object, name: str | None = None) -> Found:
    """A zoo model by name, `FILE.py:FACTORY` (executed), or a module as it is. Raises UnknownName, UsageError, CardError, ModelError."""
    if isinstance(model, nn.Module):
        kind = type(model).__name__
        return Found(model, name or kind, kind, None, {"card": {"origin": "module", "class": kind}})
    if not isinstance(model, str):
        raise UsageError(f"the model is {type(model).__name__}", expected="a name, FILE.py:FACTORY or a torch.nn.Module")
    file, _, factory = model.rpartition(":")
    if file.endswith(".py"):
        return of_file(Path(file).expanduser(), factory, name)
    if model.endswith(".py"):
        fix = "FACTORY is a function without arguments that returns the model."
        raise UsageError(f"{model} names no factory", expected="FILE.py:FACTORY", fix=fix)
    entry = catalogue.find(model)
    return _of_point(entry, name) if isinstance(entry, EntryPoint) else of_card(entry, name)


def of_card(card: Card, name: str | None) -> Found:
    module = load_model(card)
    source = {"card": card.table, "digest": model_digest(module, card), "shape": _shape(module)}
    return Found(module, name or card.name, card.title, card.dataset, source, card.gradient)


def _of_point(point: EntryPoint, name: str | None) -> Found:
    with guarded(f"entry point {point.value}"):
        module = _made(point.load(), point.value)
    return Found(module, name or point.name, point.name, None, {"card": {"origin": f"entry point {point.value}"}})


def of_file(path: Path, factory: str, name: str | None) -> Found:
    label = f"{path.name}:{factory}"
    made, text = from_file(path, factory)
    with guarded(label), importable(path.resolve().parent):
        module = _made(made, label)
    return Found(module, name or label, label, None, {"card": {"origin": "file", "factory": label}, "text": text})


def _made(factory: Any, label: str) -> nn.Module:
    """What a factory makes; a module that stands in its place is taken as it is."""
    made = factory if isinstance(factory, nn.Module) else factory() if callable(factory) else factory
    if not isinstance(made, nn.Module):
        raise ModelError(f"{label} gives {type(made).__name__}", expected="a torch.nn.Module, or a function that returns one")
    return made


def _shape(module: nn.Module) -> tuple[int, ...] | None:
    """The image shape that a net of the zoo was built for, where it says so."""
    return next((part.shape for part in module.modules() if isinstance(part, Layers)), None)


# --- making ready -------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def attacked(
    model: nn.Module,
    *,
    name: str,
    dataset: Dataset,
    device: str | torch.device = "cpu",
    source: Mapping[str, Any] | None = None,
    title: str = "",
) -> Iterator[Wrapped]:
    """`wrap` for the length of a block; afterwards the module has its modes, its gradients' flags and its device back."""
    modes = [(part, part.training) for part in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    home = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    try:
        yield wrap(model, name=name, dataset=dataset, device=device, source=source or {}, title=title)
    finally:
        if len(home) == 1:
            model.to(home.pop())
        for part, mode in modes:
            part.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def wrap(
    model: nn.Module, *, name: str, dataset: Dataset, device: str | torch.device = "cpu", source: Mapping[str, Any], title: str = ""
) -> Wrapped:
    """Move, freeze and probe a model (in place: `attacked` undoes it). Raises ModelError when it cannot be evaluated on this data set.

    `source` is Found.source: `card` for the record, `digest` where the zoo knows it, `text` of a factory's file, `shape` it was built for.
    """
    target = _device(device)
    warnings: Warnings = []
    if any(part.training for part in model.modules()):
        warnings.append(warning("train-mode", "the model was in train mode; it was evaluated in eval mode"))
    with guarded(f"model {name} on {target}"):
        model.eval().requires_grad_(False).to(target)
    batch = probe_batch(dataset.shape).to(target)
    given, adapted = batch.clone(), _for_weights(model, warnings)
    logits = answer(adapted, given, name, dataset, source.get("shape"))
    check_classes(logits, name, dataset)
    adapted, logits = _for_habits(adapted, logits, torch.equal(given, batch), warnings), logits.float()
    with guarded(f"model {name} on its second pass"):
        warnings += suspicions(adapted, batch, logits)
    return Wrapped(
        module=adapted,
        name=name,
        title=title or name,
        digest=source.get("digest") or module_digest(model, source.get("text"), logits.shape[1]),
        card=dict(source.get("card") or {}),
        classes=logits.shape[1],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        device=target,
        probe=logits.tolist() if logits.isfinite().all() else [],
        warnings=warnings,
    )


class _Adapter(nn.Module):
    """float32 in, float32 out, around a model of another type; the input is a copy, so that nothing the model does reaches it."""

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype
        self.training = False

    def forward(self, x: Images) -> Any:
        logits = self.model(x.clone() if self.dtype is None else x.to(self.dtype, copy=True))
        return logits.float() if isinstance(logits, Tensor) and logits.is_floating_point() else logits


def _for_weights(model: nn.Module, warnings: Warnings) -> nn.Module:
    """The model itself, or an adapter around one whose weights are not float32."""
    types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if len(types) != 1 or types == {torch.float32}:
        return model
    dtype = types.pop()
    warnings.append(warning("dtype", f"the weights are {word(dtype)}: images were cast to it and logits to float32"))
    return _Adapter(model, dtype)


def _for_habits(model: nn.Module, logits: Logits, kept: bool, warnings: Warnings) -> nn.Module:
    """The model itself, or an adapter around one that was seen to change its input or to answer in another type than float32."""
    if not kept:
        warnings.append(warning("in-place", "the model changes its input in place; it was given copies"))
    if logits.dtype != torch.float32:
        warnings.append(warning("dtype", f"the logits are {word(logits.dtype)}; they were cast to float32"))
    return model if kept and logits.dtype == torch.float32 else _Adapter(model, None)


def _device(device: str | torch.device) -> torch.device:
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device {str(device)!r}", expected="cpu, cuda or cuda:N") from error
    if target.type not in ("cpu", "cuda"):
        raise UsageError(f"device {str(device)!r}", expected="cpu, cuda or cuda:N")
    if target.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {str(device)!r}: torch sees no CUDA device here", fix="Take --device cpu.")
    return target


# --- identity -----------------------------------------------------------------------------------------------------------------------


def module_digest(model: nn.Module, text: str | None, classes: int) -> str:
    """SHA-256 of a module without a card: tensors, the factory file's text, its layers, their plain settings and their classes' source."""
    parts = dict(model.named_modules(remove_duplicate=False))
    kinds = {type(part) for part in parts.values() if not type(part).__module__.startswith("torch.")}
    architecture = {
        "file": text,
        "layers": re.sub(r" at 0x[0-9a-f]+", "", repr(model)),  # addresses differ from process to process
        "settings": {name: _settings(part) for name, part in parts.items()},
        "code": sorted(_source_text(kind) for kind in kinds),
    }
    return content_digest(model, architecture, classes=classes)


def _settings(part: nn.Module) -> dict[str, str]:
    """Plain values that a layer keeps beside its tensors: they change what it computes, and nothing else shows them."""
    plain = (bool, int, float, str, type(None))
    kept = {key: value for key, value in vars(part).items() if not key.startswith("_") and key != "training"}
    return {
        key: repr(value)
        for key, value in sorted(kept.items())
        if isinstance(value, plain) or (isinstance(value, (tuple, list)) and all(isinstance(item, plain) for item in value))
    }


def _source_text(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError, SyntaxError):
        return kind.__qualname__
