"""The set of stored candidates: its two members, its spec, its balls; every file that is wrong in one way gives its one line."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from invariance.made import arrays, write
from laws.given import rows
from rbench_core.errors import DataError, RbenchError, SpecError, UnknownName
from rbench_core.files import sha256_bytes
from rbench_threats import released
from rbench_threats.candidates import pack, unpack
from rbench_threats.catalogue import build, resolve
from rbench_threats.protocol import PerturbationSet
from rbench_threats.spec import parse
from rbench_threats.stored import Stored

SETS = ("l0", "linf-0.3", "linf-0.4", "manual")
RELEASED = {  # n, labels that people changed, largest linf distance in 255ths: the reference's section 4
    "l0": (100, 55, 255.0),
    "linf-0.3": (100, 21, 76.5),
    "linf-0.4": (100, 37, 103.0),
    "manual": (50, 44, 102.0),
}


@pytest.fixture
def own(tmp_path: Path) -> Stored:
    return Stored(str(write(tmp_path)))


# --- the set ------------------------------------------------------------------------------------------------------------------------


def test_it_is_a_set_of_two_members_and_nothing_between(own: Stored) -> None:
    assert isinstance(own, PerturbationSet)
    x, _ = own.examples()
    ctx = own.context(x[[0] * 7], rows(7)._replace(example=torch.zeros(7, dtype=torch.long)))
    theta = torch.tensor([0.0, 1.0, 0.5, 0.999, -1.0, 2.0, torch.nan])[:, None]
    assert (own.excess(ctx, theta) <= 0).tolist() == [True, True, False, False, False, False, False]
    assert not (own.excess(ctx, theta + torch.inf) <= 0).any()
    assert own.project(ctx, theta[:6]).flatten().tolist() == [0, 1, 0, 1, 0, 1]  # the nearer index
    assert own.project(ctx, theta[:6], 0.9).flatten().tolist() == [0] * 6
    assert own.project(ctx, theta[:6], torch.tensor([1.0, 1.0, 2.0, 0.5, 1.0, 1.0])).flatten().tolist() == [0, 1, 0, 0, 0, 1]
    assert own.gauge(ctx, own.start(ctx, rows(7))).tolist() == [1] * 7
    assert own.gauge(ctx, torch.zeros(7, 1)).tolist() == [0] * 7


def test_it_renders_both_members_exactly_and_looks_candidates_up_by_example(own: Stored) -> None:
    x, y = own.examples()
    order = torch.tensor([2, 0, 3, 1])
    row = rows(4)._replace(example=order)
    ctx = own.context(x[order], row)
    assert torch.equal(own.render(ctx, torch.zeros(4, 1)), x[order])
    candidates = torch.from_numpy(arrays()["adv"][order.numpy()]).float()[:, None] / 255
    assert torch.equal(own.render(ctx, torch.ones(4, 1)), candidates)
    assert own.points(ctx).tolist() == [[1.0]]
    assert y.tolist() == [0, 1, 2, 3]
    assert own.labels().tolist() == [0, 7, 2, 8]
    theta = torch.full((4, 1), 0.3, dtype=torch.float64, requires_grad=True)
    ctx = own.context(x.double(), rows(4))
    assert torch.autograd.gradcheck(lambda at: own.render(ctx, at), theta)


@pytest.mark.parametrize("name", SETS)
def test_a_released_set_is_named_without_its_data(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RBENCH_DATA", str(tmp_path))
    space = resolve(f"invariance-{name}", "mnist").members[0]
    assert space == build(parse(str(space)))
    assert str(space) == f"invariance({name})"
    assert space.family == f"invariance:{released.RELEASED[name].sha256}"
    assert space.extent == {}
    space.check((1, 28, 28))
    with pytest.raises(SpecError, match=r"\(1, 32, 32\)"):
        space.check((1, 32, 32))
    assert ("balls" in space.capabilities) == (name != "l0")
    assert {"points", "examples", "labels", "portrait"} <= space.capabilities


def test_a_file_of_ones_own_prints_as_the_spec_that_makes_it_again(own: Stored) -> None:
    again = build(parse(str(own)))
    assert again == own
    assert hash(again) == hash(own)
    assert own.family == f"invariance:{sha256_bytes(pack(arrays()))}"


def test_the_balls_hold_every_candidate(own: Stored, tmp_path: Path) -> None:
    balls = own.balls()
    assert balls["nominal"] is balls["strict"]  # 51/255 is 0.2
    floats = arrays()["clean"].astype(np.float32) + np.float32(50.123)
    space = Stored(str(write(tmp_path, "float.npz", adv=floats)))
    strict = space.balls()["strict"]
    actual = np.abs(floats - arrays()["clean"].astype(np.float32)).max() / 255
    assert actual <= float(strict.extent["eps"]) <= actual + 1e-6
    assert space.balls()["nominal"].extent == {"eps": Fraction(1, 5)}
    assert Stored(str(write(tmp_path, "none.npz", declared=None))).balls() == {}


def test_a_portrait_shows_changed_candidates(own: Stored) -> None:
    portrait = own.portrait(own.examples()[0])
    (panel,) = portrait.panels
    assert panel.images.shape == (2, 2, 1, 8, 8)
    assert panel.rows == ("image 3: 1, people read 7", "image 9: 3, people read 8")
    facts = {fact.name: fact.value for fact in portrait.facts}
    assert facts["people call it something else"] == "2 of 4"
    assert facts["declared ball"] == "linf(eps=0.2)"
    assert facts["largest linf distance"] == "0.2000 = 51/255"


# --- the released sets, where they are ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_released_rates_and_distances(name: str, data_folder: Path) -> None:
    if not (data_folder / "invariance").is_dir():
        pytest.skip("no folder invariance under RBENCH_DATA")
    n, changed, levels = RELEASED[name]
    space = Stored(name)
    x, y = space.examples()
    assert x.shape == (n, 1, 28, 28)
    assert int((space.labels() != y).sum()) == changed
    found = unpack((data_folder / "invariance" / f"{name}.npz").read_bytes(), name)
    assert found.distance().max() == levels
    if name != "l0":
        assert (found.distance() == levels).all()  # every candidate sits exactly on its radius
        assert float(space.balls()["strict"].extent["eps"]) == pytest.approx(levels / 255, abs=1e-9)


def test_their_sources_are_mnist(data_folder: Path) -> None:
    from rbench.data import sources

    if not (data_folder / "invariance").is_dir():
        pytest.skip("no folder invariance under RBENCH_DATA")
    mnist = sources.load("mnist")
    for name in SETS:
        found = unpack((data_folder / "invariance" / f"{name}.npz").read_bytes(), name)
        x, y = Stored(name).examples()
        assert torch.equal(x, mnist.x[found.index])
        assert torch.equal(y, mnist.y[found.index])


def test_whole_grey_levels_have_one_level_of_slack_and_no_more(data_folder: Path, tmp_path: Path) -> None:
    if not (data_folder / "invariance").is_dir():
        pytest.skip("no folder invariance under RBENCH_DATA")
    with np.load(data_folder / "invariance" / "linf-0.4.npz") as released_set:
        known = {key: released_set[key] for key in released_set.files}
    Stored(str(write(tmp_path, "fits.npz", **{**known, "declared": np.array("linf(eps=0.4)")})))  # 103/255
    with pytest.raises(DataError, match=r"linf distance 0\.4039, outside its declared ball linf\(eps=0\.3\)"):
        Stored(str(write(tmp_path, "far.npz", **{**known, "declared": np.array("linf(eps=0.3)")})))
    with pytest.raises(DataError, match=r"0\.4039"):
        Stored(
            str(write(tmp_path, "float.npz", **{**known, "adv": known["adv"].astype(np.float32), "declared": np.array("linf(eps=0.4)")}))
        )


# --- refusals -----------------------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"human": None}, "no human labels; expected the array human, one class per candidate. Let people label them"),
    "a label outside the classes": ({"human": np.array([0, 11, 2, 3])}, "human of candidate 1 is 11; expected a class from 0 to 9"),
    "a negative label": ({"human": np.array([0, -1, 2, 3])}, "human holds -1 to 3"),
    "too few labels": ({"human": np.array([0, 1])}, r"human has the shape \(2,\)"),
    "labels in floats": ({"human": np.array([0.0, 1.0, 2.0, 3.0])}, "float64; expected"),
    "another size": ({"adv": np.zeros((4, 32, 32), np.uint8)}, r"adv has the shape \(4, 32, 32\), clean \(4, 8, 8\)"),
    "no images": ({"adv": None}, "no array 'adv'"),
    "flat images": ({"adv": np.zeros((4, 64), np.uint8)}, r"adv has the shape \(4, 64\)"),
    "images in wide integers": ({"adv": np.zeros((4, 8, 8), np.int64)}, "adv is int64; expected uint8"),
    "NaN": ({"adv": np.full((4, 8, 8), np.nan, np.float32)}, "adv holds values outside 0 to 255"),
    "a candidate too far": (
        {"declared": np.array("linf(eps=0.1)")},
        r"candidate 0 lies at linf distance 0\.2000, outside its declared ball",
    ),
    "no such ball": ({"declared": np.array("box(3)")}, r"declared = 'box\(3\)'; expected a ball such as"),
    "another norm": ({"declared": np.array("l2(eps=3)")}, "expected a linf ball"),
    "a ball that is no text": ({"declared": np.array([1, 2])}, "declared has the shape"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_gives_one_line(case: str, tmp_path: Path) -> None:
    changes, line = WRONG[case]
    path = write(tmp_path, **changes)
    with pytest.raises(DataError, match=line) as error:
        Stored(str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "a text": lambda data: b"hello",
    "cut": lambda data: data[: len(data) // 2],
    "a page": lambda data: b"<!doctype html><html></html>",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_gives_one_line(case: str, tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(DAMAGED[case](path.read_bytes()))
    with pytest.raises(DataError, match=r"no \.npz file of plain arrays"):
        Stored(str(path))


def test_objects_are_refused_unseen(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    np.savez(tmp_path / "set.npz", adv=np.array([Trap()], dtype=object))
    with pytest.raises(DataError):
        Stored(str(tmp_path / "set.npz"))
    assert not (tmp_path / "sprung").exists()


BAD_SPECS: dict[str, tuple[str, type[RbenchError], str]] = {
    "none": ("invariance()", SpecError, "linf-0.3"),
    "two": ("invariance(l0, manual)", SpecError, "one of l0"),
    "a number": ("invariance(3)", SpecError, "one of l0"),
    "a name that is none": ("invariance(linf-0.5)", UnknownName, "linf-0.4"),
    "a file that is not there": ('invariance("gone.npz")', DataError, "gone.npz: No such file"),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_a_wrong_spec_gives_one_line(case: str) -> None:
    text, kind, hint = BAD_SPECS[case]
    with pytest.raises(kind, match=hint):
        build(parse(text))
