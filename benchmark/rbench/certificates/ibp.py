"""Interval bound propagation (Gowal et al. 2018): a box through the net, the last affine layers merged with the margins asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rbench.certificates.graph import Graph
from rbench.certificates.rules import Box, Weights

Images = Float[Tensor, "rows c h w"]
Margins = Float[Tensor, "rows others"]


def margins(graph: Graph, lower: Images, upper: Images, label: Int[Tensor, " rows"]) -> Margins:
    """Lower bounds of z_label − z_j over the box, (rows, classes − 1): the classes j ≠ label in rising order.

    Differentiable in the module's own parameters and buffers and in both ends of the box. Batch norm takes the running statistics,
    whatever mode the module is in; `both` takes those of a batch.
    """
    weights = graph.weights()
    return tail(graph, weights, _last(graph, weights, Box(lower, upper)), differences(label, graph.classes, lower))


def both(graph: Graph, clean: Images, lower: Images, upper: Images, label: Int[Tensor, " rows"]) -> tuple[Float[Tensor, "rows k"], Margins]:
    """Logits of the clean batch and `margins` over the box, in one call, as a training step needs them.

    Batch norms in train mode take the clean batch's statistics, for the bounds too, with gradients through them, and move their running
    statistics once, as a forward pass of the module would (so do not call the module as well). Dropout is not applied.
    """
    weights = graph.weights()
    logits = graph.values(weights, clean, batch_statistics=True)
    return logits, tail(graph, weights, _last(graph, weights, Box(lower, upper)), differences(label, graph.classes, lower))


def boxes(graph: Graph, weights: Sequence[Weights], image: Box, last: int) -> list[Box]:
    """The boxes of the image (place 0) and of the nodes up to `last`, that one included."""
    found = [image]
    for node, own in zip(graph.nodes[1 : last + 1], weights[1:], strict=False):
        found.append(node.rule.interval(own, *(found[i] for i in node.inputs)))
    return found


def _last(graph: Graph, weights: Sequence[Weights], image: Box) -> Box:
    """The box of `graph.tail`. Others go with their last reader: kept to the end, 250 images took twice the time in page faults."""
    found = {0: image}
    for place in range(1, graph.tail + 1):
        node = graph.nodes[place]
        found[place] = node.rule.interval(weights[place], *(found[i] for i in node.inputs))
        for i in set(node.inputs):
            if graph.last_readers[i] == place:
                del found[i]
    return found[graph.tail]


def differences(label: Int[Tensor, " rows"], classes: int, like: Tensor) -> Float[Tensor, "rows others classes"]:
    """The rows e_label − e_j for j ≠ label, j rising."""
    unit = torch.eye(classes, dtype=like.dtype, device=like.device)
    own = unit[label].unsqueeze(1)
    kept = own.squeeze(1) == 0
    others = unit.expand(len(label), -1, -1)[kept].view(len(label), classes - 1, classes)
    return own - others


def tail(graph: Graph, weights: Sequence[Weights], box: Box, specs: Float[Tensor, "rows specs classes"]) -> Margins:
    """Lower bounds of specs·logits: through the affine nodes behind `graph.tail` exactly, then over that node's box, which is given."""
    a, offset = specs, specs.new_zeros(specs.shape[:2])
    for i in range(len(graph.nodes) - 1, graph.tail, -1):
        node = graph.nodes[i]
        (a,), shift = node.rule.back(weights[i], a, (graph.nodes[node.inputs[0]].shape,), None)
        offset = offset if shift is None else offset + shift
    return least(a, box) + offset


def least(a: Float[Tensor, "rows specs ..."], box: Box) -> Margins:
    """The minimum of a·x over a box."""
    flat = a.flatten(2)
    mid, rad = box.mid.flatten(1).unsqueeze(2), box.rad.flatten(1).unsqueeze(2)
    return (flat @ mid - flat.abs() @ rad).squeeze(2)
