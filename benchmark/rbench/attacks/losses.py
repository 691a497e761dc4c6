"""Losses that attacks ascend, (rows,) each, and the target classes that belong to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rbench.attacks.noise import Row
from rbench_core.errors import SpecError

Logits = Float[Tensor, "rows classes"]
PerRow = Float[Tensor, " rows"]
Loss: TypeAlias = Callable[[Tensor, Row], Tensor]


def margin(logits: Logits, label: Int[Tensor, " rows"]) -> PerRow:
    """Logit of the label − best other; negative = fallen. A tie is 0: no fall."""
    own = logits.gather(1, label[:, None])
    return (own - logits.scatter(1, label[:, None], -torch.inf).amax(1, keepdim=True)).squeeze(1)


def cross_entropy(logits: Logits, row: Row) -> PerRow:
    """Cross-entropy at the label on the scale of log-odds: log Σ_{j≠y} exp z_j − z_y, of which −log softmax is the softplus.

    It rises with cross-entropy and its gradient has the same direction, but float32 does not round that to 0 for confident nets: the
    softmax loses the label's part once the label leads by 17, and everything once it leads by 104.
    """
    others = logits.scatter(1, row.label[:, None], -torch.inf).logsumexp(1)
    return others - logits.gather(1, row.label[:, None]).squeeze(1)


def untargeted_margin(logits: Logits, row: Row) -> PerRow:
    """Best other − label."""
    return -margin(logits, row.label)


def targeted_margin(logits: Logits, row: Row) -> PerRow:
    """Target − label."""
    return (logits.gather(1, row.target[:, None]) - logits.gather(1, row.label[:, None])).squeeze(1)


def dlr(logits: Logits, row: Row) -> PerRow:
    """Difference of logits ratio: margin over z₁ − z₃ (Croce & Hein 2020, sec. 4.1).

    Two holes are closed: below 4 classes it is the plain margin, and a label that ranks third is passed over for the fourth, since
    it would stand above and below the line and cancel its own gradient.
    """
    if logits.shape[1] < 4:
        return untargeted_margin(logits, row)
    best, order = logits.topk(4, dim=1)
    third = torch.where(order[:, 2] == row.label, best[:, 3], best[:, 2])
    return untargeted_margin(logits, row) / (best[:, 0] - third).clamp_min(1e-12)


def targeted_dlr(logits: Logits, row: Row) -> PerRow:
    """(z_t − z_y) / (z₁ − ½(z₃ + z₄)), with z₃ and z₄ the first two of rank ≥ 3 that are neither y nor t (Croce & Hein 2020, sec. 4.1).

    Below 4 classes the plain margin to the target. Where only one such rank exists it counts twice; where none does, the line is 1.
    """
    if logits.shape[1] < 4:
        return targeted_margin(logits, row)
    best, order = logits.topk(min(6, logits.shape[1]), dim=1)
    usable = (order[:, 2:] != row.label[:, None]) & (order[:, 2:] != row.target[:, None])
    rank = usable.cumsum(1)
    third = torch.where(usable & (rank == 1), best[:, 2:], 0.0).sum(1)
    fourth = torch.where(usable & (rank == 2), best[:, 2:], 0.0).sum(1)
    fourth = torch.where(rank[:, -1] >= 2, fourth, third)
    line = (best[:, 0] - 0.5 * (third + fourth)).clamp_min(1e-12)
    return targeted_margin(logits, row) / torch.where(rank[:, -1] >= 1, line, 1.0)


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "margin": untargeted_margin,
    "dlr": dlr,
    "margin-targeted": targeted_margin,
    "dlr-targeted": targeted_dlr,
}


def known(name: str) -> str:
    """name, if it is a loss. Raises SpecError."""
    if name not in LOSSES:
        raise SpecError(f"loss={name}", expected=f"one of: {', '.join(LOSSES)}")
    return name


def targets(name: str, order: Int[Tensor, "examples others"], top: int) -> Int[Tensor, "examples k"]:
    """−1 for an untargeted loss; else the `top` nearest other classes. order: all of them, nearest first."""
    return order[:, :top] if targeted(name) else torch.full_like(order[:, :1], -1)


def targeted(name: str) -> bool:
    """Whether a loss aims at a class."""
    return name.endswith("-targeted")


def by_logit(clean: Float[Tensor, "examples classes"], label: Int[Tensor, " examples"]) -> Int[Tensor, "examples others"]:
    """The classes but the label, largest clean logit first."""
    others = clean.scatter(1, label[:, None], -torch.inf)
    return others.argsort(dim=1, descending=True, stable=True)[:, :-1]
