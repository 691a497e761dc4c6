"""The nets that we train ourselves: small enough that a laptop's CPU evaluates 500 digits within a minute."""

from __future__ import annotations

from collections.abc import Sequence

from rbench_zoo.architectures.layers import Layers


class SmallCNN(Layers):
    """3×3 convolutions with ReLU, the first at full resolution and each further one halving it, then one hidden layer.

    With the defaults 38,282 parameters on digits (1×8×8): 16 channels at 8×8, 32 at 4×4, 64 hidden units, 10 logits.
    """

    def __init__(self, channels: Sequence[int] = (16, 32), hidden: int = 64, shape: Sequence[int] = (1, 8, 8), classes: int = 10) -> None:
        table: list[list[str | int]] = []
        for i, width in enumerate(channels):
            table += [["conv", width, 3, 1 if i == 0 else 2, 1], ["relu"]]
        super().__init__([*table, ["flatten"], ["linear", hidden], ["relu"], ["linear", classes]], shape)


class MLP(Layers):
    """Fully connected layers with ReLU between them, on the flattened image; `hidden` may be empty (a linear model)."""

    def __init__(self, hidden: Sequence[int] = (64, 64), shape: Sequence[int] = (1, 8, 8), classes: int = 10) -> None:
        table: list[list[str | int]] = [["flatten"]]
        for width in hidden:
            table += [["linear", width], ["relu"]]
        super().__init__([*table, ["linear", classes]], shape)
