"""In which order a targeted attack aims at the other classes: nearest first, were the model linear around the clean image."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rbench.attacks.evaluate import Crash, Model, OutOfMemory, Passes, called, padded
from rbench.attacks.search import Examples
from rbench.attacks.stage import part_of, plain_context
from rbench.attacks.widths import width_for
from rbench_core.errors import ModelError
from rbench_threats.protocol import PerturbationSet

RANKED = 20  # classes whose distance is measured, the largest by clean logit; one backward pass each


def nearest_first(model: Model, space: PerturbationSet, examples: Examples, width: int, passes: Passes) -> Int[Tensor, "examples others"]:
    """The classes but the label by (z_y − z_t) over the most that one radius of the set can change it, smallest first.

    The order of MALT (Melamed, Yehudai & Shamir 2024), with the set's own `steepest` for the dual norm. Beyond RANKED classes, where the
    set is not additive, and for images on which the model gives no numbers: by clean logit.
    """
    order = examples.rivals
    if "additive" not in space.capabilities or order.shape[1] < 2:
        return order
    for places in torch.arange(len(examples)).split(width):
        some = part_of(examples, padded(places, width_for(len(places), width)).tolist())
        try:
            order[places.to(order.device)] = _ranked(model, space, some, passes)[: len(places)]
        except (Crash, OutOfMemory, ModelError):
            continue  # the attack itself will meet it, and name it
        passes.useful += len(places)
    return order


def _ranked(model: Model, space: PerturbationSet, examples: Examples, passes: Passes) -> Int[Tensor, "examples others"]:
    order = examples.rivals
    ctx, theta = plain_context(space, examples, seed=0), torch.zeros_like(examples.x.flatten(1), requires_grad=True)
    with torch.enable_grad():
        logits = called(model, space.render(ctx, theta))
        passes.forward += len(examples)
        lead = logits.gather(1, examples.label[:, None]) - logits.gather(1, order[:, :RANKED])
        distance = [_distance(space, ctx, lead[:, rank], theta, passes) for rank in range(lead.shape[1])]
    nearest = torch.stack(distance, 1).nan_to_num(torch.inf).argsort(dim=1, stable=True)
    return torch.cat([order.gather(1, nearest), order[:, RANKED:]], 1)


def _distance(space: PerturbationSet, ctx: object, lead: Float[Tensor, " rows"], theta: Tensor, passes: Passes) -> Tensor:
    """In radii of the set, (rows,)."""
    passes.backward += len(lead)
    (slope,) = torch.autograd.grad(lead.sum(), theta, retain_graph=True)
    with torch.no_grad():
        return lead / (slope * space.steepest(ctx, slope)).sum(1)
