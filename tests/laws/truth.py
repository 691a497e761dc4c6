"""Models whose nearest adversary is known: linear ones, and two-layer ReLU nets inside one linear region; box included, in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from laws import formulas
from laws.given import images
from laws.nets import linear_net
from rbench.attacks.search import Examples
from rbench_threats.protocol import PerturbationSet

CLASSES = 10


@dataclass(frozen=True)
class Affine:
    """What a model is around the images: logits = weight · x + bias, in float64."""

    weight: formulas.Array
    bias: formulas.Array

    def logits(self, x: formulas.Array) -> formulas.Array:
        return np.asarray(x.reshape(len(x), -1) @ self.weight.T + self.bias)


def linear(shape: tuple[int, int, int], seed: int) -> tuple[nn.Module, Affine]:
    net = linear_net(shape, CLASSES, seed)
    layer = net[1]  # type: ignore[index]
    return net, Affine(layer.weight.double().numpy(), layer.bias.double().numpy())


def two_layers(shape: tuple[int, int, int], seed: int) -> tuple[nn.Module, Affine]:
    """Half of the hidden units always on, half always off, anywhere in [0, 1]: one linear region that a ReLU net shows on all images."""
    first, second = linear_net(shape, 24, seed, 0.5), linear_net((24, 1, 1), CLASSES, seed + 1, 0.3)
    hidden, out = first[1], second[1]  # type: ignore[index]
    on = torch.arange(24) % 2 == 0
    reach = hidden.weight.abs().sum(1) + 1
    with torch.no_grad():
        hidden.bias.copy_(hidden.bias + torch.where(on, reach, -reach))
        at_grey = torch.where(on, hidden.weight.sum(1) * 0.5 + hidden.bias, 0.0)
        out.bias.copy_(-out.weight @ at_grey + 0.1 * torch.randn(CLASSES, generator=torch.Generator().manual_seed(seed)))
    inner = (out.weight * on.float()).double().numpy()
    weight = inner @ hidden.weight.double().numpy()
    return nn.Sequential(first, nn.ReLU(), out).eval(), Affine(weight, inner @ hidden.bias.double().numpy() + out.bias.double().numpy())


def distance(space: PerturbationSet, affine: Affine, x: formulas.Array) -> formulas.Array:
    """How large a set of this family must be to hold a fall of the class that leads at x, box included: in units of the set's radius.

    Per rival class the steepest way up is known (formulas.furthest); the radius at which it reaches the margin is found by bisection.
    """
    logits = affine.logits(x)
    label = logits.argmax(1)
    found = np.full(len(x), np.inf)
    for rival in range(logits.shape[1]):
        slope = affine.weight[rival] - affine.weight[label]
        gap = logits[np.arange(len(x)), label] - logits[:, rival]
        low, high = np.zeros(len(x)), np.full(len(x), 64.0)
        for _ in range(60):
            middle = (low + high) / 2
            far = formulas.furthest(space, x, slope, middle)
            assert far is not None
            reached = (slope * far).sum(1) >= gap
            low, high = np.where(reached, low, middle), np.where(reached, middle, high)
        found = np.where(label == rival, found, np.minimum(found, high))
    return found


def at_distance(space: PerturbationSet, affine: Affine, net: nn.Module, count: int, grey: bool, seed: int, shape: tuple[int, int, int]) -> Examples:
    """Images whose nearest adversary is exactly one radius away: each is found on the way between two images of different classes.

    grey: around 0.5, where the box is far; else with values at 0 and 1, where it decides.
    """
    x, other = (images(shape, 8 * count, seed + turn).double().numpy() for turn in (0, 1))
    if grey:
        x, other = 0.5 + 0.4 * (x - 0.5), 0.5 + 0.4 * (other - 0.5)
    label = affine.logits(x).argmax(1)
    usable = (affine.logits(other).argmax(1) != label) & (distance(space, affine, x) > 1)
    x, other, label = x[usable][:count], other[usable][:count], label[usable][:count]
    near, far = np.ones(len(x)), np.zeros(len(x))  # share of `other`
    for _ in range(40):
        share = (near + far) / 2
        here = x + share[:, None, None, None] * (other - x)
        inside = (affine.logits(here).argmax(1) != label) | (distance(space, affine, here) < 1)
        near, far = np.where(inside, share, near), np.where(inside, far, share)
    found = torch.from_numpy(x + far[:, None, None, None] * (other - x)).float()
    return Examples(found, torch.from_numpy(label), torch.arange(len(found)), net(found))


def at_radius(space: PerturbationSet, factor: float) -> PerturbationSet:
    """The same set, its radius times a factor."""
    return replace(space, eps=f"{float(space.extent['eps']) * factor:.9f}")  # type: ignore[type-var]


def fewest_pixels(affine: Affine, x: formulas.Array) -> formulas.Array:
    """The number of pixels that a fall needs: per rival class the best gains first, every channel to the end of its range."""
    logits, flat = affine.logits(x), x.reshape(len(x), -1)
    label = logits.argmax(1)
    found = np.full(len(x), np.inf)
    for rival in range(logits.shape[1]):
        slope = affine.weight[rival] - affine.weight[label]
        gap = logits[np.arange(len(x)), label] - logits[:, rival]
        gain = np.maximum(slope * (1 - flat), -slope * flat).reshape(len(x), x.shape[1], -1).sum(1)
        total = np.cumsum(np.sort(gain, 1)[:, ::-1], 1)
        needed = np.where(total[:, -1] > gap, (total <= gap[:, None]).sum(1) + 1, np.inf)
        found = np.where(label == rival, found, np.minimum(found, needed))
    return found


def pixels_apart(affine: Affine, net: nn.Module, pixels: int, count: int, seed: int, shape: tuple[int, int, int]) -> tuple[Examples, Tensor]:
    """Images that need exactly `pixels` pixels, of many; and how many were tried."""
    x = images(shape, 40 * count, seed).double().numpy()
    chosen = np.flatnonzero(fewest_pixels(affine, x) == pixels)[:count]
    found = torch.from_numpy(x[chosen]).float()
    logits = net(found)
    return Examples(found, logits.argmax(1), torch.arange(len(found)), logits), torch.tensor(len(x))
