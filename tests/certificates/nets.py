"""Small nets, one per operator and way of joining them; what they compute is written with torch alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rbench.certificates.graph import Graph, trace

IMAGE = (2, 7, 6)  # an odd side, two channels: transposed axes and lost rows show


class Said(nn.Module):
    """A net that is one function of the image and of some layers, then flat and linear; what the function returns may have any shape."""

    def __init__(self, said: Callable[..., Tensor], *layers: nn.Module, head: bool = True) -> None:
        super().__init__()
        self.said, self.layers = said, nn.ModuleList(layers)
        self.head = nn.LazyLinear(3) if head else nn.Flatten()

    def forward(self, x: Tensor) -> Any:
        return self.head(self.said(x, *self.layers).flatten(1))


def ready(net: nn.Module, shape: tuple[int, ...] = IMAGE, seed: int = 0) -> nn.Module:
    """Weights of both signs, also as batch norm's scale; statistics that are not 0 and 1. In float64, though float32 could hold them."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        net = net.double().eval()
        net(torch.zeros(2, *shape, dtype=torch.float64))
        for part in net.modules():
            if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                part.running_mean.normal_()
                part.running_var.uniform_(0.3, 2.0)
                if part.affine:
                    part.weight.normal_()
                    part.bias.normal_()
            elif isinstance(part, (nn.Conv2d, nn.Linear)):
                for tensor in part.parameters():
                    tensor.normal_(std=0.7)
    return net.float().double()


def convolution(**settings: Any) -> Said:
    return Said(lambda x, conv: conv(x), nn.Conv2d(2, 4, **settings))


ROW = torch.linspace(-1, 1, 6, dtype=torch.float64)
PLANES = torch.tensor([[[0.7]], [[-1.3]]], dtype=torch.float64)

AFFINE: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(84, 3)),
    "linear, no bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(84, 3, bias=False)),
    "linear on the last axis": lambda: Said(lambda x, fc: fc(x), nn.Linear(6, 4)),
    "conv": lambda: convolution(kernel_size=3),
    "conv stride 2": lambda: convolution(kernel_size=3, stride=2, padding=1),
    "conv stride 2, even kernel": lambda: convolution(kernel_size=4, stride=2, padding=1),
    "conv stride 3, rows left over": lambda: convolution(kernel_size=2, stride=3),
    "conv stride (2, 1), padding (0, 2)": lambda: convolution(kernel_size=(3, 2), stride=(2, 1), padding=(0, 2)),
    "conv groups": lambda: convolution(kernel_size=3, groups=2, padding=1, bias=False),
    "conv dilation": lambda: convolution(kernel_size=3, dilation=2, padding=1),
    "conv dilation stride": lambda: convolution(kernel_size=2, dilation=3, stride=2, padding=1),
    "conv same": lambda: convolution(kernel_size=3, padding="same"),
    "batch norm": lambda: Said(lambda x, bn: bn(x), nn.BatchNorm2d(2)),
    "batch norm without weights": lambda: Said(lambda x, bn: bn(x), nn.BatchNorm2d(2, affine=False)),
    "batch norm, eps": lambda: Said(lambda x, bn: bn(x), nn.BatchNorm2d(2, eps=0.5)),
    "batch norm 1d": lambda: Said(lambda x, fc, bn: bn(fc(x.flatten(1))), nn.Linear(84, 5), nn.BatchNorm1d(5)),
    "add": lambda: Said(lambda x: x + ROW.to(x.dtype)),
    "add one image": lambda: Said(lambda x: x + ROW.to(x.dtype).expand(1, 2, 7, 6)),
    "add a number": lambda: Said(lambda x: 2 + x),
    "subtract": lambda: Said(lambda x: x - ROW.to(x.dtype)),
    "subtract from": lambda: Said(lambda x: 1 - x),
    "subtract from a constant": lambda: Said(lambda x: ROW.to(x.dtype) - x),
    "multiply by both signs": lambda: Said(lambda x: x * ROW.to(x.dtype)),
    "multiply by a negative number": lambda: Said(lambda x: -0.5 * x),
    "divide": lambda: Said(lambda x: x / PLANES.to(x.dtype)),
    "divide by a number": lambda: Said(lambda x: x / -3),
    "negative": lambda: Said(lambda x: -x),
    "broadcast over channels": lambda: Said(lambda x: x[:, :1] * PLANES.to(x.dtype) + PLANES.to(x.dtype)),
    "mm": lambda: Said(lambda x, fc: x.flatten(1) @ fc.weight.t(), nn.Linear(84, 4)),
    "addmm": lambda: Said(lambda x, fc: torch.addmm(fc.bias, x.flatten(1), fc.weight.t()), nn.Linear(84, 4)),
    "weight of a formula": lambda: Said(lambda x, fc: functional.linear(x, fc.weight.abs() - 0.3), nn.Linear(6, 4)),
    "average pool": lambda: Said(lambda x: functional.avg_pool2d(x, 2)),
    "average pool, padding counted": lambda: Said(lambda x: functional.avg_pool2d(x, 3, 2, 1)),
    "average pool, padding not counted": lambda: Said(lambda x: functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    "average pool, last window cut": lambda: Said(lambda x: functional.avg_pool2d(x, 3, 2, ceil_mode=True)),
    "average pool, divisor": lambda: Said(lambda x: functional.avg_pool2d(x, (2, 3), divisor_override=4)),
    "adaptive average": lambda: Said(lambda x: functional.adaptive_avg_pool2d(x, (3, 4))),
    "global average": lambda: Said(lambda x: functional.adaptive_avg_pool2d(x, 1)),
    "mean": lambda: Said(lambda x: x.mean((2, 3))),
    "mean kept": lambda: Said(lambda x: x.mean(-1, keepdim=True)),
    "sum": lambda: Said(lambda x: x.sum(1)),
    "pad": lambda: Said(lambda x: functional.pad(x, (1, 0, 2, 1))),
    "pad channels": lambda: Said(lambda x: functional.pad(x, (0, 0, 0, 0, 1, 2))),
    "pad with a number, cut on the other side": lambda: Said(lambda x: functional.pad(x, (1, -2), value=0.4)),
    "slice": lambda: Said(lambda x: x[:, :, 1::2, -3:]),
    "select": lambda: Said(lambda x: x[:, 1, -2]),
    "permute": lambda: Said(lambda x: x.permute(0, 2, 3, 1)),
    "transpose": lambda: Said(lambda x: x.transpose(1, -1)),
    "squeeze and unsqueeze": lambda: Said(lambda x: x[:, :1].squeeze(1).unsqueeze(-1)),
    "view and reshape": lambda: Said(lambda x: x.view(x.shape[0], 14, 6).transpose(1, 2).reshape(-1, 12, 7)),
    "dropout and clone": lambda: Said(lambda x, drop: drop(x).clone(), nn.Dropout(0.5)),
    "two convolutions in a row": lambda: Said(lambda x, a, b: b(a(x)), nn.Conv2d(2, 3, 3, 2), nn.Conv2d(3, 2, 2)),
}

JOINED: dict[str, Callable[[], nn.Module]] = {
    "add of two nodes": lambda: Said(lambda x, a, b: a(x) + b(x), nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)),
    "subtract two nodes": lambda: Said(lambda x, a, b: a(x) - b(x), nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)),
    "add of a node to itself": lambda: Said(lambda x, a: (y := a(x)) + y, nn.Conv2d(2, 3, 3)),
    "a node minus itself": lambda: Said(lambda x, a: (y := a(x)) - y, nn.Conv2d(2, 3, 3)),
    "add, weighted": lambda: Said(lambda x, a: torch.add(x, a(x), alpha=-2), nn.Conv2d(2, 2, 3, padding=1)),
    "add, broadcast": lambda: Said(lambda x, a: x + a(x).mean((2, 3), keepdim=True), nn.Conv2d(2, 2, 3)),
    "concat": lambda: Said(lambda x, a: torch.cat([x, a(x)], 1), nn.Conv2d(2, 3, 3, padding=1)),
    "concat of a node with itself": lambda: Said(lambda x, a: torch.cat([y := a(x), y], -1), nn.Conv2d(2, 3, 3, padding=1)),
}

CURVED: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: Said(lambda x, a: a(x).relu(), nn.Conv2d(2, 3, 3)),
    "relu in place": lambda: Said(lambda x, a: functional.relu_(a(x)), nn.Conv2d(2, 3, 3)),
    "leaky relu": lambda: Said(lambda x, a: functional.leaky_relu(a(x), 0.2), nn.Conv2d(2, 3, 3)),
    "elu": lambda: Said(lambda x, a: functional.elu(a(x)), nn.Conv2d(2, 3, 3)),
    "sigmoid": lambda: Said(lambda x, a: a(x).sigmoid(), nn.Conv2d(2, 3, 3)),
    "tanh": lambda: Said(lambda x, a: a(x).tanh(), nn.Conv2d(2, 3, 3)),
    "clamp": lambda: Said(lambda x, a: a(x).clamp(-0.6, 0.9), nn.Conv2d(2, 3, 3)),
    "clamp from below": lambda: Said(lambda x, a: a(x).clamp(min=0.2), nn.Conv2d(2, 3, 3)),
    "clamp from above": lambda: Said(lambda x, a: a(x).clamp(max=-0.2), nn.Conv2d(2, 3, 3)),
    "hardtanh": lambda: Said(lambda x, a: functional.hardtanh(a(x)), nn.Conv2d(2, 3, 3)),
    "relu6": lambda: Said(lambda x, a: functional.relu6(9 * a(x)), nn.Conv2d(2, 3, 3)),
    "max pool": lambda: Said(lambda x, a: functional.max_pool2d(a(x), 2), nn.Conv2d(2, 3, 3)),
    "max pool, overlapping, padded": lambda: Said(
        lambda x, a: functional.max_pool2d(a(x) - 9 - 3 * ROW.to(x.dtype), 3, 2, 1), nn.Conv2d(2, 3, 3, padding=1)
    ),
    "max pool, last window cut": lambda: Said(lambda x, a: functional.max_pool2d(a(x), 2, ceil_mode=True), nn.Conv2d(2, 3, 3)),
    "max pool, spread": lambda: Said(lambda x, a: functional.max_pool2d(a(x), 2, 1, dilation=2), nn.Conv2d(2, 3, 3)),
}


class Residual(nn.Module):
    """A projected and an identical shortcut, batch norm with negative scales, a join, pools: all that meets in one net."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.short = nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(2, 4, 1, 2)
        self.first, self.second, self.head = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Any:
        y = (self.second(self.b(self.first(self.a(x)).relu())) + self.short(x)).relu()
        y = y + self.b(y).tanh()
        y = torch.cat([functional.max_pool2d(y, 2), functional.avg_pool2d(y, 2)], 1)
        return self.head(y.flatten(1))


class Chain(nn.Sequential):
    """The layers that our zoo is made of."""

    def __init__(self) -> None:
        parts = [nn.Conv2d(2, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 4, 2, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        super().__init__(*parts, nn.Flatten(), nn.Linear(5, 6), nn.BatchNorm1d(6), nn.LeakyReLU(0.1), nn.Dropout(), nn.Linear(6, 4))


DEEP: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "chain": Chain,
    "two layers of curves": lambda: Said(lambda x, a, b: b(a(x).sigmoid()).tanh(), nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3)),
    "three layers": lambda: nn.Sequential(nn.Flatten(), nn.Linear(84, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 4)),
}

EVERY = {**AFFINE, **JOINED, **CURVED, **DEEP}


@cache
def made(name: str) -> tuple[nn.Module, Graph]:
    """A net of EVERY and its graph, once for all tests: they are not to be changed. Tracing is most of what these tests cost."""
    net = ready(EVERY[name]())
    return net, trace(net, IMAGE)
