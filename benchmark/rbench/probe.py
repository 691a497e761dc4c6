"""Does a model run on images of this shape, and what must a run be warned of? One fixed batch of 16 noise images asks, without data.

An answer that cannot be right (another shape, another number of classes) is a ModelError; one that is merely suspicious is a warning,
which stands on the board.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rbench.data.dataset import Dataset
from rbench_core.errors import ModelError

PROBE_ROWS = 16
RANDOM = 1e-6  # how far two passes over one batch may differ, in units of the largest logit where that exceeds 1
NEIGHBOURS = 1e-4  # how far a row may move with its neighbours: other places in a batch cost about 1e-7 in float32
SIMPLEX = 1e-3  # how far a row of probabilities may sum from 1
RANGE_ROWS = 64  # images per pass when other scalings are tried
GAIN = 0.05  # the least gain of another scaling that is told
FEWEST = 8  # the same in images: fewer are chance

Images = Float[Tensor, "rows c h w"]
Logits = Float[Tensor, "rows classes"]
Labels = Int[Tensor, "rows"]
Warnings = list[dict[str, str]]


def probe_batch(shape: tuple[int, int, int], first: int = 0) -> Images:
    """16 images of noise in [0, 1), the same everywhere: value i is the top 24 bits of SplitMix64 at counter `first` · 2³² + i."""
    count = PROBE_ROWS * shape[0] * shape[1] * shape[2]
    z = (np.arange(1, count + 1, dtype=np.uint64) + (np.uint64(first) << np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    top = ((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.float32)
    return torch.from_numpy(top / np.float32(1 << 24)).view(PROBE_ROWS, *shape)


def suspicions(model: nn.Module, batch: Images, logits: Logits) -> Warnings:
    """What a run must be warned of, from a few passes over the probe batch: NaN, probabilities, randomness, rows that see each other."""
    found = []
    if not logits.isfinite().all():
        found.append(warning("nan", "logits that are not finite: such rows become errors, never survivors"))
    elif (logits >= 0).all() and ((logits.sum(1) - 1).abs() < SIMPLEX).all():
        text = "the model returns probabilities, not logits: their small gradients make attacks look weaker than they are"
        found.append(warning("probabilities", text))
    with torch.no_grad():
        again = model(batch.clone())
        if _gap(again, logits) > RANDOM:
            return [*found, warning("random", "the model is random: two passes over the same images differ, so verdicts may not repeat")]
        half = PROBE_ROWS // 2
        others = probe_batch(_shape_of(batch), first=1).to(batch.device)
        mixed = model(torch.cat([others[:half], batch[:half]]))
    if _gap(mixed[half:], logits[:half]) > NEIGHBOURS:
        text = "an image's logits depend on the other images of its batch, so verdicts depend on the width"
        found.append(warning("batch-dependent", text))
    return found + (_gradient_warning(model, batch) if logits.isfinite().all() else [])


def range_warning(clean_accuracy: float, classes: int) -> dict[str, str] | None:
    """A warning when the clean accuracy is near chance: most often the model expects another input range or another class order.

    Near means less than a tenth of the way from 1 / classes to 1.
    """
    chance = 1 / classes
    if clean_accuracy >= chance + 0.1 * (1 - chance):
        return None
    told = f"clean accuracy {clean_accuracy:.1%} is near chance: does the model expect images in another range than [0, 1]?"
    return warning("input-range", f"{told} Normalisation is a layer of the model.")


def input_warning(model: nn.Module, x: Images, y: Labels, clean_accuracy: float, classes: int) -> dict[str, str] | None:
    """A warning when the model would be far better on images scaled otherwise; it names the scaling and both accuracies.

    `x` and `y`, on the model's device, are the first few hundred images of the run with their labels; `clean_accuracy` is the run's.
    Far better: by `GAIN` with at most half the errors, or by three times that. No net of the zoo that is right as it is gains more than
    half a point. A model that cannot gain so much costs nothing; one near chance that no scaling helps gets `range_warning`.
    """
    if 1 - clean_accuracy <= GAIN:
        return None
    given = _share_right(model, x, y, torch.clone)
    found = {words: _share_right(model, x, y, scale) for words, scale in scalings(x).items()}
    words = max(found, key=lambda key: found[key])
    gain, halved = found[words] - given, 1 - found[words] <= (1 - given) / 2
    if gain < max(GAIN, FEWEST / len(x)) or not (halved or gain >= 3 * GAIN):
        return range_warning(clean_accuracy, classes)
    told = f"clean accuracy on the first {len(x)} images is {given:.1%}, but {found[words]:.1%} when they are scaled to {words}"
    return warning("input-range", f"{told}: the model seems to expect that, and gets [0, 1]. Make the scaling its first layer.")


def scalings(x: Images) -> dict[str, Callable[[Images], Images]]:
    """What models are trained on beside [0, 1], by its name in words."""
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True).clamp(min=1e-3)
    told = "; ".join(", ".join(f"{value:.2f}" for value in part.flatten().tolist()) for part in (mean, std))
    return {
        "0 to 255 (x * 255)": lambda part: part * 255,
        "-1 to 1 (2 * x - 1)": lambda part: 2 * part - 1,
        f"mean 0 and deviation 1 ((x - mean) / std per channel, about {told})": lambda part: (part - mean) / std,
    }


def _share_right(model: nn.Module, x: Images, y: Labels, scale: Callable[[Images], Images]) -> float:
    """Accuracy on the scaled images; a model that fails on some is right on none of those."""
    right = 0
    with torch.no_grad(), contextlib.suppress(Exception):
        for part, labels in zip(x.split(RANGE_ROWS), y.split(RANGE_ROWS), strict=True):
            right += int((model(scale(part)).argmax(1) == labels).sum())
    return right / len(x)


def answer(model: nn.Module, batch: Images, name: str, dataset: Dataset, built_for: tuple[int, ...] | None) -> Logits:
    """The model's logits on the probe batch. Raises ModelError when it fails on this shape or answers anything but (rows, classes)."""
    shape = "×".join(map(str, dataset.shape))
    try:
        with torch.no_grad():
            logits = model(batch)
    except (Exception, SystemExit) as error:
        hint = "" if built_for in (None, dataset.shape) else f" (built for {'×'.join(map(str, built_for or ()))})"
        words = f"{type(error).__name__}: {str(error)[:300]}"
        raise ModelError(f"model {name}{hint} fails on images of {shape}, those of {dataset.name}: {words}") from error
    if not isinstance(logits, Tensor):
        raise ModelError(f"model {name} returns {type(logits).__name__}", expected="a tensor of logits (rows, classes)")
    if logits.ndim != 2 or len(logits) != len(batch) or not logits.is_floating_point():
        given = f"{word(logits.dtype)} {tuple(logits.shape)} for {len(batch)} images of {shape}"
        raise ModelError(f"model {name} returns {given}", expected="floats (rows, classes)")
    return logits


def check_classes(logits: Logits, name: str, dataset: Dataset) -> None:
    classes, known = logits.shape[1], len(dataset.classes)
    if classes < known or (classes > known and not dataset.open_classes) or classes < 2:
        wanted = f"at least {max(known, 2)}" if dataset.open_classes else str(known)
        raise ModelError(f"model {name} has {classes} classes", expected=f"{wanted}, as {dataset.name} has")


def _gradient_warning(model: nn.Module, batch: Images) -> Warnings:
    """Gradient attacks find nothing where no gradient comes back: a robust figure would then say nothing."""
    x = batch.clone().requires_grad_()
    try:
        with torch.enable_grad():
            grad = torch.autograd.grad(model(x).float().logsumexp(1).sum(), x)[0]
    except RuntimeError as error:
        words = " ".join(str(error).split())[:120]
        return [warning("no-gradient", f"no gradient reaches the input, so gradient attacks cannot work: {words}")]
    if grad.any():
        return []
    return [warning("zero-gradient", "the gradient is exactly zero on every probe image: attacks that follow it find nothing")]


def _shape_of(batch: Images) -> tuple[int, int, int]:
    channels, height, width = batch.shape[1:]
    return channels, height, width


def _gap(a: Tensor, b: Tensor) -> float:
    """Largest difference, in units of the largest logit where that exceeds 1; NaN equals NaN, and nothing else."""
    same = (a == b) | (a.isnan() & b.isnan())
    scale = b[b.isfinite()].abs().max().clamp(min=1) if b.isfinite().any() else torch.ones(())
    gap = torch.where(same, 0, (a - b).abs()).nan_to_num(nan=torch.inf).max() / scale.to(a.device)
    return float(gap)


def warning(code: str, text: str) -> dict[str, str]:
    return {"code": code, "text": text}


def word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
