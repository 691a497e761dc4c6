"""Sets with a mistake each, most of them seen in other people's code: every law must reject the one that was made for it."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from rbench_threats.boxes import Reach
from rbench_threats.lp import L0, L1, L2, Box, Linf
from rbench_threats.protocol import Row, Scale, per_row
from rbench_threats.spatial import Canvas, RotationTranslation


class ForgetsTheBox(Linf):
    """A member of the ball may leave [0, 1], and its own `excess` has nothing against it."""

    def project(self, ctx: Box, theta: Tensor, scale: Scale = 1.0) -> Tensor:
        return theta.clamp(-float(self.eps), float(self.eps))

    def excess(self, ctx: Box, theta: Tensor) -> Tensor:
        return theta.abs().amax(1) - float(self.eps) - 1e-6


class StandsStill(L2):
    """The start is the clean image."""

    def start(self, ctx: Box, row: Row) -> Tensor:
        return torch.zeros_like(ctx.lower)


class ExcessForgetsTheBox(L2):
    """Its `excess` sees the norm alone."""

    def excess(self, ctx: Box, theta: Tensor) -> Tensor:
        return theta.norm(dim=1) - float(self.eps) * (1 + 1e-6)


class WidensItself(L1):
    """A tolerance of a thousandth."""

    def excess(self, ctx: Box, theta: Tensor) -> Tensor:
        return super().excess(ctx, theta / 1.001)


class CountsValues(L0):
    """Counts changed values, not pixels."""

    def excess(self, ctx: Box, theta: Tensor) -> Tensor:
        return (theta != 0).sum(1).float() - float(self.pixels)


class SwallowsNaN(Linf):
    """Reads NaN as 0."""

    def excess(self, ctx: Box, theta: Tensor) -> Tensor:
        return super().excess(ctx, theta.nan_to_num(0.0, 0.0, 0.0))


class OneScaleForAll(L2):
    """Takes the batch's mean scale for every row's."""

    def project(self, ctx: Box, theta: Tensor, scale: Scale = 1.0) -> Tensor:
        return super().project(ctx, theta, float(torch.as_tensor(scale).mean()))


class Sphere(L2):
    """Blows interior points up to the surface; idempotent all the same (STYLE section 1: adversarial-library)."""

    def project(self, ctx: Box, theta: Tensor, scale: Scale = 1.0) -> Tensor:
        far = theta / theta.norm(dim=1, keepdim=True).clamp_min(1e-12) * float(self.eps)
        return super().project(ctx, far * per_row(scale))


class ClipsAfterL1(L1):
    """Projects onto the l1 ball, then clips to the box: part of the budget stays unused (STYLE section 1: the old APGD-l1)."""

    def project(self, ctx: Box, theta: Tensor, scale: Scale = 1.0) -> Tensor:
        wide = Box(ctx.x, ctx.lower - 1e4, ctx.upper + 1e4)
        return super().project(wide, theta, scale).clamp(ctx.lower, ctx.upper)


class ClipsAfterL2(L2):
    """The same in l2."""

    def project(self, ctx: Box, theta: Tensor, scale: Scale = 1.0) -> Tensor:
        wide = Box(ctx.x, ctx.lower - 1e4, ctx.upper + 1e4)
        return super().project(wide, theta, scale).clamp(ctx.lower, ctx.upper)


class RescalesL1(L1):
    """Shrinks to the surface along the ray to 0 (STYLE section 1: foolbox, ART)."""

    def project(self, ctx: Box, theta: Tensor, scale: Scale = 1.0) -> Tensor:
        clipped = theta.clamp(ctx.lower, ctx.upper)
        room = torch.as_tensor(scale, dtype=theta.dtype) * float(self.eps) / clipped.abs().sum(1).clamp_min(1e-30)
        return clipped * room.clamp_max(1)[:, None]


class GivesUp(L2):
    """Outside the ball: 0."""

    def project(self, ctx: Box, theta: Tensor, scale: Scale = 1.0) -> Tensor:
        found = super().project(ctx, theta, scale)
        return torch.where((found == theta).all(1, keepdim=True), theta, 0.0)


class KeepsTheLargest(L0):
    """Keeps the pixels of largest |θ|, whatever the box leaves of them."""

    def project(self, ctx: Box, theta: Tensor, scale: Scale = 1.0) -> Tensor:
        size = theta.square().unflatten(1, (ctx.x.shape[1], -1)).sum(1)
        kept = _top(size, int(self.pixels)).repeat(1, ctx.x.shape[1])
        return torch.where(kept, theta.clamp(ctx.lower, ctx.upper), 0.0)


class KeepsValues(L0):
    """Keeps single values: with two channels, half of the change that it may make."""

    def project(self, ctx: Box, theta: Tensor, scale: Scale = 1.0) -> Tensor:
        clipped = theta.clamp(ctx.lower, ctx.upper)
        return torch.where(_top(clipped * (2 * theta - clipped), int(self.pixels)), clipped, 0.0)


def _top(values: Tensor, count: int) -> Tensor:
    return torch.zeros_like(values, dtype=torch.bool).scatter(1, values.argsort(dim=1, descending=True)[:, :count], True)


class StepOfTheBatch(L2):
    """Normalises the gradient over the whole batch."""

    def steepest(self, ctx: Box, grad: Tensor, share: Tensor | None = None) -> Tensor:
        return grad / grad.norm(dim=1).amax() * float(self.eps)


class WatchesNeighbours(L2):
    """If any row of the batch is outside, every row is put on the surface."""

    def project(self, ctx: Box, theta: Tensor, scale: Scale = 1.0) -> Tensor:
        radius = theta.norm(dim=1).amax().clamp_min(float(self.eps))
        return super().project(ctx, theta * (float(self.eps) / radius), scale)


class StartsFromTheGlobalGenerator(Linf):
    """Noise by place in the batch."""

    def start(self, ctx: Box, row: Row) -> Tensor:
        random = torch.Generator().manual_seed(0)
        return self.project(ctx, torch.rand(ctx.lower.shape, generator=random) - 0.5)


class Sign(L2):
    """Steps along the sign of the gradient, cut to one radius."""

    def steepest(self, ctx: Box, grad: Tensor, share: Tensor | None = None) -> Tensor:
        return grad.sign() * (float(self.eps) / grad.shape[1] ** 0.5)


class Underflows(L2):
    """Divides by a norm whose squares vanish for gradients of 1e-30."""

    def steepest(self, ctx: Box, grad: Tensor, share: Tensor | None = None) -> Tensor:
        return grad / grad.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12) * float(self.eps)


class DividesByZero(L2):
    """No gradient: NaN."""

    def steepest(self, ctx: Box, grad: Tensor, share: Tensor | None = None) -> Tensor:
        return grad / grad.norm(dim=1, keepdim=True) * float(self.eps)


class IgnoresShare(L1):
    """Always moves every coordinate."""

    def steepest(self, ctx: Box, grad: Tensor, share: Tensor | None = None) -> Tensor:
        return grad.sign() * (float(self.eps) / grad.shape[1])


class PushesAtTheWall(L1):
    """Spends its steps on coordinates that cannot move."""

    def free(self, ctx: Box, theta: Tensor, grad: Tensor) -> Tensor:
        return grad


class OneSquareForAll(Linf):
    """Draws one square for the whole batch, as AutoAttack does."""

    def move(self, ctx: Box, theta: Tensor, share: Tensor, row: Row) -> Tensor:
        first = row._replace(key=row.key[:1].expand_as(row.key))  # type: ignore[attr-defined]
        return super().move(ctx, theta, share, first)


class MovesTooFar(L2):
    """Forgets to scale what it moved."""

    def move(self, ctx: Box, theta: Tensor, share: Tensor, row: Row) -> Tensor:
        fresh = super().move(ctx, theta, share, row)
        return (1.01 * fresh).clamp(ctx.lower, ctx.upper)


class AddsPixels(L0):
    """Changes others and takes none back."""

    def move(self, ctx: Box, theta: Tensor, share: Tensor, row: Row) -> Tensor:
        fresh = super().move(ctx, theta, share, row)
        return torch.where(theta != 0, theta, fresh)


class SquaredGauge(L2):
    """Forgets the root."""

    def gauge(self, ctx: Box, theta: Tensor) -> Tensor:
        return (theta.square().sum(1) / float(self.eps) ** 2).float()


class CountsTooFew(L0):
    """Rounds a scale down: of 5 pixels, which are 5/24 of the radius in float32, it keeps 4. Ours did."""

    def project(self, ctx: Box, theta: Tensor, scale: Scale = 1.0) -> Tensor:
        whole = (torch.as_tensor(scale, dtype=torch.float64) * float(self.pixels) + 1e-9).floor() / float(self.pixels)
        return super().project(ctx, theta, whole.expand(len(theta)).float())


class BoxWithoutTolerance(Linf):
    """The bare ball in float32: what `excess` tolerates lies outside its box, and so would a certified example's witness."""

    def box(self, ctx: Reach) -> tuple[Tensor, Tensor]:
        return (ctx.x - float(self.eps)).clamp_min(0), (ctx.x + float(self.eps)).clamp_max(1)


class SmallerIsLarger(Linf):
    """Its `extent` counts the wrong way, so a witness for a large radius would count for a small one."""

    @property
    def extent(self) -> dict[str, Fraction]:
        return {"eps": Fraction(1, 100) / Fraction(self.eps)}


class Dims(Linf):
    """x is not what it renders at θ = 0."""

    def render(self, ctx: Box, theta: Tensor) -> Tensor:
        return 0.999 * super().render(ctx, theta)


class BlursAtRest(RotationTranslation):
    """Half a pixel off, as with align_corners the wrong way round."""

    def render(self, ctx: Canvas, theta: Tensor) -> Tensor:
        return super().render(ctx, theta + theta.new_tensor([0.0, 0.5, 0.0]))


class Counterclockwise(RotationTranslation):
    """Shifts what it should turn back: Δ before the turn, not after."""

    def render(self, ctx: Canvas, theta: Tensor) -> Tensor:
        return super().render(ctx, theta * theta.new_tensor([1.0, -1.0, 1.0]))


class CutsTheGraph(Linf):
    """Renders through whole grey levels: no gradient comes back."""

    def render(self, ctx: Box, theta: Tensor) -> Tensor:
        return super().render(ctx, theta.detach()) + 0 * theta.sum()


class RoundsItsSpec(Linf):
    """Prints three decimals."""

    def __str__(self) -> str:
        return f"linf(eps={float(self.eps):.3f})"
