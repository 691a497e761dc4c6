"""The measurements of docs/invariance.md.

RBENCH_DATA=... python tests/bench/invariance.py search      the attack from raw MNIST against the released neighbours and set: 2 minutes
RBENCH_DATA=... RBENCH_WEIGHTS=... python tests/bench/invariance.py table [NAME ...]      every MNIST net of the zoo on the four sets

`table` runs `rbench run --threat invariance-...` into a folder of its own. The two ABS nets take some 3 minutes each; the others a second.
Ends with exit code 1 where something differs from what was released or stated.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

SETS = ("l0", "linf-0.3", "linf-0.4", "manual")
STATED = {  # changed candidates followed, in the order of SETS, of 55, 21, 37, 44: the reference's section 5
    "mnist-fast-pgd": (33, 0, 8, 11),
    "mnist-fast-fgsm": (28, 0, 12, 12),
    "mnist-kw-0.1": (23, 1, 13, 15),
    "mnist-kw-small-0.3": (15, 2, 5, 1),
    "mnist-cnn-a-adv": (21, 0, 4, 1),
    "mnist-madry-tiny": (27, 1, 8, 6),
    "mnist-mmr-universal": (22, 1, 6, 2),
    "mnist-rsl18a-0.1": (15, 1, 3, 1),
    "mnist-abs-vanilla-cnn": (39, 3, 16, 21),
    "mnist-abs": (26, 3, 7, 0),
    "mnist-abs-binary": (32, 0, 3, 1),
}
BEHIND = {"mnist-abs-vanilla-cnn": (46, 1, 1, 0), "mnist-abs-binary-cnn": (37, 1, 2, 1)}  # behind a threshold at 0.5, as ABS runs them
SAMPLED = {"mnist-abs": (3, 1, 1, 1), "mnist-abs-binary": (3, 1, 1, 1)}  # their latents come from a random generator


def search() -> list[str]:
    """Every neighbour and every candidate from the published image files; what differs."""
    from rbench.invariance.generate import candidate, sources_of
    from rbench.invariance.neighbours import Finder
    from rbench.invariance.perturb import MNIST_TARGETS

    folder = Path(os.environ["RBENCH_DATA"]) / "invariance"
    known, released = np.load(folder / "neighbours.npz"), np.load(folder / "linf-0.3.npz")
    given, started, wrong, pairs, images = sources_of("mnist", released["index"].tolist(), None), time.perf_counter(), [], 0, 0
    finder = Finder(given.train, given.train_label)
    for i, (image, label) in enumerate(zip(given.clean, given.label.tolist(), strict=True)):
        found = finder.find(image.astype(np.uint8), label)
        for j, each in enumerate(found):
            told = (each.target, each.transform, each.train, each.sqdist)
            stored = tuple(int(known[key][i, j]) for key in ("cls", "grid_index", "train_index", "sqdist"))
            same = told == stored and np.array_equal(each.aligned, known["aligned"][i, j])
            pairs += same
            wrong += [] if same else [f"image {i}, class {each.target}: {told}, released {stored}"]
        adv, target = candidate(image, label, found, Fraction(3, 10), MNIST_TARGETS)
        same = np.array_equal(adv, released["adv"][i]) and target == released["target"][i]
        images += same
        wrong += [] if same else [f"image {i}: another candidate"]
    seconds = time.perf_counter() - started
    print(f"neighbours equal to the released ones: {pairs} of 900")
    print(f"candidates equal to linf-0.3: {images} of 100")
    print(f"seconds: {seconds:.0f}, {torch.get_num_threads()} thread")
    return wrong


class Thresholded(torch.nn.Module):
    """A net that sees black and white only."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.net((x >= 0.5).float())
        return logits


def models(names: list[str]) -> Iterator[tuple[str, Any, tuple[int, ...]]]:
    """(name, model, stated counts) of the nets named, or of every MNIST net of the zoo, and of two of them behind a threshold."""
    import rbench
    from rbench_zoo import catalogue

    for name in names or [name for name, card in catalogue.cards().items() if card.dataset == "mnist"]:
        yield name, name, STATED.get(name, ())
        if name in BEHIND:
            yield f"{name}, thresholded", Thresholded(rbench.load_model(name)).eval(), BEHIND[name]


def table(names: list[str]) -> list[str]:
    """A row per net, a column per set; what differs from what is stated."""
    import rbench

    print("| model | clean, 100 sources | " + " | ".join(f"`invariance-{name}`" for name in SETS) + " |")
    print(f"|{'---|' * (2 + len(SETS))}")
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for net, model, expected in models(names):
            common: dict[str, Any] = {"results": folder, "site": False, "certify": "none", "plan": "queries"}
            found = [rbench.evaluate(model, threat=f"invariance-{name}", dataset="mnist", **common).data["invariance"] for name in SETS]
            print(f"| `{net}` | {found[0]['clean']['count']} | {' | '.join(_cell(each['agreement']) for each in found)} |", flush=True)
            for name, each, stated, off in zip(SETS, found, expected, SAMPLED.get(net, (0, 0, 0, 0)), strict=False):
                if abs(each["agreement"]["count"] - stated) > off:
                    wrong.append(f"{net} on {name}: follows {each['agreement']['count']}, stated {stated}")
    return wrong


def _cell(share: dict[str, Any]) -> str:
    return f"{share['count']} of {share['n']}: {100 * share['accuracy']:.0f} [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"


def main() -> int:
    """`search` or `table`."""
    words = sys.argv[1:] or [""]
    if words[0] not in ("search", "table"):
        print(__doc__, file=sys.stderr)
        return 2
    wrong = search() if words[0] == "search" else table(words[1:])
    for complaint in wrong:
        print(complaint, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
