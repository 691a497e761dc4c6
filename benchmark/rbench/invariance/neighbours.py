"""For each image and each other class, the training image that some transform of the image comes nearest to (squared l2, 0-255 scale)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from rbench.invariance.transforms import Image, grid, transformed, undone

RERANKED = 5  # pairs that float32 finds nearest, compared again in whole numbers


class Neighbour(NamedTuple):
    """The nearest pair of one image and one class, and the training image moved onto the image."""

    target: int
    transform: int  # place in the grid
    train: int  # index in the training set
    sqdist: int
    aligned: Image


@dataclass(frozen=True, slots=True)
class Class:
    """The training images of one class: places in the training set, bytes, and float32 rows in [0, 1] with their squared norms."""

    label: int
    places: Int64[np.ndarray, " m"]
    bytes: UInt8[np.ndarray, "m p"]
    rows: Float[Tensor, "m p"]
    norms: Float[Tensor, " m"]


class Finder:
    """A training set, class by class, ready for any number of images."""

    def __init__(self, images: UInt8[np.ndarray, "m h w"], labels: Int64[np.ndarray, " m"]) -> None:
        self.side = images.shape[1]
        self.shape = images.shape[1:]
        self.classes = [self._class(images, labels, int(label)) for label in np.unique(labels)]

    def _class(self, images: UInt8[np.ndarray, "m h w"], labels: Int64[np.ndarray, " m"], label: int) -> Class:
        places = np.flatnonzero(labels == label)
        flat = images[places].reshape(len(places), -1)
        rows = torch.from_numpy(flat).float() / 255
        return Class(label, places, flat, rows, rows.square().sum(1))

    def find(self, image: Image, label: int, *, true_inverse: bool = False) -> list[Neighbour]:
        """One neighbour per other class, ascending. About 2 GFLOP per 1,000 training images of MNIST's size."""
        moved = transformed(image)
        query = torch.from_numpy(moved).float() / 255
        norms = query.square().sum(1, keepdim=True)  # they differ by transform: without them the transform with most ink would win
        found = []
        for each in self.classes:
            if each.label != label:
                place, member, sqdist = _nearest(moved, query, norms, each)
                aligned = undone(each.bytes[member].reshape(self.shape), grid(self.side)[place], true_inverse=true_inverse)
                found.append(Neighbour(each.label, place, int(each.places[member]), sqdist, aligned))
        return found


def _nearest(
    moved: UInt8[np.ndarray, "k p"], query: Float[Tensor, "k p"], norms: Float[Tensor, "k 1"], each: Class
) -> tuple[int, int, int]:
    """(transform, member, squared distance): of equal pairs the first member, then the first transform, whatever the rounding."""
    distance = torch.addmm(each.norms[None, :], query, each.rows.T, alpha=-2).add_(norms)
    best = distance.flatten().topk(min(RERANKED, distance.numel()), largest=False).indices.numpy()
    places, members = best // distance.shape[1], best % distance.shape[1]
    exact = (moved[places].astype(np.int64) - each.bytes[members]) ** 2
    order = sorted(zip(exact.sum(1).tolist(), members.tolist(), places.tolist(), strict=True))
    sqdist, member, place = order[0]
    return place, member, sqdist
