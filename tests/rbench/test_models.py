"""Models found, probed and given back: what cannot be evaluated gives one line, what is suspicious a warning, a sound one neither."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rbench.api import load_model
from rbench.data import Dataset, from_tensors, load
from rbench.models import Found, Wrapped, attacked, find, module_digest, wrap
from rbench.probe import PROBE_ROWS, input_warning, probe_batch, range_warning
from rbench_core.errors import ModelError, RbenchError, UnknownName, UsageError
from rbench_zoo import catalogue
from rbench_zoo.architectures import SmallCNN
from zoo.cards import write_card


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", n=32)


@pytest.fixture(scope="module")
def many() -> Dataset:
    return load("digits", n=256)


def net(seed: int = 0) -> SmallCNN:
    """A small net in eval mode, drawn by a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallCNN((4, 8), 16).eval()


class Around(nn.Module):
    """A module that does something to a net's input or logits."""

    def __init__(self, after: Callable[[Tensor], Any] = lambda logits: logits, before: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.net, self.after, self.before = net(), after, before
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.after(self.net(self.before(x)))


def wrapped(model: nn.Module, data: Dataset, **source: Any) -> Wrapped:
    return wrap(model, name="mine", dataset=data, source=source)


def one_line(error: pytest.ExceptionInfo[RbenchError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- the probe batch ----------------------------------------------------------------------------------------------------------------


def test_the_probe_batch_is_the_counter_rule_written_by_hand() -> None:
    def value(counter: int) -> float:
        z = counter * 0x9E3779B97F4A7C15 % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return ((z ^ (z >> 31)) >> 40) / 2**24

    batch = probe_batch((1, 2, 3))
    assert batch.flatten().tolist() == [value(i + 1) for i in range(PROBE_ROWS * 6)]
    assert probe_batch((1, 2, 3), first=1).flatten().tolist() == [value(2**32 + i + 1) for i in range(PROBE_ROWS * 6)]


def test_the_probe_batch_is_noise_in_the_unit_range() -> None:
    batch = probe_batch((3, 32, 32))
    assert batch.shape == (16, 3, 32, 32)
    assert batch.dtype == torch.float32
    assert batch.min() >= 0
    assert batch.max() < 1
    assert batch.mean().item() == pytest.approx(0.5, abs=0.01)
    assert len(batch.flatten(1).unique(dim=0)) == 16


# --- warnings -----------------------------------------------------------------------------------------------------------------------


def test_a_sound_model_gets_no_warning_and_stays_itself(digits: Dataset) -> None:
    model = net()
    ready = wrapped(model, digits)
    assert ready.warnings == []
    assert ready.module is model
    assert (ready.classes, ready.parameters, str(ready.device)) == (10, sum(p.numel() for p in model.parameters()), "cpu")
    assert ready.probe == model(probe_batch((1, 8, 8))).tolist()
    assert not any(parameter.requires_grad for parameter in model.parameters())


class Forgetful(nn.Module):
    """Batch statistics even in eval mode: a row sees its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - x.mean(0)) / x.std(0))


class Watermark(nn.Module):
    """A table of memorised answers: no gradient at all."""

    def __init__(self) -> None:
        super().__init__()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot((x.flatten(1).sum(1) * 7).long() % 10, 10).float() * 3 - 1


def in_place(x: Tensor) -> Tensor:
    return x.mul_(0.5)


SUSPICIOUS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "softmax": (lambda: Around(lambda logits: logits.softmax(1)), ["probabilities"]),
    "log-softmax is a logit": (lambda: Around(lambda logits: logits.log_softmax(1)), []),
    "non-negative logits": (lambda: Around(torch.relu), []),
    "logits that sum to 1": (lambda: Around(lambda logits: logits - logits.mean(1, keepdim=True) + 0.1), []),
    "one row sums to 1": (lambda: Around(lambda logits: torch.cat([logits[:1].softmax(1), logits[1:].relu()])), ["batch-dependent"]),
    "nearly probabilities": (lambda: Around(lambda logits: logits.softmax(1) * 1.002), []),
    "noise on the input": (lambda: Around(before=lambda x: x + 0.1 * torch.randn_like(x)), ["random"]),
    "a trace of noise": (lambda: Around(lambda logits: logits + 1e-4 * torch.randn_like(logits)), ["random"]),
    "NaN": (lambda: Around(lambda logits: logits * math.nan), ["nan"]),
    "one infinite logit": (lambda: Around(lambda logits: logits.index_fill(1, torch.tensor([3]), math.inf)), ["nan"]),
    "NaN now and then": (lambda: Around(lambda logits: logits.where(torch.rand_like(logits) < 0.5, math.nan)), ["nan", "random"]),
    "batch statistics": (Forgetful, ["batch-dependent"]),
    "train mode": (lambda: net().train(), ["train-mode"]),
    "one layer in train mode": (lambda: one_layer_training(), ["train-mode"]),
    "double": (lambda: net().double(), ["dtype"]),
    "bfloat16": (lambda: net().bfloat16(), ["dtype"]),
    "double logits": (lambda: Around(lambda logits: logits.double()), ["dtype"]),
    "input changed in place": (lambda: Around(before=in_place), ["in-place"]),
    "detached": (lambda: Around(lambda logits: logits.detach()), ["no-gradient"]),
    "rounded input": (lambda: Around(before=torch.round), ["zero-gradient"]),
    "look-up": (Watermark, ["no-gradient"]),
}


def one_layer_training() -> nn.Module:
    model = net()
    model[0].train()
    return model


@pytest.mark.parametrize("case", SUSPICIOUS)
def test_suspicious_models_are_warned_of_and_no_others(case: str, digits: Dataset) -> None:
    make, expected = SUSPICIOUS[case]
    ready = wrapped(make(), digits)
    found = [warning["code"] for warning in ready.warnings]
    assert found == expected
    assert all(set(warning) == {"code", "text"} and "\n" not in warning["text"] for warning in ready.warnings)
    assert not any(part.training for part in ready.module.modules())
    assert (ready.probe == []) == ("nan" in expected)


@pytest.mark.parametrize("case", ["double", "bfloat16", "double logits", "input changed in place"])
def test_an_adapter_takes_and_gives_float32_and_lets_gradients_through(case: str, digits: Dataset) -> None:
    model = SUSPICIOUS[case][0]()
    ready = wrapped(model, digits)
    x = digits.x.clone().requires_grad_()
    logits = ready.module(x)
    (grad,) = torch.autograd.grad(logits.sum(), x)
    assert logits.dtype == grad.dtype == torch.float32
    assert grad.any()
    assert torch.equal(x, digits.x)  # also by the model that works in place
    if case == "double":
        torch.testing.assert_close(logits, net()(digits.x))


@pytest.mark.parametrize(
    ("accuracy", "classes", "warned"),
    [(0.1, 10, True), (0.18, 10, True), (0.2, 10, False), (0.5, 2, True), (0.6, 2, False), (0.0, 10, True)],
)
def test_an_accuracy_near_chance_is_warned_of(accuracy: float, classes: int, warned: bool) -> None:
    assert (range_warning(accuracy, classes) is not None) is warned


class Expecting(nn.Module):
    """A net of the zoo for images in another range than [0, 1]."""

    def __init__(self, back: Callable[[Tensor], Tensor], name: str = "digits-standard") -> None:
        super().__init__()
        self.net, self.back, self.seen = load_model(name).requires_grad_(False), back, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.net(self.back(x))  # type: ignore[no-any-return]


RANGES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "grey levels": (lambda x: x / 255, "0 to 255"),
    "both signs": (lambda x: (x + 1) / 2, "-1 to 1"),
    "normalised": (lambda x: 0.38 * x + 0.31, "mean 0 and deviation 1"),
}


@pytest.mark.parametrize("case", RANGES)
def test_a_model_for_another_range_is_told_which(case: str, many: Dataset) -> None:
    """Only grey levels end at chance: the other two are right on eight or nine of ten images and are told all the same."""
    back, words = RANGES[case]
    model = Expecting(back)
    clean = float((model(many.x).argmax(1) == many.y).float().mean())
    found = input_warning(model, many.x, many.y, clean, 10)
    assert found is not None
    assert found["code"] == "input-range"
    assert f"scaled to {words}" in found["text"]
    assert f"is {clean:.1%}, but 9" in found["text"]
    if case != "grey levels":
        assert clean > 0.75


@pytest.mark.parametrize("name", ["digits-standard", "digits-msd", "digits-l1-at"])
def test_a_model_that_is_right_as_it_is_gets_no_word_about_its_range(name: str, many: Dataset) -> None:
    model = Expecting(lambda x: x, name)
    assert input_warning(model, many.x, many.y, 0.9, 10) is None  # as if the run's slice were harder than the first images
    assert model.seen == 4 * len(many)
    assert input_warning(model, many.x, many.y, 0.96, 10) is None
    assert model.seen == 4 * len(many)  # few errors: no scaling could gain enough, so none is tried


def test_near_chance_without_a_cure_is_told_as_before_and_luck_is_none(many: Dataset) -> None:
    model = Expecting(lambda x: x.flip(3))
    clean = float((model(many.x).argmax(1) == many.y).float().mean())
    assert input_warning(model, many.x, many.y, clean, 10) == range_warning(clean, 10)
    few = Expecting(RANGES["both signs"][0])
    assert input_warning(few, many.x[:8], many.y[:8], 0.5, 10) is None  # eight images show nothing


def test_trying_other_ranges_leaves_the_images_alone_and_survives_refusals(many: Dataset) -> None:
    def strict(x: Tensor) -> Tensor:
        if x.max() > 1 or x.min() < 0:
            raise ValueError("images lie in [0, 1]")
        return x.mul_(0.5)

    before = many.x.clone()
    assert input_warning(Expecting(strict), many.x, many.y, 0.5, 10) is None
    assert torch.equal(many.x, before)


# --- what cannot be evaluated -------------------------------------------------------------------------------------------------------

UNFIT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "nine classes": (lambda: SmallCNN((4, 8), 16, classes=9), "9 classes; expected 10"),
    "eleven classes": (lambda: SmallCNN((4, 8), 16, classes=11), "11 classes; expected 10"),
    "another image size": (lambda: SmallCNN((4, 8), 16, (1, 28, 28)), "1×8×8"),
    "another number of channels": (lambda: SmallCNN((4, 8), 16, (3, 8, 8)), "1×8×8"),
    "a pair": (lambda: Around(lambda logits: (logits, logits)), "tuple"),
    "a dictionary": (lambda: Around(lambda logits: {"logits": logits}), "dict"),
    "labels": (lambda: Around(lambda logits: logits.argmax(1)), "(16,)"),
    "integers": (lambda: Around(lambda logits: logits.long()), "int64"),
    "maps": (lambda: Around(lambda logits: logits[:, :, None, None]), "(16, 10, 1, 1)"),
    "one row": (lambda: Around(lambda logits: logits[:1]), "(1, 10)"),
    "an exception": (lambda: Around(lambda logits: 1 / 0), "ZeroDivisionError"),
    "an exit": (lambda: Around(lambda logits: sys.exit(3)), "SystemExit"),
    "an exception on the second pass": (lambda: Around(Once()), "second pass"),
}


class Once:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, logits: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("the model\ncrashed in the middle")
        return logits


@pytest.mark.parametrize("case", UNFIT)
def test_models_that_cannot_be_evaluated_give_one_line(case: str, digits: Dataset) -> None:
    make, words = UNFIT[case]
    with pytest.raises(ModelError) as error:
        wrapped(make(), digits)
    line = one_line(error)
    assert words in line
    assert "mine" in line
    assert error.value.exit_code == 1


def test_both_shapes_are_named_where_the_zoo_knows_them(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_card(tmp_path)
    monkeypatch.setenv("RBENCH_REGISTRY", str(tmp_path))
    found = find("small")
    big = from_tensors(torch.rand(2, 3, 9, 9), torch.tensor([0, 9]))
    with pytest.raises(ModelError) as error:
        wrap(found.module, name="small", dataset=big, source=found.source)
    assert "3×9×9" in one_line(error)
    assert "1×8×8" in str(error.value)


def test_labels_bound_the_classes_of_own_data_from_below(digits: Dataset) -> None:
    own = from_tensors(digits.x, digits.y.clamp(max=4))
    assert wrapped(net(), own).classes == 10
    with pytest.raises(ModelError, match="at least 5"):
        wrapped(SmallCNN((4, 8), 16, classes=4), own)
    named = from_tensors(digits.x, digits.y.clamp(max=4), classes=list("abcde"))
    with pytest.raises(ModelError, match="expected 5"):
        wrapped(net(), named)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_devices_that_are_not_there_give_one_line(device: str, digits: Dataset) -> None:
    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(UsageError) as error:
        wrap(net(), name="mine", dataset=digits, device=device, source={})
    assert device in one_line(error)


# --- given back as it came ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_modes_and_flags_come_back(fails: bool, digits: Dataset) -> None:
    model = SmallCNN((4, 8), 16, classes=9 if fails else 10).train()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    before = [(part.training) for part in model.modules()], [p.requires_grad for p in model.parameters()]
    try:
        with attacked(model, name="mine", dataset=digits) as ready:
            assert not any(part.training for part in ready.module.modules())
            assert not any(p.requires_grad for p in model.parameters())
    except ModelError:
        assert fails
    assert ([part.training for part in model.modules()], [p.requires_grad for p in model.parameters()]) == before


def test_they_come_back_after_an_error_inside(digits: Dataset) -> None:
    model = net().train()
    with pytest.raises(KeyboardInterrupt), attacked(model, name="mine", dataset=digits):
        raise KeyboardInterrupt
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.gpu
def test_the_device_comes_back(digits: Dataset) -> None:
    model = net()
    with attacked(model, name="mine", dataset=digits, device="cuda") as ready:
        assert next(ready.module.parameters()).is_cuda
        on_device = ready.digest
    assert not next(model.parameters()).is_cuda
    assert wrapped(model, digits).digest == on_device


# --- identity -----------------------------------------------------------------------------------------------------------------------


class Warm(nn.Module):
    """A net with a plain setting that no tensor shows."""

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.net, self.temperature = net(), temperature
        self.register_buffer("shift", torch.zeros(10), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) / self.temperature + self.shift


class Warmer(Warm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_the_digest_tells_functions_apart_and_nothing_else() -> None:
    base = module_digest(Warm(), None, 10)
    same = [module_digest(Warm().train(), None, 10), module_digest(Warm().requires_grad_(False), None, 10)]
    assert set(same) == {base}
    weight, buffer = Warm(), Warm()
    with torch.no_grad():
        weight.net[0].weight.view(-1)[0].add_(2**-20)
        buffer.shift[0] = 1e-9
    variants = [weight, buffer, Warm(2.0), Warmer()]
    digests = {module_digest(variant, None, 10) for variant in variants}
    digests |= {module_digest(Warm(), "def make(): ...", 10), module_digest(Warm(), None, 11), base}
    assert len(digests) == 7


def test_the_digest_is_the_same_in_another_process(tmp_path: Path) -> None:
    """Addresses, hash seeds and the order of sets must not enter."""
    (tmp_path / "net.py").write_text(FILES["good"])
    spec = f"{tmp_path}/net.py:make"
    code = "import sys; from rbench.models import *; f = find(sys.argv[1]); print(module_digest(f.module, f.source['text'], 10))"
    env = {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-P", "-c", code, spec], capture_output=True, text=True, check=True, env=env)
    found = find(spec)
    assert done.stdout.strip() == module_digest(found.module, found.source["text"], 10)


def test_a_zoo_model_brings_its_card_and_digest(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_card(tmp_path)
    monkeypatch.setenv("RBENCH_REGISTRY", str(tmp_path))
    found = find("small")
    assert (found.name, found.title, found.dataset) == ("small", "A small net", "digits")
    ready = wrap(found.module, name=found.name, title=found.title, dataset=digits, source=found.source)
    assert ready.digest == found.source["digest"]
    assert ready.card["architecture"]["channels"] == [2, 3]
    assert ready.warnings == []
    with pytest.raises(UnknownName, match="small"):
        find("smal")


def test_an_entry_point_is_imported_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {
        "theirs": EntryPoint("theirs", "rbench_zoo.architectures:SmallCNN", catalogue.GROUP),
        "gone": EntryPoint("gone", "no_such:make", catalogue.GROUP),
    }
    monkeypatch.setattr(catalogue, "installed", lambda group: points)
    found = find("theirs")
    assert isinstance(found.module, SmallCNN)
    assert found.dataset is None
    with pytest.raises(ModelError, match="no_such"):
        find("gone")


# --- FILE.py:FACTORY ----------------------------------------------------------------------------------------------------------------

FILES = {
    "good": """
        import torch
        from torch import nn

        print("a note of the author")
        ready = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        number = 3

        class Net(nn.Module):
            scale = 2

            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.fc = nn.Linear(64, 10)

            def forward(self, x):
                return self.scale * self.fc(x.flatten(1))

        class Same(nn.Module):
            def forward(self, x):
                return x

        def make():
            print("another note")
            return nn.Sequential(Same(), Net()).eval()

        def nothing():
            pass

        def raises():
            raise ValueError("no weights\\nhere")

        def leaves():
            raise SystemExit(4)

        def needs(path):
            return Net()

        def finds_no_attribute():
            return nn.NoSuchLayer()
    """,
    "unparsable": "def make(:\n    pass\n",
    "raising": "import a_module_that_is_not_there\n",
    "exiting": "import sys\nsys.exit(0)\n",
    "binary": "\0",
}
FILES = {name: textwrap.dedent(text) for name, text in FILES.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "folder.py").mkdir()
    return tmp_path


@pytest.mark.parametrize("factory", ["make", "Net", "ready"])
def test_a_file_s_factory_class_or_module_is_taken(factory: str, folder: Path, digits: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.iterdir()), list(sys.path)
    found = find(f"{folder}/good.py:{factory}")
    assert isinstance(found, Found)
    assert (found.name, found.dataset) == (f"good.py:{factory}", None)
    assert found.source["text"] == FILES["good"]
    assert wrapped(found.module, digits, **found.source).classes == 10
    assert capsys.readouterr().out == ""  # stdout is for results
    assert (sorted(folder.iterdir()), list(sys.path)) == before  # no cache beside the user's file


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("absent.py:make", UsageError, "no such file"),
        ("folder.py:make", UsageError, "irectory"),
        ("good.py", UsageError, "FILE.py:FACTORY"),
        ("good.py:", UsageError, "make"),
        ("good.py:mak", UsageError, "make"),
        ("good.py:number", ModelError, "int"),
        ("good.py:nothing", ModelError, "NoneType"),
        ("good.py:raises", ModelError, "no weights here"),
        ("good.py:leaves", ModelError, "SystemExit"),
        ("good.py:needs", ModelError, "path"),
        ("good.py:finds_no_attribute", ModelError, "NoSuchLayer"),
        ("unparsable.py:make", ModelError, "line 1"),
        ("raising.py:make", ModelError, "a_module_that_is_not_there"),
        ("exiting.py:make", ModelError, "SystemExit"),
        ("binary.py:make", ModelError, "null"),
    ],
)
def test_files_that_give_no_model_give_one_line(spec: str, kind: type[RbenchError], words: str, folder: Path) -> None:
    with pytest.raises(kind) as error:
        find(f"{folder}/{spec}")
    assert words in one_line(error)
    assert error.value.exit_code == (2 if kind is UsageError else 1)


def test_a_file_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("from torch import nn\ndef build():\n    return nn.Flatten()\n")
    (tmp_path / "net.py").write_text("def make():\n    from beside_it import build\n    return build()\n")
    assert isinstance(find(f"{tmp_path}/net.py:make").module, nn.Flatten)
    assert str(tmp_path) not in sys.path


def test_an_edited_file_is_read_again_and_is_another_model(tmp_path: Path, digits: Dataset) -> None:
    path = tmp_path / "net.py"
    path.write_text(FILES["good"])
    one = find(f"{path}:make")
    path.write_text(FILES["good"].replace("scale = 2", "scale = 3"))  # the same length, within the same second
    other = find(f"{path}:make")
    torch.testing.assert_close(2 * other.module(digits.x), 3 * one.module(digits.x))
    assert wrapped(one.module, digits, **one.source).digest != wrapped(other.module, digits, **other.source).digest


def test_what_is_no_model_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="dict"):
        find({"model": 1})
