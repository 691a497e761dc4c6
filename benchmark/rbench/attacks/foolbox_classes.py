"""What foolbox's attack classes are called, which arguments they take, where they start and what one row can do to its block.

Names and arguments are read off the classes; the rest is known from foolbox 3.3.4.
"""

from __future__ import annotations

import difflib
import inspect
from functools import cache
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from torch import Tensor

from rbench.attacks.sealed import library
from rbench_core.errors import SpecError, UnknownName, UsageError
from rbench_threats.spec import Exact, whole

Argument: TypeAlias = int | float | bool | str | None

UNUSABLE = {  # needs what neither a spec nor a ball can give
    "BinarizationRefinementAttack": "refines adversarial images that somebody else found",
    "DatasetAttack": "must be fed images of other classes",
    "GenAttack": "attacks towards given target classes only",
    "SpatialAttack": "rotates and shifts, and no ball bounds that; rotation-translation is the set for it",
}
UNWRITTEN = ("distance", "init_attack", "tensorboard", "channel_axis", "reduced_dims", "return")  # objects, folders, shapes: no spec values

DECISIONS = {  # those that ask for decisions alone and so work where there is no gradient
    "BinarySearchContrastReductionAttack",
    "BoundaryAttack",
    "GaussianBlurAttack",
    "HopSkipJumpAttack",
    "InversionAttack",
    "L2AdditiveGaussianNoiseAttack",
    "L2AdditiveUniformNoiseAttack",
    "L2ClippingAwareAdditiveGaussianNoiseAttack",
    "L2ClippingAwareAdditiveUniformNoiseAttack",
    "L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack",
    "L2ClippingAwareRepeatedAdditiveUniformNoiseAttack",
    "L2ContrastReductionAttack",
    "L2RepeatedAdditiveGaussianNoiseAttack",
    "L2RepeatedAdditiveUniformNoiseAttack",
    "LinearSearchBlendedUniformNoiseAttack",
    "LinearSearchContrastReductionAttack",
    "LinfAdditiveUniformNoiseAttack",
    "LinfRepeatedAdditiveUniformNoiseAttack",
    "PointwiseAttack",
    "SaltAndPepperNoiseAttack",
}
STARTS: dict[str, tuple[str, dict[str, int]]] = {  # the init_attack that foolbox 3.3.4 falls back to
    "BoundaryAttack": ("LinearSearchBlendedUniformNoiseAttack", {"steps": 50}),
    "HopSkipJumpAttack": ("LinearSearchBlendedUniformNoiseAttack", {"steps": 50}),
    "L0BrendelBethgeAttack": ("LinearSearchBlendedUniformNoiseAttack", {}),
    "L1BrendelBethgeAttack": ("LinearSearchBlendedUniformNoiseAttack", {}),
    "L2BrendelBethgeAttack": ("LinearSearchBlendedUniformNoiseAttack", {}),
    "LinfinityBrendelBethgeAttack": ("LinearSearchBlendedUniformNoiseAttack", {}),
    "PointwiseAttack": ("SaltAndPepperNoiseAttack", {}),
}
ONE_ROW: dict[str, type[Exception] | tuple[type[Exception], ...]] = {  # what one row can raise for its whole block
    "L0FMNAttack": IndexError,  # a row that does not fall before its budget is the whole image
    **dict.fromkeys(STARTS, (ValueError, AssertionError)),  # a start that is adversarial in one batch and not in another
}


@cache
def offered() -> dict[str, Any]:
    """Every concrete attack class by its names, aliases such as PGD included."""
    attacks = library("foolbox").attacks
    kinds = {key: kind for key, kind in vars(attacks).items() if isinstance(kind, type) and issubclass(kind, attacks.Attack)}
    return {key: kind for key, kind in kinds.items() if not inspect.isabstract(kind)}


def kind_of(name: str) -> Any:
    """The class of that name, whatever the case. Raises UnknownName with the nearest, UsageError for a class that cannot run here."""
    lower = {key.lower(): key for key in offered()}
    key = name if name in offered() else lower.get(name.lower())
    if key is None:
        near = [lower[found] for found in difflib.get_close_matches(name.lower(), lower, n=4, cutoff=0.45)]
        raise UnknownName("foolbox attack", name, near or offered(), fix="The names are the classes of foolbox.attacks.")
    if key in UNUSABLE:
        raise UsageError(f"foolbox:{key} {UNUSABLE[key]}", fix="Choose another attack.")
    return offered()[key]


def parameters(kind: Any) -> dict[str, tuple[Any, Any]]:
    """(type, default) of every argument that a spec may give, in the class's order; inspect.Parameter.empty: no default."""
    hints = get_type_hints(kind.__init__)
    found = inspect.signature(kind.__init__).parameters
    return {key: (hints[key], parameter.default) for key, parameter in found.items() if key in hints and key not in UNWRITTEN}


def typed(value: Argument, hint: Any, where: str) -> Argument:
    """The value as the annotation asks for it: a number, true, false, none or one of the words that it lists. Raises SpecError."""
    kinds = [hint] if not get_args(hint) or get_origin(hint) is Literal else list(get_args(hint))
    words, number = _words(kinds), float in kinds or int in kinds
    if isinstance(value, str | bool | None) and str(value).lower() in words:
        return words[str(value).lower()]
    if isinstance(value, str | bool | None) or not number:
        raise SpecError(f"{where}={value}", expected=" or ".join([*words, *(["a number"] if number else [])]))
    return float(Exact(value)) if float in kinds else whole(value, where)


def _words(kinds: list[Any]) -> dict[str, Argument]:
    """What a spec writes as a word, in lower case, and what it means to the class."""
    words: dict[str, Argument] = {word.lower(): word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)}
    words |= {"true": True, "false": False} if bool in kinds else {}
    return words | ({"none": None} if type(None) in kinds else {})


def starts(name: str, arguments: dict[str, int], net: Any, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Adversarial images to start from, and which rows have one: foolbox gives up the batch for one row without (foolbox issue 541)."""
    criterion = library("foolbox").Misclassification(label)
    found = kind_of(name)(**arguments).run(net, x, criterion)
    return found, criterion(found, net(found))
