"""Budgets out of a model's saliency: small where its answer depends on the pixel. Stored as an array: the set itself knows no model."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from rbench.data import sources
from rbench.data.dataset import Dataset
from rbench.models import attacked, find
from rbench.progress import Progress
from rbench_core.errors import ModelError, UsageError
from rbench_core.files import atomic_write, canonical_json
from rbench_threats.normaliser import Range

Images = Float[Tensor, "rows c h w"]
WIDTH = 64  # rows per pass
WINDOW = 5  # side of the mean filter that smooths a gradient
FLOOR = 1e-3  # of the largest value, added: a score is a logarithm


def budgets(
    model: str,
    *,
    volume: float,
    low: float,
    high: float,
    out: Path,
    dataset: str | None = None,
    data: Path | str | None = None,
    n: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Path:
    """Write the budgets of the data set's first n test images (None: all), float32 (n, c, h, w), into a safetensors file; returns its path.

    Raises SpecError for an impossible volume, UsageError, ModelError, DataError, FileError.
    """
    bounds, found = Range(volume, low, high), find(model)
    named = dataset or found.dataset
    if named is None:
        raise UsageError(f"model {model} names no data set", fix="Name one with --dataset.")
    if not found.gradient:
        raise ModelError(f"model {found.name} has no gradient, its card says", expected="a model that a gradient goes through")
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out}", expected="a name that ends in .safetensors")
    images = sources.load(named, root=data, n=n)
    with attacked(found.module, name=found.name, dataset=images, device=device, source=found.source, title=found.title) as ready:
        eps = _every(ready.module, images, bounds, device, progress)
        made = {"model": ready.digest, "dataset": images.digest, "volume": volume, "low": low, "high": high}
    atomic_write(out, save({"budgets": eps}, metadata={"made": canonical_json(made)}))
    return out


def _every(model: nn.Module, images: Dataset, bounds: Range, device: str, progress: Progress | None) -> Images:
    parts = []
    for x in images.x.split(WIDTH):
        parts.append(bounds.clamped(scores(model, x.to(device)).flatten(1).cpu()).view(x.shape))
        if progress is not None:
            progress.update("budgets", sum(map(len, parts)), len(images))
    return torch.cat(parts)


def scores(model: nn.Module, x: Images) -> Images:
    """−log of the smoothed size of the gradient of z_y − max other, y being the model's own answer, per value; never the true label."""
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model(x)
        own = logits.argmax(1, keepdim=True)
        lead = (logits.gather(1, own) - logits.scatter(1, own, -torch.inf).amax(1, keepdim=True)).sum()
        (slope,) = torch.autograd.grad(lead, x)
    size = functional.avg_pool2d(slope.abs().double(), WINDOW, stride=1, padding=WINDOW // 2, count_include_pad=False)
    top = size.flatten(1).amax(1)[:, None, None, None]
    if not bool((top > 0).all()) or not bool(top.isfinite().all()):
        raise ModelError("a gradient of the model is 0 everywhere, or not finite", expected="a model that a gradient goes through")
    return -(size + FLOOR * top).log()
