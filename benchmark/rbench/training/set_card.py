"""What learning a set leaves behind: weights in half precision, the log, and the card with the radius and the quality measures."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import tomli_w
from safetensors.torch import save

from rbench.data.pairs import Pairs
from rbench.evidence import set_quality
from rbench.progress import Progress
from rbench_core.files import atomic_write, sha256_bytes
from rbench_threats import partners
from rbench_threats.networks import CVAE, build
from rbench_threats.set_config import SetConfig

MEASURED = 1000  # pairs of a side, at most
MEASURES = ("identity", "prior_mean", "reconstruction", "encoder", "pgd", "expected", "over")


def published(
    net: CVAE,
    config: SetConfig,
    given: Pairs,
    log: list[dict[str, Any]],
    *,
    seed: int,
    total: int,
    folder: Path,
    device: str,
    progress: Progress | None = None,
) -> Path:
    """Weights, log and card, the card last: where it stands, all stands. Measured is the net as it is written, in half precision."""
    tensors = {key: value.detach().half().cpu().contiguous() for key, value in net.state_dict().items()}
    weights, name = save(tensors), config.name
    written = build(given.shape, config.network, config.path).to(device)
    written.load_state_dict({key: value.float() for key, value in tensors.items()})
    written.eval().requires_grad_(False)
    radius, quality = measured(written, config, given, seed, device, progress)
    atomic_write(folder / f"{name}.safetensors", weights)
    atomic_write(folder / f"{name}.log.jsonl", "".join(json.dumps(row) + "\n" for row in log))
    table = {
        "schema": 1, "kind": "learned", "name": name, "title": config.title, "summary": config.summary, "source": config.source,
        "dataset": config.dataset, "shape": list(given.shape), "network": config.network,
        "weights": {"file": f"{name}.safetensors", "sha256": sha256_bytes(weights)}, "radius": radius, "quality": quality,
        "training": _training(config, given, log, seed, total),
    }  # fmt: skip
    atomic_write(folder / f"{name}.toml", tomli_w.dumps(table))
    return folder / f"{name}.toml"


def measured(
    net: CVAE, config: SetConfig, given: Pairs, seed: int, device: str, progress: Progress | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tables [radius], from validation pairs, and [quality], on test pairs at that radius; δ comes from validation pairs too."""

    def told(done: int) -> None:
        if progress is not None:
            progress.update(f"measure {config.name}", done, 4)

    radius = set_quality.radius(net, given.validation, config.passes, device)
    eps = float(radius["validated"])
    told(1)
    sides = {}
    for place, (side, part) in enumerate((("validation", given.validation), ("test", given.test))):
        sides[side] = set_quality.errors(net, part, eps, turn=0, seed=seed, device=device, limit=MEASURED)
        told(2 + place)
    test = sides["test"]
    quality: dict[str, Any] = {
        "pairs": len(test["norm"]),
        "radius": eps,
        "largest_code": set_quality.short(test["code"].max()),
        "largest_t1": set_quality.short(test["t1"].max()),
        "inside": set_quality.share(test["norm"] <= eps),
        "coverage": set_quality.coverage(net, sides["validation"], test),
    }
    delta = quality["coverage"]["delta_mse"]
    quality["coverage"]["by_radius"] = [
        set_quality.covered(net, given.test, float(smaller), delta, device=device, limit=MEASURED)
        for smaller in range(1, radius["validated"])
    ]
    for metric in set_quality.METRICS:
        quality[metric] = {measure: set_quality.summary(test[f"{measure}_{metric}"]) for measure in MEASURES}
    kind = None if config.pairs["kind"] == "folder" else partners.build(config.pairs, config.path)
    if isinstance(kind, partners.Warp):
        beyond = set_quality.beyond_the_truth(net, given.test, kind, eps, seed=seed, device=device)
        quality["beyond_the_truth"] = {"pairs": len(beyond["floor"]), **{key: set_quality.summary(value) for key, value in beyond.items()}}
    told(4)
    return radius, quality


def _training(config: SetConfig, given: Pairs, log: list[dict[str, Any]], seed: int, total: int) -> dict[str, Any]:
    asked = str(config.path) if config.path.name != f"{config.name}.toml" else config.name
    epochs = f" --epochs {total}" if total != config.epochs else ""
    chosen = min(log, key=lambda row: (row["validation"], -row["epoch"]))
    return {
        "config": config.name, "seed": seed, "epochs": total, "batch": config.batch, "likelihood": config.likelihood,
        "beta": max(value for _, value in config.beta), "chosen_epoch": chosen["epoch"], "read": given.said, "pairs": config.pairs,
        "seconds": round(sum(row["seconds"] for row in log)),
        "command": f"rbench learn-set {shlex.quote(asked)} --seed {seed}{epochs}",
    }  # fmt: skip
