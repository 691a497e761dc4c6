"""What a batch becomes before a net is trained on it: one value per scheme, all through the evaluation's own sets and steps.

The certified schemes search for nothing and bound the worst case instead: certified.py.

scheme        batch of B images becomes                                            source
standard      itself                                                               -
adversarial   what one attack finds in one set                                     Madry et al. 2018
msd           the worst point of a walk that picks a member per step               Maini, Wong & Kolter 2020
avg           every member's examples: K · B of them, so the mean of their losses  Tramèr & Boneh 2019
max           per image, the member's example of largest loss                      Tramèr & Boneh 2019
harder        per image, itself or what one attack finds, by loss                  Wong & Kolter 2021
eat           one member's examples, the member drawn anew per batch               Croce & Hein 2022
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from rbench.attacks.build import build_attack, spec_of
from rbench.attacks.lockstep import lockstep
from rbench.attacks.msd import MSD
from rbench_core.errors import CardError
from rbench_threats.catalogue import Threat, resolve
from rbench_threats.protocol import PerturbationSet, resized
from rbench_threats.spec import parse
from rbench_zoo.recipe import Recipe

Images: TypeAlias = Float[Tensor, "rows c h w"]
Labels: TypeAlias = Int[Tensor, " rows"]
FULL = Fraction(1)  # of the radius


class Lesson(NamedTuple):
    """What one batch teaches: the loss to descend, and the logits in train mode with their labels, for the count of hits."""

    loss: Tensor
    logits: Tensor
    label: Tensor


class Moment(NamedTuple):
    """When a batch comes: its own seed, the epochs done (a fraction within one), the share of the radius that the warm-up allows."""

    seed: int
    done: float
    scale: Fraction = FULL


@runtime_checkable
class Adversary(Protocol):
    """`inner`: the searches it runs."""

    @property
    def inner(self) -> tuple[Inner, ...]: ...

    def begin(self, net: nn.Module) -> dict[str, nn.Module]:
        """Weights to start from, in place, and what is trained beside the net, by name. Draws from the run's own generator."""

    def lesson(self, net: nn.Module, x: Images, label: Labels, moment: Moment) -> Lesson:
        """The loss of a batch of images in [0, 1]; leaves the net in train mode."""

    def told(self, right: int, seen: int) -> None:
        """How many of the last batch's images the net got right, before its update."""

    def tally(self) -> dict[str, Any]:
        """What the scheme remembers between batches: it stands in each epoch's line of the log."""

    def recall(self, tally: dict[str, Any]) -> None:
        """Go on from a line of the log."""

    def published(self, folder: Path, name: str, sha256: str, seed: int, total: int) -> dict[str, str]:
        """Write the cards of what was trained beside the net `name`, whose weights have this digest; returns what its card says of them."""


@dataclass(frozen=True, slots=True)
class Inner:
    """One attack in one set, or MSD in several, in lock-step over a batch. `attack` makes it for the members at the radius of the hour."""

    members: tuple[PerturbationSet, ...]
    attack: Callable[[tuple[PerturbationSet, ...]], Any]
    spec: str

    def __call__(self, net: nn.Module, x: Images, label: Labels, seed: int, scale: Fraction = FULL) -> Images:
        members = self.members if scale == 1 else tuple(shrunk(member, scale) for member in self.members)
        return lockstep(net, members[0], self.attack(members), x, label, spec=self.spec, seed=seed)


def shrunk(space: Any, scale: Fraction) -> Any:
    """The same set with `scale` of its radius."""
    return resized(space, {name: scale * radius for name, radius in space.extent.items()})


class Searching:
    """A scheme that replaces the batch by what a search found, with the net in eval mode and its weights frozen; the loss is cross-entropy.

    `batch(net, x, label, seed, scale)`: images and labels to train on, K · B of them where a scheme asks so, found within `scale` of the
    radius. As it stands here it treats every batch alike.
    """

    __slots__ = ()

    def begin(self, net: nn.Module) -> dict[str, nn.Module]:
        return {}

    def lesson(self, net: nn.Module, x: Images, label: Labels, moment: Moment) -> Lesson:
        net.eval().requires_grad_(False)
        x, label = self.batch(net, x, label, moment.seed, moment.scale)
        logits = net.requires_grad_(True).train()(x)
        return Lesson(functional.cross_entropy(logits, label), logits, label)

    def batch(self, net: nn.Module, x: Images, label: Labels, seed: int, scale: Fraction = FULL) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def told(self, right: int, seen: int) -> None:
        return

    def tally(self) -> dict[str, Any]:
        return {}

    def recall(self, tally: dict[str, Any]) -> None:
        return

    def published(self, folder: Path, name: str, sha256: str, seed: int, total: int) -> dict[str, str]:
        return {}


class Clean(Searching):
    """The batch as it is."""

    __slots__ = ()
    inner: ClassVar[tuple[Inner, ...]] = ()

    def batch(self, net: nn.Module, x: Images, label: Labels, seed: int, scale: Fraction = FULL) -> tuple[Tensor, Tensor]:
        return x, label


@dataclass(frozen=True, slots=True)
class Single(Searching):
    """What one attack finds: adversarial training in one set, or MSD in several."""

    inner: tuple[Inner]

    def batch(self, net: nn.Module, x: Images, label: Labels, seed: int, scale: Fraction = FULL) -> tuple[Tensor, Tensor]:
        return self.inner[0](net, x, label, seed, scale), label


@dataclass(frozen=True, slots=True)
class Average(Searching):
    """The members' batches one after another: the mean loss over K · B images is the mean of the members' losses, in one update."""

    inner: tuple[Inner, ...]

    def batch(self, net: nn.Module, x: Images, label: Labels, seed: int, scale: Fraction = FULL) -> tuple[Tensor, Tensor]:
        return torch.cat([member(net, x, label, seed, scale) for member in self.inner]), label.repeat(len(self.inner))


@dataclass(frozen=True, slots=True)
class Worst(Searching):
    """Per image the example of largest cross-entropy, asked of the net after all members have searched."""

    inner: tuple[Inner, ...]

    def batch(self, net: nn.Module, x: Images, label: Labels, seed: int, scale: Fraction = FULL) -> tuple[Tensor, Tensor]:
        return _hardest(net, [member(net, x, label, seed, scale) for member in self.inner], label), label


@dataclass(frozen=True, slots=True)
class Harder(Searching):
    """Per image, itself or what one attack finds, whichever has the larger cross-entropy: the mean of max(CE(f(x)), CE(f(x′))).

    For a set that need not hold the clean image, where training on x′ alone would leave x to chance.
    """

    inner: tuple[Inner]

    def batch(self, net: nn.Module, x: Images, label: Labels, seed: int, scale: Fraction = FULL) -> tuple[Tensor, Tensor]:
        return _hardest(net, [x, self.inner[0](net, x, label, seed, scale)], label), label


@torch.no_grad()
def _hardest(net: nn.Module, candidates: list[Tensor], label: Labels) -> Images:
    """Per row the candidate of largest cross-entropy; the first where two are level."""
    found = torch.stack(candidates)
    losses = torch.stack([functional.cross_entropy(net(images), label, reduction="none") for images in found])
    return found[losses.argmax(0), torch.arange(len(label), device=label.device)]


@dataclass(slots=True)
class Drawn(Searching):
    """E-AT: one member per batch, drawn with probability proportional to its running robust error on the training images.

    The error is counted over the whole run and never reset; until each member was met, and where no member errs, all are equally
    likely (Croce & Hein 2022, sec. 4, and their train.py). Right means right at the trained point, the one of largest loss; their code
    asks for every iterate. chances: fixed ones instead; equal ones make it the sampling of Madaan et al. 2020.
    """

    inner: tuple[Inner, ...]
    chances: tuple[float, ...] = ()
    right: list[int] = field(init=False)
    seen: list[int] = field(init=False)
    last: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.right, self.seen = [0] * len(self.inner), [0] * len(self.inner)

    def odds(self) -> Float[np.ndarray, " members"]:
        """The probability of each member for the next batch."""
        if self.chances:
            weights = np.array(self.chances, dtype=float)
        elif min(self.seen) == 0 or self.right == self.seen:
            weights = np.ones(len(self.inner))
        else:
            weights = 1 - np.array(self.right) / np.array(self.seen)
        odds: Float[np.ndarray, " members"] = weights / weights.sum()
        return odds

    def draw(self, seed: int) -> int:
        """The member of the batch with this seed."""
        return int(np.random.default_rng(seed).choice(len(self.inner), p=self.odds()))

    def batch(self, net: nn.Module, x: Images, label: Labels, seed: int, scale: Fraction = FULL) -> tuple[Tensor, Tensor]:
        self.last = self.draw(seed)
        return self.inner[self.last](net, x, label, seed, scale), label

    def told(self, right: int, seen: int) -> None:
        self.right[self.last] += right
        self.seen[self.last] += seen

    def tally(self) -> dict[str, Any]:
        return {"right": [*self.right], "seen": [*self.seen]}

    def recall(self, tally: dict[str, Any]) -> None:
        self.right, self.seen = [*tally["right"]], [*tally["seen"]]


def adversary(recipe: Recipe) -> Adversary:
    """The recipe's scheme on its threat's members. Raises CardError, SpecError, UnknownName."""
    return SCHEMES[recipe.scheme](recipe)


def _single(recipe: Recipe) -> Adversary:
    (member,), (attack,) = _paired(recipe)
    return Single((Inner((member,), lambda _: attack, spec_of(attack)),))


def _harder(recipe: Recipe) -> Adversary:
    (member,), (attack,) = _paired(recipe)
    return Harder((Inner((member,), lambda _: attack, spec_of(attack)),))


def _msd(recipe: Recipe) -> Adversary:
    inner = Inner(_threat(recipe).members, lambda members: MSD(members, recipe.rates, recipe.steps), f"msd{recipe.rates}")
    inner.attack(inner.members)  # refuses what does not go together now, not in the first batch
    return Single((inner,))


def _several(recipe: Recipe) -> tuple[Inner, ...]:
    """One inner attack per member; the member enters its noise, so that two members with equal budgets start apart."""
    pairs = zip(*_paired(recipe), strict=True)
    return tuple(Inner((member,), lambda _, attack=attack: attack, f"{member} {spec_of(attack)}") for member, attack in pairs)  # type: ignore[misc]


SCHEMES: dict[str, Callable[[Recipe], Adversary]] = {
    "standard": lambda recipe: Clean(),
    "adversarial": _single,
    "msd": _msd,
    "avg": lambda recipe: Average(_several(recipe)),
    "max": lambda recipe: Worst(_several(recipe)),
    "eat": lambda recipe: Drawn(_several(recipe), recipe.chances),
    "harder": _harder,
    "ibp": lambda recipe: _certified("Certified", recipe),
    "ibp-budgets": lambda recipe: _certified("Joint", recipe),
}


def _certified(kind: str, recipe: Recipe) -> Adversary:
    from rbench.training import certified

    made: Adversary = getattr(certified, kind).of(recipe)
    return made


def _threat(recipe: Recipe) -> Threat:
    return resolve(str(recipe.threat), recipe.dataset)


def _paired(recipe: Recipe) -> tuple[tuple[PerturbationSet, ...], list[Any]]:
    """The members and one attack for each. The driver runs one untargeted row per example. Raises CardError."""
    members, attacks = _threat(recipe).members, [build_attack(parse(text)) for text in recipe.attacks]
    if len(members) != len(attacks):
        raise CardError(
            f"recipe {recipe.name} on {recipe.dataset}: {len(attacks)} attacks for the {len(members)} members of {recipe.threat}",
            expected="one attack per member, in their order",
        )
    for text, member, attack in zip(recipe.attacks, members, attacks, strict=True):
        if attack.restarts > 1 or str(getattr(attack, "loss_name", "")).endswith("-targeted"):
            raise CardError(f"recipe {recipe.name}: {text}", expected="an untargeted attack without restarts")
        if not attack.needs <= member.capabilities:
            raise CardError(f"recipe {recipe.name}: {text} on {member}", expected=f"a set that is {' and '.join(sorted(attack.needs))}")
    return members, attacks
