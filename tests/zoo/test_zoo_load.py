"""From card to model: the digest before anything is opened, every key and shape accounted for, and the model's own digest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from rbench.data import load as load_data
from rbench_core.errors import CardError, FileError, ModelError, UsageError
from rbench_core.files import sha256_bytes
from rbench_zoo import catalogue, fetch, load
from rbench_zoo.architectures import SmallCNN
from rbench_zoo.card import Card
from rbench_zoo.load import load_model, model_digest
from zoo.cards import read_card, tensors, write_card, write_weights


@pytest.fixture(autouse=True)
def _no_mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RBENCH_WEIGHTS", raising=False)
    monkeypatch.setattr(fetch, "cache_folder", lambda: tmp_path / "cache")


def digest(path: Path) -> str:
    card = read_card(path)
    return model_digest(load_model(card), card)


# --- loading ------------------------------------------------------------------------------------------------------------------------


def test_a_model_is_its_net_with_its_weights_in_eval_mode(tmp_path: Path) -> None:
    card = read_card(write_card(tmp_path))
    state = torch.random.get_rng_state()
    model = load_model(card)
    assert torch.equal(torch.random.get_rng_state(), state)  # building a net draws weights; nobody's generator notices
    hand = SmallCNN((2, 3), 5).eval()
    hand.load_state_dict(tensors())
    x = torch.rand(16, 1, 8, 8)
    assert torch.equal(model(x), hand(x))
    assert not any(part.training for part in model.modules())


def test_the_input_layer_comes_first(tmp_path: Path) -> None:
    plain = load_model(read_card(write_card(tmp_path)))
    scaled = load_model(read_card(write_card(tmp_path, "scaled", changes={'input = "0..1"': "input = { mean = [0.5], std = [0.25] }"})))
    x = torch.rand(16, 1, 8, 8)
    torch.testing.assert_close(scaled(x), plain((x - 0.5) / 0.25))
    assert not scaled.training


def test_nothing_is_opened_before_its_digest_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_card(tmp_path)
    opened = []
    monkeypatch.setattr(safetensors.torch, "load", lambda data: opened.append(data))
    weights = path.with_suffix(".safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(FileError, match="SHA-256"):
        load_model(read_card(path))
    assert opened == []


def wrong_weights() -> dict[str, tuple[dict[str, torch.Tensor], str]]:
    good = tensors()
    return {
        "missing": ({key: value for key, value in good.items() if key != "0.bias"}, "0.bias is missing"),
        "one too many": ({**good, "9.bias": torch.zeros(3)}, "9.bias is not of this net"),
        "shape": ({**good, "0.bias": torch.zeros(3)}, "float32 [3] instead of float32 [2]"),
        "a shape that broadcasts": ({**good, "0.bias": torch.zeros(1)}, "float32 [1] instead of float32 [2]"),
        "type": ({**good, "0.bias": good["0.bias"].double()}, "float64 [2] instead of float32 [2]"),
        "other names": ({f"net.{key}": value for key, value in good.items()}, "more)"),
    }


@pytest.mark.parametrize("case", wrong_weights())
def test_weights_that_do_not_fit_give_one_line(case: str, tmp_path: Path) -> None:
    values, words = wrong_weights()[case]
    path = write_card(tmp_path)
    old = read_card(path).weights.sha256
    path.write_text(path.read_text().replace(old, write_weights(path.with_suffix(".safetensors"), values)))
    with pytest.raises(ModelError) as error:
        load_model(read_card(path))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pickle_with_the_right_digest_is_still_not_read(tmp_path: Path) -> None:
    path = write_card(tmp_path)
    torch.save(tensors(), path.with_suffix(".safetensors"))
    sha256 = sha256_bytes(path.with_suffix(".safetensors").read_bytes())
    path.write_text(path.read_text().replace(read_card(path).weights.sha256, sha256))
    with pytest.raises(ModelError, match="no safetensors file"):
        load_model(read_card(path))


def test_a_card_that_counts_other_parameters_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="expected 382"):
        load_model(read_card(write_card(tmp_path, changes={"parameters = 382": "parameters = 308"})))


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("rbench_zoo.architectures:Transformer", "Transformer"),
        ("no_such_package:Net", "no_such_package"),
        ("builtins:dict", "returned dict"),
        ("rbench_zoo.architectures:MLP", "channels"),
        ("absent.py:Net", "no such file"),
    ],
)
def test_factories_that_fail_give_one_line(factory: str, words: str, tmp_path: Path) -> None:
    card = read_card(write_card(tmp_path, changes={"rbench_zoo.architectures:SmallCNN": factory}))
    with pytest.raises((ModelError, UsageError)) as error:
        load_model(card)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


TWICE = """
from rbench_zoo.architectures import SmallCNN
class Twice(SmallCNN):
    def forward(self, x):
        return 2 * super().forward(x)
"""


def test_a_factory_may_lie_beside_its_card(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(TWICE)
    plain = read_card(write_card(tmp_path, "plain"))
    twice = read_card(write_card(tmp_path, "twice", changes={"rbench_zoo.architectures:SmallCNN": "nets.py:Twice"}))
    x = torch.rand(16, 1, 8, 8)
    torch.testing.assert_close(load_model(twice)(x), 2 * load_model(plain)(x))
    before = model_digest(load_model(twice), twice)
    assert before != model_digest(load_model(plain), plain)  # the same table and weights, another function
    (tmp_path / "nets.py").write_text((tmp_path / "nets.py").read_text().replace("2 *", "3 *"))
    assert model_digest(load_model(twice), twice) != before


def test_counters_of_old_batch_norms_may_be_absent_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\ndef make(**_):\n    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))\n"
    )
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    kept = {key: value for key, value in net.state_dict().items() if key != "1.num_batches_tracked"}
    path = write_card(tmp_path, changes={"rbench_zoo.architectures:SmallCNN": "nets.py:make", "parameters = 382": "parameters = 778"})
    old = read_card(path).weights.sha256
    path.write_text(path.read_text().replace(old, write_weights(path.with_suffix(".safetensors"), kept)))
    x = torch.rand(16, 1, 8, 8)
    assert torch.equal(load_model(read_card(path))(x), net.eval()(x))


# --- identity -----------------------------------------------------------------------------------------------------------------------


def test_the_digest_is_of_the_function_not_of_the_words(tmp_path: Path) -> None:
    base = digest(write_card(tmp_path))
    words = {
        "A small net": "Another title",
        "linf-at": "msd",
        "seed = 0": "seed = 1",
        "1706.06083": "0000.00000",
        'dataset = "digits"': 'dataset = "mnist"',
    }
    assert digest(write_card(tmp_path, "renamed", changes=words)) == base
    assert digest(write_card(tmp_path, "again")) == base
    rows = '["conv", 2, 3, 1, 1], ["relu"], ["conv", 3, 3, 2, 1], ["relu"], ["flatten"], ["linear", 5], ["relu"], ["linear", 10]'
    table = f'rbench_zoo.architectures:Layers"\nshape = [1, 8, 8]\nlayers = [{rows}]'
    same = {'rbench_zoo.architectures:SmallCNN"': table, "channels = [2, 3]": "", "hidden = 5": ""}
    assert digest(write_card(tmp_path, "table", changes=same)) == base  # the same net said otherwise


def test_the_digest_changes_with_weights_architecture_and_scaling(tmp_path: Path) -> None:
    base = digest(write_card(tmp_path))
    assert digest(write_card(tmp_path, "other", seed=1)) != base
    scalings = [f"input = {{ mean = [{mean}], std = [{std}] }}" for mean, std in ((0, 1), (0.5, 1), (0.5, 0.5))]
    digests = {digest(write_card(tmp_path, f"scaled{i}", changes={'input = "0..1"': text})) for i, text in enumerate(scalings)}
    card = read_card(write_card(tmp_path))
    model = load_model(card)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0].add_(2**-20)
    assert len({base, *digests, model_digest(model, card)}) == 5


def test_names_and_types_of_tensors_enter_the_digest() -> None:
    a, b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    b.load_state_dict(a.state_dict())
    one, other = nn.ModuleDict({"a": a, "b": nn.Identity()}), nn.ModuleDict({"a": nn.Identity(), "b": b})
    digests = {load.content_digest(net, None) for net in (one, other)}
    digests.add(load.content_digest(one.double(), None))
    digests.add(load.content_digest(one.bfloat16(), None))
    assert len(digests) == 4


# --- the package's own --------------------------------------------------------------------------------------------------------------


def shipped() -> list[Card]:
    return [card for card in catalogue.cards().values() if card.training.recipe is not None]


@pytest.mark.parametrize("card", shipped(), ids=lambda card: card.name)
def test_every_card_whose_weights_are_in_the_package_loads(card: Card) -> None:
    model = load_model(card)
    data = load_data(card.dataset, n=16)
    assert model(data.x).shape == (16, len(data.classes))
    assert re.fullmatch(r"[0-9a-f]{64}", model_digest(model, card))
    assert card.parameters is not None
    assert card.training.seed is not None
