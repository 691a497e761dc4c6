"""One example's history: every stored question about it, what was tried, and pictures of what broke it."""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from rbench_core.errors import FileError, UnknownName, UsageError
from rbench_results.database import FILE
from rbench_results.example import Example
from rbench_results.store import Store
from rbench_results.strip import EDGE, strip_png
from stored import dataset, filled, model, question, run, stage, verdict

LINF, L2 = question(), question("l2", "1/2")
WEAK = question(plan="pgd", plan_json=[{"attack": "pgd(steps=10)"}])
STRANGERS = question(model=model("other").digest)
BROKEN = {"predicted": 2, "attack": "apgd-ce(steps=100)", "margin": -0.25, "gauge": 1.0, "target": 2, "restart": 1}


def images(folder: Path, name: str = "witnesses/a.safetensors", indices: tuple[int, ...] = (2, 3)) -> str:
    """A witness file: image i is grey i / 10, its adversary moves the left half up by 0.2."""
    x = np.stack([np.full((1, 8, 8), index / 10, np.float32) for index in indices])
    x_adv = x.copy()
    x_adv[..., :4] += np.float32(0.2)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    save_file({"index": np.array(indices), "x": x, "x_adv": x_adv, "theta": (x_adv - x).reshape(len(x), -1)}, path)
    return name


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Run r1 asks linf, then l2, of images 0 to 3; run r2 asks linf by a weaker plan of 0 to 4; another model was asked as well.

    0 survives, 1 is misclassified, 2 breaks under linf (row 0), 3 survives linf and breaks under l2 (row 1); 4 is r2's alone.
    """
    with filled(tmp_path, LINF, L2) as store:
        store.put_question(WEAK)
        store.put_model(model("other"))
        store.put_question(STRANGERS)
        store.start_run(run("r2", [WEAK], n=5, plan="pgd", started="2026-01-02T00:00:00+00:00"))
        store.start_run(run("r3", [STRANGERS], model=model("other").digest))
        file = images(tmp_path)
        clean, broken = stage(LINF, 0, attack="clean pass"), verdict(2, "broken", witness=file, row=0, **BROKEN)
        attacks = [stage(LINF, 2, attack="apgd-t"), clean, stage(LINF, 1)]  # in no order
        store.add_chunk(LINF.key, [verdict(0), verdict(1, "misclassified", clean=0), broken, verdict(3)], attacks)
        fell = verdict(3, "broken", witness=file, row=1, **BROKEN)
        store.add_chunk(L2.key, [verdict(0), verdict(1, "misclassified", clean=0), fell], [stage(L2, 1)])
        store.add_chunk(WEAK.key, [verdict(i, run="r2") for i in range(5)], [stage(WEAK, 1, run="r2", attack="pgd(steps=10)")])
        store.add_chunk(STRANGERS.key, [verdict(2, run="r3")], [])
        yield store


def test_every_question_of_every_run_about_this_model_is_told(store: Store) -> None:
    data = Example.of(store, "r1", 3).data
    assert (data["run"], data["model"], data["dataset"], data["index"]) == ("r1", "net", "digits", 3)
    assert (data["label"], data["label_name"], data["clean"], data["status"], data["fell_to"]) == (1, "one", 1, "broken", L2.spec)
    assert [(row["key"], row["status"], row["run"]) for row in data["history"]] == [
        (LINF.key, "survived", "r1"),
        (L2.key, "broken", "r1"),
        (WEAK.key, "survived", "r2"),
    ]
    row = data["history"][1]
    assert {key: row[key] for key in BROKEN} == BROKEN
    assert row["witness"] == {"file": "witnesses/a.safetensors", "row": 1, "state": "here"}
    assert row["made_on"] == {"width": 64, "device": "cpu", "threads": 1, "torch": "2.13.0"}
    assert (row["spec"], row["plan"], row["seed"], row["kind"]) == (L2.spec, "apgd", 0, "attack")
    assert [row["key"] for row in Example.of(store, "r2", 3).data["history"]] == [WEAK.key, LINF.key, L2.key]  # the run's own first


def test_the_attacks_that_tried_it_are_those_up_to_the_fall(store: Store) -> None:
    entered = {index: [row["entered"] for row in Example.of(store, "r1", index).data["history"]] for index in range(4)}
    both, one = ["apgd-ce(steps=100)", "apgd-t"], ["apgd-ce(steps=100)"]
    weak = ["pgd(steps=10)"]
    assert entered == {0: [both, one, weak], 1: [[], [], weak], 2: [one, weak], 3: [both, one, weak]}


def test_the_text_has_all_of_it_within_100_columns(store: Store) -> None:
    text = Example.of(store, "r1", 2).to_text(Path("out.png"))
    for words in ("label 1 (one)", "says 1 (one)", "broken, fell to linf", "not asked in it: l2", "prediction 2", "target 2", "restart 1"):
        assert words in text
    for words in ("margin -0.25", "gauge 1", "witnesses/a.safetensors, row 0", "from this run: cpu, width 64", "from run r2", "plan pgd"):
        assert words in text
    assert text.endswith("picture: out.png")
    assert max(map(len, text.splitlines())) <= 100


def test_a_reason_of_an_error_stands_in_it_on_lines_that_steer_no_screen(store: Store) -> None:
    store.add_chunk(WEAK.key, [verdict(9, "error", clean=None, reason="bad \x1b[31mred " * 30, run="r2")], [])
    store.start_run(run("r4", [WEAK], n=10))
    text = Example.of(store, "r4", 9).to_text()
    assert "\x1b" not in text
    assert "\\x1b[31mred" in text
    assert "says nothing" in text
    assert "no attack tried it" in text
    assert text.endswith("nothing broke it")
    assert max(map(len, text.splitlines())) <= 100


def test_json_is_the_same_object_with_the_picture(store: Store) -> None:
    example = Example.of(store, "latest", 2)
    told = json.loads(example.to_json(Path("a.png")))
    assert told.pop("picture") == "a.png"
    assert told == example.data


def test_the_picture_shows_clean_adversarial_and_difference_as_pixels(store: Store, tmp_path: Path) -> None:
    path = Example.of(store, "r1", 3).save()
    assert path == tmp_path / "examples" / "r1-3.png"
    pixels = np.asarray(Image.open(io.BytesIO(path.read_bytes())))
    height, width = pixels.shape[:2]
    assert width >= 3 * EDGE
    middle = pixels[height - EDGE // 2]  # of the only strip's tiles
    clean, adversarial, change = (middle[8 + place * (EDGE + 8) :][:EDGE] for place in range(3))
    assert np.unique(clean).tolist() == [round(255 * 0.3)]
    assert np.unique(adversarial[: EDGE // 2]).tolist() == [round(255 * 0.5)]
    assert np.unique(adversarial[EDGE // 2 :]).tolist() == [round(255 * 0.3)]
    assert (change[EDGE // 2 :] == 255).all()  # unchanged is white
    assert (change[: EDGE // 2, 0] > change[: EDGE // 2, 2]).all()  # brighter is orange


def test_the_picture_holds_every_witness_and_goes_where_it_is_told(store: Store, tmp_path: Path) -> None:
    one = Image.open(io.BytesIO(Example.of(store, "r1", 3).to_png() or b""))
    store.add_chunk(WEAK.key, [verdict(3, "broken", witness=images(tmp_path, "b.safetensors"), row=1, run="r2", **BROKEN)], [])
    two = Example.of(store, "r1", 3)
    target = tmp_path / "deep" / "mine.png"
    assert two.save(target) == target
    with Image.open(target) as both:
        assert both.size == (one.width, 2 * one.height)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="--out"):
        two.save(tmp_path / "file" / "x.png")


def test_what_broke_nothing_has_no_picture(store: Store, tmp_path: Path) -> None:
    assert Example.of(store, "r1", 0).save() is None
    assert not (tmp_path / "examples").exists()


@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        ("missing", "missing", "the file is missing"),
        ("html", "unreadable", "damaged"),
        ("other example", "unreadable", "holds another image"),
        ("not kept", None, "not kept"),
    ],
)
def test_a_witness_that_is_lost_is_told_and_the_history_stands(
    store: Store, tmp_path: Path, change: str, state: str | None, words: str
) -> None:
    file = tmp_path / "witnesses" / "a.safetensors"
    if change == "missing":
        file.unlink()
    elif change == "html":
        file.write_text("<html>")
    elif change == "other example":
        images(tmp_path, indices=(7, 8))
    else:
        store.add_chunk(LINF.key, [verdict(2, "broken", **BROKEN)], [])
    example = Example.of(store, "r1", 2)
    [row] = [row for row in example.data["history"] if row["status"] == "broken"]
    assert (row["witness"]["state"] if row["witness"] else None) == state
    text = example.to_text(example.save())
    assert words in text
    assert text.endswith("no adversarial image of it is left")
    assert "linf" in text


def test_a_witness_outside_the_results_is_not_read(store: Store, tmp_path: Path) -> None:
    outside = images(tmp_path.parent, "outside.safetensors")
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("UPDATE verdict SET witness = ? WHERE status = 'broken'", (f"../{outside}",))
    connection.commit()
    connection.close()
    assert Example.of(store, "r1", 2).to_png() is None


def test_what_no_run_knows_is_a_wrong_request(store: Store) -> None:
    with pytest.raises(UsageError, match="example 4 of run r1; expected 0 to 3"):
        Example.of(store, "r1", 4)
    with pytest.raises(UnknownName):
        Example.of(store, "r9", 0)
    late = question("l1", "10", dataset=dataset("more").digest)
    store.put_dataset(dataset("more"))
    store.put_question(late)
    store.start_run(replace(run("r5", [late]), dataset=late.dataset))
    with pytest.raises(UsageError, match="no answer yet"):
        Example.of(store, "r5", 0)


def test_large_pictures_stop_at_a_bound() -> None:
    pair = (np.zeros((3, 900, 900), np.float32), np.ones((3, 900, 900), np.float32))
    png = strip_png([("a", pair)] * 20)
    assert png is not None
    width, height = Image.open(io.BytesIO(png)).size
    assert width * height <= 24_000_000
    assert height >= 2 * 900
    assert strip_png([]) is None


def test_a_caption_of_any_script_is_drawn() -> None:
    tile = np.zeros((1, 8, 8), np.float32)
    assert strip_png([("無限 \u202e\n‘x’ " * 20, (tile, tile))]) is not None
