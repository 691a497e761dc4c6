"""Certified training: the loss of interval bounds over a box, with a fixed set or with half-widths that are learned beside the net.

Loss κ · CE(clean) + (1 − κ) · CE(0, −m₁, …): mⱼ bounds z_label − z_j from below over the whole box (Gowal et al. 2018), and κ falls from 1
as the radius grows. Initial weights, batch statistics and the growth of the radius follow Shi et al. 2021 (Fast-CRT).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from rbench.attacks.noise import Row
from rbench.certificates import ibp
from rbench.certificates.graph import Graph, trace
from rbench.training.adversaries import Images, Inner, Labels, Lesson, Moment, shrunk
from rbench.training.budgets import publish
from rbench_core.errors import CardError
from rbench_threats import generator
from rbench_threats.catalogue import resolve
from rbench_threats.normaliser import Range
from rbench_threats.protocol import PerturbationSet
from rbench_zoo.recipe import Recipe

FINE = 10**9  # steps from radius 0 to the whole


@dataclass(slots=True)
class Bounded:
    """What both schemes share. `inner`: nothing is searched. `graph`: the net as the bounds see it, traced once."""

    recipe: Recipe
    inner: ClassVar[tuple[Inner, ...]] = ()
    graph: Graph = field(init=False)
    proved: int = field(default=0, init=False)
    seen: int = field(default=0, init=False)

    def begin(self, net: nn.Module) -> dict[str, nn.Module]:
        if self.recipe.start is None:
            spread_thin(net)
        self.graph = trace(net, tuple(self.recipe.arguments["shape"]))
        return {}

    def lesson(self, net: nn.Module, x: Images, label: Labels, moment: Moment) -> Lesson:
        net.requires_grad_(True).train()
        share = smooth(moment.done, self.recipe.warmup, self.recipe.ramp)
        if share == 0:
            logits = net(x)
            return Lesson(functional.cross_entropy(logits, label), logits, label)
        logits, margins = ibp.both(self.graph, x, *self.box(x, share * self.recipe.above), label)
        self.proved, self.seen = self.proved + int((margins > 0).all(1).sum()), self.seen + len(x)
        robust = functional.cross_entropy(torch.cat([torch.zeros_like(margins[:, :1]), -margins], 1), torch.zeros_like(label))
        kappa = 1 - share * (1 - self.recipe.kappa)
        return Lesson(kappa * functional.cross_entropy(logits, label) + (1 - kappa) * robust, logits, label)

    def box(self, x: Images, share: float) -> tuple[Images, Images]:
        """The images between which the net is bounded, at this share of the radius; more than 1 where the recipe trains above it."""
        raise NotImplementedError

    def told(self, right: int, seen: int) -> None:
        return

    def tally(self) -> dict[str, Any]:
        """The share of the epoch's images that the bound certified, each at the radius of its hour."""
        proved, self.proved, seen, self.seen = self.proved, 0, self.seen, 0
        return {"certified": round(proved / seen, 5)} if seen else {}

    def recall(self, tally: dict[str, Any]) -> None:
        return

    def published(self, folder: Path, name: str, sha256: str, seed: int, total: int) -> dict[str, str]:
        """Cards of what was trained beside the net; what its own card says of them."""
        return {}


@dataclass(slots=True)
class Certified(Bounded):
    """A fixed set that is a box."""

    space: PerturbationSet = field(kw_only=True)

    @classmethod
    def of(cls, recipe: Recipe) -> Certified:
        """Raises CardError for a threat that is no single box."""
        (space, *more) = resolve(str(recipe.threat), recipe.dataset).members
        if more or "box" not in space.capabilities:
            raise CardError(f"recipe {recipe.name} on {recipe.dataset}: threat {recipe.threat}", expected="one set that is a box")
        return cls(recipe, space=space)

    def box(self, x: Images, share: float) -> tuple[Images, Images]:
        space = self.space if share == 1 else shrunk(self.space, Fraction(math.ceil(share * FINE), FINE))
        none = torch.full((len(x),), -1, device=x.device)  # the place of an image in its data set is not known here
        lower, upper = space.box(space.context(x, Row(none, none, none, none, none, none)))  # type: ignore[union-attr]  # the capability
        return lower, upper


@dataclass(slots=True)
class Joint(Bounded):
    """Half-widths that a generator, or one map, makes of the clean image, at a fixed volume; the bound's gradient flows into them."""

    module: generator.Scores = field(kw_only=True)

    @classmethod
    def of(cls, recipe: Recipe) -> Joint:
        """Raises SpecError for a volume or a form that is none."""
        given = recipe.budgets
        network = {"width": given["width"]} if "width" in given else {}
        bounds = Range(*(float(given[key]) for key in ("volume", "low", "high")))
        return cls(recipe, module=generator.build(given["form"], bounds, tuple(recipe.arguments["shape"]), network))

    def begin(self, net: nn.Module) -> dict[str, nn.Module]:
        Bounded.begin(self, net)
        device = next(net.parameters()).device
        self.module = Joint.of(self.recipe).module.to(device)  # its weights are drawn now, from the run's seed
        return {"budgets": self.module}

    def box(self, x: Images, share: float) -> tuple[Images, Images]:
        eps = share * self.module(x)
        return (x - eps).clamp_min(0), (x + eps).clamp_max(1)

    def published(self, folder: Path, name: str, sha256: str, seed: int, total: int) -> dict[str, str]:
        return {"budgets": publish(self.module, self.recipe, folder, name, sha256, seed, total)}


def smooth(done: float, warmup: float, ramp: float) -> float:
    """The share of the radius after `done` epochs: 0 over the warm-up, then a fourth power, then a line, with one slope where they meet.

    The power ends after a quarter of the ramp (Fast-CRT's and CROWN-IBP's smoothed schedule, mid 0.25, exponent 4).
    """
    at = done - warmup
    if at >= ramp:
        return 1.0 if at >= 0 else 0.0
    if at <= 0:
        return 0.0
    middle = 0.25 * ramp
    steep = 1 / ((ramp - middle) * 4 * middle**3 + middle**4)
    return steep * at**4 if at <= middle else steep * (middle**4 + 4 * middle**3 * (at - middle))


def spread_thin(net: nn.Module) -> None:
    """Weights of all layers but the last from N(0, 2π / fan-in²), biases 0: intervals then neither explode nor vanish (Fast-CRT)."""
    layers = [module for module in net.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for layer in layers[:-1]:
        nn.init.normal_(layer.weight, std=math.sqrt(2 * math.pi) / layer.weight[0].numel())
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
