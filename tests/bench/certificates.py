"""What certificates cost and prove: `python tests/bench/certificates.py cost|step|zoo|crown [N]`. Docs: docs/certificates.md."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rbench.api import load_model
from rbench.certificates import METHODS, Certifier, Graph, crown, ibp
from rbench.certificates.graph import trace
from rbench.certificates.rules import Box
from rbench.data import sources
from rbench_results.figures import wilson
from rbench_threats.catalogue import resolve
from rbench_zoo import catalogue

KERNELS = {"wong-small": ((4, 2, 1), (4, 2, 1)), "dm-small": ((4, 2, 0), (4, 1, 0))}
FEW = 128  # images per certificate that is timed
ASKED = [
    ("digits-standard", "1/100"),
    ("digits-linf-at", "1/100"),
    ("digits-linf-at", "1/40"),
    ("digits-ibp", "0.15"),
    ("mnist-ibp", "0.3"),
    ("mnist-kw-0.1", "0.1"),
    ("mnist-kw-small-0.3", "0.1"),
    ("mnist-kw-small-0.3", "0.3"),
    ("mnist-rsl18a-0.1", "0.1"),
    ("mnist-linf-at", "0.01"),
    ("fashion-kw-0.1", "0.1"),
    ("cifar10-kw-small-8px", "2/255"),
    ("cifar10-kw-small-8px", "8/255"),
    ("cifar10-resnet2b", "1/1020"),
    ("cifar10-cnn-a-adv", "1/255"),
]


def seconds(run: Callable[[], object], times: int = 5) -> float:
    """The median CPU time of a call, after some that let the allocator see its sizes."""
    for _ in range(6):
        run()
    taken = []
    for _ in range(times):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return sorted(taken)[times // 2]


def small(name: str) -> nn.Module:
    """Two convolutions (16 and 32 channels), 100 hidden units, untrained."""
    first, second = KERNELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 16, *first), nn.ReLU(), nn.Conv2d(16, 32, *second), nn.ReLU(), nn.Flatten(), nn.LazyLinear(100))
        net.extend([nn.ReLU(), nn.Linear(100, 10)])
        net(torch.zeros(1, 1, 28, 28))
    return net.eval()


@torch.no_grad()
def cost() -> None:
    """A clean pass, interval margins in float32, and certificates in float64, per 250 images."""
    nets: list[tuple[str, nn.Module, str]] = [(name, small(name), "mnist") for name in KERNELS]
    nets += [(name, load_model(name), name.split("-")[0]) for name in ("digits-linf-at", "mnist-kw-0.1", "cifar10-kw-small-8px")]
    print("| net | clean | ibp | ratio | certify: ibp, ms/image | crown-ibp |\n|---|---|---|---|---|---|")
    for turn, (name, net, dataset) in enumerate(
        nets * 2
    ):  # the first turn is for the allocator: it learns sizes, and half of the time is page faults
        data = sources.load(dataset, n=250)
        lower, upper, graph = (data.x - 0.05).clamp(0, 1), (data.x + 0.05).clamp(0, 1), trace(net, data.shape)
        certifier, label = Certifier(net, data.shape, 10), net(data.x).argmax(1)
        clean = seconds(lambda net=net, data=data: net(data.x))
        bounds = seconds(lambda graph=graph, lower=lower, upper=upper, label=label: ibp.margins(graph, lower, upper, label))
        part = lower[:FEW], upper[:FEW], label[:FEW]
        proofs = [seconds(lambda m=m, c=certifier, p=part: c.certify(*p, (m,)), 3) for m in METHODS]
        each = [f"{1000 * proof / FEW:.2f}" for proof in proofs]
        if turn >= len(nets):
            print(f"| {name} | {1000 * clean:.0f} ms | {1000 * bounds:.0f} ms | {bounds / clean:.1f} | {each[0]} | {each[1]} |", flush=True)


def step() -> None:
    """A training step of 256 images: plain, and with interval margins beside the logits; also with batch norm behind every hidden layer."""
    print("| net | plain step | with bounds | ratio |\n|---|---|---|---|")
    data = sources.load("mnist", n=256)
    lower, upper = (data.x - 0.1).clamp(0, 1), (data.x + 0.1).clamp(0, 1)
    for name, net in [("wong-small", small("wong-small")), ("dm-small", small("dm-small")), ("wong-small, batch norm", normed())] * 2:
        graph = trace(net, data.shape)

        def plain(net: nn.Module = net) -> None:
            net.zero_grad()
            nn.functional.cross_entropy(net(data.x), data.y).backward()

        def bounded(net: nn.Module = net, graph: Graph = graph) -> None:
            net.zero_grad()
            logits, margins = ibp.both(graph, data.x, lower, upper, data.y)
            (nn.functional.cross_entropy(logits, data.y) - margins.mean()).backward()

        net.train()
        each = seconds(plain), seconds(bounded)
        print(f"| {name} | {1000 * each[0]:.0f} ms | {1000 * each[1]:.0f} ms | {each[1] / each[0]:.1f} |", flush=True)


def normed() -> nn.Module:
    layers: list[nn.Module] = []
    for part in small("wong-small"):  # type: ignore[attr-defined]
        layers.append(part)
        if isinstance(part, nn.Conv2d):
            layers.append(nn.BatchNorm2d(part.out_channels))
        elif isinstance(part, nn.Linear) and part.out_features == 100:
            layers.append(nn.BatchNorm1d(100))
    return nn.Sequential(*layers)


def boxes_of(name: str, eps: str, n: int) -> tuple[nn.Module, Tensor, Tensor, Tensor, tuple[int, int, int]]:
    """The net, the linf box and the label of those of the first n images that it gets right."""
    data, net = sources.load(catalogue.cards()[name].dataset, n=n), load_model(name)
    with torch.no_grad():
        right = net(data.x).argmax(1) == data.y
    (space,) = resolve(f"linf(eps={eps})", data.name).members
    x, y = data.x[right], data.y[right]
    low = space.box(space.context(x, None))  # type: ignore[attr-defined]
    return net, *low, y, data.shape


def share(count: int, n: int) -> str:
    low, high = wilson(count, n)
    return f"{100 * count / n:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def zoo(n: int = 500) -> None:
    print("| net | linf | clean | ibp | crown-ibp | within slack | slack, median | ms/image |\n|---|---|---|---|---|---|---|---|")
    for name, eps in ASKED:
        net, lower, upper, label, shape = boxes_of(name, eps, n)
        start = time.process_time()
        proofs = Certifier(net, shape, 10).certify(lower, upper, label)
        taken = 1000 * (time.process_time() - start) / len(proofs)
        first, both = sum(p.method == "ibp" for p in proofs), sum(p.certified for p in proofs)
        near, slack = sum(0 < p.margin <= p.slack for p in proofs), sorted(p.slack for p in proofs)[len(proofs) // 2]
        print(
            f"| {name} | {eps} | {share(len(proofs), n)} | {share(first, n)} | {share(both, n)} | {near} | {slack:.1g} | {taken:.1f} |",
            flush=True,
        )


@torch.no_grad()
def tightened(graph: Graph, image: Box, chunk: int = 256) -> list[Box]:
    """Boxes of all nodes, each met with linear bounds from the image before the next is made: what CROWN starts from."""
    weights, found = graph.weights(), [image]
    for i, node in enumerate(graph.nodes[1:], start=1):
        box = node.rule.interval(weights[i], *(found[place] for place in node.inputs))
        reader = next((other.rule for other in graph.nodes[i + 1 : i + 2]), node.rule)
        if not reader.affine and any(not other.rule.affine for other in graph.nodes[1:i]):
            part = Graph(graph.module, graph.nodes[: i + 1])
            open_ones = ((box.lower < 0) & (box.upper > 0)).flatten(1).any(0).nonzero()[:, 0]
            ends = [end.flatten(1).clone() for end in (box.lower, box.upper)]
            for places in open_ones.split(chunk):
                unit = torch.zeros(len(places), ends[0].shape[1], dtype=ends[0].dtype)
                unit[range(len(places)), places] = 1
                specs = unit.view(1, len(places), *node.shape).expand(len(box.lower), *([-1] * (1 + len(node.shape))))
                ends[0][:, places] = ends[0][:, places].maximum(crown.backward(part, weights[: i + 1], [*found, box], specs))
                ends[1][:, places] = ends[1][:, places].minimum(-crown.backward(part, weights[: i + 1], [*found, box], -specs))
            box = Box(*(end.view(box.lower.shape) for end in ends))
        found.append(box)
    return found


@torch.no_grad()
def full(n: int = 100) -> None:
    """CROWN (linear bounds of every hidden layer too) on nets with published figures: a check of the backward rules, no method of ours."""
    print("| net | linf | clean error | error of CROWN | s/image |\n|---|---|---|---|---|")
    for name, eps in (("mnist-kw-0.1", "0.1"), ("mnist-kw-small-0.3", "0.3")):
        net, lower, upper, label, shape = boxes_of(name, eps, n)
        graph, start, proved = trace(net, shape), time.process_time(), 0
        for low, high, y in zip(lower.split(5), upper.split(5), label.split(5), strict=True):
            boxes = tightened(graph, Box(low, high))
            bound = crown.backward(graph, graph.weights(), boxes, ibp.differences(y, 10, low))
            proved += int((bound > 0).all(1).sum())
        taken = (time.process_time() - start) / len(label)
        print(f"| {name} | {eps} | {share(n - len(label), n)} | {share(n - proved, n)} | {taken:.2f} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"cost": cost, "zoo": zoo, "crown": full, "step": step}[sys.argv[1]](*map(int, sys.argv[2:]))
