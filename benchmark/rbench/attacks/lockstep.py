"""The training driver: the whole batch together, one row per example, the same `begin` and `step` as the evaluation's."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rbench.attacks import tree
from rbench.attacks.evaluate import Model, Passes, look
from rbench.attacks.noise import Row, row_keys
from rbench.attacks.protocol import Attack
from rbench_threats.protocol import PerturbationSet


def lockstep(
    model: Model,
    space: PerturbationSet,
    attack: Attack,
    x: Float[Tensor, "rows c h w"],
    label: Int[Tensor, " rows"],
    *,
    spec: str,
    seed: int,
    passes: Passes | None = None,
) -> Float[Tensor, "rows c h w"]:
    """The images of largest loss that the attack saw inside the set, per row. seed: of this batch. All rows run all steps."""
    passes = passes if passes is not None else Passes()
    index, none = np.arange(len(x)), np.full(len(x), -1)
    key = torch.from_numpy(row_keys(seed, spec, index, none, 0 * index)).to(x.device)
    zero = torch.zeros_like(label)
    row = Row(torch.arange(len(x), device=x.device), label, zero - 1, zero, key, zero)
    ctx = space.context(x, row)
    state = attack.begin(space, ctx, row)
    best, best_loss = attack.ask(state), torch.full(label.shape, -torch.inf, device=x.device)
    while bool(attack.goes_on(state, row).any()):
        for phase, kind in enumerate(attack.cycle):
            theta = attack.ask(state)
            seen = look(model, space, attack, ctx, row, theta, kind, passes)
            better = seen.loss > best_loss
            if seen.inside is not None:
                better &= seen.inside
            best, best_loss = tree.pick(better, theta, best), torch.where(better, seen.loss, best_loss)
            state = attack.step(space, ctx, row, state, seen, phase)
        row = row._replace(step=row.step + 1)
    return space.render(ctx, best).detach()
