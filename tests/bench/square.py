"""Our Square beside AutoAttack's own, on published small nets that are trained for linf: robust accuracy and cost at equal queries.

    RBENCH_DATA=... RBENCH_WEIGHTS=... python tests/bench/square.py mnist|cifar10 [queries] [n] [seeds]

Both search the margin, from the same images, one thread, in turn in one process; times are process CPU seconds. Both results are judged
alike: the model must prefer another class on an image inside the set.
"""

from __future__ import annotations

import sys
import time

import torch
from torch import Tensor, nn

import rbench
from rbench.attacks.build import spec_of
from rbench.attacks.catalogue import Stage
from rbench.attacks.sealed import library, sealed
from rbench.attacks.search import Examples
from rbench.attacks.square import Square
from rbench.attacks.stage import part_of, plain_context, run_stage
from rbench.data import sources
from rbench_threats.catalogue import build
from rbench_threats.protocol import PerturbationSet
from rbench_threats.spec import parse

NETS = {
    "mnist": ("mnist-fast-pgd", ("linf(eps=0.3)", "l2(eps=2)", "l1(eps=10)")),
    "cifar10": ("cifar10-cnn-a-adv", ("linf(eps=8/255)", "l2(eps=0.5)", "l1(eps=12)")),
}
NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def ours(net: nn.Module, space: PerturbationSet, examples: Examples, queries: int, seed: int) -> set[int]:
    """Which images fall to ours."""
    attack = Square(queries=queries)
    stage = Stage(attack, spec_of(attack), "square")
    found = run_stage(net, space, stage, examples, seed=seed, width=64, closest={})
    return {int(examples.index[place]) for place in found.witnesses}


def theirs(net: nn.Module, space: PerturbationSet, examples: Examples, queries: int, seed: int) -> set[int]:
    """Which images fall to pyautoattack's Square, with the arguments that its standard version gives it."""
    kind = library("pyautoattack.square").SquareAttack
    radius = space.radius  # type: ignore[attr-defined]  # the capability "norm"
    attack = kind(net, norm=NAMES[space.family], n_queries=queries, eps=radius, p_init=0.8, seed=seed, device="cpu", resc_schedule=False)
    with sealed(net, seed, examples.x.device):
        images: Tensor = attack.perturb(examples.x, examples.label)
    ctx = plain_context(space, examples, seed)
    inside = space.excess(ctx, space.from_images(ctx, images)) <= 0  # type: ignore[attr-defined]  # the capability "additive"
    with torch.no_grad():
        fell = (net(images).argmax(1) != examples.label) & inside
    return set(examples.index[fell].tolist())


def main() -> None:
    torch.set_num_threads(1)
    dataset, *given = sys.argv[1:]
    queries, n, seeds = (int(number) for number in [*given, *("1000", "100", "1")[len(given) :]])
    name, sets = NETS[dataset]
    net, data = rbench.load_model(name).requires_grad_(False), sources.load(dataset, n=n)
    with torch.no_grad():
        clean = net(data.x)
    right = (clean.argmax(1) == data.y).nonzero().squeeze(1)
    examples = part_of(Examples(data.x, data.y, torch.arange(n), clean), right.tolist())
    print(f"{name}: {n} images, {len(right)} right, {queries} queries\n")
    print("| set | seed | robust, ours | robust, AutoAttack's | broken by ours, theirs alone | CPU s, ours | CPU s, theirs |")
    print("|---|---|---|---|---|---|---|")
    for spec in sets:
        space = build(parse(spec))
        for seed in range(seeds):
            falls, seconds = [], []
            for search in (ours, theirs):
                began = time.process_time()
                falls.append(search(net, space, examples, queries, seed))
                seconds.append(time.process_time() - began)
            standing = [len(right) - len(fell) for fell in falls]
            alone = f"{len(falls[0] - falls[1])}, {len(falls[1] - falls[0])}"
            print(f"| {spec} | {seed} | {standing[0]} | {standing[1]} | {alone} | {seconds[0]:.1f} | {seconds[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
