"""A submission as two strangers would make it, and everything that an enemy may pack in its place."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import stat
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, save

from rbench.bundle import archive
from rbench.cli.app import main
from rbench_core.files import sha256_bytes
from rbench_results.database import FILE
from rbench_results.records import QuestionRecord, VerdictRecord
from rbench_results.seal import question_key, sealed
from rbench_results.store import Store
from stored import facts

NET = """
import pathlib

import torch
from torch import nn

from rbench.data import load


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1))


def make():
    net = Linear()
    data = load("digits", split="train")
    means = torch.stack([data.x[data.y == c].mean(0).flatten() for c in range(10)])
    with torch.no_grad():
        net.layer.weight.copy_(8 * means)
        net.layer.bias.copy_(-4 * means.square().sum(1))
    return net


def stored():
    net = Linear()
    net.load_state_dict(torch.load(pathlib.Path(__file__).parent / "net.pt"))
    return net
"""
ABOUT = ("--title", "Linear", "--training", "none at all", "--licence", "MIT")
PLAN = ("--plan", "pgd(steps=10)", "--threat", "linf(eps=0.06)", "--n", "120", "--certify", "none")


class Done:
    """What a command left: exit code, stdout, stderr."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Command = Callable[..., Done]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    def call(*args: object) -> Done:
        capfd.readouterr()
        return Done(main([str(arg) for arg in args]), *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The submitter's folder: net.py, a run of it and of a zoo model in `results`, and the two bundles."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "net.py").write_text(NET)
    model, results = f"{folder / 'net.py'}:make", ("--results", str(folder / "results"))
    with warnings.catch_warnings():
        assert main(["run", "--model", model, "--dataset", "digits", *PLAN, *results]) == 0
        assert main(["run", "--model", "digits-linf-at", *PLAN, *results]) == 0
        assert main(["submit", model, "--name", "linear", *ABOUT, "--out", str(folder), *results]) == 0
        assert main(["submit", "digits-linf-at", "--name", "plain", *ABOUT, "--out", str(folder), *results]) == 0
    return folder


@pytest.fixture
def linear(lab: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(lab / "linear.rbench.zip", tmp_path))


@pytest.fixture
def plain(lab: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(lab / "plain.rbench.zip", tmp_path))


# --- the walk -----------------------------------------------------------------------------------------------------------------------


def test_two_strangers(lab: Path, linear: Path, tmp_path: Path, command: Command) -> None:
    there = tmp_path / "there"
    first = command("verify", linear, "--results", there)
    assert (first.code, first.err) == (0, "")
    assert "verified on 0 of 120" in first.out
    assert "factory.py:make is code of the bundle" in first.out
    second = command("verify", linear, "--run-code", "--sample", "all", "--results", there)
    assert (second.code, second.err) == (0, "")
    assert "verified on 120 of 120" in second.out
    merged = command("merge", linear, "--results", there)
    assert merged.out.startswith("1 new runs, 120 new verdicts, 0 replaced")
    assert command("merge", linear, "--results", there).out.startswith("0 new runs, 0 new verdicts, 0 replaced")
    ours, theirs = (json.loads(command("show", run, "--json", "--results", folder).out) for run, folder in run_of(lab, there))
    assert theirs["model"] == "linear"
    for key in ("clean", "robust", "members", "model_digest", "questions"):
        assert ours[key] == theirs[key]
    assert [row["status"] for row in ours["verdicts"]] == [row["status"] for row in theirs["verdicts"]]
    pages = "".join(page.read_text() for page in (there / "site").glob("*.html"))
    assert "re-verified on 120 of 120" in pages


def run_of(lab: Path, there: Path) -> list[tuple[str, Path]]:
    with Store.open(there, create=False) as store:
        id = store.run("latest").id
    return [(id, lab / "results"), (id, there)]


def test_a_zoo_model_is_verified_without_running_any_code_of_the_bundle(plain: Path, tmp_path: Path, command: Command) -> None:
    assert "factory.py" not in zipfile.ZipFile(plain).namelist()
    done = command("verify", plain, "--sample", "all", "--results", tmp_path / "there", "--json")
    found = json.loads(done.out)
    assert done.code == 0
    assert [run["confirmed"] for run in found["runs"]] == [120]
    with Store.open(tmp_path / "there", create=False) as store:  # kept for the day when it is merged
        assert store.verifications()[0].bundle == found["sha256"] == sha256_bytes(plain.read_bytes())


def test_code_of_a_bundle_runs_only_when_asked(lab: Path, tmp_path: Path, command: Command) -> None:
    witness = tmp_path / "it-ran"
    text = NET + f"\n\npathlib.Path({str(witness)!r}).touch()\n"
    (tmp_path / "net.py").write_text(text)
    model, results = f"{tmp_path / 'net.py'}:make", ("--results", tmp_path / "results")
    assert command("run", "--model", model, "--dataset", "digits", *PLAN, *results).code == 0
    assert command("submit", model, "--name", "loud", *ABOUT, "--out", tmp_path, *results).code == 0
    witness.unlink()
    bundle = tmp_path / "loud.rbench.zip"
    assert command("verify", bundle, "--results", tmp_path / "there").code == 0
    assert command("merge", bundle, "--results", tmp_path / "there").code == 0
    assert not witness.exists()
    assert command("verify", bundle, "--run-code", "--results", tmp_path / "there").code == 0
    assert witness.exists()


def test_a_card_that_names_foreign_code_does_not_run_it(plain: Path, tmp_path: Path, command: Command) -> None:
    def evil(files: dict[str, bytes]) -> None:
        files["card.toml"] = files["card.toml"].replace(b"rbench_zoo.architectures:SmallCNN", b"os:getcwd")

    done = command("verify", repacked(plain, evil), "--results", tmp_path / "there")
    assert "os:getcwd is code of the bundle" in done.out


def test_proofs_travel_and_are_computed_again(tmp_path: Path, command: Command) -> None:
    (tmp_path / "net.py").write_text(NET)
    model, results = f"{tmp_path / 'net.py'}:make", ("--results", tmp_path / "results")
    asked = ("--dataset", "digits", "--threat", "linf(eps=0.02)", "--n", "60", "--plan", "pgd(steps=3)")
    done = command("run", "--model", model, *asked, "--json", *results)
    proved = json.loads(done.out)["certified"]
    assert 0 < proved["accuracy"] < 1
    assert command("submit", model, "--name", "proved", *ABOUT, "--out", tmp_path, *results).code == 0
    bundle, there = tmp_path / "proved.rbench.zip", tmp_path / "there"
    checked = command("verify", bundle, "--run-code", "--sample", "all", "--results", there)
    assert "verified on 60 of 60" in checked.out, checked.out + checked.err
    assert command("merge", bundle, "--results", there).code == 0
    assert json.loads(command("show", "latest", "--json", "--results", there).out)["certified"] == proved


def test_a_false_proof_is_found_before_it_is_merged(tmp_path: Path, command: Command) -> None:
    """Of a model that needs no code of the bundle; a proof would keep every attack away from the image."""
    asked = ("--threat", "linf(eps=0.03)", "--n", "40", "--plan", "pgd(steps=3)", "--results", tmp_path / "results")
    assert command("run", "--model", "digits-linf-at", *asked).code == 0
    assert command("submit", "digits-linf-at", "--name", "proved", *ABOUT, "--out", tmp_path, *asked[-2:]).code == 0
    bundle, there = tmp_path / "proved.rbench.zip", ("--results", tmp_path / "there")
    assert command("merge", bundle, "--results", tmp_path / "honest").code == 0

    def claimed(record: dict[str, Any]) -> None:
        (key,) = (question["key"] for question in record["questions"] if question["kind"] == "certificate")
        assert {row["status"] for row in record["verdicts"][key]} == {"certified", "open"}
        next(row for row in record["verdicts"][key] if row["status"] == "open").update(status="certified")

    repacked(bundle, told(claimed))
    one_line(command("merge", bundle, *there), 1, "certified was claimed; bounded again it is open")
    checked = command("verify", bundle, "--sample", "0", *there)
    assert checked.code == 1
    assert "bounded again it is open" in checked.out


GATED = """
pilot = 12

[[attacks]]
spec = "pgd(steps=3)"

[[attacks]]
spec = "pgd(steps=10, restarts=2)"
rows = "close"
close = 0.3

[[attacks]]
spec = "square(queries=10)"
rows = "audit"
"""


def test_pilots_travel_and_decide_there_as_here(tmp_path: Path, command: Command) -> None:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "gated.toml").write_text(GATED)
    model, results = f"{tmp_path / 'net.py'}:make", ("--results", tmp_path / "results")
    asked = ("--dataset", "digits", "--threat", "linf(eps=0.04)", "--n", "60", "--plan", tmp_path / "gated.toml", "--certify", "none")
    report = json.loads(command("run", "--model", model, *asked, "--json", *results).out)
    assert report["audit"]["pooled"]["questions"] == 1
    assert command("submit", model, "--name", "gated", *ABOUT, "--witnesses", "none", "--out", tmp_path, *results).code == 0
    bundle, there = tmp_path / "gated.rbench.zip", ("--results", tmp_path / "there")
    checked = command("verify", bundle, "--run-code", "--sample", "all", *there)
    assert "verified on 60 of 60" in checked.out, checked.out + checked.err
    assert command("merge", bundle, *there).code == 0
    with Store.open(tmp_path / "results") as here, Store.open(tmp_path / "there") as other:
        assert here.pilots() == other.pilots() != []
    audit = json.loads(command("show", "latest", "--json", *there).out)["audit"]
    assert audit == report["audit"] | {"pooled": {"questions": 0, "rows": 0, "missed": 0, "limit": 1.0, "bound": None}}  # a stranger's word


# --- submitting ---------------------------------------------------------------------------------------------------------------------


def one_line(done: Done, code: int, *words: str) -> None:
    assert (done.code, done.out) == (code, ""), done.err
    assert done.err.startswith("rbench: ")
    assert done.err.count("\n") == 1, done.err
    assert "RBENCH_DEBUG" not in done.err, done.err
    for word in words:
        assert word in done.err, done.err


def test_what_a_submission_lacks_is_said_at_once(lab: Path, tmp_path: Path, command: Command) -> None:
    model, results = f"{lab / 'net.py'}:make", ("--results", lab / "results", "--out", tmp_path)
    one_line(command("submit", model, "--name", "x", *results), 2, "lacks --title, --training, --licence")
    one_line(command("submit", model, "--name", "a/b", *ABOUT, *results), 2, "name 'a/b'")
    one_line(command("submit", model, *ABOUT, *results), 2, "--name")
    one_line(command("submit", "nobody", "--name", "x", *ABOUT, *results), 2, "no model named 'nobody'")
    one_line(command("submit", f"{lab / 'none.py'}:make", "--name", "x", *ABOUT, *results), 2, "no such file")
    one_line(command("submit", model, "--name", "x", *ABOUT, "--out", lab / "net.py"), 2, "--out")
    one_line(command("submit", "digits-msd", "--name", "x", *ABOUT, *results), 2, "no finished run of it", "First: rbench run")
    one_line(command("submit", model, "--name", "x", *ABOUT, *results, "--run", "1999"), 2, "no run named '1999'")
    assert list(tmp_path.iterdir()) == []


def test_a_factory_that_needs_files_is_told_of_build(tmp_path: Path, command: Command) -> None:
    import torch

    (tmp_path / "net.py").write_text(NET)
    scope: dict[str, Any] = {"__file__": str(tmp_path / "net.py"), "__name__": "net"}
    exec(compile(NET, str(tmp_path / "net.py"), "exec"), scope)
    torch.save(scope["make"]().state_dict(), tmp_path / "net.pt")
    model, results = f"{tmp_path / 'net.py'}:stored", ("--results", tmp_path / "results")
    assert command("run", "--model", model, "--dataset", "digits", *PLAN, *results).code == 0
    asked = ("submit", model, "--name", "linear", *ABOUT, "--out", tmp_path, *results)
    one_line(command(*asked), 1, "a fresh process cannot rebuild the model", "--build")
    assert not (tmp_path / "linear.rbench.zip").exists()
    assert command(*asked, "--build", "make").code == 0
    done = command("verify", tmp_path / "linear.rbench.zip", "--run-code", "--sample", "all", "--results", tmp_path / "there")
    assert "verified on 120 of 120" in done.out


def test_a_model_that_changed_since_its_run(lab: Path, tmp_path: Path, command: Command) -> None:
    shutil.copytree(lab / "results", tmp_path / "results")
    (tmp_path / "net.py").write_text(NET + "\n# another file, another model\n")
    done = command("submit", f"{tmp_path / 'net.py'}:make", "--name", "x", *ABOUT, "--results", tmp_path / "results", "--out", tmp_path)
    one_line(done, 2, "no finished run of it")


def test_witnesses_as_asked(lab: Path, tmp_path: Path, command: Command) -> None:
    counts = {}
    for policy in ("all", "sample", "none"):
        asked = ("submit", f"{lab / 'net.py'}:make", "--name", policy, *ABOUT, "--witnesses", policy, "--out", tmp_path)
        assert command(*asked, "--results", lab / "results").code == 0
        record = json.loads(zipfile.ZipFile(tmp_path / f"{policy}.rbench.zip").read("record.json"))
        counts[policy] = sum(row["witness"] is not None for rows in record["verdicts"].values() for row in rows)
        done = command("verify", tmp_path / f"{policy}.rbench.zip", "--run-code", "--sample", "all", "--results", tmp_path / "there")
        assert "verified on 120 of 120" in done.out, done.out
    assert counts["none"] == 0
    assert 0 < counts["sample"] <= counts["all"]


def test_a_bundle_says_nothing_of_the_submitters_machine(lab: Path) -> None:
    for name in ("linear", "plain"):
        opened = zipfile.ZipFile(lab / f"{name}.rbench.zip")
        record = json.loads(opened.read("record.json"))
        assert [run["request"] for run in record["runs"]] == [{}]
        for file in opened.namelist():
            assert str(lab).encode() not in opened.read(file), file


# --- tampering ----------------------------------------------------------------------------------------------------------------------


def repacked(path: Path, change: Callable[[dict[str, bytes]], None], **manifest: object) -> Path:
    """The bundle with other files and a list that agrees with them: what somebody makes who knows the format."""
    with zipfile.ZipFile(path) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    head = json.loads(files.pop("bundle.json")) | manifest
    change(files)
    head.pop("files")
    path.write_bytes(archive.write(path, head, files))
    return path


def row_changed(**fields: object) -> Callable[[dict[str, bytes]], None]:
    """The first row of a status changed; `seal=True` gives it a fresh seal."""
    status, fresh = fields.pop("of"), fields.pop("seal", False)

    def change(files: dict[str, bytes]) -> None:
        record = json.loads(files["record.json"])
        key, rows = next(iter(record["verdicts"].items()))
        place = next(place for place, row in enumerate(rows) if row["status"] == status)
        rows[place] |= fields
        if fresh:
            rows[place]["seal"] = sealed(key, VerdictRecord(**{**rows[place], "seal": ""})).seal
        files["record.json"] = json.dumps(record).encode()

    return change


def weights_changed(files: dict[str, bytes]) -> None:
    tensors = load(files["weights.safetensors"])
    next(iter(tensors.values())).view(-1)[0] += 1
    old, files["weights.safetensors"] = sha256_bytes(files["weights.safetensors"]), save(tensors)
    new = sha256_bytes(files["weights.safetensors"])
    files["card.toml"] = files["card.toml"].replace(old.encode(), new.encode())


def witness_changed(files: dict[str, bytes]) -> None:
    name = next(name for name in files if name.startswith("witnesses/"))
    tensors = load(files[name])
    tensors["theta"][0] *= -1
    files[name] = save(tensors)


TAMPERED: dict[str, tuple[Callable[[dict[str, bytes]], None], str]] = {
    "weights": (weights_changed, "other weights or other code"),
    "witness": (witness_changed, "its content has another digest"),
    "label": (row_changed(of="broken", label=11, seal=True), "label 11; the data says"),
    "clean answer": (row_changed(of="misclassified", clean=11, seal=True), "clean prediction 11"),
    "verdict": (row_changed(of="misclassified", status="survived", seal=True), "but the model's answer to the clean image"),
}


@pytest.mark.parametrize("what", TAMPERED)
@pytest.mark.parametrize("kind", ["linear", "plain"])
def test_what_was_tampered_with_is_named(what: str, kind: str, lab: Path, tmp_path: Path, command: Command) -> None:
    change, words = TAMPERED[what]
    path = repacked(Path(shutil.copy(lab / f"{kind}.rbench.zip", tmp_path)), change)
    done = command("verify", path, "--run-code", "--sample", "all", "--results", tmp_path / "there")
    assert done.code == 1
    assert words in done.out, done.out + done.err


def test_a_verdict_that_was_not_sealed_anew_is_refused_by_both(linear: Path, tmp_path: Path, command: Command) -> None:
    path = repacked(linear, row_changed(of="broken", status="survived", witness=None, row=None))
    for verb in ("verify", "merge"):
        one_line(command(verb, path, "--results", tmp_path / "there"), 1, "example ", "seal")
    assert not (tmp_path / "there").exists() or not Store.open(tmp_path / "there", create=False).runs()


def test_every_file_is_held_to_the_list(linear: Path, tmp_path: Path, command: Command) -> None:
    """One flipped bit in any file, the list left as it was."""
    with zipfile.ZipFile(linear) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    for victim in files:
        path = tmp_path / "flipped.rbench.zip"
        with zipfile.ZipFile(path, "w") as made:
            for name, data in files.items():
                made.writestr(name, bytes([data[0] ^ 1]) + data[1:] if name == victim else data)
        done = command("verify", path, "--results", tmp_path / "there")
        one_line(done, 1, "bundle.json" if victim == "bundle.json" else victim)


def told(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    """A change of the record whose keys and seals are made to agree with it, as somebody does who knows the program."""

    def changed(files: dict[str, bytes]) -> None:
        record = json.loads(files["record.json"])
        change(record)
        renamed = {}
        for question in record["questions"]:
            old, question["key"] = question["key"], ""
            question["key"] = renamed[old] = question_key(QuestionRecord(**question))
        record["verdicts"] = {renamed[key]: [fresh(renamed[key], row) for row in rows] for key, rows in record["verdicts"].items()}
        for part in [*record["stages"], *record["pilots"], *(row for rows in record["curves"].values() for row in rows)]:
            part["question"] = renamed.get(part["question"], part["question"])
        for run in record["runs"]:
            run["questions"] = [[renamed[key], spec] for key, spec in run["questions"]]
        files["record.json"] = json.dumps(record).encode()

    return changed


def fresh(key: str, row: dict[str, Any]) -> dict[str, Any]:
    record = VerdictRecord(**{**row, "seal": ""})
    return vars_of(sealed(key, record)) if row["seal"] else vars_of(record)


def vars_of(record: VerdictRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def rows_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    return next(iter(record["verdicts"].values()))  # type: ignore[no-any-return]


def invented(record: dict[str, Any]) -> None:
    """Survivors beyond the slice, which a later and larger run would find answered."""
    rows_of(record).extend({**rows_of(record)[0], "index": index, "status": "survived"} for index in range(200, 300))


LIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "rows beyond the slice": (invented, "outside the submitted runs"),
    "a row of somebody's run": (lambda r: rows_of(r)[0].update(run="20200101-000000-abcdef"), "outside the submitted runs"),
    "a row without a seal": (lambda r: rows_of(r)[0].update(seal=""), "without a seal"),
    "costs of somebody's run": (lambda r: r["stages"][0].update(run="20200101-000000-abcdef"), "costs of a run"),
    "a pilot of somebody's run": (
        lambda r: r["pilots"].append({"question": r["questions"][0]["key"], "run": "20200101-000000-abcdef", "facts": facts()}),
        "a pilot of a run",
    ),
    "a pilot without facts": (
        lambda r: r["pilots"].append({"question": r["questions"][0]["key"], "run": r["runs"][0]["id"], "facts": {"close": {}}}),
        "expected facts with",
    ),
    "a curve beyond its images": (
        lambda r: r["curves"].update(
            {r["runs"][0]["id"]: [{"question": r["questions"][0]["key"], "spec": "", "index": 120, "gauge": 1.0}]}
        ),
        "a curve of a run that is not in it, or beyond its images",
    ),
    "a proof": (lambda r: r["questions"][0].update(kind="certificate"), "a certificate by attacks"),
    "a run of the year 9999": (lambda r: r["runs"][0].update(started="9999-12-31T00:00:00+00:00"), "no run of the past"),
    "a run without a time": (lambda r: r["runs"][0].update(started="soon"), "no run of the past"),
    "a slice without end": (lambda r: (r["runs"][0].update(n=2**62), r["datasets"][0].update(size=2**62)), "none that rbench knows"),
    "a data set of its own": (lambda r: r["datasets"][0].update(classes=["a"] * 10), "none that rbench knows"),
    "a warning without words": (lambda r: r["runs"][0].update(warnings=[{}]), "warning without"),
    "a question that nobody asks": (lambda r: r["questions"].append({**r["questions"][0], "seed": 5, "key": "1" * 64}), ""),
}


@pytest.mark.parametrize("what", LIES)
def test_a_bundle_speaks_of_its_own_runs_alone(what: str, linear: Path, tmp_path: Path, command: Command) -> None:
    change, words = LIES[what]
    repacked(linear, told(lambda record: [change(record)][:0]))
    for verb in ("verify", "merge"):
        one_line(command(verb, linear, "--run-code", "--results", tmp_path / "there")
                 if verb == "verify" else command(verb, linear, "--results", tmp_path / "there"), 1, words)  # fmt: skip
    assert not (tmp_path / "there").exists()


def harder(record: dict[str, Any]) -> None:
    """Every fall becomes a survivor of a weaker attack, while the run goes on to speak of the stronger one."""
    record["questions"][0]["plan_json"][0]["steps"] = 1
    for row in rows_of(record):
        if row["status"] == "broken":
            row.update(status="survived", witness=None, row=None, attack=None, predicted=None)


@pytest.mark.parametrize(
    "change", [harder, lambda r: r["runs"][0].update(spec="linf(eps=0.9)"), lambda r: r["runs"][0].update(plan="apgd")]
)
def test_a_run_that_answers_another_question_than_it_says(
    change: Callable[[dict[str, Any]], object], linear: Path, tmp_path: Path, command: Command
) -> None:
    repacked(linear, told(lambda record: [change(record)][:0]))
    done = command("verify", linear, "--run-code", "--sample", "all", "--results", tmp_path / "there")
    assert done.code == 1
    assert "NOT verified" in done.out


@pytest.mark.parametrize("width", ["abc", None, [1], 0, 10**30])
def test_an_odd_width_is_no_reason_to_fail(width: object, linear: Path, tmp_path: Path, command: Command) -> None:
    repacked(linear, told(lambda record: record["runs"][0]["environment"].update(width=width)))
    assert command("verify", linear, "--run-code", "--results", tmp_path / "there").code == 0


def test_a_bundle_never_changes_what_the_receiver_found_himself(lab: Path, linear: Path, tmp_path: Path, command: Command) -> None:
    """The receiver has asked the same question; the bundle says that all survived."""
    own = tmp_path / "own"
    asked = ("run", "--model", f"{lab / 'net.py'}:make", "--dataset", "digits", *PLAN, "--results", own)
    assert command(*asked).code == 0
    before = json.loads(command("show", "latest", "--json", "--results", own).out)

    def flatter(record: dict[str, Any]) -> None:
        for row in rows_of(record):
            row.update(status="survived", witness=None, row=None, attack=None, predicted=None)

    assert command("merge", repacked(linear, told(flatter)), "--results", own).code == 0
    after = json.loads(command("show", before["run"], "--json", "--results", own).out)
    assert {key: after[key] for key in ("model", "robust", "verdicts", "command")} == {
        key: before[key] for key in ("model", "robust", "verdicts", "command")
    }


def test_an_unfinished_run_beside_a_finished_one_is_no_fault(lab: Path, tmp_path: Path, command: Command) -> None:
    """Rows of a run that was stopped are in the finished one's slice; the first run goes along as a record alone."""
    results = ("--results", tmp_path / "results")
    asked = ("run", "--model", "digits-linf-at", "--threat", "linf(eps=0.06)", "--plan", "pgd(steps=10)", *results)
    assert command(*asked, "--n", "60").code == 0
    connection = sqlite3.connect(tmp_path / "results" / FILE)
    with connection:
        connection.execute("update run set state = 'failed', n = 200")
    connection.close()
    assert command(*asked, "--n", "80").code == 0
    assert command("submit", "digits-linf-at", "--name", "x", *ABOUT, "--out", tmp_path, *results).code == 0
    done = command("verify", tmp_path / "x.rbench.zip", "--sample", "all", "--results", tmp_path / "there")
    assert (done.code, done.err) == (0, "")
    assert "verified on 80 of 80" in done.out
    assert command("merge", tmp_path / "x.rbench.zip", "--results", tmp_path / "there").code == 0


def test_verify_says_that_a_run_came_by_a_bundle(linear: Path, tmp_path: Path, command: Command) -> None:
    assert command("merge", linear, "--results", tmp_path / "there").code == 0
    one_line(command("verify", "latest", "--results", tmp_path / "there"), 2, "came by the bundle linear")


# --- archives that are none ---------------------------------------------------------------------------------------------------------


def entry(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def added(name: str, data: bytes = b"x", mode: int = stat.S_IFREG | 0o644) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as opened:
            warnings.simplefilter("ignore")  # zipfile warns of a name that is there twice
            opened.writestr(entry(name, mode), data)

    return change


def bombed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("bundle.json", b" " * (64 << 20))


def compressed_weights(path: Path) -> None:
    with zipfile.ZipFile(path) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in files.items():
            made.writestr(name, data)


ARCHIVES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a path upwards": (added("../evil.py"), "'../evil.py'"),
    "an absolute path": (added("/etc/evil"), "'/etc/evil'"),
    "a windows path": (added("..\\evil.py"), "evil.py"),
    "a link": (added("factory.py", b"/etc/passwd", stat.S_IFLNK | 0o777), "factory.py"),
    "a link under a new name": (added("witnesses/" + "0" * 16 + "/000000-" + "0" * 64 + ".safetensors", b"x", stat.S_IFLNK), "a link"),
    "an extra file": (added("README.txt"), "'README.txt'"),
    "an extra witness": (added("witnesses/" + "0" * 16 + "/000000-" + "0" * 64 + ".safetensors"), "is in it and not in its list"),
    "a file twice": (added("card.toml"), "'card.toml' twice"),
    "a bomb": (bombed, "unpacks to 67,108,864 bytes"),
    "compressed tensors": (compressed_weights, "is compressed"),
    "text": (lambda path: path.write_text("hello"), "no bundle"),
    "half a file": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "no bundle"),
    "nothing": (lambda path: path.write_bytes(b""), "no bundle"),
    "an empty archive": (lambda path: zipfile.ZipFile(path, "w").close(), "no bundle.json"),
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_hostile_archives_are_one_line_and_leave_nothing(what: str, linear: Path, tmp_path: Path, command: Command) -> None:
    change, words = ARCHIVES[what]
    change(linear)
    for verb in ("verify", "merge"):
        one_line(command(verb, linear, "--results", tmp_path / "there"), 1, words)
    assert not (tmp_path / "there").exists()
    assert not list(tmp_path.parent.rglob("evil*"))


MANIFESTS: dict[str, tuple[dict[str, object], str]] = {
    "another engine": ({"engine": "0"}, "made by engine '0'"),
    "another kind": ({"kind": "pickle"}, "kind 'pickle'"),
    "another name": ({"name": "other"}, "names the model 'other'"),
    "another model": ({"model": "0" * 64}, "other models"),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_a_bundle_that_says_something_else_of_itself(what: str, linear: Path, tmp_path: Path, command: Command) -> None:
    manifest, words = MANIFESTS[what]
    repacked(linear, lambda files: None, **manifest)
    for verb in ("verify", "merge"):
        one_line(command(verb, linear, "--results", tmp_path / "there"), 1, words)


def not_a_number(files: dict[str, bytes]) -> None:
    files["record.json"] = re.sub(rb'"seconds":[0-9.e-]+', b'"seconds":NaN', files["record.json"])


CONTENTS: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "no card": (lambda files: files.pop("card.toml"), "card.toml"),
    "a card with an unknown key": (lambda files: files.update({"card.toml": b"colour = 3\n" + files["card.toml"]}), "colour"),
    "a card that is no TOML": (lambda files: files.update({"card.toml": b"= = ="}), "card.toml"),
    "weights of another digest": (lambda files: files.update({"weights.safetensors": b"x"}), "not what its card speaks of"),
    "a record that is no JSON": (lambda files: files.update({"record.json": b"{"}), "record.json"),
    "a record that is deep": (lambda files: files.update({"record.json": b"[" * 100_000}), "record.json"),
    "a record of nothing": (lambda files: files.update({"record.json": b"{}"}), "expected the keys"),
    "a number that is NaN": (not_a_number, "a number"),
}  # fmt: skip


@pytest.mark.parametrize("what", CONTENTS)
def test_contents_that_do_not_read(what: str, linear: Path, tmp_path: Path, command: Command) -> None:
    change, words = CONTENTS[what]
    repacked(linear, lambda files: [change(files)][:0])
    for verb in ("verify", "merge"):
        one_line(command(verb, linear, "--results", tmp_path / "there"), 1, words)


# --- merging databases --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def other(lab: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lab / "results", tmp_path / "other"))


def test_a_folder_and_its_database_are_merged_with_their_witnesses(other: Path, tmp_path: Path, command: Command) -> None:
    before = (other / FILE).read_bytes()
    assert command("merge", other, "--results", tmp_path / "there").out.startswith("2 new runs, 240 new verdicts")
    assert command("merge", other / FILE, "--results", tmp_path / "there").out.startswith("0 new runs, 0 new")
    assert (other / FILE).read_bytes() == before
    kept, copied = ({p.name for p in (folder / "witnesses").rglob("*.safetensors")} for folder in (other, tmp_path / "there"))
    assert kept == copied
    assert command("verify", "latest", "--results", tmp_path / "there").code == 0


def test_databases_that_cannot_be_merged(other: Path, tmp_path: Path, command: Command) -> None:
    there = ("--results", tmp_path / "there")
    one_line(command("merge", tmp_path / "none", *there), 2, "no such file")
    one_line(command("merge", other, "--results", other), 2, "into itself")
    (tmp_path / "broken.sqlite").write_bytes((other / FILE).read_bytes()[:5000])
    one_line(command("merge", tmp_path / "broken.sqlite", *there), 1, "broken.sqlite")
    connection = sqlite3.connect(tmp_path / "foreign.sqlite")
    connection.execute("create table t (x)")
    connection.close()
    one_line(command("merge", tmp_path / "foreign.sqlite", *there), 1, "foreign.sqlite")
    connection = sqlite3.connect(other / FILE)
    with connection:
        connection.execute("update verdict set label = 'seven', seal = ''")
    connection.close()
    one_line(command("merge", other, *there), 1, "rbench.sqlite", "label")


def test_verify_has_no_use_for_run_code_on_a_run(other: Path, command: Command) -> None:
    one_line(command("verify", "latest", "--run-code", "--results", other), 2, "--run-code")
    one_line(command("verify", "nobody", "--results", other), 2, "no run named 'nobody'")
    one_line(command("verify", other / "none.zip", "--results", other), 1, "none.zip")
