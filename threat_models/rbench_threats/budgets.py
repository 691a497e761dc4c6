"""Where budgets come from: equal ones, a card (a generator or one map), a user's array. Each is a function of the clean image, by digest.

spec                                              half-widths
uniform(eps=0.3)                                  0.3 everywhere
NAME, or "my.toml"                                the generator or the map of a budgets card
"my.npy", .npz, .safetensors                      the array as it is: (c, h, w), (1, h, w), or (n, c, h, w) by index in the data set
projected("my.npy", volume=0.3, low=0.1, high=1)  the nearest budgets, in log ε, of that volume and range

Computed on the CPU, image by image and in float64, then stored as float32: the same whatever batch or device the image comes with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rbench_core.errors import CardError, SpecError
from rbench_core.files import canonical_json, sha256_bytes
from rbench_threats import cards, generator
from rbench_threats.arrays import read_array
from rbench_threats.normaliser import Range
from rbench_threats.spec import Call, Exact, Value, written, written_name

Images = Float[Tensor, "rows c h w"]
Index = Int[Tensor, " rows"]
Shape = tuple[int, int, int]
ARRAYS = (".npy", ".npz", ".safetensors")
FORMS = 'uniform(eps=0.3), the name of a budgets card, "my.npy", or projected("my.npy", volume=0.3, low=0.15, high=0.6)'


@dataclass(frozen=True, slots=True)
class Budgets:
    """Half-widths ε(x) ≥ 0 of every value, known by content: equal digests are equal functions. `spec` makes them again.

    shape: of the images that they are for, one channel standing for all; None: any. bounds: their volume and range, where they keep to one.
    """

    spec: str = field(compare=False)
    digest: str
    sentence: str = field(compare=False)
    shape: Shape | None = field(compare=False)
    bounds: Range | None = field(compare=False)
    of: Callable[[Images, Index], Images] = field(compare=False, repr=False)

    def __call__(self, x: Images, index: Index) -> Images:
        """ε (rows, c, h, w), float32, on the device of x. index: of each image in its data set. Raises SpecError."""
        self.check(tuple(x.shape[1:]))  # type: ignore[arg-type]
        with torch.no_grad():
            return self.of(x.detach().cpu(), index.cpu()).float().expand(x.shape).to(x.device)

    def check(self, shape: Shape) -> None:
        """Refuse images of another shape. Raises SpecError."""
        if self.shape is not None and not (self.shape[1:] == shape[1:] and self.shape[0] in (1, shape[0])):
            raise SpecError(
                f"budgets {self.spec} are for images of {_by(self.shape)}, not {_by(shape)}", fix="Take those of this data set."
            )


def from_value(value: Value) -> Budgets:
    """The budgets that an argument of `contextual` names. Raises SpecError, CardError, UnknownName, FileError."""
    if not isinstance(value, Call):
        raise SpecError(f"contextual({value})", expected=FORMS)
    if value.name == "uniform":
        return uniform(_numbers(value, ("eps",))["eps"])
    if value.name == "projected":
        return _projected(value)
    if value.args or value.named:
        raise SpecError(f"contextual({value.name}(...))", expected=FORMS)
    return stored(value.name) if Path(value.name).suffix in ARRAYS else of_card(value.name)


def uniform(eps: Exact) -> Budgets:
    """The same half-width everywhere: the linf ball. Raises SpecError."""
    if not 0 < eps <= 1:
        raise SpecError(f"uniform: eps={eps}", expected="0 < eps <= 1, since images lie in [0, 1]")
    decided = canonical_json({"form": "uniform", "eps": f"{eps.numerator}/{eps.denominator}"})
    return Budgets(
        written("uniform", {"eps": eps}), sha256_bytes(decided.encode()), f"at most {eps}", None, Range(*[float(eps)] * 3),
        lambda x, index: torch.full((1, 1, 1, 1), float(eps)),
    )  # fmt: skip


def of_card(name: str) -> Budgets:
    """The generator or the map of a card, by name or path. Raises CardError, UnknownName, FileError."""
    card = cards.load("budgets", name)
    bounds, module = _read(card)
    fixed = module(torch.zeros(1, *card.shape, dtype=torch.float64)) if isinstance(module, generator.OneMap) else None
    sentence = (
        f"at most its own budget, {'the same for every image' if fixed is not None else 'which a network reads off the clean image'}: "
        f"{bounds.low:g} to {bounds.high:g}, {bounds.volume:g} in the geometric mean"
    )
    return Budgets(
        written_name(name), card.sha256, sentence, card.shape, bounds,
        (lambda x, index: fixed) if fixed is not None else lambda x, index: torch.cat([module(row) for row in x.double().split(1)]),
    )  # fmt: skip


def _read(card: cards.Card) -> tuple[Range, generator.Scores]:
    """[budget] form, volume, low, high; [network]; the weights. Raises CardError."""
    table = card.table.get("budget")
    numbers = ("volume", "low", "high")
    if not isinstance(table, dict) or set(table) != {"form", *numbers} or any(type(table[key]) not in (int, float) for key in numbers):
        raise CardError(f"{card.path}: [budget] {table!r}", expected='form = "generator" or "map", volume, low, high')
    try:
        bounds = Range(*(float(table[key]) for key in numbers))
        module = generator.build(table["form"], bounds, card.shape, card.table.get("network", {}))
        module.load_state_dict(card.tensors)
    except (SpecError, RuntimeError) as error:
        raise CardError(f"{card.path}: {error}") from error
    return bounds, module.double().eval().requires_grad_(False)


def stored(name: str) -> Budgets:
    """An array of the user's as it is: its volume is whatever it is. Raises SpecError, FileError."""
    array, digest = read_array(name)
    return Budgets(
        written_name(name), digest, f"at most its own budget, out of a file: {array.min():g} to {array.max():g}",
        tuple(array.shape[-3:]), None, lambda x, index: _rows(array, index, name),  # type: ignore[arg-type]
    )  # fmt: skip


def _projected(value: Call) -> Budgets:
    """An array of the user's, brought to a volume and a range. Raises SpecError, FileError."""
    if not value.args or not isinstance(value.args[0], Call):
        raise SpecError("projected(...)", expected='a file, such as projected("my.npy", volume=0.3, low=0.15, high=0.6)')
    given = _numbers(Call("projected", value.args[1:], value.named), ("volume", "low", "high"))
    bounds, (array, digest) = Range(*(float(number) for number in given.values())), read_array(value.args[0].name)
    logs = array.double().clamp_min(1e-12).log().flatten(-3)
    whole = bounds.clamped(logs.view(-1, logs.shape[-1])).view(array.shape)
    decided = canonical_json({"array": digest, **{key: f"{number.numerator}/{number.denominator}" for key, number in given.items()}})
    file = written_name(value.args[0].name)
    return Budgets(
        f"projected({file}, {', '.join(f'{key}={number}' for key, number in given.items())})", sha256_bytes(decided.encode()),
        f"at most its own budget, out of a file: {bounds.low:g} to {bounds.high:g}, {bounds.volume:g} in the geometric mean",
        tuple(array.shape[-3:]), bounds, lambda x, index: _rows(whole, index, file),  # type: ignore[arg-type]
    )  # fmt: skip


def _rows(array: Tensor, index: Index, name: str) -> Tensor:
    """The maps of images by their index, or the one map. Raises SpecError."""
    if array.dim() == 3:
        return array[None]
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(array):
        asked = f"image {int(index.max())}" if index.max() >= 0 else "images without a place in it"
        raise SpecError(f"{name} holds budgets of {len(array)} images by their place in the data set", expected=f"budgets for {asked} too")
    return array[index]


def _numbers(call: Call, names: tuple[str, ...]) -> dict[str, Exact]:
    """Every argument by name, each a number, each once, in that order. Raises SpecError."""
    given: dict[str, Any] = {**dict(zip(names, call.args, strict=False)), **dict(call.named)}
    wrong = len(call.args) + len(call.named) != len(names) or set(given) != set(names)
    if wrong or not all(isinstance(number, Exact) for number in given.values()):
        raise SpecError(f"{call.name}(...)", expected=f"{', '.join(names)}, each a number, each once")
    return {name: given[name] for name in names}


def _by(shape: Shape) -> str:
    return " x ".join(map(str, shape))
