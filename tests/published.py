"""Published nets built from their layer tables, for tests and benchmarks that find their weights through RBENCH_WEIGHTS."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn


def weights(name: str) -> dict[str, Tensor]:
    """The tensors of one file of the mirror."""
    return load_file(Path(os.environ["RBENCH_WEIGHTS"]) / f"{name}.safetensors")


def small(name: str, channels: int = 1, side: int = 28) -> nn.Module:
    """conv 16, conv 32 (kernel 4, stride 2, padding 1), fully connected 100, 10."""
    flat = 32 * (side // 4) ** 2
    net = nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(flat, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    net.load_state_dict(weights(name))
    return net.eval()


class LeNet5(nn.Module):
    """conv 32, pool, conv 64, pool (kernel 3, padding 1), fully connected 200, 10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, 1, 1), nn.Conv2d(32, 64, 3, 1, 1)
        self.linear1, self.linear2 = nn.Linear(3136, 200), nn.Linear(200, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2):
            x = nn.functional.max_pool2d(conv(x).relu(), 2)
        return self.linear2(self.linear1(x.flatten(1)).relu())  # type: ignore[no-any-return]


def mnist_fast_pgd() -> nn.Module:
    """linf 0.3, PGD adversarial training (Wong, Rice & Kolter 2020)."""
    return small("mnist_fast_pgd")


def mnist_lenet5_std() -> nn.Module:
    """Undefended."""
    net = LeNet5()
    net.load_state_dict(weights("mnist_lenet5_std"))
    return net.eval()
