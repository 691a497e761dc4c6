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

from rbench.data import sources
from rbench.data.dataset import Dataset
from rbench.progress import Progress
from rbench.training.adversaries import Adversary, Moment, adversary
from rbench_core.code import from_package
from rbench_core.errors import CardError, TrainingError
from rbench_core.files import atomic_write, sha256_bytes
from rbench_threats.catalogue import resolve
from rbench_zoo import catalogue
from rbench_zoo.card import Card
from rbench_zoo.fetch import tensors_of
from rbench_zoo.recipe import Recipe, read_recipe


@dataclass(slots=True)
class Work:
    """What one training run holds between two epochs. parts: what is trained beside the net, each with a learning rate of its own."""

    net: nn.Module
    parts: dict[str, nn.Module]
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
    work = _begun(chosen, foe, seed, device, total, folder / f"{name}.partial")
    foe.recall(work.log[-1] if work.log else foe.tally())
    started = time.perf_counter()
    while work.epoch < total:
        _epoch(work, chosen, images, foe, seed, total, device)
        work.log[-1]["seconds"] = round(time.perf_counter() - started, 2)
        _keep(work, folder / f"{name}.partial")
        if progress is not None:
            progress.update(f"train {name}", work.epoch, total)
    accuracy = _accuracy(work.net.eval(), held, device)
    return _published(work, chosen, foe, name, seed, total, folder, accuracy)


def _begun(recipe: Recipe, foe: Adversary, seed: int, device: str, total: int, partial: Path) -> Work:
    """A net with weights drawn from the seed or lent by the recipe's `start`, or the unfinished run that lies there."""
    factory, _ = from_package(recipe.factory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = factory(**recipe.arguments).to(device)
        if recipe.start is not None:
            net.load_state_dict(tensors_of(_lender(recipe)))
        parts = foe.begin(net)
    rates = [recipe.rate, *(recipe.budgets["rate"] for _ in parts)]
    groups = [{"params": list(part.parameters()), "peak": rate} for part, rate in zip([net, *parts.values()], rates, strict=True)]
    groups[0]["weight_decay"] = recipe.weight_decay  # of the net alone
    optimiser = torch.optim.AdamW(groups, lr=recipe.rate, weight_decay=0.0)
    if not partial.exists():
        return Work(net, parts, optimiser, 0, [])
    stored = torch.load(partial, map_location=device, weights_only=True)
    if stored["recipe"] != _fingerprint(recipe, seed, total):
        raise TrainingError(
            f"{partial} belongs to another recipe, seed or number of epochs", fix="Delete it, or choose another folder with --out."
        )
    for part, state in zip([net, *parts.values()], stored["nets"], strict=True):
        part.load_state_dict(state)
    optimiser.load_state_dict(stored["optimiser"])
    return Work(net, parts, optimiser, stored["epoch"], json.loads(stored["log"]))


def _lender(recipe: Recipe) -> Card:
    """The card of the model whose weights the recipe starts from. Raises UnknownName, CardError."""
    name = f"{recipe.dataset}-{recipe.start}"
    card = catalogue.find(name)
    if not isinstance(card, Card) or card.architecture.arguments != recipe.arguments:
        raise CardError(f"recipe {recipe.name} starts from {name}, which is another net", expected="the recipe's own factory and arguments")
    return card


def _fingerprint(recipe: Recipe, seed: int, total: int) -> str:
    start = "" if recipe.start is None else _lender(recipe).weights.sha256
    return sha256_bytes(f"{recipe!r} {seed} {total} {torch.__version__} {start}".encode())


def _keep(work: Work, partial: Path) -> None:
    held = io.BytesIO()
    torch.save(
        {
            "nets": [part.state_dict() for part in (work.net, *work.parts.values())],
            "optimiser": work.optimiser.state_dict(),
            "epoch": work.epoch,
            "log": json.dumps(work.log),
            "recipe": work.log[0]["recipe"],
        },
        held,
    )
    atomic_write(partial, held.getvalue())


def _epoch(work: Work, recipe: Recipe, data: Dataset, foe: Adversary, seed: int, total: int, device: str) -> None:
    """One pass over the training images in an order drawn from (seed, epoch), and one update per batch."""
    losses, right, seen, began = 0.0, 0, 0, time.perf_counter()
    for step, rows in enumerate(_batches(len(data), recipe.batch, seed, work.epoch)):
        x, label = data.x[rows].to(device), data.y[rows].to(device)
        done = work.epoch + step / max(1, len(data) // recipe.batch)
        _set_rate(work.optimiser, recipe, done / total)
        loss, logits, label = foe.lesson(work.net, x, label, Moment(hash_of(seed, work.epoch, step), done, _radius(recipe, done)))
        work.optimiser.zero_grad()
        loss.backward()
        for part in (work.net, *work.parts.values()):
            if recipe.clip:
                nn.utils.clip_grad_norm_(part.parameters(), recipe.clip)
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
    """Linear to the peak at two fifths, linear to 0 at the end; or, with `falls`, the peak at once and a fifth of it after each."""
    triangle = float(np.interp(done, [0.0, 0.4, 1.0], [0.02, 1.0, 0.0]))
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * (0.2 ** sum(done >= fall for fall in recipe.falls) if recipe.falls else triangle)


def _radius(recipe: Recipe, done: float) -> Fraction:
    """The share of the radius after `done` epochs: linear to all of it over the warm-up, in twentieths, none of them 0."""
    return Fraction(max(1, math.floor(20 * done / recipe.warmup)), 20) if done < recipe.warmup else Fraction(1)


@torch.no_grad()
def _accuracy(net: nn.Module, data: Dataset, device: str) -> float:
    hits = [int((net(data.x[rows].to(device)).argmax(1).cpu() == data.y[rows]).sum()) for rows in torch.arange(len(data)).split(256)]
    return sum(hits) / len(data)


def _published(work: Work, recipe: Recipe, foe: Adversary, name: str, seed: int, total: int, folder: Path, accuracy: float) -> Path:
    """Weights, log and card, the card last: where it stands, all stands."""
    weights = save({key: value.detach().cpu().contiguous() for key, value in work.net.state_dict().items()})
    atomic_write(folder / f"{name}.safetensors", weights)
    lines = [json.dumps({key: value for key, value in row.items() if key != "recipe"}) for row in work.log]
    atomic_write(folder / f"{name}.log.jsonl", "\n".join([*lines, json.dumps({"clean_test_accuracy": accuracy})]) + "\n")
    told = foe.published(folder, name, sha256_bytes(weights), seed, total)
    atomic_write(folder / f"{name}.toml", _card(work, recipe, name, seed, total, sha256_bytes(weights), told))
    (folder / f"{name}.partial").unlink(missing_ok=True)
    return folder / f"{name}.toml"


def _card(work: Work, recipe: Recipe, name: str, seed: int, total: int, sha256: str, told: dict[str, str]) -> str:
    parameters = sum(parameter.numel() for parameter in work.net.parameters())
    threat = f"threat = {json.dumps(_threat(recipe))}\n" if recipe.threat is not None else ""
    beside = "".join(f"{key} = {json.dumps(value)}\n" for key, value in told.items())
    arguments = "".join(f"{key} = {json.dumps(value)}\n" for key, value in recipe.arguments.items())
    epochs = f" --epochs {total}" if total != recipe.epochs else ""
    return (
        f"schema = 1\nname = {json.dumps(name)}\n"
        f'title = {json.dumps(f"{recipe.net}: {recipe.title}", ensure_ascii=False)}\ndataset = "{recipe.dataset}"\n'
        f'parameters = {parameters}\n\n[architecture]\nfactory = "{recipe.factory}"\n{arguments}input = "0..1"\n\n[weights]\n'
        f'file = "{name}.safetensors"\nsha256 = "{sha256}"\n\n'
        f'[training]\nrecipe = "{recipe.name}"\nseed = {seed}\nepochs = {total}\n{threat}'
        f'command = "rbench train {recipe.name} --dataset {recipe.dataset} --seed {seed}{epochs}"\n'
        f"summary = {json.dumps(recipe.title)}\n{beside}\n"
        f"[source]\npaper = {json.dumps(recipe.source, ensure_ascii=False)}\n"
    )


def _threat(recipe: Recipe) -> str:
    """As a spec; a set that is trained here, and may not be known yet, as the recipe names it."""
    return str(recipe.threat) if recipe.budgets else str(resolve(str(recipe.threat), recipe.dataset))
