"""Contextual budgets beside their controls: the tables of docs/contextual.md.

python tests/bench/contextual.py digits 500
python tests/bench/contextual.py mnist 1000

Clean accuracy, the share certified in float64 (IBP, then CROWN-IBP), and the share that APGD leaves (apgd(steps=50), cross-entropy): one
row per net under its own budgets, then every net under every other's, then the uniform net at the radius of equal clipped volume.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rbench.attacks.build import build_attack, spec_of
from rbench.attacks.lockstep import lockstep
from rbench.attacks.noise import Row, row_keys
from rbench.certificates import Certifier
from rbench.data import sources
from rbench.data.dataset import Dataset
from rbench.models import find
from rbench.saliency import scores
from rbench_results.figures import wilson
from rbench_threats import volume
from rbench_threats.catalogue import resolve
from rbench_threats.normaliser import Range
from rbench_threats.spec import parse

NETS = ("ibp", "ibp-longer", "contextual-map", "contextual")
RANGES = {"digits": Range(0.15, 0.075, 0.3), "mnist": Range(0.3, 0.15, 0.6)}
INK = 0.2  # a brighter value is ink


def net(name: str) -> nn.Module:
    return find(name).module.eval().requires_grad_(False)


def rows(count: int) -> Row:
    index, none = np.arange(count), np.full(count, -1)
    key = torch.from_numpy(row_keys(0, "bench", index, none, 0 * index))
    zero = torch.zeros(count, dtype=torch.long)
    return Row(torch.arange(count), zero, zero - 1, zero, key, zero)


def certified(model: nn.Module, spec: str, data: Dataset) -> Tensor:
    (space,) = resolve(spec).members
    lower, upper = space.box(space.context(data.x, rows(len(data))))  # type: ignore[attr-defined]  # the capability
    proofs = Certifier(model, data.shape, len(data.classes)).certify(lower, upper, data.y)
    return torch.tensor([proof.certified for proof in proofs])


def attacked(model: nn.Module, spec: str, data: Dataset) -> Tensor:
    """Which labels still lead after APGD; of the images that were right."""
    (space,), attack = resolve(spec).members, build_attack(parse("apgd(steps=50)"))
    with torch.no_grad():
        clean = model(data.x).argmax(1) == data.y
    found = [
        lockstep(model, space, attack, x, y, spec=spec_of(attack), seed=0)
        for x, y in zip(data.x.split(250), data.y.split(250), strict=True)
    ]
    with torch.no_grad():
        return clean & (model(torch.cat(found)).argmax(1) == data.y)


def sizes(spec: str, data: Dataset) -> tuple[float, float]:
    """Nominal and clipped geometric-mean half-width."""
    (space,) = resolve(spec).members
    eps = space.context(data.x, rows(len(data))).reach.expand(len(data), data.x[0].numel()).reshape(data.x.shape)
    return float(volume.nominal(eps).mean or 0), float(volume.clipped(eps, data.x).mean or 0)


def of_equal_clipped_volume(wanted: float, data: Dataset) -> float:
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if float(volume.clipped(torch.full_like(data.x, middle), data.x).mean or 0) < wanted else (low, middle)
    return round(low, 4)


def stored(eps: Tensor, folder: Path, name: str) -> str:
    np.save(folder / f"{name}.npy", eps.numpy())
    return f'contextual("{folder / name}.npy")'


def ink(data: Dataset, bounds: Range) -> Tensor:
    """Small budgets on ink, widened by two pixels; large ones elsewhere."""
    wide = functional.max_pool2d((data.x > INK).float(), 5, stride=1, padding=2)
    return bounds.clamped(-4 * wide.flatten(1)).view(data.x.shape)


def saliency(model: nn.Module, data: Dataset, bounds: Range) -> Tensor:
    return torch.cat([bounds.clamped(scores(model, x).flatten(1)).view(x.shape) for x in data.x.split(64)])


def percent(mask: Tensor) -> str:
    count, n = int(mask.sum()), len(mask)
    low, high = wilson(count, n)
    return f"{100 * count / n:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def table(dataset: str, n: int) -> Iterator[str]:
    data, bounds = sources.load(dataset, n=n), RANGES[dataset]
    linf = str(resolve("linf", dataset))
    own = {
        "ibp": linf, "ibp-longer": linf,
        "contextual-map": f"contextual({dataset}-budgets-map)", "contextual": f"contextual({dataset}-budgets)",
    }  # fmt: skip
    nets = {name: net(f"{dataset}-{name}") for name in NETS}
    yield "| net | under | clean | certified | left by APGD | volume | clipped volume |\n|---|---|---|---|---|---|---|"
    for name, model in nets.items():
        with torch.no_grad():
            clean = model(data.x).argmax(1) == data.y
        shares = " | ".join(map(percent, (clean, certified(model, own[name], data), attacked(model, own[name], data))))
        nominal, clipped = sizes(own[name], data)
        yield f"| `{dataset}-{name}` | `{own[name]}` | {shares} | {nominal:.4g} | {clipped:.4g} |"
    equal = f"linf(eps={of_equal_clipped_volume(sizes(own['contextual'], data)[1], data)})"
    yield "\n| certified % under | " + " | ".join(f"`{dataset}-{name}`" for name in NETS) + " |\n|---|" + "---|" * len(NETS)
    with tempfile.TemporaryDirectory() as folder:
        others = {
            linf: linf, f"{equal}, the clipped volume of `{own['contextual']}`": equal,
            own["contextual-map"]: own["contextual-map"], own["contextual"]: own["contextual"],
            "saliency of the uniform net": stored(saliency(nets["ibp-longer"], data, bounds), Path(folder), "saliency"),
            "ink mask": stored(ink(data, bounds), Path(folder), "ink"),
        }  # fmt: skip
        for told, spec in others.items():
            yield (
                f"| {told} | "
                + " | ".join(f"{100 * float(certified(model, spec, data).float().mean()):.1f}" for model in nets.values())
                + " |"
            )


def main() -> int:
    for line in table(sys.argv[1], int(sys.argv[2])):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
