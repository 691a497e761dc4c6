"""Made-up candidates with people's labels beside the made-up site: models that follow or keep, and what was stored of the set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from rbench_core.files import atomic_write
from rbench_results.records import DatasetRecord, QuestionRecord
from rbench_results.seal import set_digest
from rbench_results.store import Store
from stored import dataset, digest, question, run, stage, verdict

N, CHANGED = 10, 5  # candidates; people call the first of them something else


def home(store: Store, data: DatasetRecord, name: str) -> DatasetRecord:
    """The data set of a set's sources, stored."""
    made = dataset(f"{name}-sources", digest=digest(f"{name}-sources"), size=N, classes=data.classes, shape=data.shape, split="candidate")
    made = replace(made, of=data.name)
    store.put_dataset(made)
    return made


def asked(
    store: Store, data: DatasetRecord, name: str, *, follows: int, owner: str, title: str, clean: int = N, proved: Sequence[int] = ()
) -> str:
    """A run of one model: it follows people on `follows` of CHANGED candidates, keeps the old label on the rest; the first ones clean.

    proved: candidates around which its label is proved constant in linf 0.3.
    """
    family = f"invariance:{digest(name)}"
    given = {"spec": f"invariance({name})", "set": {"family": family, "extent": {}}, "extent": {}, "objective": "invariance"}
    one = question(family, model=owner, dataset=data.digest, sentence="People said what each shows.", **given)
    store.put_question(one)
    id = f"i-{name}-{digest(title)[:6]}"
    words = {"spec": one.spec, "title": f"invariance-{name}", "threat": f"invariance-{name}", "sentence": one.sentence}
    record = run(id, [one], model=owner, model_name=title, dataset=data.digest, dataset_name=str(data.of), **words)
    if proved:
        ball = question("linf", "3/10", model=owner, dataset=data.digest, kind="certificate", plan="ibp", spec="linf(eps=0.3)")
        store.put_question(ball)
        record = replace(record, questions=[(ball.key, one.spec), (one.key, one.spec)])
    store.start_run(replace(record, n=N, started="2001-02-05T04:00:00+00:00"))
    rows = []
    for index in range(N):
        label, human = index % 10, (index + 1) % 10 if index < CHANGED else index % 10
        said = human if index < follows or index >= CHANGED else label
        status = "survived" if said == human else "broken"
        rows.append(
            verdict(index, status, label=label, oracle=human, predicted=said, clean=label if index < clean else (label + 3) % 10, run=id)
        )
    store.add_chunk(one.key, rows, [stage(one, 1, run=id, attack="grid", entered=N, broken=CHANGED - follows, forward=N, seconds=0.1)])
    if proved:
        proofs = [verdict(i, "certified" if i in proved else "open", label=i % 10, clean=i % 10, run=id) for i in range(N)]
        store.add_chunk(ball.key, proofs, [])
    store.finish_run(id, state="done", warnings=[], seconds=0.5)
    return one.key


def portrait(folder: Path, one: QuestionRecord, declared: str) -> None:
    """What the command that had the set stored of it."""
    facts = [{"name": "declared ball", "value": declared, "note": ""}]
    words = {"spec": one.spec, "family": one.family, "sentence": one.sentence, "dataset": "x", "panels": [], "facts": facts}
    data = save({"none": np.zeros(1, np.uint8)}, metadata={"portrait": json.dumps(words)})
    atomic_write(folder / "sets" / f"{set_digest(one.set)}.safetensors", data)


def add(store: Store, data: DatasetRecord, owners: Sequence[tuple[str, int]]) -> None:
    """Two sets: one that declares linf 0.3, one that declares nothing. owners: (model's name, how often it follows)."""
    for name, declared in (("near", "linf(eps=0.3)"), ("free", "none")):
        sources = home(store, data, name)
        for title, follows in owners:
            key = asked(store, sources, name, follows=follows, owner=digest(title), title=title)
            portrait(store.folder, store.question(key), declared)
