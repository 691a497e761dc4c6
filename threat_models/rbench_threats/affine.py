"""Affine combinations: several sets at once, in shares that add up to one (Tramèr & Boneh 2019, sec. 4). Noise first, then the warp."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rbench_core.errors import SpecError
from rbench_threats.protocol import NORM_TOLERANCE, Context, PerturbationSet, Row, Scale, resized
from rbench_threats.spec import Call, Exact, Value, written

Rows = Float[Tensor, " rows"]
Thetas = Float[Tensor, "rows p"]
Images = Float[Tensor, "rows c h w"]
Weights = Float[Tensor, "rows parts"]
WEIGHTS_STREAM = 29  # of the noise that draws weights: no part uses it
APART = 32  # between the noise streams of one part and the next
EXAMPLE = "affine(linf(eps=0.3), l1(eps=10), weights=uniform)"


@dataclass(frozen=True, slots=True)
class Mixed:
    """The context: clean images, each part's share of the budget (≥ 0, together 1), and each part's own context."""

    x: Float[Tensor, "rows c h w"]
    weight: Float[Tensor, "rows parts"]
    parts: tuple[Context, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """One part at work: which columns of θ are its own, and which share of its radius each row gives it."""

    space: PerturbationSet
    ctx: Context
    columns: slice
    weight: Float[Tensor, " rows"]


@dataclass(frozen=True, slots=True)
class Affine:
    """Noise of all additive parts added to x and cut to [0, 1]; then the part that warps, if there is one, moves the noisy image.

    θ = the parts' θ side by side, each in its own ball ∩ box. The sum may leave [0, 1], and render cuts it: that loses no image, since what
    one part pushes past the edge the others could have left out. fixed: part i has weights[i] of its radius. uniform (no weights): the
    adversary splits the budget, Σ gaugeᵢ(θᵢ) ≤ 1; a row searches the slice of its own weights, drawn in `context` by flat Dirichlet, and
    restarts 1 to m are left to one part each: such a row is that part's own search, bit for bit. The widened set: Σ gaugeᵢ ≤ 1 + 1e-6,
    and each part alone, widened as it is by itself. At most one part warps, at any place; it sees the noise, after the cut to [0, 1].
    """

    parts: tuple[PerturbationSet, ...]
    weights: tuple[Exact, ...] | None = None

    capabilities: ClassVar[frozenset[str]] = frozenset({"blocks", "convex"})

    def __post_init__(self) -> None:
        _check_parts(self.parts)
        if self.weights is not None:
            object.__setattr__(self, "weights", _checked_weights(self.weights, len(self.parts)))

    @classmethod
    def from_spec(cls, args: tuple[Value, ...], named: dict[str, Value]) -> Affine:
        """`affine(SET, SET, ..., weights=uniform)` or `weights=fixed(1/2, 1/2)`. Raises SpecError."""
        from rbench_threats.catalogue import build

        if unknown := set(named) - {"weights"}:
            raise SpecError(f"affine: {min(unknown)}=...", expected=f"sets and weights, as in {EXAMPLE}")
        if wrong := [value for value in args if not isinstance(value, Call)]:
            raise SpecError(f"affine: {wrong[0]}", expected=f"sets, as in {EXAMPLE}")
        parts = tuple(build(value) for value in args if isinstance(value, Call))
        _check_parts(parts)
        return cls(parts, _read_weights(named.get("weights", Call("uniform"))))

    def __str__(self) -> str:
        return written("affine", {"parts": self.parts, "weights": self._told})

    @property
    def _told(self) -> str:
        return "uniform" if self.weights is None else f"fixed({', '.join(map(str, self.weights))})"

    @property
    def family(self) -> str:
        """The parts' families in their order, with the weights by value."""
        weights = "uniform" if self.weights is None else ", ".join(str(Fraction(weight)) for weight in self.weights)
        return f"affine({', '.join(part.family for part in self.parts)}; {weights})"

    @property
    def extent(self) -> dict[str, Fraction]:
        """Every part's radii, {"1.eps": ..., "2.eps": ...}."""
        return {f"{place}.{name}": value for place, part in enumerate(self.parts, 1) for name, value in part.extent.items()}

    def resized(self, extent: dict[str, Fraction]) -> Affine:
        """The same combination of parts with other radii."""
        own = ({name: extent[f"{place}.{name}"] for name in part.extent} for place, part in enumerate(self.parts, 1))
        return Affine(tuple(resized(part, radii) for part, radii in zip(self.parts, own, strict=True)), self.weights)

    @property
    def sentence(self) -> str:
        if self.weights is None:
            shares = "in shares that add up to the whole budget, split as the adversary likes"
        else:
            shares = f"in the shares {', '.join(map(str, self.weights))} of their budgets"
        order = " The noise comes first; then the noisy image is moved." if self._warps() else ""
        return f"All of these at once, {shares}. {' '.join(part.sentence for part in self.parts)}{order}"

    def check(self, shape: tuple[int, int, int]) -> None:
        """Refuse what a part refuses."""
        for part in self.parts:
            part.check(shape)

    def context(self, x: Images, row: Row) -> Mixed:
        return Mixed(x, self._weights(x, row), tuple(part.context(x.clone(), row) for part in self.parts))

    def _weights(self, x: Images, row: Row) -> Weights:
        """Fixed, or by restart: 1 to m leave all to one part, every other one is a draw of its own."""
        count = len(self.parts)
        if self.weights is not None:
            return x.new_tensor([float(weight) for weight in self.weights]).repeat(len(x), 1)
        drawn = -row.uniform(count, stream=WEIGHTS_STREAM).log().to(x)
        alone = torch.nn.functional.one_hot((row.restart - 1).clamp(0, count - 1), count).to(x)
        lonely = (row.restart >= 1) & (row.restart <= count)
        return torch.where(lonely[:, None], alone, drawn / drawn.sum(1, keepdim=True))

    def blocks(self, ctx: Mixed) -> tuple[Block, ...]:
        """The parts at work, in their order."""
        found, begin = [], 0
        for place, (part, own) in enumerate(zip(self.parts, ctx.parts, strict=True)):
            end = begin + _size(part, ctx.x.shape[1:])
            found.append(Block(part, own, slice(begin, end), ctx.weight[:, place]))
            begin = end
        return tuple(found)

    def weighed(self, ctx: Mixed, weight: Weights) -> Mixed:
        """The slice of other weights; where they are fixed, the same one."""
        return ctx if self.weights is not None else replace(ctx, weight=weight)

    def around(self, ctx: Mixed, theta: Thetas) -> Mixed:
        """The slice on which θ lies with the smallest scale: weights in proportion to its gauges. At θ = 0 the row's own."""
        each = self._gauges(ctx, theta)
        whole = each.sum(1, keepdim=True)
        return self.weighed(ctx, torch.where(whole > 0, each / whole, ctx.weight))

    def lifted(self, place: int, theta: Thetas, shape: torch.Size | tuple[int, ...]) -> Float[Tensor, "rows q"]:
        """The θ at which one part alone has moved. shape: of the images, (C, H, W)."""
        zeros = [theta.new_zeros(len(theta), _size(part, shape)) for part in self.parts]
        return torch.cat([theta if at == place else zero for at, zero in enumerate(zeros)], 1)

    def start(self, ctx: Mixed, row: Row) -> Thetas:
        """Every part's start, shrunk to its share. A part without budget stays at 0, and no part changes the noise of one that is alone."""
        return torch.cat([_begun(block, row, place) for place, block in enumerate(self.blocks(ctx))], 1)

    def project(self, ctx: Mixed, theta: Thetas, scale: Scale = 1.0) -> Thetas:
        """Part by part onto its share of (scale · ball) ∩ box: the nearest point of the row's slice."""
        return torch.cat([b.space.project(b.ctx, theta[:, b.columns], scale * b.weight) for b in self.blocks(ctx)], 1)

    def steepest(self, ctx: Mixed, grad: Thetas, share: Tensor | None = None) -> Thetas:
        """Of the row's slice: every part along its own steepest direction. share reaches the parts that are sparse."""
        return torch.cat([_steps(block, grad[:, block.columns], share) for block in self.blocks(ctx)], 1)

    def free(self, ctx: Mixed, theta: Thetas, grad: Thetas) -> Thetas:
        """grad without the entries along which a sparse part has no room."""
        return torch.cat([_freed(block, theta[:, block.columns], grad[:, block.columns]) for block in self.blocks(ctx)], 1)

    def gauge(self, ctx: Mixed, theta: Thetas) -> Rows:
        """uniform: the sum of the parts' gauges; fixed: the largest one in units of its share."""
        each = self._gauges(ctx, theta)
        return each.sum(1) if self.weights is None else torch.where(each == 0, 0.0, each / ctx.weight).amax(1)

    def excess(self, ctx: Mixed, theta: Thetas) -> Rows:
        each, blocks = self._gauges(ctx, theta), self.blocks(ctx)
        own = torch.stack([block.space.excess(block.ctx, theta[:, block.columns]) for block in blocks], 1).amax(1)
        if self.weights is not None:
            beyond = torch.where(ctx.weight == 1, -torch.inf, each - ctx.weight * (1 + NORM_TOLERANCE)).amax(1)
        else:
            moved = torch.stack([(theta[:, block.columns] != 0).any(1) for block in blocks], 1).sum(1)
            beyond = torch.where(moved > 1, each.sum(1) - (1 + NORM_TOLERANCE), -torch.inf)
        return torch.maximum(own, beyond)

    def render(self, ctx: Mixed, theta: Thetas) -> Images:
        image, warps = ctx.x, []
        for block in self.blocks(ctx):
            if "warp" in block.space.capabilities:
                warps.append(block)
            else:
                image = image + theta[:, block.columns].view_as(image)
        image = image.clamp(0, 1)
        for block in warps:
            image = block.space.warp(image, theta[:, block.columns])  # type: ignore[attr-defined]  # the capability
        return image

    def _gauges(self, ctx: Mixed, theta: Thetas) -> Weights:
        return torch.stack([block.space.gauge(block.ctx, theta[:, block.columns]) for block in self.blocks(ctx)], 1)

    def _warps(self) -> list[PerturbationSet]:
        return [part for part in self.parts if "warp" in part.capabilities]


@dataclass(frozen=True, slots=True)
class Apart:
    """A row whose noise comes from other streams, unless it is `alone`: parts that share a row must not share its noise."""

    row: Row
    alone: Bool[Tensor, " rows"]
    shift: int

    @property
    def example(self) -> Int[Tensor, " rows"]:
        return self.row.example

    @property
    def label(self) -> Int[Tensor, " rows"]:
        return self.row.label

    @property
    def target(self) -> Int[Tensor, " rows"]:
        return self.row.target

    @property
    def restart(self) -> Int[Tensor, " rows"]:
        return self.row.restart

    @property
    def step(self) -> Int[Tensor, " rows"]:
        return self.row.step

    def uniform(self, n: int, stream: int) -> Float[Tensor, "rows n"]:
        """As of Row."""
        return torch.where(self.alone[:, None], self.row.uniform(n, stream), self.row.uniform(n, stream + self.shift))

    def uniforms(self, counts: tuple[int, ...], stream: int) -> tuple[Float[Tensor, "rows _"], ...]:
        """As of Row."""
        return tuple(self.uniform(n, stream + more) for more, n in enumerate(counts))

    def normal(self, n: int, stream: int) -> Float[Tensor, "rows n"]:
        """As of Row."""
        return torch.where(self.alone[:, None], self.row.normal(n, stream), self.row.normal(n, stream + self.shift))


def _begun(block: Block, row: Row, place: int) -> Thetas:
    alone = block.weight == 1
    full = block.space.start(block.ctx, Apart(row, alone, APART * place) if place else row)
    shrunk = block.space.project(block.ctx, block.weight[:, None] * full, block.weight)
    return torch.where(alone[:, None], full, shrunk)


def _steps(block: Block, grad: Thetas, share: Tensor | None) -> Thetas:
    return block.weight[:, None] * block.space.steepest(block.ctx, grad, share if "sparse" in block.space.capabilities else None)


def _freed(block: Block, theta: Thetas, grad: Thetas) -> Thetas:
    if "sparse" not in block.space.capabilities:
        return grad
    return block.space.free(block.ctx, theta, grad)  # type: ignore[attr-defined,no-any-return]  # the capability


def _size(part: PerturbationSet, shape: torch.Size | tuple[int, ...]) -> int:
    """How many parameters a part has on images of a shape."""
    if "warp" in part.capabilities:
        return int(part.parameters)  # type: ignore[attr-defined]  # the capability
    return shape[0] * shape[1] * shape[2]


def _check_parts(parts: tuple[Any, ...]) -> None:
    if len(parts) < 2:
        raise SpecError(f"affine of {len(parts)} sets", expected=f"two or more, as in {EXAMPLE}")
    for part in parts:
        own: frozenset[str] = getattr(part, "capabilities", frozenset())  # a union has none
        if "convex" not in own or not {"additive", "warp"} & own:
            expected = "convex sets that add to the image or move it: linf, l2, l1, boxes, rotation-translation"
            raise SpecError(f"affine: {part}", expected=expected)
    warps = [str(part) for part in parts if "warp" in part.capabilities]
    if len(warps) > 1:
        raise SpecError(f"affine: {' and '.join(warps)}", expected="at most one set that moves the image")


def _read_weights(value: Value) -> tuple[Exact, ...] | None:
    if isinstance(value, Call) and not value.named:
        if value.name == "uniform" and not value.args:
            return None
        if value.name == "fixed" and all(isinstance(weight, Exact) for weight in value.args):
            return tuple(weight for weight in value.args if isinstance(weight, Exact))
    shown = value if isinstance(value, Exact) else value.name
    raise SpecError(f"affine: weights={shown}", expected="weights=uniform, or one number per set as in weights=fixed(1/2, 1/2)")


def _checked_weights(weights: tuple[Exact, ...], count: int) -> tuple[Exact, ...]:
    exact = tuple(Exact(weight) for weight in weights)
    told = f"affine: weights=fixed({', '.join(map(str, exact))})"
    if len(exact) != count:
        raise SpecError(f"{told}, {len(exact)} of them", expected=f"{count}, one per set")
    if min(exact) < 0 or sum(exact) != 1:
        raise SpecError(told, expected="numbers from 0 on that add up to 1")
    return exact
