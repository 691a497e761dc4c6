"""How far the model's own float32 logits may be from the exact ones, anywhere in a box; so much a proved margin must exceed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rbench.certificates.graph import Graph
from rbench.certificates.ibp import differences
from rbench.certificates.rules import Box, Rounded, Weights

OWN = 1 + 2.0**-20  # the bounds themselves are computed in float64: their roundings are 2⁻²⁹ of those of float32


def slack(graph: Graph, weights: Sequence[Weights], boxes: Sequence[Box], label: Int[Tensor, " rows"]) -> Float[Tensor, "rows others"]:
    """error(z_label) + error(z_j) per j ≠ label, from above, for sums in any order of operands; boxes of all nodes.

    A margin of the exact net above it is a margin above 0 of the float32 net. Not covered: TF32, half precision, Winograd and FFT
    convolutions.
    """
    errors = [torch.zeros_like(boxes[0].lower)]
    for node, own in zip(graph.nodes[1:], weights[1:], strict=True):
        inputs = [Rounded(boxes[place].size(), errors[place]) for place in node.inputs]
        errors.append(node.rule.error(own, *inputs).expand_as(boxes[len(errors)].lower))
    return OWN * (differences(label, graph.classes, errors[-1]).abs() @ errors[-1].unsqueeze(2)).squeeze(2)
