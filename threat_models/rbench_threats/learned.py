"""Learned perturbation sets (Wong & Kolter 2021): what a generator draws from an image while its latent code stays in a ball.

θ is the code u in units of the prior's standard deviation: x′ = G(x, μ(x) + σ(x) · u) with ‖u‖₂ ≤ radius, one ball per image. Prior and
generator are frozen networks that come with the set; θ = 0 is the generator's own picture of x, not x, and x itself need not be a member.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rbench_core.errors import CardError, SpecError
from rbench_threats.cards import Card, load
from rbench_threats.networks import CVAE, build
from rbench_threats.protocol import NORM_TOLERANCE, Row, Scale
from rbench_threats.spec import Call, Exact, Value, written_name

if TYPE_CHECKING:
    from rbench_threats.protocol import Portrait

Rows = Float[Tensor, " rows"]
Codes = Float[Tensor, "rows d"]
Images = Float[Tensor, "rows c h w"]
Metric = Callable[[Tensor, Tensor], Tensor]
INWARDS = 1 - 1e-6  # of the radius: float32 rounding leaves the norm of a projected row up to 1.1e-5 above it (6,272 latents)
NEXT_TO_ZERO = 0.01  # of the radius
_NETWORKS: dict[tuple[str, str, torch.dtype], CVAE] = {}


@dataclass(frozen=True, slots=True)
class Conditioned:
    """The context: the clean images and their prior, mean and standard deviation of the code."""

    x: Float[Tensor, "rows c h w"]
    mean: Float[Tensor, "rows d"]
    spread: Float[Tensor, "rows d"]


@dataclass(frozen=True, slots=True)
class Learned:
    """learned(NAME or "FILE.toml", radius=R): every image that the set's generator draws from x with a code of length ≤ R, 0 < R.

    A radius above the one that the set was validated for is allowed and said: `notes`. Two sets are equal by weights, not by name.
    """

    name: str = field(compare=False)
    radius: Exact | Fraction | float | int | str
    digest: str = field(init=False, repr=False)
    card: Card = field(init=False, repr=False, compare=False)

    capabilities: ClassVar[frozenset[str]] = frozenset({"convex", "latent", "portrait"})

    def __post_init__(self) -> None:
        radius, card = Exact(self.radius), load("learned", self.name)
        if not 0 < radius <= 10**6:
            raise SpecError(f"learned({self.name}): radius={radius}", expected="0 < radius <= 1000000, in standard deviations of the prior")
        networks(card, torch.device("cpu"), torch.float32)  # refuses weights that do not fit now, not in the middle of a run
        for key, value in (("radius", radius), ("card", card), ("digest", card.sha256)):
            object.__setattr__(self, key, value)

    @classmethod
    def from_spec(cls, args: tuple[Value, ...], named: dict[str, Value]) -> Learned:
        """learned(NAME, radius=R), also learned(NAME, R). Raises SpecError, UnknownName, CardError, FileError."""
        given = dict(zip(("name", "radius"), args, strict=False))
        usage = "learned(NAME, radius=R), such as learned(digits-rts, radius=4)"
        if len(args) > 2 or set(named) - {"name", "radius"} or set(named) & set(given):
            raise SpecError(f"learned: arguments {', '.join([*map(str, args), *named])}", expected=usage)
        name, radius = ({**given, **named}.get(key) for key in ("name", "radius"))
        if not isinstance(name, Call) or name.args or name.named:
            raise SpecError(f"learned: {'no name' if name is None else name}", expected=usage)
        if radius is None:
            known = validated(load("learned", name.name))
            raise SpecError(f"learned({name.name}): no radius", expected=f"radius=R; the set was validated up to {known}")
        if not isinstance(radius, Exact):
            raise SpecError(f"learned({name.name}): radius={radius.name}", expected="a number")
        return cls(name.name, radius)

    def __str__(self) -> str:
        return f"learned({written_name(self.name)}, radius={self.radius})"

    @property
    def family(self) -> str:
        return f"learned:{self.digest}"

    @property
    def extent(self) -> dict[str, Fraction]:
        return {"radius": Exact(self.radius)}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a run must say about the set beside its verdicts."""
        limit = validated(self.card)
        if Exact(self.radius) <= limit:
            return ()
        return (f"{self}: the radius is larger than {limit}, the largest that the set was validated for: nobody measured what it draws",)

    @property
    def sentence(self) -> str:
        what = self.card.table.get("summary") or self.card.table.get("title") or self.card.name
        return f"A generator redraws the image as it learnt from examples, with a code of length up to {self.radius}. {what}"

    def check(self, shape: tuple[int, int, int]) -> None:
        """The set is for one canvas."""
        if tuple(shape) != self.card.shape:
            wanted, given = ("x".join(map(str, sides)) for sides in (self.card.shape, shape))
            raise SpecError(f"learned({self.name}): images of {given}", expected=f"{wanted}, the canvas that the set was learned on")

    def context(self, x: Images, row: Row) -> Conditioned:
        return conditioned(networks(self.card, x.device, x.dtype), x)

    def start(self, ctx: Conditioned, row: Row) -> Codes:
        """A direction drawn uniformly, at a length from 0 to the radius; the second restart next to code 0, further ones on the surface.

        The first is Wong & Kolter's. Code 0 is the generator's own picture of x, from which no direction is far.
        """
        direction = unit(row.normal(ctx.mean.shape[1], stream=0).to(ctx.mean))
        drawn = row.uniform(1, stream=1).to(ctx.mean).squeeze(1)
        share = torch.where(row.restart == 0, drawn, torch.where(row.restart == 1, NEXT_TO_ZERO, 1.0))
        return into_ball(direction * (float(self.radius) * share)[:, None], float(self.radius))

    def project(self, ctx: Conditioned, theta: Codes, scale: Scale = 1.0) -> Codes:
        radius = torch.as_tensor(scale, device=theta.device, dtype=torch.float64) * float(self.radius)
        return into_ball(theta, radius.expand(len(theta)))

    def steepest(self, ctx: Conditioned, grad: Codes, share: Tensor | None = None) -> Codes:
        return unit(grad) * float(self.radius)

    def gauge(self, ctx: Conditioned, theta: Codes) -> Rows:
        return (length(theta) / float(self.radius)).float()

    def excess(self, ctx: Conditioned, theta: Codes) -> Rows:
        return (length(theta) - float(self.radius) * (1 + NORM_TOLERANCE)).float()

    def render(self, ctx: Conditioned, theta: Codes) -> Images:
        """G(x, μ + σ · θ), in [0, 1] by a sigmoid."""
        return networks(self.card, ctx.x.device, ctx.x.dtype).generate(ctx.x, ctx.mean + ctx.spread * theta)

    def portrait(self, x: Images) -> Portrait:
        """Samples, traversals, partners with their best approximations, and what was measured when the set was learned."""
        from rbench_threats.learned_portrait import portrait

        return portrait(self, x)


def networks(card: Card, device: torch.device, dtype: torch.dtype) -> CVAE:
    """The card's networks, in eval mode and frozen, once per device and type. Raises CardError for weights that do not fit."""
    key = (card.sha256, str(device), dtype)
    if key not in _NETWORKS:
        net = build(card.shape, card.table.get("network", {}), card.path)
        try:
            net.load_state_dict(card.tensors)
        except RuntimeError as error:
            what = f"{card.path}: the weights are not those of network {card.table['network']} on images of {card.shape}"
            raise CardError(f"{what}: {' '.join(str(error).split())[:200]}") from error
        if not all(bool(tensor.isfinite().all()) for tensor in card.tensors.values()):
            raise CardError(f"{card.path}: the weights hold NaN or infinity", fix="Learn the set again.")
        _NETWORKS[key] = net.to(device, dtype).eval().requires_grad_(False)
    return _NETWORKS[key]


@torch.no_grad()
def conditioned(net: CVAE, x: Images) -> Conditioned:
    """The images with their prior; computed once, not per step."""
    return Conditioned(x, *net.condition(x))


def validated(card: Card) -> Exact:
    """The largest radius that the set was validated for. Raises CardError."""
    value = card.table.get("radius", {}).get("validated")
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise CardError(f"{card.path}: [radius] validated = {value!r}", expected="a number above 0")
    return Exact(value)


def length(theta: Codes) -> Float[Tensor, " rows"]:
    """‖θ‖₂ per row, in float64."""
    norm: Tensor = torch.linalg.vector_norm(theta, dim=1, dtype=torch.float64)
    return norm


def into_ball(theta: Codes, radius: float | Float[Tensor, " rows"]) -> Codes:
    """Rows longer than the radius scaled to it, the others as they are, bit for bit; each row by itself."""
    norm = length(theta)
    factor = torch.where(norm > radius, radius * INWARDS / norm.clamp_min(1e-300), 1.0)
    return theta * factor.to(theta.dtype)[:, None]


def unit(direction: Codes) -> Codes:
    """Each row at length 1, or 0; scaled by its largest entry first, so that gradients of 1e-30 do not underflow."""
    scaled = direction / direction.abs().amax(1, keepdim=True).clamp_min(1e-38)
    norm: Tensor = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / norm.clamp_min(1e-12)


def nearest(
    net: CVAE, ctx: Conditioned, partner: Images, begin: Codes, radius: float, metric: Metric, *, steps: int = 50, away: bool = False
) -> tuple[Codes, Rows]:
    """The code of smallest metric(G(x, u), partner) that projected gradient descent saw from `begin`, and that metric, per row.

    Normalised gradients, steps of radius / 20; the start counts and the best iterate is kept, so the result is never worse than the start
    (Wong & Kolter 2021, sec. 5; their code returns the last iterate). away: the largest in place of the smallest.
    """
    sign = -1.0 if away else 1.0
    code, best, least = begin, begin, torch.full((len(begin),), torch.inf, device=begin.device)
    for step in range(steps + 1):
        asked = code.detach().requires_grad_()
        with torch.enable_grad():
            distance = sign * metric(net.generate(ctx.x, ctx.mean + ctx.spread * asked), partner)
            (slope,) = torch.autograd.grad(distance.sum(), asked)
        better = distance.detach() < least
        best, least = torch.where(better[:, None], code, best), torch.where(better, distance.detach(), least)
        if step < steps:
            code = into_ball(code - unit(slope) * (radius / 20), radius)
    return best, sign * least


def squared_error(images: Images, partner: Images) -> Rows:
    """Mean squared error over the pixels, per row."""
    return (images - partner).square().flatten(1).mean(1)


def cross_entropy(images: Images, partner: Images) -> Rows:
    """Mean binary cross-entropy over the pixels, logs cut at −100 as torch does; grey pixels have a floor above 0."""
    bounded = partner.clamp(0, 1)
    return torch.nn.functional.binary_cross_entropy(images, bounded, reduction="none").flatten(1).mean(1)
