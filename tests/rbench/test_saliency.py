"""Budgets out of a model's saliency: the predicted class alone, small where the answer depends, of the volume and range asked, by file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from rbench.cli.app import main
from rbench.saliency import scores
from rbench_core.errors import ModelError
from rbench_threats.catalogue import build
from rbench_threats.spec import parse


class Corner(nn.Module):
    """Looks at the upper left 3×3 pixels alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = x[:, 0, :3, :3].flatten(1).sum(1, keepdim=True)
        return torch.cat([seen, 4 - seen, -seen], 1)


def test_pixels_that_decide_get_the_largest_slope_and_the_smallest_budget() -> None:
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = scores(Corner(), x)
    assert found[:, 0, 0, 0].max() < found[:, 0, 6:, 6:].min()
    torch.testing.assert_close(found[:, 0, 7, 7], -(torch.full((5,), 1e-3, dtype=torch.float64) * 2).log())  # |∂(z₀ − z₁)| = 2


def test_a_model_without_a_gradient_is_refused() -> None:
    class Flat(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x.sum((1, 2, 3), keepdim=True)[:, :, 0, 0] * 0, torch.ones(len(x), 1)], 1)

    with pytest.raises(ModelError, match="0 everywhere"):
        scores(Flat(), torch.rand(2, 1, 8, 8))


def test_the_command_writes_a_set_of_the_volume_that_was_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "saliency.safetensors"
    command = ["budgets", "digits-standard", "--n", "20", "--volume", "0.15", "--range", "0.075,0.3", "--out", str(file)]
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == str(file)
    space = build(parse(f'contextual("{file}")'))
    eps = space.budgets(torch.zeros(20, 1, 8, 8), torch.arange(20))
    assert ((eps.double().log().flatten(1).mean(1) - math.log(0.15)).abs() < 1e-6).all()
    assert eps.min() >= torch.tensor(0.075)
    assert eps.max() <= torch.tensor(0.3)
    first = file.read_bytes()
    assert main(command) == 0
    assert file.read_bytes() == first


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        ({"--volume": "0.7"}, 2, "volume 0.7 is impossible for the range [0.075, 0.3]"),
        ({"--range": "0.3,0.075"}, 2, "low <= high"),
        ({"--range": "0.3"}, 2, "two numbers"),
        ({"--out": "x.npy"}, 2, ".safetensors"),
    ],
)
def test_bad_requests_are_one_line(
    change: dict[str, str], code: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"--volume": "0.15", "--range": "0.075,0.3", "--out": str(tmp_path / "x.safetensors"), "--n": "4"} | change
    assert main(["budgets", "digits-standard", *(part for pair in options.items() for part in pair)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert err.count("\n") == 1
