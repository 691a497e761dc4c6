"""The verdict: float64 bounds of the deployed net over an outward box, strictly above what float32 rounding can take away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rbench.certificates import crown, ibp
from rbench.certificates.graph import Graph, trace
from rbench.certificates.methods import METHODS
from rbench.certificates.rounding import slack
from rbench.certificates.rules import Box
from rbench_core.errors import Unsupported, UsageError

Images = Float[Tensor, "rows c h w"]
Labels = Int[Tensor, " rows"]
WIDEST = 64  # rows at once, as far as they fit
HANDY = 4 * 2**20  # bytes of a node's coefficients: tensors of 14 MB took twice the time of four of 4 MB, all of it page faults
BUDGET = 256 * 2**20  # bytes of boxes and coefficients that are alive at once


@dataclass(frozen=True, slots=True)
class Proof:
    """What is known of one row: no image of the box has another label (`certified`, and by which method first), or nothing.

    margin: a lower bound of z_label − z_j over the box, at the class j where it is closest to `slack`, which it must exceed: the
    rounding error of the float32 model there. −∞ and 0 where there is no bound (NaN, an empty box).
    """

    certified: bool
    method: str | None
    margin: float
    slack: float


class Certifier:
    """Certificates for one net over element-wise boxes, with the tensors that it has when this is made.

    `module`: float32 images (rows, *shape) to logits (rows, classes); its eval mode is what counts. Raises Unsupported.
    """

    def __init__(self, module: nn.Module, shape: Sequence[int], classes: int) -> None:
        self.graph, self.shape = trace(module, shape), tuple(shape)
        _check_net(self.graph, classes)
        with torch.inference_mode(False), torch.no_grad():
            self.weights = [tuple(None if each is None else each.clone() for each in own) for own in self.graph.weights(torch.float64)]
        self.width = _rows_at_once(self.graph)

    def certify(self, lower: Images, upper: Images, label: Labels, methods: Sequence[str] = METHODS) -> list[Proof]:
        """One proof per row, by the methods asked for, the cheapest first; each sees only the rows that those before it left open.

        The box must hold every image that counts as inside, rounding included. The clean prediction need not be asked: where the box
        holds an image with another label, nothing is proved. Neighbours of a row change the last bits of its float64 margin at most.
        Raises UsageError.
        """
        self._check(lower, upper, label, methods)
        proofs = [Proof(False, None, -math.inf, 0.0) for _ in label]
        with torch.inference_mode(False), torch.no_grad():
            for method in (known for known in METHODS if known in methods):
                still = [i for i, proof in enumerate(proofs) if not proof.certified]
                for rows in (still[start : start + self.width] for start in range(0, len(still), self.width)):
                    places = torch.tensor(rows, device=label.device)
                    for i, proof in zip(rows, self._prove(lower[places], upper[places], label[places], method), strict=True):
                        proofs[i] = proof
        return proofs

    def _prove(self, lower: Images, upper: Images, label: Labels, method: str) -> list[Proof]:
        """One chunk by one method. crown-ibp starts from the intervals, so theirs is its margin where it is the larger."""
        image = Box(lower.double(), upper.double())
        boxes = ibp.boxes(self.graph, self.weights, image, len(self.graph.nodes) - 1)
        specs = ibp.differences(label, self.graph.classes, image.lower)
        bound = ibp.tail(self.graph, self.weights, boxes[self.graph.tail], specs)
        if method == "crown-ibp":
            bound = torch.maximum(bound, crown.backward(self.graph, self.weights, boxes, specs))
        needed = slack(self.graph, self.weights, boxes, specs)
        real = (lower <= upper).flatten(1).all(1, keepdim=True) & bound.isfinite() & needed.isfinite()
        bound, needed = torch.where(real, bound, -torch.inf), torch.where(real, needed, 0.0)
        worst = (bound - needed).argmin(1, keepdim=True)
        certified = (bound > needed).all(1).tolist()
        found = zip(certified, bound.gather(1, worst).squeeze(1).tolist(), needed.gather(1, worst).squeeze(1).tolist(), strict=True)
        return [Proof(proved, method if proved else None, margin, least) for proved, margin, least in found]

    def _check(self, lower: Images, upper: Images, label: Labels, methods: Sequence[str]) -> None:
        unknown = [method for method in methods if method not in METHODS]
        if unknown or not methods:
            raise UsageError(f"certificates by {', '.join(unknown) or 'no method'}", expected=f"some of: {', '.join(METHODS)}")
        if lower.shape != (len(label), *self.shape) or upper.shape != lower.shape:
            given = f"boxes of {list(lower.shape)} and {list(upper.shape)}"
            raise UsageError(given, expected=f"{[len(label), *self.shape]}, as the images")
        if len(label) and not 0 <= int(label.min()) <= int(label.max()) < self.graph.classes:
            raise UsageError("a label outside the classes", expected=f"0 to {self.graph.classes - 1}")


def _check_net(graph: Graph, classes: int) -> None:
    if graph.classes != classes:
        raise Unsupported(f"the net has {graph.classes} logits", expected=f"one per class of the data set, {classes}")
    types = {str(tensor.dtype).removeprefix("torch.") for own in graph.weights() for tensor in own if tensor is not None}
    if types - {"float32"}:
        raise Unsupported(f"the net computes in {min(types - {'float32'})}", expected="float32, whose rounding is accounted for")


def _rows_at_once(graph: Graph) -> int:
    sizes = [8 * math.prod(node.shape) for node in graph.nodes]
    largest = (graph.classes - 1) * max(sizes)
    wanted = min(WIDEST, max(8, HANDY // largest))
    return max(1, min(wanted, BUDGET // (4 * (sum(sizes) + largest))))  # 4: both ends, middle and radius; coefficients and their parts
