"""A net as a list of operators whose bounds are known, bound to the module's live tensors; traced once, used at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from rbench.certificates.affine import BatchNorm
from rbench.certificates.rules import Rule, Shape, Weights
from rbench_core.errors import Unsupported

Fetch = Callable[[torch.dtype | None], Tensor]  # a tensor of the net as it is now, in the type asked for or its own


@dataclass(frozen=True, slots=True)
class Node:
    """One operator: its rule, the places of its perturbed inputs, its own tensors, the shape of one row of its output."""

    rule: Rule
    inputs: tuple[int, ...]
    tensors: tuple[Fetch | None, ...]
    shape: Shape


@dataclass(frozen=True)
class Graph:
    """Nodes in the order of computation; place 0 is the image (its rule is never asked), the last one the logits."""

    module: nn.Module
    nodes: tuple[Node, ...]

    @property
    def classes(self) -> int:
        return self.nodes[-1].shape[0]

    @cached_property
    def last_readers(self) -> dict[int, int]:
        """For every place that is read the last one that reads it."""
        return {place: i for i, node in enumerate(self.nodes) for place in node.inputs}

    @cached_property
    def tail(self) -> int:
        """The last node that is not followed by affine nodes alone, in a chain."""
        users = [0] * len(self.nodes)
        for node in self.nodes:
            for place in node.inputs:
                users[place] += 1
        place = len(self.nodes) - 1
        while place > 0 and self.nodes[place].rule.affine and len(self.nodes[place].inputs) == 1:
            place = self.nodes[place].inputs[0]
            if users[place] > 1:
                break
        return place

    def weights(self, dtype: torch.dtype | None = None) -> list[Weights]:
        """Every node's tensors as the module has them now."""
        return [tuple(None if fetch is None else fetch(dtype) for fetch in node.tensors) for node in self.nodes]

    def values(self, weights: list[Weights], x: Tensor, batch_statistics: bool = False) -> Tensor:
        """The logits of x. batch_statistics: batch norms in train mode put this batch's statistics into `weights` and move their own."""
        found = [x]
        for i, node in enumerate(self.nodes[1:], start=1):
            inputs = [found[place] for place in node.inputs]
            if batch_statistics and isinstance(node.rule, BatchNorm):
                weights[i] = self._of_batch(node.rule, weights[i], inputs[0])
            found.append(node.rule.value(weights[i], *inputs))
        return found[-1]

    def _of_batch(self, rule: BatchNorm, w: Weights, x: Tensor) -> Weights:
        owner = self.module.get_submodule(rule.owner)
        if not owner.training:
            return w
        mean, variance = _statistics(x)
        _move(owner, mean, variance, x.numel() // x.shape[1])
        return w[0], w[1], mean, variance


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance per channel; a plane's own sums first: 0.5 ms for 256×16×14×14 on one core where torch.var_mean takes 3.6."""
    planes = x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)
    mean = planes.mean(2).mean(0)
    return mean, (planes - mean[:, None]).square().mean(2).mean(0)


@torch.no_grad()
def _move(owner: nn.Module, mean: Tensor, variance: Tensor, count: int) -> None:
    """The running statistics after one more batch of `count` values per channel, as torch's batch norm moves them."""
    assert isinstance(owner, (nn.BatchNorm1d, nn.BatchNorm2d))
    assert owner.running_mean is not None
    assert owner.running_var is not None
    assert owner.num_batches_tracked is not None
    owner.num_batches_tracked.add_(1)
    share = 1 / int(owner.num_batches_tracked) if owner.momentum is None else owner.momentum
    owner.running_mean.lerp_(mean, share)
    owner.running_var.lerp_(variance * (count / max(count - 1, 1)), share)


def live(module: nn.Module, name: str) -> Fetch:
    """A parameter or buffer by its full name, looked up at every use: a training step sees what the optimiser left."""
    path, _, attribute = name.rpartition(".")
    owner = module.get_submodule(path)

    def fetch(dtype: torch.dtype | None) -> Tensor:
        tensor: Tensor = getattr(owner, attribute)
        return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)

    return fetch


def trace(module: nn.Module, shape: Sequence[int]) -> Graph:
    """The operators of a net in eval mode on images of `shape` (channels, height, width). Its modes stay as they are.

    A chain of layers that are known exactly is read off; anything else goes through torch.export, whose first use in a process takes
    2 s. Raises Unsupported, which names the operator, the submodule and the line.
    """
    from rbench.certificates.layers import chain

    size = tuple(shape)
    nodes = chain(module, size)
    if nodes is None:
        from rbench.certificates.exported import exported  # imports two thousand modules

        nodes = exported(module, size)
    if len(nodes[-1].shape) != 1 or nodes[-1].shape[0] < 2:
        raise Unsupported(f"the net returns {list(nodes[-1].shape)} per image", expected="one row of two logits or more")
    return Graph(module, tuple(nodes))
