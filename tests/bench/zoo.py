"""The table of docs/zoo.md: every published card measured again, beside what the index of its weights states.

RBENCH_DATA=... RBENCH_WEIGHTS=... PYTHONPATH=tests python tests/bench/zoo.py [NAME ...]

Clean: the whole test set; the two ABS nets, which take 0.05 s per image, the first 400 images. PGD: share of the first 500 test images
that are right after 40 linf steps of 2.5 · eps / 40 from one uniform start (seed 0), cross-entropy, clipped to [0, 1]. That checks
architecture and scaling and is no robustness claim. Ends with exit code 1 where a figure is further from the stated one than allowed.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rbench
from rbench.data import sources
from rbench.data.dataset import Dataset
from rbench_zoo import catalogue
from rbench_zoo.card import Card

STEPS, PGD_IMAGES, ABS_IMAGES = 40, 500, 400
ABS_STATED = {"mnist-abs": 0.99, "mnist-abs-binary": 0.9875}  # of those 400
CLEAN, ROBUST, GENERATIVE = 0.0002, 0.015, 0.01  # how far a figure may lie from the stated one
HEAD = ("model", "parameters", "n", "clean %", "stated", "right of the first 500", "linf PGD-40 %, first 500", "stated")


def published() -> dict[str, Card]:
    """The cards whose weights are not in the package."""
    return {name: card for name, card in catalogue.cards().items() if card.origin == "built in" and card.training.recipe is None}


def index() -> dict[str, dict[str, Any]]:
    """What the weights folder states of each file, by the card's name."""
    rows = tomllib.loads((Path(os.environ["RBENCH_WEIGHTS"]) / "zoo.toml").read_text())["model"]
    return {row["id"].replace("_", "-"): row for row in rows}


def right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images are right."""
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in x.split(PGD_IMAGES)]) == y


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> float:
    """Share that is right after the attack; the random generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        moved = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(STEPS):
        moved.requires_grad_()
        loss = nn.functional.cross_entropy(model(moved), y, reduction="sum")
        step = 2.5 * eps / STEPS * torch.autograd.grad(loss, moved)[0].sign()
        moved = torch.minimum(torch.maximum(moved.detach() + step, x - eps), x + eps).clamp(0, 1)
    return right(model, moved, y).float().mean().item()


def row(name: str, card: Card, stated: dict[str, Any], data: Dataset) -> tuple[list[str], list[str]]:
    """The cells of one model, and what is wrong with it."""
    model = rbench.load_model(name).requires_grad_(False)
    parameters = f"{sum(parameter.numel() for parameter in model.parameters()):,}"
    if name in ABS_STATED:
        clean, wanted = right(model, data.x[:ABS_IMAGES], data.y[:ABS_IMAGES]).float().mean().item(), ABS_STATED[name]
        wrong = [f"{name}: clean {clean:.4f}, stated {wanted}"] if abs(clean - wanted) > GENERATIVE else []
        return [name, parameters, f"{ABS_IMAGES}", f"{clean:.2%}", f"{wanted:.2%}", "", "no gradient", ""], wrong
    held = right(model, data.x, data.y)
    clean, wanted = held.double().mean().item(), stated["clean"]
    wrong = [f"{name}: clean {clean:.4f}, stated {wanted}"] if abs(clean - wanted) > CLEAN + 1e-9 else []
    ours = {each["eps"]: pgd(model, data.x[:PGD_IMAGES], data.y[:PGD_IMAGES], float(Fraction(each["eps"]))) for each in stated["pgd"]}
    theirs = {each["eps"]: each["accuracy"] for each in stated["pgd"]}
    wrong += [f"{name}: PGD {eps}: {ours[eps]}, stated {theirs[eps]}" for eps in ours if abs(ours[eps] - theirs[eps]) > ROBUST + 1e-9]
    first = str(int(held[:PGD_IMAGES].sum()))
    return [name, parameters, f"{len(data):,}", f"{clean:.2%}", f"{wanted:.2%}", first, _cell(ours), _cell(theirs)], wrong


def _cell(figures: dict[str, float]) -> str:
    return "; ".join(f"{eps}: {value:.1%}" for eps, value in figures.items()).replace("%", "")


def table(names: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Lines of a Markdown table with the complaints about each."""
    yield f"| {' | '.join(HEAD)} |", []
    yield f"|{'---|' * len(HEAD)}", []
    cards, stated = published(), index()
    for name in names or cards:
        card = cards[name]
        cells, wrong = row(name, card, stated.get(name, {}), sources.load(card.dataset))
        yield f"| {' | '.join([f'`{name}`', *(cell.replace('%', '') for cell in cells[1:])])} |", wrong


def main() -> int:
    complaints = []
    for line, wrong in table(sys.argv[1:]):
        print(line, flush=True)
        complaints += wrong
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
