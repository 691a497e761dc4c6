"""The verdict: sound in float32 arithmetic, the same whoever else is asked about, and never about what was not asked."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from certificates.enclosure import boxes_of, members
from certificates.nets import EVERY, IMAGE, Chain, Residual, made, ready
from rbench.certificates import METHODS, Certifier, Proof, Unsupported, ibp
from rbench.certificates.graph import trace
from rbench.certificates.rounding import slack
from rbench.certificates.rules import UNIT, Box
from rbench_core.errors import UsageError

FLAT = (1, 2, 3)


def wave(*shape: int, pace: float) -> Tensor:
    """Weights that every version of every library makes alike."""
    return torch.sin(pace * torch.arange(1, 1 + math.prod(shape), dtype=torch.float64)).view(shape).float()


def set_by_waves(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for i, tensor in enumerate(net.parameters()):
            tensor.copy_(wave(*tensor.shape, pace=0.7 + 0.37 * i) * (1.5 / max(1, tensor[0].numel()) ** 0.5))
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.copy_(wave(part.num_features, pace=1.1))
                part.running_var.copy_(1 + 0.5 * wave(part.num_features, pace=0.3))
    return net.eval()


def plain() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def convolutional() -> nn.Module:
    parts = [nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.LeakyReLU(0.2), nn.AvgPool2d(2)]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(6, 3))


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 3, 3, 1, 1), nn.Conv2d(3, 3, 3, 1, 1), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        y = torch.cat([nn.functional.max_pool2d(y + self.b(y).sigmoid(), 2), nn.functional.max_pool2d(y, 2)], 2)
        return self.head(y.flatten(1)[:, :48])  # type: ignore[no-any-return]


# [margin, slack in 1e-6] of label 0 by ibp, by crown-ibp, of labels 1 and 2 alike; first over x ± 0.05, then ± 0.2, x of `wave`. Made by
# python -c "from certificates.test_certify import frozen; print(frozen())" in tests/
FROZEN: dict[str, list[list[float]]] = {
    "plain": [
        [-1.977508, 17.628],
        [-1.442171, 17.628],
        [-3.050848, 14.537],
        [-2.621947, 14.537],
        [0.728295, 17.628],
        [1.284512, 17.628],
        [-4.10256, 25.035],
        [-1.967237, 25.035],
        [-4.618852, 19.612],
        [-2.932508, 19.612],
        [-0.880738, 25.035],
        [0.892943, 25.035],
    ],
    "convolutional": [
        [-1.939994, 24.583],
        [-1.724522, 24.583],
        [1.428578, 24.583],
        [1.644026, 24.583],
        [-3.696225, 60.368],
        [-3.404558, 60.368],
        [-2.654947, 28.974],
        [-1.930658, 28.974],
        [0.800775, 28.974],
        [1.48141, 28.974],
        [-5.3046, 69.753],
        [-4.445978, 69.753],
    ],
    "joined": [
        [-1.67912, 212.584],
        [-1.259634, 212.584],
        [-4.037667, 223.669],
        [-3.596699, 223.669],
        [-1.445786, 212.584],
        [-0.973846, 212.584],
        [-6.252429, 263.323],
        [-4.972676, 263.323],
        [-9.120553, 281.395],
        [-7.780512, 281.395],
        [-6.192179, 263.323],
        [-5.069964, 263.323],
    ],
}
NETS = {"plain": (plain, FLAT), "convolutional": (convolutional, (1, 7, 7)), "joined": (Joined, (1, 8, 6))}


def frozen_case(name: str) -> list[list[float]]:
    build, shape = NETS[name]
    net = set_by_waves(build())
    x = wave(1, *shape, pace=0.9).abs()
    certifier = Certifier(net, shape, 3)
    rows = []
    for radius in (0.05, 0.2):
        for label in range(3):
            for method in METHODS:
                (proof,) = certifier.certify(x - radius, x + radius, torch.tensor([label]), (method,))
                rows.append([round(proof.margin, 6), round(1e6 * proof.slack, 3)])
    return rows


def frozen() -> dict[str, list[list[float]]]:
    return {name: frozen_case(name) for name in NETS}


@pytest.mark.parametrize("name", NETS)
def test_bounds_and_slack_are_those_on_record(name: str) -> None:
    np.testing.assert_allclose(frozen_case(name), FROZEN[name], rtol=1e-5, atol=2e-6)


# --- rows and methods -------------------------------------------------------------------------------------------------------------------


def asked(net: nn.Module, rows: int = 80, radius: float = 0.02) -> tuple[Certifier, Tensor, Tensor, Tensor]:
    """Boxes around random images, half of them narrow enough to be certified, with the labels that the net gives."""
    noise = torch.Generator().manual_seed(0)
    x = torch.rand((rows, *IMAGE), generator=noise)
    with torch.no_grad():
        label = net(x).argmax(1)
    width = radius * torch.rand((rows, 1, 1, 1), generator=noise)
    return Certifier(net, IMAGE, 4), x - width, x + width, label


@pytest.mark.parametrize("build", [Chain, Residual])
def test_a_row_does_not_depend_on_the_others(build: type[nn.Module]) -> None:
    certifier, lower, upper, label = asked(ready(build()).float(), radius=0.08)
    together = certifier.certify(lower, upper, label)
    assert 5 < sum(proof.certified for proof in together) < 75
    assert {proof.method for proof in together} == {None, *METHODS}
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    for rows in (order[:1], order[1:4], order[4:23], order[:70]):
        alone = certifier.certify(lower[rows], upper[rows], label[rows])
        assert [proof.method for proof in alone] == [together[i].method for i in rows]
        np.testing.assert_allclose([proof.margin for proof in alone], [together[i].margin for i in rows], rtol=0, atol=1e-12)


@pytest.mark.parametrize("build", [Chain, Residual])
def test_a_later_method_never_proves_less(build: type[nn.Module]) -> None:
    certifier, lower, upper, label = asked(ready(build()).float())
    first, second, both = (certifier.certify(lower, upper, label, methods) for methods in (("ibp",), ("crown-ibp",), METHODS))
    assert all(late.margin >= early.margin for early, late in zip(first, second, strict=True))
    assert [proof.certified for proof in both] == [a.certified or b.certified for a, b in zip(first, second, strict=True)]
    assert all(one.method == "ibp" for one, early in zip(both, first, strict=True) if early.certified)
    assert certifier.certify(lower, upper, label, ("crown-ibp", "ibp")) == both


def test_nothing_in_a_certified_box_has_another_label() -> None:
    net = ready(Residual()).float()
    certifier, lower, upper, label = asked(net, radius=0.05)
    proofs = certifier.certify(lower, upper, label)
    proved = torch.tensor([proof.certified for proof in proofs])
    points = members(lower, upper)[:, proved]
    with torch.no_grad():
        logits = net(points.flatten(0, 1)).unflatten(0, points.shape[:2])
    rest = logits.scatter(2, label[proved].expand(len(points), -1)[..., None], -torch.inf).amax(2)
    room = logits.gather(2, label[proved].expand(len(points), -1)[..., None])[..., 0] - rest
    assert (room > 0).all()
    assert (room.amin(0) >= torch.tensor([proof.margin - proof.slack for proof in proofs])[proved]).all()


def test_another_label_is_never_certified() -> None:
    certifier, lower, upper, label = asked(ready(Chain()).float())
    assert not any(proof.certified for proof in certifier.certify(lower, upper, (label + 1) % 4))


# --- float32 ----------------------------------------------------------------------------------------------------------------------------


def test_a_margin_within_the_rounding_of_float32_is_not_proved() -> None:
    """A linear net at a point: exact margins 1e-7 and 1e-3 against a bound of some 1e-6."""
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), torch.ones(1, *FLAT)
    for gap, proved in ((0.0, False), (1e-7, False), (1e-3, True)):
        with torch.no_grad():
            net[1].weight.fill_(0.5)
            net[1].bias.copy_(torch.tensor([gap, 0.0]))
        (proof,) = Certifier(net, FLAT, 2).certify(x, x, torch.tensor([0]))
        assert proof.certified is proved
        assert proof.margin == pytest.approx(gap, abs=1e-9)
        assert 1e-7 < proof.slack < 1e-4


def test_the_slack_is_the_error_bound_written_out() -> None:
    """E ← |W|E + γ(|W|(max|x| + E) + |b|), 0 behind a shut ReLU, γ of the operands that are not 0; with numpy (Higham 2002, sec. 3.1)."""
    net = set_by_waves(plain())
    with torch.no_grad():
        net[1].bias[3:6] = -9  # certainly shut
    x = wave(1, *FLAT, pace=0.9)
    low, high, error = (x - 0.1).double().numpy().ravel(), (x + 0.1).double().numpy().ravel(), np.zeros(6)
    for layer in (part for part in net if isinstance(part, nn.Linear)):
        weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
        size = np.maximum(abs(low), abs(high)) + error
        count = (np.count_nonzero(size) + 2) * UNIT
        passed, fresh = error, count / (1 - count) * (abs(weight) @ size + abs(bias))
        error = abs(weight) @ error + fresh
        middle, radius = weight @ (low + high) / 2 + bias, abs(weight) @ (high - low) / 2
        error = np.where(middle + radius + error > 0, error, 0)
        low, high = (middle - radius).clip(min=0), (middle + radius).clip(min=0)
    graph, label = trace(net, FLAT), torch.tensor([1])
    own = graph.weights(torch.float64)
    boxes = ibp.boxes(graph, own, Box((x - 0.1).double(), (x + 0.1).double()), len(graph.nodes) - 1)
    found = slack(graph, own, boxes, ibp.differences(label, 3, boxes[0].lower))[0].detach()
    np.testing.assert_allclose(found, [abs(weight[1] - weight[j]) @ passed + fresh[1] + fresh[j] for j in (0, 2)], rtol=1e-5)
    assert (boxes[2].upper <= 0).sum() >= 3


@pytest.mark.parametrize("name", EVERY)
def test_float32_stays_within_its_error_bound(name: str) -> None:
    """The float32 net beside the exact one, at points and corners of boxes; the bound is not absurd either."""
    exact, graph = made(name)
    net = copy.deepcopy(exact).float()
    lower, upper = (end.float() for end in boxes_of(IMAGE))
    x = members(lower, upper).flatten(0, 1)
    with torch.no_grad():
        own = graph.weights(torch.float64)
        boxes = ibp.boxes(graph, own, Box(lower.double(), upper.double()), len(graph.nodes) - 1)
        specs = ibp.differences(torch.zeros(len(lower), dtype=torch.int64), graph.classes, boxes[0].lower)
        bound = slack(graph, own, boxes, specs)
        apart = ((net(x).double() - exact(x.double())) @ specs[0].T).abs().unflatten(0, (-1, len(lower))).amax(0)
        wide = boxes[-1].size().amax(1, keepdim=True)
    assert (apart <= bound).all()
    assert (bound <= 0.01 * (1 + wide)).all()


# --- what cannot be proved --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_prove_nothing(bad: float) -> None:
    net = set_by_waves(plain())
    with torch.no_grad():
        net[1].weight[0, 0] = bad
    x = wave(1, *FLAT, pace=0.9).abs()
    assert Certifier(net, FLAT, 3).certify(x, x, torch.tensor([0])) == [Proof(False, None, -math.inf, 0.0)]


def test_an_empty_box_or_one_of_nan_proves_nothing_and_harms_no_neighbour() -> None:
    certifier, lower, upper, label = asked(ready(Chain()).float())
    good = certifier.certify(lower, upper, label)
    lower[3, 0, 0, 0], upper[5, 0, 0, 0] = upper[3, 0, 0, 0] + 1, math.nan
    found = certifier.certify(lower, upper, label)
    assert [(found[i].certified, found[i].margin) for i in (3, 5)] == [(False, -math.inf)] * 2
    assert [proof.method for i, proof in enumerate(found) if i not in (3, 5)] == [
        proof.method for i, proof in enumerate(good) if i not in (3, 5)
    ]


def test_the_certificate_speaks_of_the_net_as_it_was() -> None:
    net = ready(Chain()).float()
    certifier, lower, upper, label = asked(net)
    before = certifier.certify(lower, upper, label)
    with torch.no_grad(), torch.inference_mode():
        for tensor in net.parameters():
            tensor.data.zero_()
        assert certifier.certify(lower, upper, label) == before


def certify_of(net: nn.Module) -> Certifier:
    return Certifier(net, FLAT, 3)


def test_bad_requests_are_one_line_each() -> None:
    certifier, x, label = certify_of(set_by_waves(plain())), wave(2, *FLAT, pace=1.0), torch.tensor([0, 1])
    requests: Sequence[tuple[Tensor, Tensor, Tensor, tuple[str, ...], str]] = [
        (x, x, label, (), "certificates by no method; expected some of: ibp, crown-ibp"),
        (x, x, label, ("ibp", "magic"), "certificates by magic"),
        (x.transpose(2, 3), x.transpose(2, 3), label, METHODS, "boxes of [2, 1, 3, 2] and [2, 1, 3, 2]"),
        (x.repeat(1, 2, 1, 1), x.repeat(1, 2, 1, 1), label, METHODS, "expected [2, 1, 2, 3], as the images"),
        (x, x, torch.tensor([0, 3]), METHODS, "a label outside the classes; expected 0 to 2"),
        (x, x, torch.tensor([0, -1]), METHODS, "a label outside the classes"),
    ]
    for *given, methods, words in requests:
        with pytest.raises(UsageError) as caught:
            certifier.certify(*given, methods)
        assert words in str(caught.value)
    assert certifier.certify(x[:0], x[:0], label[:0]) == []
    for wrong, words in (
        (set_by_waves(plain()).double(), "the net computes in float64"),
        (nn.Sequential(nn.Flatten(), nn.Linear(6, 4)), "4 logits"),
    ):
        with pytest.raises(Unsupported, match=words):
            certify_of(wrong)
