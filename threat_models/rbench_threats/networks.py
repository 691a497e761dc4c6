"""The networks of learned sets: conditional VAEs (Wong & Kolter 2021, sec. 4), as small as can be shipped.

Three parts, each conditional on the clean image x: prior(x) and recognition(x, x̃) give a Gaussian over z; the generator makes an image of
(x, z). No batch statistics anywhere, and every pass in whole blocks of rows, so an image never depends on the batch that it came in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from rbench_core.errors import CardError

Images = Float[Tensor, "rows c h w"]
Latents = Float[Tensor, "rows d"]
Shape = tuple[int, int, int]

LOWEST, HIGHEST = math.log(0.001), math.log(10.0)  # of a log-variance: outside, exp overflows and a ratio is no number
REACH = 0.75  # of an affine number from the identity: turns up to 48°, shifts up to 3/8 of the side
BLOCK = 16  # rows: a matrix product of fewer rounds differently in its last bits


class Gaussian(nn.Module):
    """Mean and log-variance from images, side by side as channels. The log-variance is bounded by a tanh."""

    def __init__(self, trunk: nn.Module, width: int, latent: int) -> None:
        super().__init__()
        self.trunk, self.mean, self.spread = trunk, nn.Linear(width, latent), nn.Linear(width, latent)

    def forward(self, *images: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log-variance), (rows, d) each."""
        features = self.trunk(torch.cat(images, 1))
        middle, half = (HIGHEST + LOWEST) / 2, (HIGHEST - LOWEST) / 2
        return self.mean(features), middle + half * torch.tanh(self.spread(features) / half - middle / half)


class CVAE(nn.Module):
    """Prior, recognition and generator of one learned set; the generator returns logits of pixels."""

    def __init__(self, prior: nn.Module, recognition: nn.Module, generator: nn.Module, latent: int) -> None:
        super().__init__()
        self.prior, self.recognition, self.generator, self.latent = prior, recognition, generator, latent

    def condition(self, x: Images) -> tuple[Latents, Latents]:
        """Mean μ and standard deviation σ of the prior, all that an attack needs of x beside x."""
        return in_blocks(lambda *given: _deviations(self.prior(*given)), x)  # type: ignore[no-any-return]

    def encode(self, x: Images, partner: Images) -> tuple[Latents, Latents]:
        """Mean and standard deviation of the recognition network, in z."""
        return in_blocks(lambda *given: _deviations(self.recognition(*given)), x, partner)  # type: ignore[no-any-return]

    def generate(self, x: Images, z: Latents) -> Images:
        """The image of (x, z), in [0, 1]; differentiable in both."""
        return in_blocks(lambda *given: torch.sigmoid(self.generator(*given)), x, z)  # type: ignore[no-any-return]


def divergence(mean_q: Tensor, log_q: Tensor, mean_p: Tensor, log_p: Tensor) -> Float[Tensor, " rows"]:
    """KL of two diagonal Gaussians by means and log-variances, in nats, per row."""
    terms = (log_q.exp() + (mean_q - mean_p) ** 2) / log_p.exp() - 1 + log_p - log_q
    return terms.sum(1) / 2


def in_blocks(network: Callable[..., Any], *parts: Tensor) -> Any:
    """network(*parts) with the rows padded to a multiple of BLOCK by copies of the first, so that no row's bits depend on their number."""
    rows = len(parts[0])
    lacking = -rows % BLOCK
    if not lacking:
        return network(*parts)
    whole = network(*(torch.cat([part, part[:1].expand(lacking, *part.shape[1:])]) for part in parts))
    return tuple(part[:rows] for part in whole) if isinstance(whole, tuple) else whole[:rows]


def _deviations(gaussian: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) of (mean, log-variance)."""
    return gaussian[0], (gaussian[1] / 2).exp()


class _Joined(nn.Module):
    """Fully connected generator: x and z side by side, one hidden layer."""

    def __init__(self, shape: Shape, latent: int, hidden: int) -> None:
        super().__init__()
        self.shape, size = shape, math.prod(shape)
        self.inner, self.outer = nn.Linear(size + latent, hidden), nn.Linear(hidden, size)

    def forward(self, x: Images, z: Latents) -> Images:
        return self.outer(self.inner(torch.cat([x.flatten(1), z], 1)).relu()).unflatten(1, self.shape)  # type: ignore[no-any-return]


class _Upward(nn.Module):
    """Convolutional generator: z as planes at a quarter of the size, x joined at every size on the way up."""

    def __init__(self, shape: Shape, latent: int, channels: int) -> None:
        super().__init__()
        colours, height, width = shape
        self.low, self.planes = (height // 4, width // 4), channels
        self.spread = nn.Linear(latent, channels * (height // 4) * (width // 4))
        self.first = nn.Conv2d(channels + colours, channels, 3, padding=1)
        self.second = nn.Conv2d(channels + colours, channels, 3, padding=1)
        self.last = nn.Conv2d(channels + colours, colours, 3, padding=1)

    def forward(self, x: Images, z: Latents) -> Images:
        planes = self.spread(z).unflatten(1, (self.planes, *self.low))
        planes = self.first(torch.cat([planes, functional.avg_pool2d(x, 4)], 1)).relu()
        planes = functional.interpolate(planes, scale_factor=2.0)
        planes = self.second(torch.cat([planes, functional.avg_pool2d(x, 2)], 1)).relu()
        planes = functional.interpolate(planes, scale_factor=2.0)
        return self.last(torch.cat([planes, x], 1))  # type: ignore[no-any-return]


class Transformers(nn.Module):
    """Spatial transformers (Jaderberg et al. 2015): z names `count` affine warps of x, which two convolutions mix into one image.

    Folded: the paper's 128 → pixels → 512 maps have no non-linearity between them, so each localisation begins at z itself. Its last layer
    starts at 0: at initialisation every warp is x. No affine number leaves the identity by more than REACH: without a bound MNIST's warps
    magnified x fivefold and painted with its strokes (docs/learned-sets.md). Zero fill, as the pairs have.
    """

    identity: Tensor

    def __init__(self, shape: Shape, latent: int, hidden: int, count: int, mixed: int) -> None:
        super().__init__()
        colours = shape[0]
        self.localise = nn.ModuleList(
            nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, hidden // 2), nn.ReLU(), nn.Linear(hidden // 2, 6))
            for _ in range(count)
        )
        for branch in self.localise:
            nn.init.zeros_(branch[-1].weight)  # type: ignore[index]
            nn.init.zeros_(branch[-1].bias)  # type: ignore[index]
        self.register_buffer("identity", torch.tensor([1.0, 0, 0, 0, 1, 0]), persistent=False)
        self.mix = nn.Conv2d(count * colours, mixed, 3, padding=1)
        self.paint = nn.Conv2d(mixed + count * colours, colours, 3, padding=1)

    def warps(self, x: Images, z: Latents) -> Float[Tensor, "rows k h w"]:
        """The warped copies of x, (rows, count · c, h, w)."""
        copies = []
        for branch in self.localise:
            affine = (self.identity + REACH * torch.tanh(branch(z))).view(-1, 2, 3)
            grid = functional.affine_grid(affine, list(x.shape), align_corners=False)
            copies.append(functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
        return torch.cat(copies, 1)

    def forward(self, x: Images, z: Latents) -> Images:
        copies = self.warps(x, z)
        return self.paint(torch.cat([self.mix(copies).relu(), copies], 1))  # type: ignore[no-any-return]


def _dense(images: int, shape: Shape, latent: int, hidden: int) -> Gaussian:
    return Gaussian(nn.Sequential(nn.Flatten(), nn.Linear(images * math.prod(shape), hidden), nn.ReLU()), hidden, latent)


def _strided(images: int, shape: Shape, latent: int, channels: int, hidden: int) -> Gaussian:
    """Two convolutions of stride 2 and a hidden layer."""
    colours, height, width = shape
    trunk = nn.Sequential(
        nn.Conv2d(images * colours, channels, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(2 * channels * -(-height // 4) * -(-width // 4), hidden), nn.ReLU(),
    )  # fmt: skip
    return Gaussian(trunk, hidden, latent)


def _fc(shape: Shape, latent: int, hidden: int) -> CVAE:
    return CVAE(_dense(1, shape, latent, hidden), _dense(2, shape, latent, hidden), _Joined(shape, latent, hidden), latent)


def _conv(shape: Shape, latent: int, channels: int, hidden: int) -> CVAE:
    if shape[1] % 4 or shape[2] % 4:
        raise CardError(f"network conv for images of {shape[1]}x{shape[2]}", expected="sides that 4 divides", fix="Take fc or stn.")
    prior, recognition = (_strided(images, shape, latent, channels, hidden) for images in (1, 2))
    return CVAE(prior, recognition, _Upward(shape, latent, channels), latent)


def _stn(shape: Shape, latent: int, channels: int, hidden: int, count: int, mixed: int, local: int) -> CVAE:
    prior, recognition = (_strided(images, shape, latent, channels, hidden) for images in (1, 2))
    return CVAE(prior, recognition, Transformers(shape, latent, local, count, mixed), latent)


KINDS: dict[str, Callable[..., CVAE]] = {"fc": _fc, "conv": _conv, "stn": _stn}


def build(shape: Shape, network: dict[str, Any], where: object) -> CVAE:
    """The networks that a table such as {kind = "fc", latent = 16, hidden = 128} names, with random weights. Raises CardError."""
    sizes = {key: value for key, value in network.items() if key != "kind"}
    kind = network.get("kind")
    if kind not in KINDS:
        raise CardError(f"{where}: network kind {kind!r}", expected=f"one of: {', '.join(KINDS)}")
    wrong = {key: value for key, value in sizes.items() if type(value) is not int or not 1 <= value <= 100_000}
    if wrong:
        key, value = next(iter(wrong.items()))
        raise CardError(f"{where}: network {key} = {value!r}", expected="a whole number from 1 on")
    try:
        return KINDS[kind](shape, **sizes)
    except TypeError as error:
        names = [*signature(KINDS[kind]).parameters][1:]
        raise CardError(f"{where}: network {kind} with {', '.join(sizes) or 'no sizes'}", expected=", ".join(names)) from error
