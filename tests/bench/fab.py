"""Our FAB beside AutoAttack's FAB-T, on published small nets that are trained for linf: who falls, and what it costs.

    RBENCH_DATA=... RBENCH_WEIGHTS=... python tests/bench/fab.py mnist|cifar10 [n] [turns] [top]

The same images, the `top` likeliest classes as targets, 100 steps each, one thread, in turn in one process, `turns` times (least seconds
are shown); times are process CPU seconds, passes are rows that the net saw. Ours runs at width 64, theirs all images together, weights
frozen for both. Both results are judged alike: the net must prefer another class on an image inside the set. The steps' share is that of
the seconds in attack and set over those in the net.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import rbench
from rbench.attacks.build import spec_of
from rbench.attacks.catalogue import Stage
from rbench.attacks.fab import FAB
from rbench.attacks.sealed import library, sealed
from rbench.attacks.search import Examples
from rbench.attacks.stage import part_of, plain_context, run_stage
from rbench.data import sources
from rbench_threats.catalogue import build
from rbench_threats.protocol import PerturbationSet
from rbench_threats.spec import parse

NETS = {
    "mnist": ("mnist-fast-pgd", ("linf(eps=0.3)", "l2(eps=2)", "l1(eps=10)")),
    "cifar10": ("cifar10-cnn-a-adv", ("linf(eps=2/255)", "l2(eps=0.5)", "l1(eps=12)")),
}
NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@dataclass
class Result:
    """Which images fell, and the cost."""

    fell: set[int]
    seconds: float
    forward: int
    backward: int
    steps: float = 0.0

    @property
    def each(self) -> float:
        """Microseconds per row and pass, forward or backward."""
        return self.seconds / (self.forward + self.backward) * 1e6


class Counted(nn.Module):
    """The net, and how many rows it saw."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.forward_rows, self.backward_rows = net, 0, 0
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.forward_rows += len(images)
        logits: Tensor = self.net(images)
        if logits.requires_grad:
            logits.register_hook(self._backward)
        return logits

    def _backward(self, grad: Tensor) -> None:
        self.backward_rows += len(grad)


def ours(net: nn.Module, space: PerturbationSet, examples: Examples, top: int) -> Result:
    """Ours, as a plan runs it."""
    attack = FAB(top=top)
    began = time.process_time()
    found = run_stage(net, space, Stage(attack, spec_of(attack), "fab"), examples, seed=0, width=64, closest={})
    seconds, passes = time.process_time() - began, found.passes
    fell = {int(examples.index[place]) for place in found.witnesses}
    return Result(fell, seconds, passes.forward, passes.backward, passes.step_seconds / passes.model_seconds)


def theirs(net: nn.Module, space: PerturbationSet, examples: Examples, top: int) -> Result:
    """pyautoattack's, with the arguments that its standard version gives it; its norm test is the set's, a hair wider than `> eps`."""
    kind, counted = library("pyautoattack.fab_pt").FABAttack_PT, Counted(net)
    radius = space.radius  # type: ignore[attr-defined]  # the capability "norm"
    settings = {"n_restarts": 1, "n_iter": 100, "eps": radius, "targeted": True, "n_target_classes": top, "device": "cpu"}
    attack = kind(counted, norm=NAMES[space.family], seed=0, verbose=False, **settings)
    began = time.process_time()
    with sealed(net, 0, examples.x.device):
        images: Tensor = attack.perturb(examples.x, examples.label)
    seconds = time.process_time() - began
    ctx = plain_context(space, examples, 0)
    inside = space.excess(ctx, space.from_images(ctx, images)) <= 0  # type: ignore[attr-defined]  # the capability "additive"
    with torch.no_grad():
        fell = (net(images).argmax(1) != examples.label) & inside
    return Result(set(examples.index[fell].tolist()), seconds, counted.forward_rows, counted.backward_rows)


def table(net: nn.Module, spec: str, examples: Examples, turns: int, top: int) -> str:
    """One line of the table."""
    space = build(parse(spec))
    best: list[Result] = []
    for _ in range(turns):
        now = [ours(net, space, examples, top), theirs(net, space, examples, top)]
        best = [min(pair, key=lambda one: one.seconds) for pair in zip(best, now, strict=True)] if best else now
    mine, other = best
    alone = f"{len(mine.fell - other.fell)}, {len(other.fell - mine.fell)}"
    passes = f"{mine.forward}+{mine.backward} | {other.forward}+{other.backward}"
    seconds = f"{mine.seconds:.2f} | {other.seconds:.2f} | {mine.seconds / other.seconds:.2f}"
    each = f"{mine.each:.1f} | {other.each:.1f} | {mine.steps:.2f}"
    return f"| {spec} | {len(mine.fell)} | {len(other.fell)} | {alone} | {passes} | {seconds} | {each} |"


def main() -> None:
    torch.set_num_threads(1)
    dataset, *given = sys.argv[1:]
    n, turns, top = (int(number) for number in [*given, *("60", "2", "9")[len(given) :]])
    name, sets = NETS[dataset]
    net, data = rbench.load_model(name).requires_grad_(False), sources.load(dataset, n=n)
    with torch.no_grad():
        clean = net(data.x)
    right = (clean.argmax(1) == data.y).nonzero().squeeze(1)
    examples = part_of(Examples(data.x, data.y, torch.arange(n), clean), right.tolist())
    print(f"{name}: {n} images, {len(right)} right, {top} targets of 100 steps\n")
    print("| set | fell: ours | theirs | each alone | passes: ours | theirs | CPU s: ours | theirs | ratio | µs each | theirs | steps |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for spec in sets:
        print(table(net, spec, examples, turns, top), flush=True)


if __name__ == "__main__":
    main()
