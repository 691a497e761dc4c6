"""What the engine costs beside the bare loop, on the published small MNIST net: 1,000 images, 100 steps, width 64, one thread.

    RBENCH_DATA=... RBENCH_WEIGHTS=... python tests/bench/engine.py [rounds]

Bare loop: forward, summed cross-entropy, gradient to the input with frozen weights, and nothing else. Both run in turn in one process;
times are process CPU seconds. `per pass` divides out the passes that retired rows save, so it is the harder figure.

Then where the time of each attack goes, on 350 images that the model gets right: in the model, in the attack's steps (what the set computes
for them included), and in the engine, which is the rest; by the clock on the wall. And which part of the passes is padding.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from torch import nn

from published import mnist_fast_pgd
from rbench.attacks.apgd import APGD
from rbench.attacks.build import build_attack, spec_of
from rbench.attacks.pgd import PGD
from rbench.attacks.protocol import Attack
from rbench.attacks.search import Examples, Search
from rbench.attacks.stage import part_of
from rbench.data import sources
from rbench_threats.catalogue import build
from rbench_threats.lp import Linf
from rbench_threats.spec import parse

N, STEPS, WIDTH = 1000, 100, 64
SETS = ("linf(eps=0.3)", "l2(eps=2)", "l1(eps=10)")
ATTACKS = ("pgd(steps=40)", "apgd(loss=ce, steps=40)", "apgd(loss=dlr-targeted, steps=20)", "fab(steps=20, top=3)", "square(queries=1000)")


def bare(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, int]:
    """CPU seconds and rows of the loop that nobody can do without."""
    began, rows = time.process_time(), 0
    for images, labels in zip(x.split(WIDTH), y.split(WIDTH), strict=True):
        for _ in range(STEPS):
            asked = images.detach().requires_grad_()
            torch.autograd.grad(nn.functional.cross_entropy(net(asked), labels, reduction="sum"), asked)
            rows += len(images)
    return time.process_time() - began, rows


def engine(net: nn.Module, attack: Attack, examples: Examples) -> tuple[float, int]:
    """CPU seconds and rows of a search, contexts included."""
    began = time.process_time()
    search = Search(net, Linf(0.3), attack, examples, spec=spec_of(attack), seed=0, width=WIDTH)
    search.run()
    return time.process_time() - began, search.passes.forward


def shares(net: nn.Module, spec: str, attack: Attack, examples: Examples) -> str:
    """A row of the second table."""
    began = time.perf_counter()
    search = Search(net, build(parse(spec)), attack, examples, spec=spec_of(attack), seed=0, width=WIDTH)
    fell = int(search.run().fell.sum())
    spent, seen = time.perf_counter() - began, search.passes
    engine = spent - seen.model_seconds - seen.step_seconds
    parts = " | ".join(f"{part / spent:.1%}" for part in (seen.model_seconds, seen.step_seconds, engine))
    return f"{fell} | {seen.forward:,} | {1e6 * spent / seen.forward:.1f} | {parts} | {1 - seen.useful / seen.forward:.1%}"


def main() -> None:
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    net, data = mnist_fast_pgd().requires_grad_(False), sources.load("mnist", n=N)
    with torch.no_grad():
        examples = Examples(data.x, data.y, torch.arange(N), net(data.x))
    print("| attack | bare loop, s | engine, s | ratio, median (min to max) | ratio per pass, median |\n|---|---|---|---|---|")
    for name, attack in {"PGD, 100 steps": PGD(steps=STEPS), "APGD-CE, 100 steps": APGD(steps=STEPS)}.items():
        found = [(bare(net, data.x, data.y), engine(net, attack, examples)) for _ in range(rounds + 1)][1:]  # the first warms up
        ratios = [ours / base for (base, _), (ours, _) in found]
        per_pass = [(ours / seen) / (base / rows) for (base, rows), (ours, seen) in found]
        seconds = [statistics.median(times) for times in zip(*((base, ours) for (base, _), (ours, _) in found), strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {seconds[0]:.2f} | {seconds[1]:.2f} | {spread} | {statistics.median(per_pass):.2f} |", flush=True)
    right = part_of(examples, (examples.clean.argmax(1) == examples.label).nonzero().squeeze(1)[:350].tolist())
    print("\n| attack, set | fell | rows seen | µs per row | model | steps | engine | padding |\n|---|---|---|---|---|---|---|---|")
    for spec in SETS:
        for text in ATTACKS:
            print(f"| {text}, {spec} | {shares(net, spec, build_attack(parse(text)), right)} |", flush=True)


if __name__ == "__main__":
    main()
