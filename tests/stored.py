"""Records and stores made by hand, for tests of the results room, and child processes that use them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rbench_results.records import DatasetRecord, ModelRecord, QuestionRecord, RunRecord, StageRecord, VerdictRecord
from rbench_results.store import Store


def digest(text: str) -> str:
    """64 hex digits that stand for a content."""
    return hashlib.sha256(text.encode()).hexdigest()


def model(name: str = "net", **fields: Any) -> ModelRecord:
    given = {
        "title": f"The {name}",
        "dataset": "digits",
        "card": {"name": name},
        "parameters": 10,
        "classes": 3,
        "probe": [[0.5, -1.0, 2.0]],
    }
    return ModelRecord(**{"digest": digest(name), "name": name, **given, **fields})


def dataset(name: str = "digits", **fields: Any) -> DatasetRecord:
    given = {"split": "test", "size": 500, "shape": (1, 8, 8), "classes": ("zero", "one", "two"), "note": None}
    return DatasetRecord(**{"digest": digest(name), "name": name, **given, **fields})


def question(family: str = "linf", eps: str = "3/10", **fields: Any) -> QuestionRecord:
    spec = f"{family}(eps={eps})"
    given = {"model": model().digest, "dataset": dataset().digest, "objective": "sensitivity", "plan": "apgd", "seed": 0, "kind": "attack"}
    given |= {
        "spec": spec,
        "set": {"name": family, "eps": eps},
        "family": family,
        "extent": {"eps": eps},
        "plan_json": [{"attack": "apgd-ce(steps=100)"}],
    }
    given |= {"engine": "1", "precision": "float32", "title": spec, "sentence": f"Every pixel moves by at most {eps}."} | fields
    return QuestionRecord(**{"key": digest(repr(sorted(given.items()))), **given})


def run(id: str = "r1", questions: Sequence[QuestionRecord] = (), **fields: Any) -> RunRecord:
    given = {
        "model": model().digest,
        "model_name": "net",
        "dataset": dataset().digest,
        "dataset_name": "digits",
        "threat": "union-lp",
        "n": 4,
        "seed": 0,
    }
    given |= {
        "spec": "union(...)",
        "title": "Union",
        "sentence": "The worst of them.",
        "plan": "apgd",
        "command": "rbench run",
        "started": "2026-01-01T00:00:00+00:00",
    }
    return RunRecord(**{"id": id, "questions": [(q.key, q.spec) for q in questions], **given, **fields})


def verdict(index: int, status: str = "survived", **fields: Any) -> VerdictRecord:
    given = {"label": 1, "clean": 1, "width": 64, "device": "cpu", "threads": 1, "torch": "2.13.0", "run": "r1"}
    return VerdictRecord(**{"index": index, "status": status, **given, **fields})


def stage(of: QuestionRecord, position: int = 0, **fields: Any) -> StageRecord:
    return StageRecord(**{"run": "r1", "question": of.key, "position": position, "attack": "apgd-ce(steps=100)", **fields})


def facts(indices: Sequence[int] = (0, 1), standing: int = 2, missed: int = 0, **fields: Any) -> dict[str, Any]:
    """What a pilot may have found, as `rbench.attacks.pilot.Facts.to_json` writes it."""
    found = {
        "indices": list(indices),
        "close": {"0.15": 1.25, "0.4": None},
        "families": [{"family": "apgd", "entered": len(indices), "broken": len(indices) - standing}],
        "masked": False,
        "why": f"of {len(indices)} pilot images APGD left {standing}, and of these other attacks broke 0 (nothing)",
        "opened": False,
        "late": missed,
        "audit": {"standing": standing, "missed": missed},
        "cost": {"forward": 900, "backward": 400, "useful": 1200, "seconds": 1.5},
    }
    return found | fields


def filled(folder: Path, *questions: QuestionRecord, **fields: Any) -> Store:
    """An open store with the model, the data set, the questions and one run "r1" that asks them; no verdicts."""
    store = Store.open(folder)
    store.put_model(model())
    store.put_dataset(dataset())
    for one in questions:
        store.put_question(one)
    store.start_run(run(questions=questions, **fields))
    return store


def python(code: str, *args: object) -> subprocess.Popen[str]:
    """A child that runs code with this module importable; its output is text on pipes."""
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def printed(code: str, *args: object) -> str:
    """What a child printed that ended well."""
    child = python(code, *args)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert err == "", err
    return out
