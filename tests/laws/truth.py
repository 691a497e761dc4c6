"""Models whose nearest adversary is known: linear ones, and two-layer ReLU nets inside one linear region; box included, in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from laws import formulas
from laws.given import images
from laws.nets import linear_net
from rbench.attacks.search import Examples
from rbench_threats.protocol import PerturbationSet

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Affine:
    """What a model is around the images: logits = weight · x + bias, in float64."""

    weight: formulas.Array
    bias: formulas.Array

    def logits(self, x: formulas.Array) -> formulas.Array:
        return np.asarray(x.reshape(len(x), -1) @ self.weight.T + self.bias)


def linear(shape: Shape, classes: int, seed: int) -> tuple[nn.Module, Affine]:
    net = linear_net(shape, classes, seed)
    layer = net[1]  # type: ignore[index]
    return net, Affine(layer.weight.double().numpy(), layer.bias.double().numpy())


def two_layers(shape: Shape, classes: int, seed: int) -> tuple[nn.Module, Affine]:
    """Half of the hidden units always on, half always off, anywhere in [0, 1]: one linear region that a ReLU net shows on all images."""
    first, second = linear_net(shape, 24, seed, 0.5), linear_net((24, 1, 1), classes, seed + 1, 0.3)
    hidden, out = first[1], second[1]  # type: ignore[index]
    on = torch.arange(24) % 2 == 0
    reach = hidden.weight.abs().sum(1) + 1
    with torch.no_grad():
        hidden.bias.copy_(hidden.bias + torch.where(on, reach, -reach))
        at_grey = torch.where(on, hidden.weight.sum(1) * 0.5 + hidden.bias, 0.0)
        out.bias.copy_(-out.weight @ at_grey + 0.1 * torch.randn(classes, generator=torch.Generator().manual_seed(seed)))
    inner = (out.weight * on.float()).double().numpy()
    weight = inner @ hidden.weight.double().numpy()
    return nn.Sequential(first, nn.ReLU(), out).eval(), Affine(weight, inner @ hidden.bias.double().numpy() + out.bias.double().numpy())


def distance(space: PerturbationSet, affine: Affine, x: formulas.Array) -> formulas.Array:
    """How large a set of this family must be to hold a fall of the class that leads at x, box included: in units of the set's radius.

    A class that rises to the leader's level does so most cheaply along the difference of weights, as far as the box lets each value go.
    """
    logits, flat, rows = affine.logits(x), x.reshape(len(x), -1), np.arange(len(x))
    label = logits.argmax(1)
    found = np.full(len(x), np.inf)
    for rival in range(logits.shape[1]):
        slope = affine.weight[rival] - affine.weight[label]
        room = np.where(slope > 0, 1 - flat, flat)
        needed = _needed(space.family, np.abs(slope) + 1e-300, room, logits[rows, label] - logits[:, rival])
        found = np.where(label == rival, found, np.minimum(found, needed))
    return found / float(space.extent["eps"])


def _needed(family: str, slope: formulas.Array, room: formulas.Array, gap: formulas.Array) -> formulas.Array:
    """The smallest norm of a θ in [0, room] with slope · θ = gap; infinite where room does not suffice.

    l1: the steepest values first. linf and l2: θ = min(t, room) and min(t · slope, room), whose gain is piecewise linear in t.
    """
    rows = np.arange(len(gap))
    if family == "l1":
        order = np.argsort(-slope, 1)
        slope, room = (np.take_along_axis(part, order, 1) for part in (slope, room))
        before = np.pad(np.cumsum(slope * room, 1), ((0, 0), (1, 0)))
        last = (before[:, 1:] < gap[:, None]).sum(1)
        at = last.clip(max=slope.shape[1] - 1)
        norm = np.pad(np.cumsum(room, 1), ((0, 0), (1, 0)))[rows, at] + (gap - before[rows, at]) / slope[rows, at]
        return np.where(last < slope.shape[1], norm, np.inf)
    speed = slope if family == "linf" else slope**2
    end = room if family == "linf" else room / slope
    order = np.argsort(end, 1)
    end, speed = (np.take_along_axis(part, order, 1) for part in (end, speed))
    done = np.pad(np.cumsum(speed * end, 1), ((0, 0), (1, 0)))
    left = speed.sum(1, keepdims=True) - np.pad(np.cumsum(speed, 1), ((0, 0), (1, 0)))
    last = (done[:, 1:] + left[:, 1:] * end < gap[:, None]).sum(1)
    at = last.clip(max=end.shape[1] - 1)
    t = (gap - done[rows, at]) / np.maximum(left[rows, at], 1e-300)
    norm = t if family == "linf" else np.sqrt((np.minimum(t[:, None] * slope, room) ** 2).sum(1))
    return np.where(last < end.shape[1], norm, np.inf)


def at_distance(space: PerturbationSet, affine: Affine, net: nn.Module, count: int, grey: bool, seed: int, shape: Shape) -> Examples:
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


def pixels_apart(affine: Affine, net: nn.Module, pixels: int, count: int, seed: int, shape: Shape) -> Examples:
    """Images that need exactly `pixels` pixels to fall."""
    x = images(shape, 40 * count, seed).double().numpy()
    chosen = np.flatnonzero(fewest_pixels(affine, x) == pixels)[:count]
    found = torch.from_numpy(x[chosen]).float()
    logits = net(found)
    return Examples(found, logits.argmax(1), torch.arange(len(found)), logits)
