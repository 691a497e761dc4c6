"""Whether bounds hold: the worst distance by which a value that a net really takes lies outside them, over many points of many boxes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rbench.certificates import crown, ibp
from rbench.certificates.graph import Graph, trace
from rbench.certificates.rules import Box

POINTS, SPECS, STEPS = 60, 6, 12


def boxes_of(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Four boxes in float64: every value its own width; one wide value among points; at the borders 0 and 1, lopsided; wide."""
    noise = torch.Generator().manual_seed(seed)
    x = torch.rand((4, *shape), generator=noise, dtype=torch.float64)
    width = 0.3 * torch.rand(x.shape, generator=noise, dtype=torch.float64)
    width[1] = 0
    width[1].view(-1)[torch.randint(width[1].numel(), (1,), generator=noise)] = 0.9
    x[2] = x[2].round()
    width[3] = 0.8
    lower, upper = x - width, x + width
    return torch.cat([lower[:2], lower[2:3].clamp(0, 1), lower[3:]]), torch.cat([upper[:2], upper[2:3].clamp(0, 1), upper[3:]])


def members(lower: Tensor, upper: Tensor, seed: int = 0) -> Tensor:
    """(points, rows, …): uniform ones, corners, and both ends."""
    noise = torch.Generator().manual_seed(seed)
    share = torch.rand((POINTS, *lower.shape), generator=noise, dtype=lower.dtype)
    share = torch.cat([share, share.round(), torch.zeros_like(share[:1]), torch.ones_like(share[:1])])
    return (lower + share * (upper - lower)).minimum(upper).maximum(lower)


def smallest(net: nn.Module, lower: Tensor, upper: Tensor, specs: Tensor) -> Tensor:
    """(rows, specs): the smallest value of specs·logits that points and signed gradient descent find in the box."""
    points = members(lower, upper)
    found = torch.einsum("rsc,prc->prs", specs, net(points.flatten(0, 1)).unflatten(0, points.shape[:2])).amin(0)
    rows, count = specs.shape[:2]
    low, high = (end.repeat_interleave(count, 0) for end in (lower, upper))
    x = (low + high) / 2
    for step in range(STEPS):
        x = x.detach().requires_grad_()
        value = (net(x) * specs.flatten(0, 1)).sum(1)
        found = torch.minimum(found, value.detach().view(rows, count))
        (grad,) = torch.autograd.grad(value.sum(), x, materialize_grads=True)
        x = (x - grad.sign() * (high - low) * (1.0 if step % 4 == 3 else 0.4)).maximum(low).minimum(high)
    return found


def worst(net: nn.Module, shape: tuple[int, ...], graph: Graph | None = None, seed: int = 0) -> float:
    """How far outside of its interval and linear bounds the net goes; 0 or less where they hold. The net is used in float64."""
    graph = graph or trace(net, shape)
    lower, upper = boxes_of(shape, seed)
    noise = torch.Generator().manual_seed(seed)
    specs = torch.randn((len(lower), SPECS, graph.classes), generator=noise, dtype=torch.float64)
    true = smallest(net, lower, upper, specs)
    with torch.no_grad():
        own = graph.weights()
        found = ibp.boxes(graph, own, Box(lower, upper), len(graph.nodes) - 1)
        logits = net(members(lower, upper).flatten(0, 1)).unflatten(0, (-1, len(lower)))
        outside = torch.maximum(found[-1].lower - logits, logits - found[-1].upper).max()
        interval = ibp.tail(graph, own, found[graph.tail], specs) - true
        linear = crown.backward(graph, own, found, specs) - true
    return max(float(outside), float(interval.max()), float(linear.max()))


def at_points(net: nn.Module, shape: tuple[int, ...], graph: Graph | None = None) -> float:
    """The largest difference of the bounds from the logits where the box is a point."""
    graph = graph or trace(net, shape)
    x = boxes_of(shape)[0]
    with torch.no_grad():
        own, logits = graph.weights(), net(x)
        found = ibp.boxes(graph, own, Box(x, x), len(graph.nodes) - 1)
        unit = torch.eye(graph.classes, dtype=torch.float64).expand(len(x), -1, -1)
        bounds = [found[-1].lower, found[-1].upper, crown.backward(graph, own, found, unit), -crown.backward(graph, own, found, -unit)]
    return max(float((bound - logits).abs().max()) for bound in bounds)
