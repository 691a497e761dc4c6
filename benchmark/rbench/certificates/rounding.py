"""How far the model's own float32 logits may be from the exact ones, anywhere in a box; so much a proved margin must exceed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rbench.certificates.affine import Linear, given
from rbench.certificates.graph import Graph
from rbench.certificates.rules import OWN, Box, Rounded, Weights


def slack(
    graph: Graph, weights: Sequence[Weights], boxes: Sequence[Box], specs: Float[Tensor, "rows specs classes"]
) -> Float[Tensor, "rows specs"]:
    """How far specs·logits may be off where the logits are computed in float32, with sums in any order of operands; boxes of all nodes.

    A margin of the exact net above it is a margin above 0 of the float32 net. Not covered: TF32, half precision, Winograd and FFT
    convolutions.
    """
    errors = [torch.zeros_like(boxes[0].lower)]
    for place, (node, own) in enumerate(zip(graph.nodes[1:], weights[1:], strict=True), start=1):
        inputs = [Rounded(boxes[i], errors[i]) for i in node.inputs]
        if place == len(graph.nodes) - 1 and isinstance(node.rule, Linear):
            return OWN * _merged(node.rule, own, inputs[0], specs)
        errors.append(node.rule.error(own, *inputs).expand_as(boxes[place].lower))
    return OWN * (specs.abs() @ errors[-1].unsqueeze(2)).squeeze(2)


def _merged(rule: Linear, own: Weights, x: Rounded, specs: Tensor) -> Tensor:
    """As the margins themselves: what the last layer is given wrong counts by the difference of two rows, not by each of them."""
    passed, fresh = (specs @ given(own[0])).abs() @ x.error.unsqueeze(2), specs.abs() @ rule.fresh(own, x).unsqueeze(2)
    return (passed + fresh).squeeze(2)
