"""Analysis by synthesis (ABS, Schott et al. 2019): ten class-conditional VAEs; the class whose decoder explains the image best wins.

The forward pass holds an optimiser, so no useful gradient reaches the image: the cards of these nets say `gradient = false`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

CLASSES, LATENTS, PIXELS = 10, 8, 784
BN_EPS = 1e-5
CHUNK = 16  # images per pass, always exactly: the last bits of a convolution depend on it. 16 take 0.05 s each on one core, 64 take 0.08 s
CLOSEST = 4  # starts per class that are compared again in float64: the order of near ties must not depend on a matrix product
DECODER = ((LATENTS, 32, 4, 1), (32, 16, 5, 2), (16, 16, 5, 2), (16, 1, 4, 1))  # in, out, kernel, stride
ENCODER = ((1, 32, 5, 1), (32, 32, 4, 2), (32, 64, 3, 2), (64, 2 * LATENTS, 5, 1))

Images = Float[Tensor, "rows 1 28 28"]
Latents = Float[Tensor, "rows 10 8"]
Scores = Float[Tensor, "rows 10"]


class ABS(nn.Module):
    """Images (rows, 1, 28, 28) in [0, 1] to logits −ELBO_y, which lie about −0.03: (‖x − dec_y(z)‖² + ½‖z‖²) / 784 at the best z found.

    Per class: the best of `starts` latents, then `steps` − 1 steps of Adam (rate 0.05). `threshold` binarises the image first and
    `factors` multiply the ELBOs: Binary ABS. The starts are one draw for all images and classes, made from a fixed seed and kept as a
    buffer outside the state dict: part of the model's digest, not of its file. A row's logits do not depend on its neighbours, the
    same images give the same bits, and no gradient comes out, also where autograd or inference mode is on around the call.

    Between steps z is brought back to ‖z‖ ≤ 5 along its own direction, the nearest point of that ball. The published code must mean
    that, but replaces z by |z| on the sphere: the sign is lost and the search thrown elsewhere. On the first 400 MNIST test images
    either acts on 7 % (binary: 8 %) of the pairs of image and class, never on a pair with the right class, and no prediction differs
    between the two and no clip at all. The nearest point was taken because it moves z least.

    Cost: one decoding of all starts at the first call (5 s, 250 MB kept), then about 0.05 s per image on one core.
    Source: AnalysisBySynthesis, abs_models/inference.py and models.py.
    """

    starts: Tensor
    factors: Tensor

    def __init__(self, threshold: float | None = None, factors: Sequence[float] | None = None, starts: int = 8000, steps: int = 50) -> None:
        super().__init__()
        self.threshold, self.steps, self.rate, self.radius, self.classes = threshold, steps, 0.05, 5.0, CLASSES
        for digit in range(CLASSES):
            self.add_module(f"VAE_{digit}", _vae())
        self.register_buffer("starts", torch.from_numpy(draw(starts)), persistent=False)
        self.register_buffer("factors", torch.tensor([1.0] * CLASSES if factors is None else list(factors)), persistent=False)
        self._kept: tuple[object, Decoder] | None = None

    def forward(self, x: Images) -> Scores:
        """Logits. The padding of the last chunk is thrown away."""
        with torch.inference_mode(False), torch.no_grad():
            images = x.detach().to(self.starts.dtype, copy=True)
            if self.threshold is not None:
                images = (images >= self.threshold).to(images.dtype)
            whole = torch.cat([images, images.new_zeros((-len(images) % CHUNK, *images.shape[1:]))])
            decoder = self._decoder()
            return torch.cat([-self.factors * self.energy(decoder, chunk) for chunk in whole.split(CHUNK)])[: len(x)].to(x.dtype)

    def energy(self, decoder: Decoder, images: Images) -> Scores:
        """The ELBO of every class at the latents that the search ends with."""
        z = decoder.closest(images, self.starts)
        first, second = torch.zeros_like(z), torch.zeros_like(z)
        for step in range(1, self.steps):
            grad = _gradient(decoder, z, images)
            first = 0.9 * first + 0.1 * grad
            second = 0.999 * second + 0.001 * grad.square()
            z = z - self.rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            z = z * (self.radius / z.norm(dim=2, keepdim=True)).clamp(max=1)
        return _elbo(decoder(z), z, images)

    def _decoder(self) -> Decoder:
        """The ten decoders as one, made again when weights were changed or moved."""
        key = [(value.data_ptr(), value._version) for value in (*self.parameters(), *self.buffers())]
        if self._kept is None or self._kept[0] != key:
            self._kept = key, Decoder(self)
        return self._kept[1]


class Decoder:
    """The decoders of all classes side by side as grouped convolutions, batch norm folded in; no parameter of it asks for a gradient."""

    def __init__(self, model: ABS) -> None:
        parts = [[_folded(model.get_submodule(f"VAE_{digit}.Decoder"), i) for i in range(4)] for digit in range(CLASSES)]
        self.layers = [tuple(torch.cat(tensors) for tensors in zip(*(part[i] for part in parts), strict=True)) for i in range(4)]
        z = model.starts.unsqueeze(1).expand(-1, CLASSES, -1)
        images = torch.cat([self(chunk.contiguous()) for chunk in z.split(CHUNK)])
        self.images = images.transpose(0, 1).contiguous().flatten(2)  # (10, starts, 784)
        self.offsets = self.images.square().sum(2) + 0.5 * model.starts.square().sum(1)

    def __call__(self, z: Latents) -> Float[Tensor, "rows 10 28 28"]:
        """One image per class and row, in [0, 1]."""
        out = z.reshape(len(z), CLASSES * LATENTS, 1, 1)
        for i, (kernel, bias) in enumerate(self.layers):
            out = nn.functional.conv_transpose2d(out, kernel, bias, stride=DECODER[i][3], groups=CLASSES)
            out = nn.functional.elu(out) if i < 3 else out.sigmoid()
        return out

    def closest(self, images: Images, starts: Float[Tensor, "starts 8"]) -> Latents:
        """Per class the start of smallest ELBO: a matrix product proposes `CLOSEST` of them, their ELBOs in float64 decide."""
        flat = images.flatten(1)
        nearest = (self.offsets - 2 * (flat @ self.images.flatten(0, 1).T).unflatten(1, self.offsets.shape)).topk(
            min(CLOSEST, len(starts)), dim=2, largest=False
        )
        found: Int64[Tensor, "rows 10 k"] = nearest.indices.sort(2).values
        rebuilt = self.images[torch.arange(CLASSES, device=found.device)[None, :, None], found].double()
        energy = (flat.double()[:, None, None] - rebuilt).square().sum(3) + 0.5 * starts[found].double().square().sum(3)
        return starts[found.gather(2, energy.argmin(2, keepdim=True)).squeeze(2)]


def draw(count: int) -> Float[np.ndarray, "count 8"]:
    """`count` latents of N(0, I): count / 0.9 are drawn and the least probable tenth dropped, as in the source; the same everywhere.

    Philox's raw stream, which numpy keeps stable, by Box and Muller; rounded to 2⁻¹⁶, so that no library's last bit of a logarithm
    shows, and norms compare as whole numbers.
    """
    drawn = int(count / 0.9)
    raw = np.random.Philox(key=0).random_raw(drawn * LATENTS)
    u = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
    radius, angle = np.sqrt(-2 * np.log(u[0::2])), 2 * np.pi * u[1::2]
    z = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(drawn, LATENTS)
    whole = np.rint(z * 65536).astype(np.int64)
    kept = np.sort(np.argsort((whole * whole).sum(1), kind="stable")[:count])
    found: np.ndarray = (whole[kept] / 65536).astype(np.float32)
    return found


def _gradient(decoder: Decoder, z: Latents, images: Images) -> Latents:
    """d ΣELBO / d z, whatever the mode around it."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        return torch.autograd.grad(_elbo(decoder(z), z, images).sum(), z)[0]


def _elbo(rebuilt: Float[Tensor, "rows 10 28 28"], z: Latents, images: Images) -> Scores:
    return ((images - rebuilt).square().sum((2, 3)) + 0.5 * z.square().sum(2)) / PIXELS


def _vae() -> nn.Module:
    """One class's encoder, which no prediction uses, and decoder, with the keys of the published files."""
    return nn.ModuleDict({"Encoder": _stack(nn.Conv2d, ENCODER), "Decoder": _stack(nn.ConvTranspose2d, DECODER)})


def _stack(kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], rows: Sequence[tuple[int, int, int, int]]) -> nn.Module:
    """conv_0, bn_0, … : batch norm (and ELU, which has no tensors) behind all but the last."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (planes, width, kernel, stride) in enumerate(rows):
        parts[f"conv_{i}"] = kind(planes, width, kernel, stride)
        if i < len(rows) - 1:
            parts[f"bn_{i}"] = nn.BatchNorm2d(width, eps=BN_EPS)
    return nn.ModuleDict(parts)


def _folded(decoder: nn.Module, i: int) -> tuple[Tensor, Tensor]:
    """Kernel (in, out, k, k) and bias of layer i with the batch norm behind it multiplied in, in float64 until it is done."""
    own = {**dict(decoder.named_parameters()), **dict(decoder.named_buffers())}
    dtype = own["conv_0.weight"].dtype
    kernel, bias = own[f"conv_{i}.weight"].double(), own[f"conv_{i}.bias"].double()
    if i < len(DECODER) - 1:
        mean, variance, weight, shift = (own[f"bn_{i}.{name}"].double() for name in ("running_mean", "running_var", "weight", "bias"))
        scale = weight / (variance + BN_EPS).sqrt()
        kernel, bias = kernel * scale[:, None, None], (bias - mean) * scale + shift
    return kernel.to(dtype), bias.to(dtype)
