"""Learning a perturbation set from pairs: a conditional VAE, its radius, its quality, and the card that carries them.

Loss per pair: reconstruction summed over the pixels + β · KL(q ‖ p), summed over the batch (Wong & Kolter 2021; docs/learned-sets.md).
"""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from rbench.data.pairs import Pairs, Part, pairs
from rbench.progress import Progress
from rbench.training.loop import hash_of
from rbench.training.set_card import published
from rbench_core.errors import TrainingError
from rbench_core.files import atomic_write, sha256_bytes
from rbench_threats.networks import CVAE, build, divergence
from rbench_threats.set_config import Points, SetConfig, read_config

Images = Float[Tensor, "rows c h w"]
PerRow = Float[Tensor, " rows"]
BATCH = 256  # of validation


@dataclass(slots=True)
class Learning:
    """What one run holds between two epochs; best: the weights of the smallest validation loss so far."""

    net: CVAE
    optimiser: torch.optim.Optimizer
    epoch: int
    log: list[dict[str, Any]]
    best: dict[str, Tensor]


def learn_set(
    config: str,
    *,
    seed: int = 0,
    device: str = "cpu",
    out: Path | str | None = None,
    epochs: int | None = None,
    data: Path | str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Learn the set of a config; returns its card, beside which weights and log lie: `learned(PATH.toml, radius=...)` is the set.

    Deterministic for (config, pairs, seed, device, torch version, threads). An unfinished run in the same folder is continued; with other
    `epochs` the schedules are stretched. Raises UnknownName, CardError, DataError, TrainingError, FileError.
    """
    chosen = read_config(config)
    total, folder = epochs or chosen.epochs, Path(out).expanduser() if out is not None else Path.cwd()
    given = pairs(chosen, seed=seed, data=data)
    partial = folder / f"{chosen.name}.partial"
    work = _begun(chosen, given, seed, device, total, partial)
    while work.epoch < total:
        began = time.perf_counter()
        row = _epoch(work, chosen, given, seed, total, device)
        row["seconds"] = round(time.perf_counter() - began, 2)
        work.log.append(row)
        _keep(work, partial, fingerprint(chosen, seed, total))
        if progress is not None:
            progress.update(f"learn {chosen.name}", work.epoch, total)
    work.net.load_state_dict(work.best)
    card = published(work.net, chosen, given, work.log, seed=seed, total=total, folder=folder, device=device, progress=progress)
    partial.unlink(missing_ok=True)
    return card


def loss(net: CVAE, x: Images, partner: Images, noise: Float[Tensor, "rows d"], likelihood: str) -> tuple[PerRow, PerRow]:
    """(reconstruction summed over the pixels, KL(q ‖ p) in nats) of each pair, at z = μ_q + σ_q · noise."""
    (mean_p, log_p), (mean_q, log_q) = net.prior(x), net.recognition(x, partner)
    logits = net.generator(x, mean_q + (log_q / 2).exp() * noise)
    if likelihood == "bernoulli":
        pixels = functional.binary_cross_entropy_with_logits(logits, partner, reduction="none")
    else:
        pixels = (torch.sigmoid(logits) - partner) ** 2
    return pixels.flatten(1).sum(1), divergence(mean_q, log_q, mean_p, log_p)


def scheduled(points: Points, epoch: float, stretch: float = 1.0) -> float:
    """The value at an epoch, linear between points; stretch: of the run's epochs over the config's."""
    return float(np.interp(epoch, [stretch * at for at, _ in points], [value for _, value in points]))


def fingerprint(config: SetConfig, seed: int, total: int) -> str:
    """What an unfinished run belongs to."""
    return sha256_bytes(f"{config.record()} {seed} {total} {torch.__version__}".encode())


def _begun(config: SetConfig, given: Pairs, seed: int, device: str, total: int, partial: Path) -> Learning:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(given.shape, config.network, config.path).to(device)
    optimiser = torch.optim.Adam(net.parameters(), weight_decay=config.weight_decay)
    if not partial.exists():
        return Learning(net, optimiser, 0, [], {})
    stored = torch.load(partial, map_location=device, weights_only=True)
    if stored["of"] != fingerprint(config, seed, total):
        raise TrainingError(
            f"{partial} belongs to another config, seed or number of epochs", fix="Delete it, or choose another folder with --out."
        )
    net.load_state_dict(stored["net"])
    optimiser.load_state_dict(stored["optimiser"])
    return Learning(net, optimiser, stored["epoch"], json.loads(stored["log"]), stored["best"])


def _keep(work: Learning, partial: Path, of: str) -> None:
    held = io.BytesIO()
    parts = {"net": work.net.state_dict(), "optimiser": work.optimiser.state_dict(), "best": work.best}
    torch.save({**parts, "epoch": work.epoch, "log": json.dumps(work.log), "of": of}, held)
    atomic_write(partial, held.getvalue())


def _epoch(work: Learning, config: SetConfig, given: Pairs, seed: int, total: int, device: str) -> dict[str, Any]:
    """One pass over the training images, each with a fresh partner; then the validation loss, which chooses the weights."""
    stretch, size = total / config.epochs, len(given.train.x)
    beta = scheduled(config.beta, float(work.epoch), stretch)
    batches = torch.from_numpy(np.random.default_rng([seed, work.epoch]).permutation(size)).split(config.batch)
    sums = torch.zeros(2)
    work.net.train()
    for step, rows in enumerate(batches):
        rate = scheduled(config.lr, work.epoch + (step + 1) / len(batches), stretch)
        x, partner = given.train.x[rows].to(device), given.train.partners(rows, work.epoch).to(device)
        noise = _normal(len(rows), work.net.latent, hash_of(seed, work.epoch, step)).to(device)
        recon, kl = loss(work.net, x, partner, noise, config.likelihood)
        value = (recon + beta * kl).sum()
        if not bool(value.isfinite()):
            where = f"epoch {work.epoch + 1}, batch {step + 1}"
            raise TrainingError(
                f"set {config.name}: the loss is {value.item()} in {where}",
                fix=f"The last finished epoch is kept in {config.name}.partial; lower lr or raise beta.",
            )
        for group in work.optimiser.param_groups:
            group["lr"] = rate
        work.optimiser.zero_grad()
        value.backward()
        work.optimiser.step()
        sums += torch.stack([recon.detach().sum(), kl.detach().sum()]).cpu()
    work.epoch += 1
    fitted = [round(float(total_) / size, 5) for total_ in sums]
    held = [round(value, 5) for value in validation(work.net, given.validation, config.likelihood, seed, device)]
    bound = round(held[0] + scheduled(config.beta, float(config.epochs)) * held[1], 5)
    if not work.best or bound <= min(row["validation"] for row in work.log):
        work.best = {key: value.detach().clone() for key, value in work.net.state_dict().items()}
    return {
        "epoch": work.epoch, "lr": rate, "beta": beta, "recon": fitted[0], "kl": fitted[1], "validation": bound,
        "validation_recon": held[0], "validation_kl": held[1],
    }  # fmt: skip


@torch.no_grad()
def validation(net: CVAE, part: Part, likelihood: str, seed: int, device: str) -> tuple[float, float]:
    """Mean reconstruction and KL over the validation pairs, always the same pairs and the same noise."""
    net.eval()
    sums = torch.zeros(2)
    for rows in torch.arange(len(part.x)).split(BATCH):
        x, partner = part.x[rows].to(device), part.partners(rows, 0).to(device)
        noise = _normal(len(rows), net.latent, hash_of(seed, -1, int(rows[0]))).to(device)
        sums += torch.stack([value.sum() for value in loss(net, x, partner, noise, likelihood)]).cpu()
    return float(sums[0]) / len(part.x), float(sums[1]) / len(part.x)


def _normal(rows: int, latent: int, seed: int) -> Float[Tensor, "rows d"]:
    return torch.randn(rows, latent, generator=torch.Generator().manual_seed(seed))
