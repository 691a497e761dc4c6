"""The one training loop. A recipe says what to do; weights, card and log come out; a run that was stopped goes on after its last epoch."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from rbench.data import sources
from rbench.data.dataset import Dataset
from rbench.progress import Progress
from rbench.training.adversaries import Adversary, adversary
from rbench_core.errors import TrainingError
from rbench_core.files import atomic_write, sha256_bytes
from rbench_threats.catalogue import resolve
from rbench_zoo.factory import from_package
from rbench_zoo.recipe import Recipe, read_recipe


@dataclass(slots=True)
class Work:
    """What one training run holds between two epochs."""

    net: nn.Module
    optimiser: torch.optim.Optimizer
    epoch: int
    log: list[dict[str, Any]]


def train(
    recipe: str,
    *,
    dataset: str = "digits",
    seed: int = 0,
    device: str = "cpu",
    out: Path | str | None = None,
    epochs: int | None = None,
    data: Path | str | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train by a recipe; returns the card, beside which weights and log lie, so that RBENCH_REGISTRY=FOLDER makes the model known.

    Deterministic for (recipe, data set, seed, device, torch version, threads). An unfinished run in the same folder is continued. out: a
    folder, default the working directory. Raises UnknownName, UsageError, TrainingError, FileError.
    """
    chosen = read_recipe(recipe, dataset)
    total, folder = epochs or chosen.epochs, Path(out).expanduser() if out is not None else Path.cwd()
    name = name or f"{dataset}-{recipe}"
    images = sources.load(dataset, split="train", root=data)
    held = sources.load(dataset, root=data)
    foe = adversary(chosen)
    work = _begun(chosen, seed, device, total, folder / f"{name}.partial")
    foe.recall(work.log[-1] if work.log else foe.tally())
    started = time.perf_counter()
    while work.epoch < total:
        _epoch(work, chosen, images, foe, seed, total, device)
        work.log[-1]["seconds"] = round(time.perf_counter() - started, 2)
        _keep(work, folder / f"{name}.partial")
        if progress is not None:
            progress.update(f"train {name}", work.epoch, total)
    accuracy = _accuracy(work.net.eval(), held, device)
    return _published(work, chosen, name, seed, total, folder, accuracy)


def _begun(recipe: Recipe, seed: int, device: str, total: int, partial: Path) -> Work:
    """A net with weights drawn from the seed, or the unfinished run that lies there."""
    factory, _ = from_package(recipe.factory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = factory(**recipe.arguments).to(device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
    if not partial.exists():
        return Work(net, optimiser, 0, [])
    stored = torch.load(partial, map_location=device, weights_only=True)
    if stored["recipe"] != _fingerprint(recipe, seed, total):
        raise TrainingError(
            f"{partial} belongs to another recipe, seed or number of epochs", fix="Delete it, or choose another folder with --out."
        )
    net.load_state_dict(stored["net"])
    optimiser.load_state_dict(stored["optimiser"])
    return Work(net, optimiser, stored["epoch"], json.loads(stored["log"]))


def _fingerprint(recipe: Recipe, seed: int, total: int) -> str:
    return sha256_bytes(f"{recipe!r} {seed} {total} {torch.__version__}".encode())


def _keep(work: Work, partial: Path) -> None:
    held = io.BytesIO()
    torch.save(
        {
            "net": work.net.state_dict(),
            "optimiser": work.optimiser.state_dict(),
            "epoch": work.epoch,
            "log": json.dumps(work.log),
            "recipe": work.log[0]["recipe"],
        },
        held,
    )
    atomic_write(partial, held.getvalue())


def _epoch(work: Work, recipe: Recipe, data: Dataset, foe: Adversary, seed: int, total: int, device: str) -> None:
    """One pass over the training images in an order drawn from (seed, epoch). The attack runs in eval mode, the update in train mode."""
    losses, right, seen, began = 0.0, 0, 0, time.perf_counter()
    for step, rows in enumerate(_batches(len(data), recipe.batch, seed, work.epoch)):
        x, label = data.x[rows].to(device), data.y[rows].to(device)
        work.net.eval().requires_grad_(False)
        done = work.epoch + step / max(1, len(data) // recipe.batch)
        x, label = foe.batch(work.net, x, label, hash_of(seed, work.epoch, step), _radius(recipe, done))
        work.net.requires_grad_(True).train()
        _set_rate(work.optimiser, recipe, done / total)
        logits = work.net(x)
        loss = functional.cross_entropy(logits, label)
        work.optimiser.zero_grad()
        loss.backward()
        work.optimiser.step()
        hits = int((logits.argmax(1) == label).sum())
        foe.told(hits, len(label))
        losses, right, seen = losses + loss.item() * len(label), right + hits, seen + len(label)
    if not np.isfinite(losses):
        raise TrainingError(
            f"{recipe.name} on {recipe.dataset}: the loss is not finite in epoch {work.epoch + 1}", fix="Lower the recipe's rate."
        )
    work.epoch += 1
    row = {
        "epoch": work.epoch,
        "loss": round(losses / seen, 5),
        "accuracy": round(right / seen, 5),
        "epoch_seconds": round(time.perf_counter() - began, 3),
    }
    work.log.append({**row, **foe.tally(), "recipe": _fingerprint(recipe, seed, total)})


def hash_of(*numbers: int) -> int:
    """A seed from several numbers, (seed, epoch, step) say."""
    return int(sha256_bytes(repr(numbers).encode())[:15], 16)


def _batches(size: int, batch: int, seed: int, epoch: int) -> Iterator[Tensor]:
    order = np.random.default_rng([seed, epoch]).permutation(size)
    yield from torch.from_numpy(order).split(batch)


def _set_rate(optimiser: torch.optim.Optimizer, recipe: Recipe, done: float) -> None:
    """Linear to the peak at two fifths, linear to 0 at the end."""
    rate = recipe.rate * float(np.interp(done, [0.0, 0.4, 1.0], [0.02, 1.0, 0.0]))
    for group in optimiser.param_groups:
        group["lr"] = rate


def _radius(recipe: Recipe, done: float) -> Fraction:
    """The share of the radius after `done` epochs: linear to all of it over the warm-up, in twentieths, none of them 0."""
    return Fraction(max(1, math.floor(20 * done / recipe.warmup)), 20) if done < recipe.warmup else Fraction(1)


@torch.no_grad()
def _accuracy(net: nn.Module, data: Dataset, device: str) -> float:
    hits = [int((net(data.x[rows].to(device)).argmax(1).cpu() == data.y[rows]).sum()) for rows in torch.arange(len(data)).split(256)]
    return sum(hits) / len(data)


def _published(work: Work, recipe: Recipe, name: str, seed: int, total: int, folder: Path, accuracy: float) -> Path:
    """Weights, log and card, the card last: where it stands, all stands."""
    weights = save({key: value.detach().cpu().contiguous() for key, value in work.net.state_dict().items()})
    atomic_write(folder / f"{name}.safetensors", weights)
    lines = [json.dumps({key: value for key, value in row.items() if key != "recipe"}) for row in work.log]
    atomic_write(folder / f"{name}.log.jsonl", "\n".join([*lines, json.dumps({"clean_test_accuracy": accuracy})]) + "\n")
    atomic_write(folder / f"{name}.toml", _card(work, recipe, name, seed, total, sha256_bytes(weights)))
    (folder / f"{name}.partial").unlink(missing_ok=True)
    return folder / f"{name}.toml"


def _card(work: Work, recipe: Recipe, name: str, seed: int, total: int, sha256: str) -> str:
    parameters = sum(parameter.numel() for parameter in work.net.parameters())
    threat = f"threat = {json.dumps(str(resolve(recipe.threat, recipe.dataset)))}\n" if recipe.threat is not None else ""
    arguments = "".join(f"{key} = {json.dumps(value)}\n" for key, value in recipe.arguments.items())
    epochs = f" --epochs {total}" if total != recipe.epochs else ""
    return (
        f"schema = 1\nname = {json.dumps(name)}\n"
        f'title = {json.dumps(f"{recipe.net}: {recipe.title}", ensure_ascii=False)}\ndataset = "{recipe.dataset}"\n'
        f'parameters = {parameters}\n\n[architecture]\nfactory = "{recipe.factory}"\n{arguments}input = "0..1"\n\n[weights]\n'
        f'file = "{name}.safetensors"\nsha256 = "{sha256}"\n\n'
        f'[training]\nrecipe = "{recipe.name}"\nseed = {seed}\nepochs = {total}\n{threat}'
        f'command = "rbench train {recipe.name} --dataset {recipe.dataset} --seed {seed}{epochs}"\n'
        f"summary = {json.dumps(recipe.title)}\n\n"
        f"[source]\npaper = {json.dumps(recipe.source, ensure_ascii=False)}\n"
    )
