"""Every net of the zoo: no value leaves its bounds and no certified example is broken, at random and adversarial points of boxes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rbench.certificates import Certifier, ibp, layers
from rbench.certificates.exported import exported
from rbench.certificates.graph import Node
from rbench.certificates.rules import Box
from rbench.data import sources
from rbench_core.errors import Unsupported
from rbench_zoo import catalogue
from rbench_zoo.card import Card
from rbench_zoo.load import load_model

CARDS = catalogue.cards()
UNSUPPORTED = {"mnist-abs": "torch.export cannot trace the net, abs.py:", "mnist-abs-binary": "torch.export cannot trace the net, abs.py:"}
POINTS, ROWS, STEPS = 1000, 4, 25
RADII = {"digits": (0.003, 0.02, 0.1), "mnist": (0.003, 0.02, 0.1), "fashion-mnist": (0.003, 0.02, 0.1), "cifar10": (0.0005, 0.002, 0.03)}


SEEN: set[str] = set()  # chains already compared: many nets share their layers, and export takes 0.3 s


def told(nodes: list[Node]) -> list[object]:
    return [(node.rule, node.inputs, node.shape, [each is not None for each in node.tensors]) for node in nodes[1:]]


def opened(card: Card, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The net; the test skips where weights or data are not at hand."""
    if card.training.recipe is None:
        monkeypatch.setenv("RBENCH_WEIGHTS", str(request.getfixturevalue("weights_folder")))
    if card.dataset != "digits":
        request.getfixturevalue("data_folder")
    return load_model(card)


def boxes_around(card: Card, net: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes with a half-width per value, of growing size, cut with [0, 1], around images that the net gets right."""
    data = sources.load(card.dataset, n=64)
    with torch.no_grad():
        right = (net(data.x).argmax(1) == data.y).nonzero()[:ROWS, 0]
    x, noise = data.x[right], torch.Generator().manual_seed(0)
    radius = torch.tensor([RADII[card.dataset][min(i, 2)] for i in range(len(x))])[:, None, None, None]
    width = radius * torch.rand(x.shape, generator=noise)
    return (x - width).clamp(0, 1), (x + width).clamp(0, 1), data.y[right]


def attacked(net: nn.Module, lower: Tensor, upper: Tensor, label: Tensor) -> Tensor:
    """(points, rows, …): random points, corners, and every step of an ascent of the margin against each class in turn."""
    noise = torch.Generator().manual_seed(1)
    count = POINTS // ROWS - STEPS
    share = torch.rand((count, *lower.shape), generator=noise)
    share[count // 2 :] = share[count // 2 :].round()
    points = [*(lower + share * (upper - lower))]
    x = points[0]
    for step in range(STEPS):
        x = x.detach().requires_grad_()
        logits = net(x)
        other = (
            (label + 1 + step % (logits.shape[1] - 1)) % logits.shape[1] if step < 9 else logits.scatter(1, label[:, None], -1e9).argmax(1)
        )
        gap = (logits.gather(1, other[:, None]) - logits.gather(1, label[:, None])).sum()
        (grad,) = torch.autograd.grad(gap, x)
        x = x + grad.sign() * (upper - lower) * (0.3 if step < 20 else 0.05)
        points.append(x.detach().maximum(lower).minimum(upper))
        x = points[-1]
    return torch.stack(points).maximum(lower).minimum(upper).detach()


@pytest.mark.parametrize("name", CARDS)
def test_bounds_hold_on_every_net_of_the_zoo(name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    card = CARDS[name]
    net = opened(card, request, monkeypatch)
    shape = sources.load(card.dataset, n=1).shape
    if name in UNSUPPORTED:
        with pytest.raises(Unsupported, match=UNSUPPORTED[name]):
            Certifier(net, shape, 10)
        return
    certifier = Certifier(net, shape, 10)
    lower, upper, label = boxes_around(card, net)
    points = attacked(net, lower, upper, label)
    with torch.no_grad():
        logits = torch.cat([net(part) for part in points.flatten(0, 1).split(500)]).unflatten(0, points.shape[:2])
        room = (ibp.differences(label, 10, lower) @ logits[..., None]).squeeze(3)  # (points, rows, 9)
        found = ibp.boxes(certifier.graph, certifier.weights, Box(lower.double(), upper.double()), len(certifier.graph.nodes) - 1)
        inside = [points[:: POINTS // 40].flatten(0, 1).double()]
        for node, own, box in zip(certifier.graph.nodes[1:], certifier.weights[1:], found[1:], strict=True):
            inside.append(node.rule.value(own, *(inside[place] for place in node.inputs)))
            each = inside[-1].unflatten(0, (-1, len(label)))
            assert (torch.maximum(box.lower - each, each - box.upper) <= 1e-9 * (1 + box.size())).all(), node
    for methods in (("ibp",), ("crown-ibp",)):
        for i, proof in enumerate(certifier.certify(lower, upper, label, methods)):
            assert room[:, i].min() >= proof.margin - proof.slack
            assert not proof.certified or room[:, i].min() > 0
            assert proof.certified or (i, methods, card.dataset) != (0, ("crown-ibp",), "digits")  # at 0.003 all of them are


@pytest.mark.parametrize("name", [name for name in CARDS if name not in UNSUPPORTED])
def test_both_ways_into_a_graph_agree_on_the_zoo(name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    net = opened(CARDS[name], request, monkeypatch)
    shape = sources.load(CARDS[name].dataset, n=1).shape
    quick = layers.chain(net, shape)
    assert (quick is None) == (name in ("cifar10-resnet20-std", "cifar10-resnet2b"))
    if quick is not None and (key := repr(told(quick))) not in SEEN:
        assert told(quick) == told(exported(net, shape))
        SEEN.add(key)
