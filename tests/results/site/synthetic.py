"""A store with made-up results, for tests of the site alone: the names say so, and no figure in it was ever measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from rbench_results.figures import FALLEN
from rbench_results.records import CurveRow, QuestionRecord, StageRecord, VerdictRecord, VerificationRecord
from rbench_results.seal import answers_digest
from rbench_results.store import Store
from stored import dataset, digest, facts, model, question, run, stage, verdict

HOSTILE = "<script>alert('x')</script>"
FORMULA = '=HYPERLINK("http://example.invalid")'
STEERING = "evil\u202egnp.exe\u2066\x00\x1b[31m\u200bend"  # bidi override and isolate, NUL, escape, zero width
SHOWN = r"evil\u202egnp.exe\u2066\x00\x1b[31m\u200bend"  # how a page says it
LONG = "größe-" + "無限に長い名前" * 12 + "-" + "w" * 120
UNION = {"linf": "3/10", "l2": "2", "l1": "10"}
TITLE = "test-only-union"


@dataclass(frozen=True)
class Site:
    """The store that pages were drawn from, and the folder they lie in."""

    store: Store
    root: Path

    @property
    def board(self) -> str:
        """The board of the union: the one with members to tick."""
        return f"board-test-only-{TITLE}.html"

    @property
    def compare(self) -> str:
        return self.board.replace("board-", "compare-")

    @property
    def pages(self) -> list[str]:
        return sorted(path.name for path in self.root.glob("*.html"))


class Maker:
    """Fills a store run by run; every choice comes from a seed."""

    def __init__(self, folder: Path, images: NDArray[np.float32] | None = None, labels: Sequence[int] | None = None, seed: int = 0) -> None:
        self.store, self.random = Store.open(folder), np.random.default_rng(seed)
        self.images = patterns(self.random) if images is None else images
        self.labels = [int(label) for label in (np.arange(len(self.images)) % 10 if labels is None else labels)]
        self.data = dataset(
            "test-only", digest=digest("test-only"), size=len(self.images), classes=tuple("0123456789"), shape=self.images.shape[1:]
        )
        self.store.put_dataset(self.data)
        self.runs = self.verifications = 0

    def model(self, name: str, **fields: Any) -> str:
        made = model(name, digest=digest(name), dataset=self.data.name, classes=10, **fields)
        self.store.put_model(made)
        return made.digest

    def question(self, owner: str, family: str, eps: str, **fields: Any) -> QuestionRecord:
        shown = {"3/10": "0.3"}.get(eps, eps)
        asked = question(family, eps, model=owner, dataset=self.data.digest, spec=f"{family}(eps={shown})", **fields)
        self.store.put_question(asked)
        return asked

    def run(
        self,
        name: str,
        holds: dict[str, float],
        *,
        n: int = 0,
        full: bool = False,
        plan: str = "apgd",
        errors: int = 0,
        left_out: int = 0,
        **fields: Any,
    ) -> str:
        """A union over `holds` (family -> share that holds, at UNION's radii); the last `left_out` images are not answered."""
        self.runs += 1
        owner, id = digest(name), f"t{self.runs:03d}"
        n = n or len(self.images)
        asked = [self.question(owner, family, UNION[family], plan=plan, seed=fields.get("seed", 0)) for family in holds]
        spec = f"union({', '.join(q.spec for q in asked)})" if len(asked) > 1 else asked[0].spec
        given = {
            "spec": spec,
            "title": TITLE if len(asked) > 1 else spec,
            "sentence": "The worst member counts." if len(asked) > 1 else asked[0].sentence,
        }
        record = run(id, asked, model=owner, model_name=name, dataset=self.data.digest, dataset_name=self.data.name, **given)
        record = replace(
            record,
            n=n,
            plan=plan,
            full=full,
            state=fields.pop("state", "done"),
            started=f"2001-02-03T04:{self.runs:02d}:00+00:00",
            **fields,
        )
        self.store.start_run(record)
        wrong = self.random.random(n) < 0.03
        standing = np.ones(n, bool)
        for at, (one, share) in enumerate(zip(asked, holds.values(), strict=True)):
            entered = [i for i in range(n - left_out) if full or standing[i]]
            fell = {i: self.random.random() > share for i in entered}
            rows = [self._verdict(i, id, wrong=bool(wrong[i]), fell=fell[i], error=at == 0 and i < errors) for i in entered]
            rows = self._witnesses(one, id, rows)
            standing[[row.index for row in rows if row.status in FALLEN]] = False
            self.store.add_chunk(one.key, rows, self._stages(one, id, rows, first=at == 0))
        if record.state != "running":
            self.store.finish_run(id, state=record.state, warnings=record.warnings, seconds=12.5)
        return id

    def pilot(self, run: str, spec: str, *, masked: bool = False, opened: bool = False) -> None:
        """A pilot of eight images for one member of a run, with its stages apart from all others."""
        record = self.store.run(run)
        key = next(key for key, named in record.questions if named == spec)
        fell = 5 if masked else 3
        families = [{"family": "apgd", "entered": 8, "broken": 3}, {"family": "fab", "entered": 5, "broken": fell - 3}]
        why = f"of 8 pilot images APGD left 5, and of these other attacks broke {fell - 3} (fab {fell - 3})"
        given = {"families": families, "masked": masked, "why": why, "opened": opened, "late": int(opened)}
        self.store.put_pilot(key, run, facts(range(8), standing=8 - fell, **given))
        asked = self.store.question(key)
        spent = [
            stage(asked, at, run=run, pilot=True, attack=name, entered=came, broken=lost, forward=came * 90, backward=came * 80,
                  seconds=1.25, model_seconds=0.75, step_seconds=0.25)
            for at, (name, came, lost) in enumerate((("apgd-ce(steps=100)", 8, 3), ("fab(steps=100, top=2)", 5, fell - 3)), start=1)
        ]  # fmt: skip
        self.store.add_chunk(key, [], spent)

    def curve(self, run: str, *, part: bool = False) -> None:
        """The closest points of a run: where an image fell a little inside, else beyond its radius or not at all."""
        record, rows = self.store.run(run), []
        for key, spec in record.questions:
            fell = self.store.answered(key)
            for index in range(record.first, record.first + record.n // (2 if part else 1)):
                reach = self.random.uniform(0.05, 1.0) if fell.get(index) == "broken" else self.random.uniform(1.0, 2.6)
                rows.append(CurveRow(question=key, spec=spec, index=index, gauge=None if reach > 2.3 else reach, attack="fab"))
        self.store.put_curve(run, rows)

    def answers(self, run: str) -> str:
        """The digest of what a run's verdicts say now."""
        record = self.store.run(run)
        rows = [(key, row) for key, _ in record.questions for row in self.store.verdicts(key, record.first, record.n)]
        return answers_digest(rows)

    def verified(self, run: str, *, ok: bool, confirmed: int, problems: Sequence[str] = ()) -> None:
        """A verification of a run, later than those before."""
        self.verifications += 1
        check = {"name": "witnesses", "checked": confirmed, "wrong": len(problems), "text": f"judged again {HOSTILE}"}
        self.store.put_verification(
            VerificationRecord(
                id=f"v{self.verifications:03d}",
                run=run,
                started=f"2001-02-04T04:{self.verifications:02d}:00+00:00",
                ok=ok,
                n=self.store.run(run).n,
                confirmed=confirmed,
                answers=self.answers(run),
                checks=[check],
                problems=list(problems),
                seconds=1.5,
            )
        )

    def _verdict(self, index: int, id: str, *, wrong: bool, fell: bool, error: bool) -> VerdictRecord:
        label = self.labels[index]
        if error:
            return verdict(index, "error", label=label, clean=None, run=id, reason="not a number in the logits")
        if wrong:
            return verdict(index, "misclassified", label=label, clean=(label + 3) % 10, run=id)
        if not fell:
            return verdict(index, "survived", label=label, clean=label, run=id, margin=0.5)
        return verdict(
            index,
            "broken",
            label=label,
            clean=label,
            predicted=(label + 1 + index % 8) % 10,
            run=id,
            attack="apgd-ce(steps=100)",
            gauge=0.98,
            margin=-0.1,
        )

    def _witnesses(self, asked: QuestionRecord, id: str, rows: list[VerdictRecord]) -> list[VerdictRecord]:
        broken = [row for row in rows if row.status == "broken"]
        if not broken:
            return rows
        index = np.array([row.index for row in broken])
        x = self.images[index]
        x_adv = np.clip(x + _moves(self.random, asked.family, x.shape), 0, 1).astype(np.float32)
        name = f"witnesses/{asked.key[:16]}/{id}.safetensors"
        path = self.store.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"index": index, "x": x, "x_adv": x_adv, "theta": (x_adv - x).reshape(len(x), -1)}, path)
        place = {row.index: at for at, row in enumerate(broken)}
        return [replace(row, witness=name, row=place[row.index]) if row.status == "broken" else row for row in rows]

    def _stages(self, asked: QuestionRecord, id: str, rows: Sequence[VerdictRecord], *, first: bool) -> list[StageRecord]:
        entered = sum(row.status not in ("misclassified", "error") for row in rows)
        broken = sum(row.status == "broken" for row in rows)
        parts = [(entered, broken * 3 // 4), (entered - broken * 3 // 4, broken - broken * 3 // 4)]
        names = ("apgd-ce(steps=100)", "apgd-t(targets=9, steps=100)")
        clean = stage(asked, 0, run=id, attack="clean pass", entered=len(rows), forward=len(rows), seconds=0.1)
        return [clean] * first + [
            stage(
                asked,
                at + 1,
                run=id,
                attack=names[at],
                entered=came,
                broken=fell,
                forward=came * 60 * (1 + 8 * at),
                backward=came * 50 * (1 + 8 * at),
                seconds=1.5,
            )
            for at, (came, fell) in enumerate(parts)
        ]


def patterns(random: np.random.Generator, n: int = 64) -> NDArray[np.float32]:
    """(n, 1, 8, 8): a bright bar whose place and slant depend on the class, with a little noise."""
    rows, columns = np.mgrid[0:8, 0:8]
    bars = [np.exp(-((columns - 3.5 + (rows - 3.5) * (k % 5 - 2) / 2 - k // 5) ** 2)) for k in range(10)]
    images = np.stack([bars[i % 10] for i in range(n)])[:, None] + 0.05 * random.random((n, 1, 8, 8))
    return np.clip(images, 0, 1).astype(np.float32)


def _moves(random: np.random.Generator, family: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    if family == "linf":
        return 0.3 * np.sign(random.standard_normal(shape))
    many = random.random(shape) < (0.5 if family == "l2" else 0.08)
    return many * random.uniform(-1, 1, shape) * (0.6 if family == "l2" else 1.5)


def fill(folder: Path, images: NDArray[np.float32] | None = None, labels: Sequence[int] | None = None) -> Store:
    """Two boards' worth of rows: complete, partial, shorter, failed, with errors, another plan, hostile names, a model that never ran."""
    maker = Maker(folder, images, labels)
    card = {
        "name": "test-msd",
        "training": {"recipe": "msd", "seed": 0},
        "architecture": {"factory": "rbench_zoo.architectures:SmallCNN", "channels": [16, 32]},
        "source": {
            "paper": "arXiv:1909.04068",
            "repository": "lab/robust@0123abc:nets/msd.pt",
            "licence": "MIT",
            "reported": [
                {
                    "threat": "linf(eps=0.3)",
                    "attack": "PGD-40",
                    "robust_accuracy": 0.62,
                    "clean_accuracy": 0.985,
                    "n": 10000,
                    "where": "Table 1",
                },
                {"threat": "l2(eps=99)", "certified_accuracy": 0.1, "where": HOSTILE},
            ],
        },
    }
    hostile = {
        "gradient": False,
        "source": {
            "paper": "javascript:alert(1)",
            "repository": "data:text/html,<script>alert(1)</script>",
            "licence": STEERING,
            "note": f"{'w' * 400} see https://example.invalid/?a=1&b=2, http://example.invalid and https://arxiv.org@example.invalid/",
            "reported": [{"threat": HOSTILE, "robust_accuracy": FORMULA, STEERING: "javascript:alert(2)"}],
        },
    }
    maker.model("test-msd", title="Test net, three balls at once", card=card, parameters=166_406)
    maker.model("test-linf", title="Test net, linf adversarial training", parameters=16_640)
    maker.model("test-plain", title="Test net, standard training", parameters=1_664)
    maker.model(HOSTILE, title="</td><img src=x onerror=alert(1)>", card=hostile)
    maker.model(FORMULA)
    maker.model(LONG, title="A title that goes on and on " * 8)
    maker.model("test-never-run")
    maker.run("test-msd", {"linf": 0.8, "l2": 0.85, "l1": 0.8}, n=40, full=True, plan="pgd")
    maker.run("test-msd", {"linf": 0.75, "l2": 0.8, "l1": 0.75}, full=True, environment={"machine": "x86_64", "python": "3.11"})
    linf = maker.run("test-linf", {"linf": 0.9, "l2": 0.3, "l1": 0.25}, submitted={"name": "test-linf", "bundle": digest("zip")})
    maker.run("test-plain", {"linf": 0.02, "l2": 0.1, "l1": 0.1}, warnings=[{"code": "masking", "text": "A warning that a test wrote."}])
    maker.run(HOSTILE, {"linf": 0.5, "l2": 0.5, "l1": 0.5}, full=True, errors=3, command=f"rbench run --model '{HOSTILE}'",
        submitted={"name": HOSTILE, "bundle": digest("bundle"), "contact": STEERING}, warnings=[{"code": HOSTILE, "text": STEERING}],
        request={"model": "javascript:alert(1)"})  # fmt: skip
    maker.run(LONG, {"linf": 0.6, "l2": 0.5, "l1": 0.5}, n=30, state="done")
    maker.run(FORMULA, {"linf": 0.6, "l2": 0.7, "l1": 0.5}, left_out=9, state="failed")
    maker.run("test-msd", {"l2": 0.8}, plan="apgd")
    maker.pilot("t002", "linf(eps=0.3)")
    maker.pilot("t002", "l2(eps=2)", masked=True)
    maker.pilot("t002", "l1(eps=10)", opened=True)
    maker.pilot(linf, "linf(eps=0.3)")
    maker.curve("t002")
    maker.curve(linf, part=True)
    maker.verified("t002", ok=True, confirmed=60)
    maker.verified(linf, ok=False, confirmed=3, problems=["an older one"])
    maker.verified(linf, ok=True, confirmed=57)
    maker.verified("t004", ok=False, confirmed=12, problems=[f"image 3: {HOSTILE}", f"image 4: {STEERING}"])
    return maker.store
