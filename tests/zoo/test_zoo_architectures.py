"""Nets from tables: the function, the keys and the counts of the same net written by hand; a table that cannot be says where."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rbench_zoo.architectures import MLP, Layers, Normalise, ResNet2b, ResNet20, SmallCNN
from rbench_zoo.architectures.resnets import PaddedBlock

SMALL: list[list[str | int]] = [
    ["conv", 16, 4, 2, 1],
    ["relu"],
    ["conv", 32, 4, 2, 1],
    ["relu"],
    ["flatten"],
    ["linear", 100],
    ["relu"],
    ["linear", 10],
]


def by_hand() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_a_table_is_the_net_written_by_hand() -> None:
    net, hand = Layers(SMALL, [1, 28, 28]), by_hand()
    assert [key.partition(".")[0] for key in net.state_dict() if key.endswith("weight")] == ["0", "2", "5", "7"]
    hand.load_state_dict(net.state_dict())  # strict: the same keys and shapes
    x = images(16, 1, 28, 28)
    assert torch.equal(net(x), hand(x))
    assert sum(parameter.numel() for parameter in net.parameters()) == 166_406
    assert (net.shape, net.classes) == ((1, 28, 28), 10)


@pytest.mark.parametrize(
    ("layers", "shape", "parameters"),
    [
        (SMALL, [3, 32, 32], 214_918),
        ([["conv", 16, 4, 2], ["relu"], ["conv", 32, 4, 2, 0], ["relu"], *SMALL[4:]], [3, 32, 32], 125_318),
        (
            [["conv", 4, 5, 2, 2], ["relu"], ["conv", 8, 5, 2, 2], ["relu"], ["flatten"], ["linear", 128], ["relu"], ["linear", 10]],
            [1, 28, 28],
            52_506,
        ),
        ([["flatten"], ["linear", 500], ["relu"], ["linear", 10]], [1, 28, 28], 397_510),
    ],
)
def test_published_architectures_have_their_published_size(layers: list[list[str | int]], shape: list[int], parameters: int) -> None:
    assert sum(parameter.numel() for parameter in Layers(layers, shape).parameters()) == parameters


def test_equal_tables_are_equal_nets_however_they_were_written() -> None:
    written = Layers([["conv", 16, 3], ["relu"], ["flatten"], ["linear", 10]], [1, 8, 8])
    full = Layers([["conv", 16, 3, 1, 0], ["relu"], ["flatten"], ["linear", 10]], (1, 8, 8))
    assert written.table == full.table == [["conv", 1, 16, 3, 1, 0], ["relu"], ["flatten"], ["linear", 576, 10]]
    assert SmallCNN().table != SmallCNN(hidden=65).table


CONVOLUTIONS: list[list[str | int]] = [["conv", 4, 3, 1, 1], ["batchnorm"], ["elu"], ["maxpool", 2], ["flatten"], ["linear", 10]]


def test_batch_norm_elu_and_pooling_are_torch_s_and_rows_may_have_names() -> None:
    net = Layers(CONVOLUTIONS, [2, 9, 8], names={"0": "conv1", "1": "bn1", "5": "linear"}).eval()
    hand = nn.Sequential(nn.Conv2d(2, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10)).eval()
    nn.init.uniform_(hand[1].running_mean)
    names = {"conv1": "0", "bn1": "1", "linear": "5"}
    assert {key.partition(".")[0] for key in net.state_dict()} == set(names)
    own = {key: f"{names[key.partition('.')[0]]}.{key.partition('.')[2]}" for key in net.state_dict()}
    net.load_state_dict({key: hand.state_dict()[own[key]] for key in own})
    x = images(16, 2, 9, 8)
    assert torch.equal(net(x), hand(x))
    assert net.table == [["conv", 2, 4, 3, 1, 1], ["batchnorm", 4], ["elu"], ["maxpool", 2], ["flatten"], ["linear", 64, 10]]


CLASHES = [({"6": "x"}, "from 0 to 5"), ({"0": "a.b"}, "dots"), ({"0": "a", "1": "a"}, "different"), ({"0": "1"}, "different")]


@pytest.mark.parametrize(("names", "words"), CLASHES)
def test_names_that_cannot_be_say_so(names: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Layers(CONVOLUTIONS, [2, 9, 8], names=names)


@pytest.mark.parametrize(("net", "parameters"), [(ResNet20(), 269_722), (ResNet2b(), 112_006)], ids=["ResNet20", "ResNet2b"])
def test_residual_nets_have_their_published_size(net: nn.Module, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    assert net.eval()(images(2, 3, 32, 32)).shape == (2, 10)


def test_the_shortcut_without_parameters_takes_every_second_pixel_and_pads_channels() -> None:
    block = PaddedBlock(2, 6, 2).eval()
    nn.init.zeros_(block.conv2.weight)  # what is left is the shortcut
    x = images(1, 2, 4, 4)
    out = block(x)
    assert torch.equal(out[:, 2:4], x[:, :, ::2, ::2])
    assert out[:, :2].abs().sum() == out[:, 4:].abs().sum() == 0


def first(net: Layers, rows: int) -> nn.Sequential:
    return nn.Sequential(*list(net)[:rows])


def test_our_own_nets() -> None:
    small = SmallCNN()
    assert sum(parameter.numel() for parameter in small.parameters()) == 38_282
    assert [tuple(part(images(2, 1, 8, 8)).shape) for part in [small, first(small, 2), first(small, 4)]] == [
        (2, 10),
        (2, 16, 8, 8),
        (2, 32, 4, 4),
    ]
    assert SmallCNN([8], 16, [3, 32, 32], 4)(images(2, 3, 32, 32)).shape == (2, 4)
    assert MLP([])(images(2, 1, 8, 8)).shape == (2, 10)
    assert [row[0] for row in MLP([32, 16]).table] == ["flatten", "linear", "relu", "linear", "relu", "linear"]


def test_normalisation_is_per_channel() -> None:
    x = images(2, 3, 4, 4)
    y = Normalise([0.1, 0.2, 0.3], [0.5, 1.0, 2.0])(x)
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 1.0), (0.3, 2.0)]):
        torch.testing.assert_close(y[:, channel], (x[:, channel] - mean) / std)
    assert Normalise([0.0], [1.0]).state_dict() == {}


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([["conv", 16]], "layer 0"),
        ([["relu"], ["pool", 2]], "layer 1"),
        ([[]], "layer 0"),
        ([["linear", "10"]], "layer 0"),
        ([["linear", True]], "layer 0"),
        ([["linear", 10]], "flatten before"),
        ([["flatten"], ["conv", 1, 1]], "on an image"),
        ([["conv", 4, 9]], "does not fit"),
        ([["conv", 0, 3]], "from 1 on"),
        ([["conv", 4, 3, 0]], "from 1 on"),
        ([["conv", 4, 3, 1, -1]], "from 1 on"),
        ([["flatten"], ["linear", 0]], "from 1 on"),
        ([["conv", 4, 3]], "end with flatten"),
        ([], "end with flatten"),
        ([["relu", 1]], "layer 0"),
        ([["maxpool"]], "layer 0"),
        ([["maxpool", 9]], "does not fit"),
        ([["maxpool", 0]], "does not fit"),
        ([["flatten"], ["batchnorm"]], "before flatten"),
        ([["flatten"], ["maxpool", 2]], "before flatten"),
    ],
)
def test_a_table_that_cannot_be_says_where(layers: list[Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Layers(layers, [1, 8, 8])


@pytest.mark.parametrize("shape", [[8, 8], [1, 8, 0], [1, 1, 8, 8]])
def test_a_shape_that_cannot_be(shape: list[Any]) -> None:
    with pytest.raises(ValueError, match="shape"):
        Layers([["flatten"], ["linear", 2]], shape)
