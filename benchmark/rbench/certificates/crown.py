"""CROWN-IBP (Zhang et al. 2020): linear bounds of the margins, carried back from the logits to the image over interval boxes."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from rbench.certificates import ibp
from rbench.certificates.graph import Graph
from rbench.certificates.ibp import Images, Margins
from rbench.certificates.rules import Box, Weights


def margins(graph: Graph, lower: Images, upper: Images, label: Int[Tensor, " rows"]) -> Margins:
    """Lower bounds of z_label − z_j over the box, as `ibp.margins`; of neither method is it known which bounds a net better.

    Differentiable like `ibp.margins`. Cost: one backward pass per class, (rows, classes − 1, values) numbers per node.
    """
    weights = graph.weights()
    found = ibp.boxes(graph, weights, Box(lower, upper), graph.tail)
    return backward(graph, weights, found, ibp.differences(label, graph.classes, lower))


def backward(graph: Graph, weights: Sequence[Weights], boxes: Sequence[Box], specs: Float[Tensor, "rows specs classes"]) -> Margins:
    """Lower bounds of specs·logits over the image's box, boxes[0]; a node's coefficients are the sum over all that read it."""
    waiting: dict[int, Tensor] = {len(graph.nodes) - 1: specs}
    offset = specs.new_zeros(specs.shape[:2])
    for i in range(len(graph.nodes) - 1, 0, -1):
        if i not in waiting:
            continue
        node, a = graph.nodes[i], waiting.pop(i)
        shapes = tuple(graph.nodes[place].shape for place in node.inputs)
        known = None if node.rule.affine else tuple(boxes[place] for place in node.inputs)
        parts, shift = node.rule.back(weights[i], a, shapes, known)
        for place, part in zip(node.inputs, parts, strict=True):
            _receive(waiting, place, part)
        offset = offset if shift is None else offset + shift
    return ibp.least(waiting[0], boxes[0]) + offset


def _receive(waiting: dict[int, Tensor], place: int, part: Tensor) -> None:
    """A node that several others read, or one reads twice, has the sum of their coefficients."""
    waiting[place] = waiting[place] + part if place in waiting else part
