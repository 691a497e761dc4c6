"""sigma-zero counts pixels, not values: its smooth count, its threshold, and how few pixels it ends with."""

from __future__ import annotations

import pytest
import torch

from laws.attack_laws import begun, trajectory
from rbench.attacks.sigma_zero import SigmaZero
from rbench_core.errors import SpecError
from rbench_threats.lp import L0

SHAPE = (3, 6, 6)


def test_the_smooth_count_is_of_pixels() -> None:
    """Its gradient is that of the mean over pixels of s / (s + sigma), s summed over the channels."""
    attack, space = SigmaZero(sigma=0.01), L0(4)
    given = begun(attack, space, SHAPE, 0)
    theta = (0.2 * torch.randn(len(given.x), 108, generator=torch.Generator().manual_seed(0))).requires_grad_()
    size = theta.unflatten(1, (3, 36)).square().sum(1)
    (known,) = torch.autograd.grad((size / (size + 0.01)).mean(1).sum(), theta)
    torch.testing.assert_close(attack._crowding(space, given.ctx, theta.detach()), known)


def test_a_pixel_stays_or_goes_with_all_its_channels() -> None:
    space = L0(4)
    given = begun(SigmaZero(), space, SHAPE, 0)
    theta = torch.zeros(len(given.x), 3, 36)
    theta[:, :, 5] = torch.tensor([0.01, -0.2, 0.02])
    theta[:, :, 7] = 0.09
    clipped = theta.flatten(1).clamp(given.ctx.lower, given.ctx.upper).view_as(theta)
    kept = space.thinned(given.ctx, theta.flatten(1), torch.full((len(theta),), 0.1)).view_as(theta)
    stays = clipped[:, :, 5].abs().amax(1) >= 0.1
    assert stays.any()
    assert torch.equal(kept[stays, :, 5], clipped[stays, :, 5])
    assert (kept[~stays, :, 5] == 0).all()
    assert (kept[:, :, 7] == 0).all()


def test_it_grows_sparse_where_it_has_fallen() -> None:
    """Every look lies in the image range; falls need fewer and fewer pixels, far fewer than the first step changes."""
    attack, space = SigmaZero(steps=100), L0(36)
    given = begun(attack, space, SHAPE, 0)
    given = given.take((given.row.restart == 0).nonzero().squeeze(1))
    looks = [theta for theta, _ in trajectory(attack, given, 101)]
    assert (looks[0] == 0).all()
    assert all((space.excess(given.ctx, theta) <= 0).all() for theta in looks)
    used = torch.stack([space.gauge(given.ctx, theta) * 36 for theta in looks])
    assert used[1].mean() > 30
    assert used[60:].mean() < 6


@pytest.mark.parametrize("arguments", [{"sigma": 0.0}, {"least": 2.0}, {"pull": -1.0}, {"steps": 0}])
def test_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="sigma-zero"):
        SigmaZero(**arguments)  # type: ignore[arg-type]
