"""Robust accuracy over radii for one undefended and one adversarially trained net: what the radii of docs/radii.md were chosen from.

python tests/bench/radii.py digits 500 digits-standard digits-linf-at
python tests/bench/radii.py mnist 200 mnist-lenet5-std mnist-fast-pgd
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import nn

from rbench.attacks.catalogue import resolve_plan
from rbench.attacks.search import Examples
from rbench.attacks.stage import part_of, run_stage
from rbench.data import sources
from rbench_threats.catalogue import build
from rbench_threats.spec import parse

GRIDS = {
    "linf": ["0.05", "0.1", "0.15", "0.2", "0.25", "0.3"],
    "l2": ["0.3", "0.5", "0.75", "1", "1.25", "1.5"],
    "l1": ["1", "2", "3", "4", "5", "6"],
    "l0": ["1", "2", "3", "4", "6", "8"],
}


def robust(model: nn.Module, name: str, spec: str, n: int) -> float:
    """Robust accuracy of the first n test images under the plan `apgd`, without a database."""
    data = sources.load(name, n=n)
    with torch.no_grad():
        clean = model(data.x)
    right = (clean.argmax(1) == data.y).nonzero().squeeze(1)
    examples = Examples(data.x[right], data.y[right], right, clean[right])
    space = build(parse(spec))
    for stage in resolve_plan("apgd").stages_for(space):
        outcome = run_stage(model, space, stage, examples, seed=0, width=256, closest={})
        left = [place for place in range(len(examples)) if place not in outcome.witnesses]
        if not left:
            return 0.0
        examples = part_of(examples, left)
    return len(examples) / n


def table(models: dict[str, nn.Module], name: str, n: int, grids: dict[str, list[str]]) -> Iterator[str]:
    """Rows of a Markdown table."""
    for family, radii in grids.items():
        argument = "pixels" if family == "l0" else "eps"
        for radius in radii:
            figures = [f"{100 * robust(model, name, f'{family}({argument}={radius})', n):.1f}" for model in models.values()]
            yield f"| {family} | {radius} | {' | '.join(figures)} |"


def main() -> None:
    name, n, *chosen = sys.argv[1:]
    from rbench.api import load_model

    models = {model: load_model(model).requires_grad_(False) for model in chosen}
    grids = GRIDS if name == "digits" else {"l0": ["4", "8", "12", "16", "24"]}
    print(f"| set | radius | {' | '.join(models)} |\n|---|---|{'---|' * len(models)}")
    for row in table(models, name, int(n), grids):
        print(row, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
