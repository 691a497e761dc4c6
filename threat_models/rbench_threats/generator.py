"""The network that reads budgets off an image, and one map that is the same for all images: what a budgets card holds.

The generator is fully convolutional and sees the clean image alone: no label, no logits of a classifier, no batch statistics. Its last
layer starts at zero, so training starts from uniform budgets.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rbench_core.errors import SpecError
from rbench_threats.normaliser import Range

Images = Float[Tensor, "rows c h w"]
Shape = tuple[int, int, int]
FORMS = ("generator", "map")


class Scores(nn.Module):
    """Images (rows, c, h, w) to raw scores (rows, 1, h, w); `bounds` makes budgets of them, the same for all channels of a pixel."""

    def __init__(self, bounds: Range) -> None:
        super().__init__()
        self.bounds = bounds

    def scores(self, x: Images) -> Float[Tensor, "rows 1 h w"]:
        """Raw scores; only their differences within an image count."""
        raise NotImplementedError

    def forward(self, x: Images) -> Images:
        """Half-widths in the dtype of x; differentiable in the weights."""
        scores = self.scores(x)
        return self.bounds.bent(scores.flatten(1)).to(x.dtype).view_as(scores).expand_as(x)


class Generator(Scores):
    """Four convolutions, ReLU between them: 5×5, 3×3 at dilation 2, 3×3 at dilation 4, 3×3 to one channel."""

    def __init__(self, bounds: Range, channels: int, width: int = 16) -> None:
        super().__init__(bounds)
        self.net = nn.Sequential(
            nn.Conv2d(channels, width, 5, padding=2), nn.ReLU(), nn.Conv2d(width, width, 3, padding=2, dilation=2), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=4, dilation=4), nn.ReLU(), nn.Conv2d(width, 1, 3, padding=1),
        )  # fmt: skip
        nn.init.zeros_(self.net[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.net[-1].bias)  # type: ignore[arg-type]

    def scores(self, x: Images) -> Float[Tensor, "rows 1 h w"]:
        found: Tensor = self.net(x)
        return found


class OneMap(Scores):
    """One score per pixel, the same for every image: the control that knows no context."""

    def __init__(self, bounds: Range, height: int, width: int) -> None:
        super().__init__(bounds)
        self.map = nn.Parameter(torch.zeros(1, 1, height, width))

    def scores(self, x: Images) -> Float[Tensor, "rows 1 h w"]:
        return self.map.expand(len(x), -1, -1, -1)


def build(form: str, bounds: Range, shape: Shape, network: dict[str, Any]) -> Scores:
    """The module of a card's [budget] form and [network] table, with weights as they start. Raises SpecError."""
    width = network.get("width", 16)
    if form == "generator" and set(network) <= {"width"} and type(width) is int and 1 <= width <= 256:
        return Generator(bounds, shape[0], width)
    if form == "map" and not network:
        return OneMap(bounds, *shape[1:])
    raise SpecError(f"budgets of form {form!r} with network {network}", expected="form generator (width = 16) or form map, without network")
