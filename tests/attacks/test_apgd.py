"""Our APGD against AutoAttack's own, from the same start, step by step: the same schedule, the same best loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from laws.attack_laws import begun, curved_net, trajectory
from laws.given import Given
from rbench.attacks.apgd import APGD, APGDSparse
from rbench.attacks.protocol import Attack
from rbench.attacks.sealed import library
from rbench_threats.lp import L1, L2, Linf
from rbench_threats.protocol import PerturbationSet

SHAPE, STEPS = (1, 8, 8), 60


def theirs(net: nn.Module, given: Given, norm: str, start: Tensor) -> Tensor:
    """The best cross-entropy of pyautoattack's single run, (rows,)."""
    attack = library("pyautoattack.autopgd_base").APGDAttack(net, n_iter=STEPS, norm=norm, eps=given.space.radius, device="cpu")  # type: ignore[attr-defined]
    attack.init_hyperparam(given.x)
    with torch.enable_grad():
        _, _, best, _ = attack.attack_single_run(given.x, given.row.label, x_init=given.space.render(given.ctx, start))
    return best  # type: ignore[no-any-return]


def ours(attack: Attack, given: Given) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(start, best cross-entropy, step sizes after each look)."""
    seen = trajectory(attack, given, STEPS + 1)
    return seen[0][0], functional.softplus(seen[-1][1].best_loss), [state.size for _, state in seen]


def agreed(best: Tensor, known: Tensor) -> float:
    """The share of rows whose losses agree to float32."""
    return float(((best - known).abs() <= 4e-6 * known.abs()).float().mean())


def given_for(space: PerturbationSet, attack: Attack) -> Given:
    """In l2 only images about 0.5, where the box is far: theirs is no projection onto ball ∩ box."""
    whole = begun(attack, space, SHAPE, 0)
    return whole.take(torch.arange(2, 24, 4)) if space.family == "l2" else whole


CASES = [("Linf", Linf("0.1")), ("L2", L2("0.4")), ("Linf", Linf("0.3")), ("L2", L2(1))]


@pytest.mark.parametrize(("norm", "space"), CASES, ids=str)
def test_apgd_is_autoattacks(norm: str, space: PerturbationSet) -> None:
    """To six digits of the loss, for every row: another momentum, threshold or first checkpoint costs half of them on the larger ball."""
    attack = APGD(steps=STEPS)
    given = given_for(space, attack)
    start, best, sizes = ours(attack, given)
    known = theirs(curved_net(SHAPE), given, norm, start)
    assert agreed(best, known) >= 0.95, f"{best} against {known}"
    assert (sizes[-1] < 2).any(), "no step size was ever halved: the schedule was not tested"


@pytest.mark.parametrize("eps", ["0.1", "0.3"])
def test_a_schedule_that_never_halves_is_caught(eps: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same comparison with the halving switched off; in l2 the net is so smooth that it would pass."""
    attack, space = APGD(steps=STEPS), Linf(eps)
    given = given_for(space, attack)
    step = APGD.step

    def stubborn(self: APGD, *arguments: object) -> object:
        state = step(self, *arguments)  # type: ignore[arg-type]
        object.__setattr__(state, "size", torch.full_like(state.size, 2.0))
        return state

    monkeypatch.setattr(APGD, "step", stubborn)
    start, best, _ = ours(attack, given)
    known = theirs(curved_net(SHAPE), given, "Linf", start)
    assert agreed(best, known) < 0.9


def test_sparse_apgd_reaches_autoattacks_loss() -> None:
    """l1: theirs masks no gradient at the wall, and its first share is that of its start; so the losses are compared, not the ways."""
    space, attack = L1(2), APGDSparse(steps=STEPS)
    given = begun(attack, space, SHAPE, 0)
    start, best, sizes = ours(attack, given)
    known = theirs(curved_net(SHAPE), given, "L1", start)
    assert (best >= known - 0.05 * known.abs()).float().mean() >= 0.9, f"{best} against {known}"
    assert (sizes[-1] < 1).any()
