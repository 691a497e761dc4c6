"""What counts as a fall: which label the model must give, and whether a mistake on the clean image decides (DESIGN section 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from rbench.data.dataset import Dataset
from rbench_threats.protocol import PerturbationSet


@dataclass(frozen=True, slots=True)
class Objective:
    """sensitivity: the data's label counts everywhere in the set, and a clean mistake decides.

    invariance: the label that people gave to the candidate counts there, be it the clean image's or not; clean mistakes decide nothing.
    """

    name: str
    given: Int[Tensor, " n"] | None = None  # the label of each example's candidate, where it is not the data's

    @property
    def clean_decides(self) -> bool:
        return self.given is None

    def labels(self, data: Dataset, indices: Sequence[int]) -> Int[Tensor, " k"]:
        """The labels that count for the examples at these indices."""
        return (data.y if self.given is None else self.given)[torch.tensor(indices, dtype=torch.long)]

    def oracle(self, index: int) -> int | None:
        """What people called the candidate of an example; None: the data's label is all there is."""
        return None if self.given is None else int(self.given[index])


def objective_of(space: PerturbationSet) -> Objective:
    """Invariance for a set that brings people's labels (capability "labels"), sensitivity for any other."""
    if "labels" in space.capabilities:
        return Objective("invariance", space.labels())  # type: ignore[attr-defined]  # the capability
    return Objective("sensitivity")
