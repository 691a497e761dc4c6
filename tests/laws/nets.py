"""Models for the laws: a small net trained on the digits within a second, linear ones with a closed form, and wrappers that misbehave."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from rbench.attacks.search import Examples
from rbench.data import sources
from rbench.data.dataset import Dataset
from rbench_zoo.architectures import SmallCNN

Function = Callable[[Tensor], Tensor]


@cache
def digits(n: int = 500) -> Dataset:
    return sources.load("digits", n=n)


@cache
def digit_net() -> nn.Module:
    """SmallCNN of 8 and 16 channels, trained on the digits' training split with noise: some digits fall under every threat, some do not."""
    train = sources.load("digits", split="train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SmallCNN((8, 16), 32)
        optimiser = torch.optim.AdamW(net.parameters(), lr=5e-3)
        for _ in range(6):
            for rows in torch.randperm(len(train)).split(64):
                x = (train.x[rows] + 0.2 * torch.randn(len(rows), *train.shape)).clamp(0, 1)
                loss = nn.functional.cross_entropy(net(x), train.y[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return net.eval().requires_grad_(False)


def linear_net(shape: tuple[int, int, int], classes: int, seed: int, size: float = 1.0) -> nn.Module:
    """A linear classifier whose decision boundaries pass near the grey image."""
    random = torch.Generator().manual_seed(seed)
    count = shape[0] * shape[1] * shape[2]
    layer = nn.Linear(count, classes)
    with torch.no_grad():
        layer.weight.copy_(size * torch.randn(classes, count, generator=random))
        layer.bias.copy_(-0.5 * layer.weight.sum(1) + 0.1 * torch.randn(classes, generator=random))
    return nn.Sequential(nn.Flatten(), layer).eval().requires_grad_(False)


class Around(nn.Module):
    """A model with something done to its images or its logits."""

    def __init__(self, model: nn.Module, after: Function = lambda z: z, before: Function = lambda x: x) -> None:
        super().__init__()
        self.model, self.after, self.before = model, after, before
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.model(self.before(x)))


class Counting(nn.Module):
    """Counts the rows that pass through, forward by a look at the batch and backward by a hook on the logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards, self.backwards, self.widths = model, 0, 0, set[int]()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        self.widths.add(len(x))
        logits: Tensor = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._came_back)
        return logits

    def _came_back(self, grad: Tensor) -> None:
        self.backwards += len(grad)


def right_examples(model: nn.Module, data: Dataset) -> Examples:
    """The clean-correct images of a data set, as the runner hands them to a stage."""
    with torch.no_grad():
        logits = model(data.x)
    rows = (logits.argmax(1) == data.y).nonzero().squeeze(1)
    return Examples(data.x[rows], data.y[rows], rows, logits[rows])
