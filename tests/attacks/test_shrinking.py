"""Radii that shrink, and the attack that follows them: where it looks, what each stage starts from, and a loss that only it gets past."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from laws.attack_laws import begun, trajectory
from rbench.attacks.apgd import APGD, APGDSparse
from rbench.attacks.build import spec_of
from rbench.attacks.catalogue import Stage
from rbench.attacks.protocol import Attack
from rbench.attacks.radii import Radii
from rbench.attacks.search import Examples
from rbench.attacks.shrinking import APGDShrinking
from rbench.attacks.stage import run_stage
from rbench_core.errors import SpecError
from rbench_threats.lp import L1, L2, Linf
from rbench_threats.protocol import PerturbationSet

SHAPE = (1, 8, 8)
CASES = [
    (APGDShrinking(steps=40, outer=4.0), L2(1)),
    (APGDShrinking(steps=20, outer=2.0), Linf("0.1")),
    (APGDSparse(steps=40, outer=4.0), L1(2)),
]


def test_a_schedule_looks_at_every_radius_in_turn() -> None:
    radii = Radii(8.0, 40)
    assert radii.values[0] == 8
    assert radii.values[-1] == 1
    ratios = [near / far for far, near in zip(radii.values, radii.values[1:], strict=False)]
    assert ratios == pytest.approx([ratios[0]] * 5)
    look = torch.arange(41)
    seen = radii.at(look)
    assert [int((seen == torch.tensor(value)).sum()) for value in radii.values] == [4, 4, 4, 4, 4, 21]
    assert look[radii.begins(look)].tolist() == [0, 4, 8, 12, 16, 20]
    assert look[radii.ends(look)].tolist() == [3, 7, 11, 15, 19]


@pytest.mark.parametrize("steps", [1, 7])
def test_without_an_outer_radius_there_is_one_stage(steps: int) -> None:
    radii, look = Radii(1.0, steps), torch.arange(steps + 1)
    assert (radii.at(look) == 1).all()
    assert not radii.ends(look).any()


@pytest.mark.parametrize(("attack", "space"), CASES, ids=str)
def test_it_is_pulled_back_in_stages(attack: Attack, space: PerturbationSet) -> None:
    """Each look lies in its own ball, most of a stage's fill it, and a stage begins at the projection of the best place before."""
    given = begun(attack, space, SHAPE, 0)
    radii: Radii = attack.radii  # type: ignore[attr-defined]
    looks = trajectory(attack, given, attack.steps + 1)  # type: ignore[attr-defined]
    for place, (theta, state) in enumerate(looks):
        scale = radii.at(torch.tensor([place])).item()
        assert (space.gauge(given.ctx, theta) <= scale * (1 + 2e-6)).all(), f"look {place} lies outside {scale} radii"
        if radii.ends(torch.tensor([place])).item():
            then = radii.at(torch.tensor([place + 1]))
            assert torch.equal(state.theta, space.project(given.ctx, state.best, then.expand(len(theta))))
            assert (space.gauge(given.ctx, theta) > 1.01).any(), "it never left the set"
    assert (space.excess(given.ctx, looks[-1][0]) <= 0).all()


class Plateau(nn.Module):
    """Two classes: the sum of the first row against 2. Within a distance of 1.2 of an image the gradient is cut."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.register_buffer("x", x)

    def forward(self, images: Tensor) -> Tensor:
        moved = (images - self.x[: len(images)]).flatten(1)
        far = moved.square().sum(1).sqrt()
        lean = moved[:, :8].sum(1)
        slope = torch.where(far > 1.2, lean, lean.detach())
        return torch.stack([torch.full_like(slope, 2.0), slope], 1)


def test_it_finds_what_lies_behind_a_flat_piece() -> None:
    """At radius 1 the fall is there (8 values by 0.35 each), and the gradient is nought in the whole ball: APGD stands still."""
    x = torch.full((16, *SHAPE), 0.5)
    net = Plateau(x)
    examples = Examples(x, torch.zeros(16, dtype=torch.long), torch.arange(16), net(x))
    found = {}
    for attack in (APGD(steps=40, loss_name="margin"), APGDShrinking(steps=40, outer=4.0)):
        stage = Stage(attack, spec_of(attack), spec_of(attack))
        found[attack.name] = len(run_stage(net, L2(1), stage, examples, seed=0, width=16, closest={}).witnesses)
    assert found == {"apgd": 0, "apgd-shrinking": 16}


@pytest.mark.parametrize(
    ("kind", "arguments"), [(APGDShrinking, {"outer": 0.5}), (APGDSparse, {"outer": 2000.0}), (APGDShrinking, {"steps": 5})]
)
def test_refused(kind: type, arguments: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="outer="):
        kind(**arguments)
