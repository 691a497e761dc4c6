"""The linf attack: its transforms, its search and its move are the released ones; where a known mistake is made, they are not."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import rotate, shift

from command import rbench
from rbench.data import sources
from rbench.invariance import neighbours, transforms
from rbench.invariance.generate import attack, candidate, generate, indices, sources_of
from rbench.invariance.neighbours import Finder
from rbench.invariance.perturb import MNIST_TARGETS, Targets, all_others, chosen, darkening, stretched, targets_of, towards
from rbench_core.errors import UsageError
from rbench_threats.candidates import arrays_of, unpack

FIRST = "c75622b3a25eca06ecc92696efe151c576d95c5049b931d37e7d15705a445c04"
WHOLE = "7f1a1ac5e8ff33357d18da73ff4cfb2793a6215627e47a3f38bb0060624c04b9"
EPS = Fraction(3, 10)


@pytest.fixture(scope="module")
def known(data_folder: Path) -> dict[str, dict[str, Any]]:
    folder = data_folder / "invariance"
    if not folder.is_dir():
        pytest.skip("no folder invariance under RBENCH_DATA")
    return {name: arrays_of((folder / f"{name}.npz").read_bytes(), name) for name in ("linf-0.3", "linf-0.4", "neighbours")}


# --- transforms -----------------------------------------------------------------------------------------------------------------------


def test_the_grid_is_the_released_one() -> None:
    grid = transforms.grid(28)
    assert len(grid) == 775
    assert (grid[0].down, grid[0].right, grid[0].degrees) == (-3, -3, -30)
    assert (grid[31].down, grid[31].right) == (-3, -1.5)
    assert {each.down for each in grid} == {-3, -1.5, 0, 1.5, 3}
    assert np.allclose(sorted({each.degrees for each in grid}), np.arange(-30, 31, 2))
    assert max(each.down for each in transforms.grid(8)) == pytest.approx(8 * 3 / 28)


def test_the_transforms_of_the_first_image_have_the_known_digest(known: dict[str, Any]) -> None:
    moved = transforms.transformed(known["linf-0.3"]["clean"][0])
    assert hashlib.sha256(moved.tobytes()).hexdigest() == FIRST


def test_known_mistakes_change_the_digest(known: dict[str, Any]) -> None:
    image, grid = known["linf-0.3"]["clean"][0], transforms.grid(28)
    some = [grid[place] for place in (0, 100, 333, 500, 774)]
    right = [transforms.transformed(image)[place] for place in (0, 100, 333, 500, 774)]

    def floats(t: transforms.Transform) -> np.ndarray:
        found = shift(rotate(image.astype(np.float64), t.degrees, reshape=False), (t.down, t.right))
        return np.clip(np.round(found), 0, 255).astype(np.uint8)

    mistakes = {
        "floats": floats,
        "radians": lambda t: shift(rotate(image, np.deg2rad(t.degrees), reshape=False), (t.down, t.right)),
        "swapped": lambda t: shift(rotate(image, t.degrees, reshape=False), (t.right, t.down)),
        "shift first": lambda t: rotate(shift(image, (t.down, t.right)), t.degrees, reshape=False),
    }
    for name, wrong in mistakes.items():
        assert any(not np.array_equal(wrong(t).ravel(), r) for t, r in zip(some, right, strict=True)), name


def test_all_transforms_have_the_known_digest(known: dict[str, Any]) -> None:
    state = hashlib.sha256()
    for image in known["linf-0.3"]["clean"]:
        state.update(transforms.transformed(image).tobytes())
    assert state.hexdigest() == WHOLE


def test_the_true_inverse_is_another_and_comes_closer() -> None:
    rows, columns = np.mgrid[0:28, 0:28]
    image = (255 * np.exp(-((rows - 12) ** 2 + (columns - 17) ** 2) / 20)).astype(np.uint8)
    done = transforms.Transform(3.0, -1.5, 24.0)
    moved = shift(rotate(image, done.degrees, reshape=False), (done.down, done.right))
    released, true = (transforms.undone(moved, done, true_inverse=which).astype(int) for which in (False, True))
    assert np.abs(true - image).sum() < np.abs(released - image).sum()
    assert transforms.inverse_row(done).tolist() == [-3, 1.5, -24]


# --- the move, from the released neighbours -------------------------------------------------------------------------------------------


def from_neighbours(known: dict[str, Any], place: int, targets: Targets) -> tuple[np.ndarray, int]:
    released, near = known["linf-0.3"], known["neighbours"]
    image = released["clean"][place].astype(np.float32)
    found = [
        neighbours.Neighbour(int(label), 0, 0, 0, aligned)
        for label, aligned in zip(near["cls"][place], near["aligned"][place], strict=True)
    ]
    return candidate(image, int(released["label"][place]), found, EPS, targets)


def equal(known: dict[str, Any], targets: Targets = MNIST_TARGETS) -> int:
    found = [from_neighbours(known, place, targets) for place in range(100)]
    released = known["linf-0.3"]
    return sum(np.array_equal(adv, released["adv"][i]) and target == int(released["target"][i]) for i, (adv, target) in enumerate(found))


def test_from_the_released_neighbours_comes_the_released_set(known: dict[str, Any]) -> None:
    assert equal(known) == 100


def test_without_the_mask_of_ink_none_comes_out(known: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def unmasked(clean: np.ndarray, neighbour: np.ndarray, eps: Fraction) -> np.ndarray:
        reach = float(eps * 255)
        return (clean + np.clip(neighbour.astype(np.float32) - clean, -reach, reach)).astype(np.float32)

    monkeypatch.setattr("rbench.invariance.generate.towards", unmasked)
    assert equal(known) == 0


def test_without_the_table_of_targets_41_come_out(known: dict[str, Any]) -> None:
    assert equal(known, all_others(10)) == 41


def test_the_released_04_set_is_that_of_03_stretched(known: dict[str, Any]) -> None:
    given, wanted = known["linf-0.3"], known["linf-0.4"]
    made = [stretched(x, a, EPS, Fraction(2, 5)) for x, a in zip(given["clean"], given["adv"], strict=True)]
    assert np.array_equal(np.stack(made), wanted["adv"])
    near = known["neighbours"]["aligned"]
    place = int(np.flatnonzero(known["neighbours"]["cls"][0] == given["target"][0])[0])
    assert not np.array_equal(towards(given["clean"][0].astype(np.float32), near[0, place], Fraction(2, 5)), wanted["adv"][0])


def test_a_move_by_hand() -> None:
    clean = np.array([[0, 0, 100, 100, 250, 20]], np.float32)
    near = np.array([[30, 200, 120, 0, 255, 100]], np.uint8)
    moved = towards(clean, near, Fraction(51, 255))
    assert moved.tolist() == [[0, 51, 120, 49, 255, 71]]
    assert darkening(clean, moved) == pytest.approx(51 / 255)
    lighter = {3: clean - 1, 5: clean - 1, 7: clean - 2}
    assert chosen(np.full((1, 6), 9, np.float32), {k: v * 0 + 9 - k // 6 for k, v in lighter.items()}, [7, 5, 3]) == 3  # the lower class


# --- the search -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> Finder:
    train = sources.load("digits", "train", n=300)
    return Finder(np.round(train.x[:, 0].double().numpy() * 255).astype(np.uint8), train.y.numpy())


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    found: np.ndarray = np.round(sources.load("digits", n=3).x[2, 0].double().numpy() * 255).astype(np.uint8)
    return found


def test_the_search_is_the_brute_force_in_whole_numbers(small: Finder, image: np.ndarray) -> None:
    moved = transforms.transformed(image).astype(np.int64)
    found = small.find(image, 99)
    assert [each.target for each in found] == list(range(10))
    for each, one in zip(found, small.classes, strict=True):
        distance = ((moved[:, None] - one.bytes[None].astype(np.int64)) ** 2).sum(2)
        best = min((int(distance[t, m]), m, t) for t, m in np.argwhere(distance == distance.min()).tolist())
        assert (each.sqdist, each.train, each.transform) == (best[0], int(one.places[best[1]]), best[2])


def test_threads_change_nothing(small: Finder, image: np.ndarray) -> None:
    before, alone = torch.get_num_threads(), small.find(image, 0)
    torch.set_num_threads(2)
    try:
        both = small.find(image, 0)
    finally:
        torch.set_num_threads(before)
    assert [each[:4] for each in alone] == [each[:4] for each in both]
    assert 0 not in [each.target for each in alone]


def test_the_first_image_from_raw_mnist(known: dict[str, Any]) -> None:
    """One of the hundred; tests/bench/invariance.py does them all."""
    given, near = sources_of("mnist", known["linf-0.3"]["index"][:1].tolist(), None), known["neighbours"]
    found = Finder(given.train, given.train_label).find(given.clean[0].astype(np.uint8), int(given.label[0]))
    for j, each in enumerate(found):
        stored = tuple(int(near[key][0, j]) for key in ("cls", "grid_index", "train_index", "sqdist"))
        assert (each.target, each.transform, each.train, each.sqdist) == stored
        assert np.array_equal(each.aligned, near["aligned"][0, j])
    adv, target = candidate(given.clean[0], int(given.label[0]), found, EPS, MNIST_TARGETS)
    assert np.array_equal(adv, known["linf-0.3"]["adv"][0])
    assert target == known["linf-0.3"]["target"][0]


# --- the command ------------------------------------------------------------------------------------------------------------------------


def test_digits_become_a_file_of_candidates_and_a_page(tmp_path: Path) -> None:
    done = rbench("invariance", "generate", "--dataset", "digits", "--eps", "0.15", "--index", "3,7-8", "--out", str(tmp_path / "d.npz"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [str(tmp_path / "d.npz"), str(tmp_path / "d.html")]
    found = unpack((tmp_path / "d.npz").read_bytes(), "d")
    assert (found.human, found.index.tolist(), found.declared, found.eight_bit) == (None, [3, 7, 8], "linf(eps=0.15)", False)
    digits = sources.load("digits")
    np.testing.assert_allclose(found.clean / 255, digits.x[[3, 7, 8]].numpy(), atol=1e-7)  # 16 levels, not rounded to 255
    assert found.label.tolist() == digits.y[[3, 7, 8]].tolist()
    assert (found.distance() / 255 <= 0.15 + 1e-6).all()
    assert (found.distance() / 255 > 0.1).all()
    assert (found.target != found.label).all()
    again = tmp_path / "again.npz"
    generate("digits", eps="0.15", index="3,7-8", out=again)
    assert again.read_bytes() == (tmp_path / "d.npz").read_bytes()


def test_a_table_of_targets_is_heeded(tmp_path: Path) -> None:
    table = tmp_path / "targets.toml"
    table.write_text("\n".join(f"{label} = [{(label + 1) % 10}]" for label in range(10)))
    generate("digits", eps="3/20", index="0-4", out=tmp_path / "d.npz", targets=table)
    found = unpack((tmp_path / "d.npz").read_bytes(), "d")
    assert found.target is not None
    assert (found.target == (found.label + 1) % 10).all()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another ending": ({"out": "d.json"}, "ends in .npz"),
    "a radius of 8": ({"eps": "8"}, "0 < eps <= 1"),
    "an index that is none": ({"index": "1-x"}, "0-24,159"),
    "an index twice": ({"index": "3,1-4"}, "each once"),
    "an index past the end": ({"index": "499-500"}, "from 0 to 499"),
    "colour": ({"dataset": "cifar10"}, "square grey images"),
    "another data set": ({"dataset": "digit"}, "no data set named"),
    "8 bits from 16 levels": ({"rescale_from": "0.1"}, "8-bit images"),
    "a table without a class": ({"targets": "0 = [1]"}, "one line per class"),
    "a target of its own": ({"targets": "\n".join(f"{c} = [{c}]" for c in range(10))}, "targets of class 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_gives_one_line(case: str, tmp_path: Path) -> None:
    changes, line = WRONG[case]
    given: dict[str, Any] = {"dataset": "digits", "eps": "0.15", "index": "0", "out": "d.npz", **changes}
    if given["dataset"] == "cifar10" and not sources.present("cifar10", "train"):
        pytest.skip("no CIFAR-10 under RBENCH_DATA")
    given["out"] = tmp_path / given["out"]
    if "targets" in given:
        (tmp_path / "targets.toml").write_text(given["targets"])
        given["targets"] = tmp_path / "targets.toml"
    with pytest.raises(UsageError, match=line):
        generate(given.pop("dataset"), **given)
    assert not given["out"].exists()


def test_positions_and_tables() -> None:
    assert indices("0-2, 9", 10) == [0, 1, 2, 9]
    assert targets_of(json.loads(json.dumps({str(c): [(c + 1) % 10] for c in range(10)})), 10)[9] == [0]
    given = sources_of("digits", [0], None)
    assert not given.whole
    found = attack(given, Fraction(1, 5), all_others(10))
    assert found["adv"].shape == (1, 8, 8)
