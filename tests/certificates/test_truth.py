"""Bounds against independent answers: CROWN written with dense matrices, and the exact minimum by a solver (HiGHS)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

from rbench.certificates import crown, ibp
from rbench.certificates.graph import trace

SHAPE = (1, 3, 4)


def perceptron(seed: int, hidden: tuple[int, ...] = (10, 8), classes: int = 4) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Flatten()]
        for before, width in zip((12, *hidden), hidden, strict=False):
            layers += [nn.Linear(before, width), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(hidden[-1], classes)).double().eval()


def matrices(net: nn.Sequential) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(part.weight.detach().numpy(), part.bias.detach().numpy()) for part in net if isinstance(part, nn.Linear)]


def box(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    x, width = (torch.rand((1, *SHAPE), generator=noise, dtype=torch.float64) for _ in range(2))
    return (x - 0.3 * width).clamp(0, 1), (x + 0.3 * width).clamp(0, 1)


def intervals(net: nn.Sequential, low: np.ndarray, high: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of every hidden layer before its ReLU."""
    found = []
    for weight, bias in matrices(net)[:-1]:
        plus, minus = weight.clip(min=0), weight.clip(max=0)
        low, high = plus @ low + minus @ high + bias, plus @ high + minus @ low + bias
        found.append((low, high))
        low, high = low.clip(min=0), high.clip(min=0)
    return found


def dense_crown(net: nn.Sequential, low: np.ndarray, high: np.ndarray, spec: np.ndarray) -> float:
    """min spec·logits by linear bounds, one diagonal matrix per ReLU (Zhang et al. 2018, theorem 3.2)."""
    layers = matrices(net)
    row, offset = spec @ layers[-1][0], spec @ layers[-1][1]
    for (weight, bias), (lo, up) in reversed(list(zip(layers[:-1], intervals(net, low, high), strict=True))):
        chord = np.where(lo >= 0, 1.0, np.where(up <= 0, 0.0, up / np.where(up > lo, up - lo, 1)))
        floor = np.where((lo < 0) & (up > 0), up > -lo, chord)
        intercept = np.where((lo < 0) & (up > 0), -lo * chord, 0.0)
        offset += np.minimum(row, 0) @ intercept
        row = np.where(row > 0, row * floor, row * chord)
        offset, row = offset + row @ bias, row @ weight
    return float(np.maximum(row, 0) @ low + np.minimum(row, 0) @ high + offset)


def exact(net: nn.Sequential, low: np.ndarray, high: np.ndarray, spec: np.ndarray) -> float:
    """min spec·logits over the box: a mixed-integer program with one binary per ReLU. Columns: x, z₁, b₁, z₂, b₂, …"""
    layers, hidden = matrices(net), intervals(net, low, high)
    count = len(low) + 2 * sum(len(lo) for lo, _ in hidden)
    lower, upper, whole = np.zeros(count), np.ones(count), np.zeros(count)
    lower[: len(low)], upper[: len(low)] = low, high
    rows, floor, before, place = [], [], slice(0, len(low)), len(low)
    for (weight, bias), (lo, up) in zip(layers[:-1], hidden, strict=True):
        z, b = slice(place, place + len(lo)), slice(place + len(lo), place + 2 * len(lo))
        upper[z], whole[b] = up.clip(min=0), 1
        eye = np.eye(len(lo))
        for on_x, on_z, on_b, least in (
            (-weight, eye, 0 * eye, bias),
            (weight, -eye, np.diag(lo), lo - bias),
            (0 * weight, -eye, np.diag(up), 0),
        ):
            row = np.zeros((len(lo), count))
            row[:, before], row[:, z], row[:, b] = on_x, on_z, on_b
            rows.append(row)
            floor.append(np.broadcast_to(least, len(lo)))
        before, place = z, place + 2 * len(lo)
    cost = np.zeros(count)
    cost[before] = spec @ layers[-1][0]
    found = milp(cost, constraints=LinearConstraint(np.vstack(rows), np.concatenate(floor)), bounds=Bounds(lower, upper), integrality=whole)
    assert found.status == 0
    return float(found.fun + spec @ layers[-1][1])


@pytest.mark.parametrize("seed", range(5))
def test_crown_is_that_of_dense_matrices(seed: int) -> None:
    net, (lower, upper), label = perceptron(seed), box(seed), torch.tensor([seed % 4])
    own = crown.margins(trace(net, SHAPE), lower, upper, label)[0]
    specs = ibp.differences(label, 4, lower)[0].numpy()
    ends = lower.numpy().ravel(), upper.numpy().ravel()
    np.testing.assert_allclose(own.detach().numpy(), [dense_crown(net, *ends, spec) for spec in specs], rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_no_bound_is_above_the_exact_minimum(seed: int) -> None:
    net, (lower, upper), label = perceptron(seed, hidden=(6, 5)), box(seed), torch.tensor([seed % 4])
    graph, ends = trace(net, SHAPE), (lower.numpy().ravel(), upper.numpy().ravel())
    true = torch.tensor([exact(net, *ends, spec) for spec in ibp.differences(label, 4, lower)[0].numpy()])
    found = [bound.margins(graph, lower, upper, label)[0].detach() for bound in (ibp, crown)]
    assert all((bound <= true + 1e-6).all() for bound in found)  # HiGHS's own tolerance
    with torch.no_grad():
        noise = torch.rand((4000, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        logits = net(lower + noise * (upper - lower))
        near = (logits @ ibp.differences(label, 4, lower)[0].T).amin(0)
    assert (near >= true - 1e-6).all()  # the solver's answer is a minimum indeed


def test_without_an_unstable_neuron_linear_bounds_are_exact() -> None:
    net, (lower, upper), label = perceptron(1, hidden=(6, 5)), box(1), torch.tensor([0])
    middle, graph, ends = (lower + upper) / 2, trace(net, SHAPE), []
    lower, upper = middle + 1e-3 * (lower - middle), middle + 1e-3 * (upper - middle)
    ends = lower.numpy().ravel(), upper.numpy().ravel()
    assert all(((lo > 0) | (up < 0)).all() for lo, up in intervals(net, *ends))
    true = [exact(net, *ends, spec) for spec in ibp.differences(label, 4, lower)[0].numpy()]
    np.testing.assert_allclose(crown.margins(graph, lower, upper, label)[0].detach().numpy(), true, rtol=0, atol=1e-7)
