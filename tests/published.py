"""Published nets built from their layer tables, for tests and benchmarks that find their weights through RBENCH_WEIGHTS."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rbench.data import sources


def weights(name: str) -> dict[str, Tensor]:
    """The tensors of one file of the mirror."""
    return load_file(Path(os.environ["RBENCH_WEIGHTS"]) / f"{name}.safetensors")


def small(name: str, channels: int = 1, side: int = 28) -> nn.Module:
    """conv 16, conv 32 (kernel 4, stride 2, padding 1), fully connected 100, 10."""
    flat = 32 * (side // 4) ** 2
    net = nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(flat, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
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


class Scaled(nn.Module):
    """A net behind its own input layer, (x − mean) / std per channel."""

    def __init__(self, net: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)  # type: ignore[no-any-return]


class Basic(nn.Module):
    """A block of the CIFAR ResNets; its shortcut takes every second pixel and pads channels with zeros (option A)."""

    def __init__(self, planes: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(planes, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.stride, self.extra = stride, (width - planes) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        short = x[:, :, :: self.stride, :: self.stride]
        return (out + nn.functional.pad(short, (0, 0, 0, 0, self.extra, self.extra))).relu()  # type: ignore[no-any-return]


class ResNet20(nn.Module):
    """He et al. 2016, sec. 4.2: three stages of three blocks, widths 16, 32, 64."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for stage, (planes, width) in enumerate([(16, 16), (16, 32), (32, 64)], start=1):
            first = Basic(planes, width, 1 if stage == 1 else 2)
            setattr(self, f"layer{stage}", nn.Sequential(first, Basic(width, width, 1), Basic(width, width, 1)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


def cifar10_resnet20_std() -> nn.Module:
    """Undefended."""
    net = ResNet20()
    net.load_state_dict(weights("cifar10_resnet20_std"))
    return Scaled(net, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).eval()


def cifar10_cnn_a_adv() -> nn.Module:
    """linf 2/255, adversarial training (CNN-A-Adv of the SDP verification papers)."""
    mean, std = [125.3 / 255, 123.0 / 255, 113.9 / 255], [63.0 / 255, 62.1 / 255, 66.7 / 255]
    return Scaled(small("cifar10_cnn_a_adv", 3, 32), mean, std).eval()


def fashion_kw() -> nn.Module:
    """linf 0.1, certified training (Wong & Kolter 2018)."""
    return small("fashion_kw_0.1")


def fashion_plain() -> nn.Module:
    """Undefended: the layers of `small`, three epochs of Adam, seed 0; trained here, since none is published."""
    data = sources.load("fashion-mnist", split="train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(1568, 100),
            nn.ReLU(),
            nn.Linear(100, 10),
        )
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
        for rows in torch.cat([torch.randperm(len(data)) for _ in range(3)]).split(128):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(data.x[rows]), data.y[rows]).backward()
            optimiser.step()
    return net.eval()
