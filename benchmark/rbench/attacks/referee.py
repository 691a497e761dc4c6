"""The referee renders every claimed fall again, in float32 and at one width of its own, and trusts nobody."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rbench.attacks import tree
from rbench.attacks.evaluate import Model, Passes, called, padded
from rbench.attacks.losses import margin
from rbench_threats.protocol import PIXEL_TOLERANCE, Context, PerturbationSet

WIDTH = 64
NOT_FINITE = "logits are not finite"
NO_FALL = "the label still leads"


@dataclass(frozen=True, slots=True)
class Judged:
    """(rows,) each, with the images that were judged."""

    accepted: Bool[Tensor, " rows"]
    predicted: Int[Tensor, " rows"]
    margin: Float[Tensor, " rows"]
    gauge: Float[Tensor, " rows"]
    images: Float[Tensor, "rows c h w"]
    reason: list[str]  # why not, "" where accepted


@torch.no_grad()
def judge(
    model: Model,
    space: PerturbationSet,
    ctx: Context,
    theta: Float[Tensor, "rows p"],
    label: Int[Tensor, " rows"],
    passes: Passes,
    width: int = WIDTH,
) -> Judged:
    """Inside the set? inside [0, 1]? strictly another class (a tie is no fall)? rows ≥ 1. width: less only where memory is short."""
    parts = [
        _batch(model, space, ctx, theta, label, rows, passes, width) for rows in torch.arange(len(theta), device=theta.device).split(width)
    ]
    whole = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("accepted", "predicted", "margin", "gauge", "images")}
    return Judged(**whole, reason=[reason for part in parts for reason in part.reason])


def _batch(
    model: Model, space: PerturbationSet, ctx: Context, theta: Tensor, label: Tensor, rows: Tensor, passes: Passes, width: int
) -> Judged:
    whole, kept = padded(rows, width), len(rows)
    part = tree.take(ctx, whole)
    images = space.render(part, theta[whole]).float()
    logits = called(model, images)
    passes.forward += width
    passes.useful += kept
    fell = margin(logits, label[whole])
    excess = space.excess(part, theta[whole])
    lowest, highest = images.flatten(1).amin(1), images.flatten(1).amax(1)
    outside = (lowest < -PIXEL_TOLERANCE) | (highest > 1 + PIXEL_TOLERANCE)
    finite = logits.isfinite().all(1)
    accepted = (excess <= 0) & ~outside & finite & (fell < 0)
    reason = [
        "" if yes else "outside the set" if not e <= 0 else "outside [0, 1]" if out else NOT_FINITE if not ok else NO_FALL
        for yes, e, out, ok in zip(
            accepted[:kept].tolist(), excess[:kept].tolist(), outside[:kept].tolist(), finite[:kept].tolist(), strict=True
        )
    ]
    cut = slice(0, kept)
    return Judged(accepted[cut], logits.argmax(1)[cut], fell[cut], space.gauge(part, theta[whole])[cut], images[cut], reason)
