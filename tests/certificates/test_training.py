"""Margins as a loss: gradients of everything they depend on, batch norm by the clean batch's statistics."""

from __future__ import annotations

import copy
from types import ModuleType

import pytest
import torch
from torch import nn

from certificates.nets import DEEP, IMAGE, Chain, Residual, ready
from rbench.certificates import crown, ibp
from rbench.certificates.graph import trace

LABEL = torch.tensor([0, 1, 3, 2, 1])


def batch(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    noise = torch.Generator().manual_seed(0)
    x = torch.rand((5, *IMAGE), generator=noise, dtype=dtype)
    width = 0.1 * torch.rand(x.shape, generator=noise, dtype=dtype)
    return x, x - width, x + width


@pytest.mark.parametrize("bound", [ibp, crown], ids=lambda module: module.__name__)
@pytest.mark.parametrize(("build", "seed"), [(Chain, 1), (Residual, 0)])  # without two members of a maximum with one lower end: a jump
def test_gradients_of_box_and_weights_are_those_of_differences(bound: ModuleType, build: type[nn.Module], seed: int) -> None:
    net = ready(build(), seed=seed)
    graph, (_, lower, upper) = trace(net, IMAGE), batch()
    inputs = [lower.requires_grad_(), upper.requires_grad_(), *net.parameters()]
    grads = torch.autograd.grad(bound.margins(graph, lower, upper, LABEL).sum(), inputs)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value, grad in zip(inputs, grads, strict=True):
            assert grad.isfinite().all()
            move = 1e-8 * torch.randn(value.shape, generator=noise, dtype=value.dtype)
            ends = []
            for sign in (2, -1):  # at +move, then at −move, where nothing is left to undo but +move
                value += move if sign == 2 else -2 * move
                ends.append(bound.margins(graph, lower, upper, LABEL).sum())
            value += move
            torch.testing.assert_close(ends[0] - ends[1], 2 * (grad * move).sum(), rtol=2e-3, atol=1e-11)


@pytest.mark.parametrize("build", [Chain, Residual])
def test_both_gives_the_logits_and_moves_the_statistics_of_a_training_step(build: type[nn.Module]) -> None:
    net = ready(build())
    net.train()
    for part in net.modules():
        if isinstance(part, nn.Dropout):
            part.eval()  # bounds know no dropout
    other, graph, (x, lower, upper) = copy.deepcopy(net), trace(net, IMAGE), batch()
    logits, _ = ibp.both(graph, x, lower, upper, LABEL)
    expected = other(x)
    torch.testing.assert_close(logits, expected)
    for (name, mine), (_, theirs) in zip(net.named_buffers(), other.named_buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=name)
    mine, theirs = (torch.autograd.grad(out.square().sum(), part.parameters()) for out, part in ((logits, net), (expected, other)))
    torch.testing.assert_close(mine, theirs)


def test_bounds_of_a_step_use_the_clean_batch_and_its_gradient() -> None:
    """At a point the bounds are the differences of the train-mode logits, and so are their gradients; not those of running statistics."""
    net = ready(Chain())
    net.train()
    net[10].eval()
    graph, (x, _, _) = trace(net, IMAGE), batch()
    logits, margins = ibp.both(graph, x, x, x, LABEL)
    differences = (ibp.differences(LABEL, 4, logits) @ logits[:, :, None]).squeeze(2)
    torch.testing.assert_close(margins, differences)
    grads = [torch.autograd.grad(out.square().sum(), list(net.parameters()), retain_graph=True) for out in (margins, differences)]
    torch.testing.assert_close(*grads)
    assert not torch.allclose(ibp.margins(graph, x, x, LABEL), differences)


def test_half_widths_that_start_at_nothing_learn() -> None:
    net = ready(DEEP["three layers"]()).float()
    graph, (x, _, _) = trace(net, IMAGE), batch(torch.float32)
    width = torch.zeros_like(x, requires_grad=True)
    ibp.margins(graph, (x - width).clamp(0, 1), (x + width).clamp(0, 1), LABEL).sum().backward()
    assert width.grad is not None
    assert (width.grad < 0).float().mean() > 0.5
    assert (width.grad <= 0).all()  # a wider box never has a higher interval margin
