"""Nets for tests and benchmarks that find published weights through RBENCH_WEIGHTS; the cards say what they are."""

from __future__ import annotations

import torch
from torch import nn

from rbench.api import load_model
from rbench.data import sources
from rbench_zoo.architectures import Layers


def mnist_fast_pgd() -> nn.Module:
    """linf 0.3, PGD adversarial training (Wong, Rice & Kolter 2020)."""
    return load_model("mnist-fast-pgd")


def fashion_plain() -> nn.Module:
    """Undefended: the layers of `fashion-kw-0.1`, three epochs of Adam, seed 0; trained here, since none is published."""
    data = sources.load("fashion-mnist", split="train")
    kernel = [4, 2, 1]
    table = [["conv", 16, *kernel], ["relu"], ["conv", 32, *kernel], ["relu"], ["flatten"], ["linear", 100], ["relu"], ["linear", 10]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Layers(table, [1, 28, 28])
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
        for rows in torch.cat([torch.randperm(len(data)) for _ in range(3)]).split(128):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(data.x[rows]), data.y[rows]).backward()
            optimiser.step()
    return net.eval()
