"""From a module to operators: two ways in that agree, live tensors, modes left alone, and one line for what is not known."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from certificates.nets import IMAGE, Chain, Residual, Said, ready
from rbench.certificates import exported, ibp, layers
from rbench.certificates.graph import Node, trace
from rbench_core.errors import ModelError, Unsupported
from rbench_zoo.architectures import Normalise


def told(nodes: list[Node] | None) -> list[Any]:
    """What two ways into a graph must agree on."""
    assert nodes is not None
    return [(node.rule, node.inputs, node.shape, [each is not None for each in node.tensors]) for node in nodes[1:]]


def test_the_quick_way_and_export_read_the_same_operators() -> None:
    net = nn.Sequential(Normalise([0.1, 0.2], [0.3, -2.0]), Chain())
    ready(net)
    quick, general = layers.chain(net, IMAGE), exported.exported(net, IMAGE)
    assert told(quick) == told(general)
    mine, theirs = ([f(None) for node in nodes for f in node.tensors if f] for nodes in (quick or [], general))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def hooked() -> nn.Module:
    net = Chain()
    net[3].register_forward_hook(lambda part, given, out: 2 * out)
    return net


def reparametrised() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(84, 3))
    torch.nn.utils.parametrizations.weight_norm(net[1])
    return net


def replaced() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(84, 3))
    net[1].forward = lambda x: 3 * functional.linear(x, net[1].weight)
    return net


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Backwards(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        for part in reversed(self):
            x = part(x)
        return x


def shared() -> nn.Module:
    same = nn.Linear(84, 84)
    return nn.Sequential(nn.Flatten(), same, nn.ReLU(), same)


ODD: dict[str, Callable[[], nn.Module]] = {
    "a hook": hooked,
    "a parametrisation": reparametrised,
    "a forward of its own": replaced,
    "a subclass": lambda: nn.Sequential(nn.Flatten(), Doubled(84, 3)),
    "another order": lambda: Backwards(nn.Linear(84, 3), nn.Flatten()),
    "a layer twice": shared,
}


@pytest.mark.parametrize("name", ODD)
def test_the_quick_way_leaves_what_is_not_plain_to_export(name: str) -> None:
    net = ODD[name]().eval()
    assert layers.chain(net, IMAGE) is None
    x = torch.rand(3, *IMAGE)
    graph = trace(net, IMAGE)
    torch.testing.assert_close(graph.values(graph.weights(), x), net(x))


def test_tensors_are_live_and_gradients_reach_them() -> None:
    net = ready(Residual()).float()
    graph, x, label = trace(net, IMAGE), torch.rand(2, *IMAGE), torch.tensor([0, 1])
    before = ibp.margins(graph, x - 0.1, x + 0.1, label)
    before.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
    with torch.no_grad():
        net.a.weight.mul_(1.5)
        net.first.running_mean = net.first.running_mean + 1  # a new tensor in the old one's place
    torch.testing.assert_close(ibp.margins(graph, x - 0.1, x + 0.1, label), ibp.margins(trace(net, IMAGE), x - 0.1, x + 0.1, label))
    assert not torch.equal(ibp.margins(graph, x - 0.1, x + 0.1, label), before)


def test_tracing_leaves_the_net_as_it_was() -> None:
    net = ready(Residual()).float()
    net.train()
    net.second.eval()
    state, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    trace(net, IMAGE)
    assert [part.training for part in net.modules()].count(False) == 1
    assert not net.second.training
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in net.parameters())


# --- what is refused --------------------------------------------------------------------------------------------------------------------


class Assigned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 0] = 0.5
        return x.flatten(1)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.flatten(1)


def branch(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.fc = nn.Softsign(), nn.Linear(84, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(x.flatten(1)))


def said(function: Callable[..., Tensor], *parts: nn.Module) -> Callable[[], nn.Module]:
    return lambda: Said(function, *parts, head=False)


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "an operator": (lambda: nn.Sequential(nn.Identity(), Block()), ("operator aten.", "has no known bounds", "submodule 1.act")),
    "a random number": (said(lambda x: x + torch.randn_like(x)), ("randn_like", "draws random numbers", "nets.py:")),
    "random numbers alone": (said(lambda x: x + torch.rand(2, 7, 6)), ("aten.rand", "draws random numbers", "nets.py:")),
    "item assignment": (Assigned, ("operator aten.", "test_graph.py:")),
    "a branch on the data": (said(branch), ("torch.export cannot trace the net, test_graph.py:", "GuardOnDataDependentSymNode")),
    "two factors": (said(lambda x: x * x.relu()), ("aten.mul", "both depend on the image", "nets.py:")),
    "a product of two nodes": (said(lambda x: x @ x.transpose(2, 3)), ("aten.matmul", "both depend on the image")),
    "a quotient": (said(lambda x: 1 / (x + 1)), ("operator aten.",)),
    "batch statistics": (said(lambda x: functional.batch_norm(x, None, None, training=True)), ("batch_norm", "has no known bounds")),
    "a mean over the batch": (said(lambda x: x - x.mean(0, keepdim=True)), ("aten.mean", "along the batch")),
    "another order of images": (said(lambda x: x.flip(0)), ("aten.flip",)),
    "rows into columns": (said(lambda x: x.transpose(0, 1).transpose(0, 1)), ("aten.transpose", "along the batch")),
    "a batch cut in two": (said(lambda x: torch.cat([x[1:], x[:1]])), ("torch.export cannot trace", "Constraints violated")),
    "a size of the batch": (said(lambda x: x / x.shape[0]), ("aten.div", "batch size")),
    "a leaky slope over 1": (said(lambda x: functional.leaky_relu(x, 1.5)), ("leaky_relu", "slope 1.5")),
    "infinite padding": (said(lambda x: functional.pad(x, (1, 1), value=-torch.inf)), ("pads with -inf",)),
    "buffers that change": (Counting, ("changes its buffer calls",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused_in_one_line(name: str) -> None:
    build, words = REFUSED[name]
    with pytest.raises(Unsupported) as caught:
        trace(build(), IMAGE)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ModelError)


def test_a_net_must_return_one_row_of_logits() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.flatten(1), x

    for net in (Pair(), nn.Sequential(nn.ReLU()), nn.Sequential(nn.Flatten(), nn.Linear(84, 1)), Said(lambda x: x, head=False)):
        if isinstance(net, Said):
            assert trace(net, IMAGE).classes == 84
            continue
        with pytest.raises(Unsupported):
            trace(net, IMAGE)
