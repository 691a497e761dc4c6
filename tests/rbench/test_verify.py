"""`verify` confirms an honest run and names whatever was changed: one bit of a weight, a witness, a label, a verdict."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

import rbench
from rbench.verification import Verified, verify
from rbench_core.errors import FileError, UsageError
from rbench_core.files import sha256_bytes
from rbench_results.database import FILE
from rbench_results.records import VerdictRecord
from rbench_results.rows import to_record
from rbench_results.seal import seal_of
from rbench_results.site.build import build_site
from rbench_results.store import Store

PLAN, THREAT, N = "pgd(steps=20)", "union(linf(eps=0.08), l2(eps=0.3))", 120


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with one run in it."""
    folder = tmp_path_factory.mktemp("honest")
    report = rbench.evaluate("digits-linf-at", threat=THREAT, n=N, plan=PLAN, results=folder, site=False)
    counts = report.data["counts"]
    assert counts["misclassified"] >= 1
    assert counts["broken"] >= 5
    assert counts["survived"] >= 5
    return folder


@pytest.fixture
def folder(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "copy"))


def looked(folder: Path, **options: Any) -> Verified:
    return verify("latest", results=folder, seed=1, **options)


def test_an_honest_run_is_confirmed_whole_when_all_is_sampled(folder: Path) -> None:
    found = looked(folder, sample="all")
    assert found.record.problems == []
    assert (found.record.ok, found.exit_code) == (True, 0)
    assert found.record.confirmed == N
    assert [check["name"] for check in found.record.checks] == ["questions", "seals", "data", "model", "clean", "witnesses", "sample"]
    assert all(check["checked"] for check in found.record.checks)


def test_a_sample_confirms_falls_and_as_many_survivors_as_were_drawn(folder: Path) -> None:
    counts = rbench.Report.stored("latest", folder).data["counts"]
    found = looked(folder, sample=3)
    assert (found.drawn, found.open) == (3, counts["survived"])
    assert found.record.confirmed == counts["misclassified"] + counts["broken"] + 3
    assert f"verified on {found.record.confirmed} of {N}" in str(found)
    assert looked(folder, sample=0).record.confirmed == counts["misclassified"] + counts["broken"]


def test_a_verification_is_kept_and_an_honest_run_stays_confirmed(folder: Path) -> None:
    first, second = looked(folder), looked(folder)
    with Store.open(folder, create=False) as store:
        kept = store.verifications(first.record.run)
    assert [record.id for record in kept] == [first.record.id, second.record.id]
    assert kept[0] == first.record


def test_verifying_reads_a_folder_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rbench_core.errors import StoreError

    opened = Store.open.__func__  # type: ignore[attr-defined]

    def read_only(cls: type[Store], where: Path, *, create: bool = True) -> Store:
        if create:
            raise StoreError(f"{where}: the database cannot be written")
        return opened(cls, where, create=False)  # type: ignore[no-any-return]

    monkeypatch.setattr(Store, "open", classmethod(read_only))
    found = looked(folder)
    assert found.record.ok
    assert "cannot be written" in found.notes[0]


# --- what was changed is named ------------------------------------------------------------------------------------------------------


def edited(folder: Path, sql: str, *values: object) -> None:
    connection = sqlite3.connect(folder / FILE)
    with connection:
        assert connection.execute(sql, values).rowcount == 1
    connection.close()


def row(folder: Path, status: str, witness: bool = False) -> tuple[int, int]:
    """(question_id, index) of the first verdict of a status."""
    connection = sqlite3.connect(folder / FILE)
    kept = "and witness is not null" if witness else ""
    found = connection.execute(f'select question_id, "index" from verdict where status = ? {kept} limit 1', (status,)).fetchone()
    connection.close()
    return tuple(found)


def resealed(folder: Path, question: int, index: int) -> None:
    """What a forger does who knows the program: the changed row gets a seal of its own."""
    connection = sqlite3.connect(folder / FILE)
    connection.row_factory = sqlite3.Row
    with connection:
        key = connection.execute("select key from question where id = ?", (question,)).fetchone()[0]
        found = connection.execute('select * from verdict where question_id = ? and "index" = ?', (question, index)).fetchone()
        record = to_record(VerdictRecord, dict(found))
        sql = 'update verdict set seal = ? where question_id = ? and "index" = ?'
        connection.execute(sql, (seal_of(key, record), question, index))
    connection.close()


def problem(folder: Path, *words: str, **options: Any) -> str:
    """The problems of a verification that must fail, as one text."""
    found = looked(folder, **options)
    text = " ".join(found.record.problems)
    assert not found.record.ok
    assert found.exit_code == 1
    assert "NOT verified" in str(found)
    for word in words:
        assert word in text, text
    return text


COLUMNS = {
    "label": ("broken", "label = (label + 1) % 10"),
    "status of a survivor": ("survived", "status = 'error'"),
    "status of a fall": ("broken", "status = 'survived'"),
    "status of a mistake": ("misclassified", "status = 'survived'"),
    "clean": ("misclassified", "clean = (clean + 1) % 10"),
    "predicted": ("broken", "predicted = (predicted + 1) % 10"),
    "margin": ("broken", "margin = margin * 1.0000001"),
    "witness": ("broken", "witness = null"),
    "row": ("broken", "row = row + 1"),
    "run": ("survived", "attack = 'nothing'"),
}


@pytest.mark.parametrize("what", COLUMNS)
def test_a_changed_verdict_breaks_its_seal(folder: Path, what: str) -> None:
    status, change = COLUMNS[what]
    question, index = row(folder, status, witness=status == "broken")
    edited(folder, f'update verdict set {change} where question_id = ? and "index" = ?', question, index)
    problem(folder, f"example {index} ", "does not agree with its seal")


FORGED = {
    "label": ("broken", "label = (label + 1) % 10", "the data says"),
    "a mistake that became a survivor": (
        "misclassified",
        "status = 'survived', clean = label",
        "but the model's answer to the clean image",
    ),
    "a survivor that became a mistake": ("survived", "status = 'misclassified', clean = (label + 1) % 10", "answer to the clean image"),
    "another clean answer": ("misclassified", "clean = (clean + 1) % 10", "clean prediction"),
    "a survivor that became a fall": ("survived", "status = 'broken', predicted = 0", "computed again it is survived"),
    "the witness of another": ("broken", "row = row + 1", "that of another example"),
    "another class at the witness": ("broken", "predicted = (predicted + 1) % 10", "at the witness the model says"),
    "another margin": ("broken", "margin = margin - 1", "the margin is"),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_changed_verdict_with_a_seal_of_its_own_is_found_by_looking(folder: Path, what: str) -> None:
    status, change, words = FORGED[what]
    question, index = row(folder, status, witness=status == "broken")
    edited(folder, f'update verdict set {change} where question_id = ? and "index" = ?', question, index)
    resealed(folder, question, index)
    problem(folder, f"example {index} ", words, sample="all")


def test_a_fall_that_became_a_survivor_is_found_by_the_sample(tmp_path: Path) -> None:
    rbench.evaluate("digits-linf-at", threat="linf(eps=0.08)", n=60, plan=PLAN, results=tmp_path, site=False)
    question, index = row(tmp_path, "broken", witness=True)
    change = "status = 'survived', witness = null, row = null, attack = null, predicted = null"
    edited(tmp_path, f'update verdict set {change} where question_id = ? and "index" = ?', question, index)
    resealed(tmp_path, question, index)
    problem(tmp_path, f"example {index} ", "survived was claimed; computed again it is broken, by pgd", sample="all")
    assert looked(tmp_path, sample=0).record.ok, "without a sample nobody can know, and the figure says so"


def test_a_verdict_that_is_gone_is_missed(folder: Path) -> None:
    question, index = row(folder, "survived")
    edited(folder, 'delete from verdict where question_id = ? and "index" = ?', question, index)
    with Store.open(folder, create=False) as store:
        left = {row.index for key, _ in store.run("latest").questions for row in store.verdicts(key)}
    assert index in left or len(left) < N
    problem(folder, f"example {index}: no verdict")


def test_a_question_whose_content_was_changed(folder: Path) -> None:
    edited(folder, "update question set seed = 7 where id = 1")
    problem(folder, "seed is not what the run asks")


WORDS = {
    "the threat": ("update run set threat = 'union-lp'", "the threat union-lp is"),
    "the plan": ("update run set plan = 'apgd'", "is not what the run asks"),
    "the seed": ("update run set seed = 7", "is not what the run asks"),
    "a member": ("update run_question set spec = 'linf(eps=0.9)' where position = 0", "are called otherwise"),
    "a question's words": ("update question set sentence = 'Nothing may move.' where id = 1", "sentence is not what"),
    "a question's objective": ("update question set objective = 'other' where id = 1", "is not what the run asks"),
}


@pytest.mark.parametrize("what", WORDS)
def test_a_run_must_ask_what_its_questions_answer(folder: Path, what: str) -> None:
    sql, words = WORDS[what]
    edited(folder, sql)
    problem(folder, words)


def test_a_verification_speaks_for_the_verdicts_that_it_saw_and_no_others(folder: Path) -> None:
    def board() -> str:
        with Store.open(folder, create=False) as store:
            build_site(store)
        return "".join(page.read_text() for page in (folder / "site").glob("run-*.html"))

    found = looked(folder, sample="all")
    assert f"verified on {N} of {N}" in board()
    question, index = row(folder, "survived")
    edited(folder, "update verdict set status = 'broken' where question_id = ? and \"index\" = ?", question, index)
    assert f"verified on {N} of {N}" not in board()
    assert found.record.ok


def test_a_site_that_cannot_be_drawn_costs_no_result(folder: Path) -> None:
    (folder / "site").write_text("a file")
    found = rbench.verify("latest", results=folder, sample=0)
    assert found.exit_code == 0
    assert "the pages were not drawn" in str(found)


def witness_file(folder: Path) -> Path:
    return sorted((folder / "witnesses").rglob("*.safetensors"))[0]


def test_one_flipped_bit_of_a_witness_file(folder: Path) -> None:
    path = witness_file(folder)
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    problem(folder, "its content has another digest")


def test_a_witness_file_that_is_gone(folder: Path) -> None:
    witness_file(folder).unlink()
    problem(folder, "No such file")


SHAPES: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "theta of another width": lambda t: {**t, "theta": t["theta"][:, :5].contiguous()},
    "theta of another type": lambda t: {**t, "theta": t["theta"] > 0},
    "an index that is a table": lambda t: {**t, "index": t["index"][:, None].contiguous()},
    "an index that is no number": lambda t: {**t, "index": torch.full_like(t["x"][:, 0, 0, 0], torch.nan)},
    "complex images": lambda t: {**t, "x": t["x"].to(torch.complex64)},
    "images of another shape": lambda t: {**t, "x": t["x"][..., :5].contiguous(), "x_adv": t["x_adv"][..., :5].contiguous()},
    "nothing": lambda t: {"index": t["index"]},
}


@pytest.mark.parametrize("what", SHAPES)
def test_a_witness_file_of_other_tensors_is_one_problem(folder: Path, what: str) -> None:
    path = witness_file(folder)
    replaced(folder, path, SHAPES[what](load(path.read_bytes())))
    problem(folder, "witness")


def replaced(folder: Path, path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The file with other tensors under the name that they deserve, and the rows that speak of it sealed anew."""
    data = save(tensors)
    made = path.with_name(f"{path.name.partition('-')[0]}-{sha256_bytes(data)}.safetensors")
    made.write_bytes(data)
    old, new = (str(each.relative_to(folder)) for each in (path, made))
    connection = sqlite3.connect(folder / FILE)
    with connection:
        rows = connection.execute('select question_id, "index" from verdict where witness = ?', (old,)).fetchall()
        connection.execute("update verdict set witness = ? where witness = ?", (new, old))
    connection.close()
    for question, index in rows:
        resealed(folder, question, index)


CHANGES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], str]] = {
    "a step out of the set": (lambda t: t["theta"][0].mul_(3).clamp_(-1, 1), "outside"),
    "another clean image": (lambda t: t["x"][0].copy_(1 - t["x"][0]), "clean image is not the data set's"),
    "another adversarial image": (lambda t: t["x_adv"][0].copy_(t["x"][0]), "not what its parameters render"),
    "no change at all": (lambda t: (t["theta"][0].zero_(), t["x_adv"][0].copy_(t["x"][0])), "the referee refuses"),  # type: ignore[dict-item, return-value]
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_forged_witness_under_a_name_of_its_own_is_found_by_looking(folder: Path, what: str) -> None:
    change, words = CHANGES[what]
    path = witness_file(folder)
    tensors = load(path.read_bytes())
    change(tensors)
    replaced(folder, path, tensors)
    problem(folder, f"example {int(tensors['index'][0])} ", words)


def test_one_flipped_bit_of_a_weight(folder: Path) -> None:
    model = rbench.load_model("digits-linf-at")
    first = next(model.parameters()).detach()
    first.view(-1).view(torch.int32)[0] ^= 1
    problem(folder, "other weights or other code", model=model)


def test_one_flipped_bit_of_the_weights_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rbench_zoo

    zoo = Path(rbench_zoo.__file__).parent
    card = (zoo / "cards" / "digits-linf-at.toml").read_text().replace('"digits-linf-at"', '"copied"')
    (tmp_path / "copied.toml").write_text(card)
    data = bytearray((zoo / "weights" / "digits-linf-at.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "digits-linf-at.safetensors").write_bytes(data)
    monkeypatch.setenv("RBENCH_REGISTRY", str(tmp_path))
    monkeypatch.delenv("RBENCH_WEIGHTS", raising=False)
    with pytest.raises(FileError, match="SHA-256 is"):
        looked(folder, model="copied")


def test_labels_of_other_data(folder: Path) -> None:
    from rbench.data import sources

    data = sources.load("digits")
    y = data.y.clone()
    y[0] = (y[0] + 1) % 10
    problem(folder, "its digest is", "example 0 ", "the data says", dataset=(data.x, y))


def test_a_run_of_objects_needs_them_again(tmp_path: Path) -> None:
    from rbench.data import sources

    data, model = sources.load("digits", n=20), rbench.load_model("digits-standard")
    rbench.evaluate(model, dataset=(data.x, data.y), threat="linf(eps=0.1)", plan=PLAN, results=tmp_path, site=False)
    with pytest.raises(UsageError, match="made from objects"):
        verify(results=tmp_path)
    assert verify(results=tmp_path, model=model, dataset=(data.x, data.y), sample="all").record.confirmed == 20


def test_a_plan_in_blocks_is_asked_again_block_by_block(tmp_path: Path) -> None:
    plan = "foolbox:L2FastGradientAttack(batch=16)"
    rbench.evaluate("digits-standard", threat="l2(eps=0.3)", n=40, plan=plan, results=tmp_path, site=False)
    found = verify(results=tmp_path, sample=1, seed=0)
    assert found.record.problems == []
    assert 1 <= found.drawn <= 16
    assert verify(results=tmp_path, sample="all").record.confirmed == 40


def test_json_and_bad_samples(folder: Path) -> None:
    told = json.loads(looked(folder).to_json())
    assert {"run", "ok", "n", "confirmed", "checks", "problems", "cost", "open", "drawn"} <= told.keys()
    for wrong in (-1, "most"):
        with pytest.raises(UsageError, match="sample="):
            looked(folder, sample=wrong)
