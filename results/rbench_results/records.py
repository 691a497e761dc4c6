"""What the store takes and gives back: frozen values of plain Python types, importable without SQLAlchemy, torch or numpy.

Every record is made with named arguments. Digests and keys are 64 hex digits, times ISO 8601 in UTC, indices positions in the data set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ATTACK_STATUSES = frozenset({"misclassified", "broken", "survived", "error"})
CERTIFICATE_STATUSES = frozenset({"certified", "open", "error"})
STATUSES = {"attack": ATTACK_STATUSES, "certificate": CERTIFICATE_STATUSES}  # by the kind of the question
RUN_STATES = frozenset({"running", "done", "failed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """A model by content; name, title and card are editorial and may change under the same digest."""

    digest: str
    name: str
    title: str
    dataset: str  # the data set's name that the card speaks of
    card: dict[str, Any]
    parameters: int
    classes: int
    probe: list[list[float]]  # logits on the fixed probe batch, (rows, classes); empty: not probed, and then never compared


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRecord:
    """A data set by content; `size` counts its examples, `shape` is (channels, height, width) of one."""

    digest: str
    name: str
    split: str
    size: int
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    note: str | None = None
    of: str | None = None  # the data set beside which pages show it: candidates made from MNIST stand with MNIST


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionRecord:
    """What is asked of every example; `key` is the SHA-256 of its content (DESIGN section 5)."""

    key: str
    model: str  # digest
    dataset: str  # digest
    spec: str
    set: dict[str, Any]
    family: str
    extent: dict[str, str]  # exact numbers as text, {"eps": "3/10"}: in one family, the larger extents hold the smaller
    objective: str
    plan: str
    plan_json: list[Any]
    seed: int
    engine: str
    precision: str
    title: str
    sentence: str
    kind: str = "attack"  # or "certificate"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRecord:
    """What is known of one example under one question, with its evidence and its provenance."""

    index: int
    label: int
    status: str
    clean: int | None = None  # prediction on the clean image; None: the model gave none
    predicted: int | None = None  # prediction at the witness
    attack: str | None = None
    margin: float | None = None  # logit of the label minus the best other; None where it is not finite
    gauge: float | None = None  # smallest scale of the ball that holds the witness
    target: int | None = None
    restart: int | None = None
    reason: str | None = None  # of an error or a refusal
    witness: str | None = None  # file relative to the results folder
    row: int | None = None  # row in that file
    width: int
    device: str
    threads: int
    torch: str
    run: str
    oracle: int | None = None  # the label that people gave to the candidate; None: the data's label counts
    seal: str = ""  # SHA-256 of all the above and the question's key; "" before it is stored, or stored before there were seals


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """What one attack of a plan did and cost in one run: rows entered, fallen, refused by the referee, in error; passes in images.

    Of its seconds `model_seconds` went into the model's passes and `step_seconds` into the attack's steps; the rest is the engine's.
    """

    run: str
    question: str
    position: int
    attack: str
    entered: int = 0
    broken: int = 0
    refused: int = 0
    errors: int = 0
    forward: int = 0
    backward: int = 0
    useful: int = 0
    seconds: float = 0.0
    pilot: bool = False  # what the plan's pilot did, apart from all other examples
    model_seconds: float = 0.0
    step_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotRecord:
    """What the pilot of a question's plan found, and in which run: DESIGN section 2. The facts decide how every other example is judged."""

    question: str
    run: str
    facts: dict[str, Any]  # plain JSON: indices, close, families, masked, why, opened, late, audit, cost


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveRow:
    """The closest adversarial point that a run knows of one example, whether or not inside the set's own radius."""

    question: str
    spec: str
    index: int
    gauge: float | None  # its distance in radii of the question's set: 0 = misclassified when clean; None: no such point is known
    attack: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What a person asked: model, threat, the slice [first, first + n) and the questions that answer it, with a snapshot of the card."""

    id: str
    started: str
    finished: str | None = None
    state: str = "running"
    model: str  # digest
    model_name: str
    dataset: str  # digest
    dataset_name: str
    threat: str  # the name or spec that was asked for
    spec: str
    title: str
    sentence: str
    n: int
    first: int = 0
    plan: str
    seed: int
    full: bool = False
    command: str
    questions: list[tuple[str, str]] = field(default_factory=list)  # (key, spec of the member), in the order of the threat's members
    card: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    warnings: list[dict[str, str]] = field(default_factory=list)  # {"code", "text"}
    seconds: float = 0.0
    request: dict[str, Any] = field(default_factory=dict)  # {"model", "dataset"} as they were asked for; absent where they were objects
    submitted: dict[str, Any] | None = None  # {"name", "bundle" (SHA-256), "contact"} of a run that came by a bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationRecord:
    """What somebody confirmed of a run: of its n examples `confirmed` were proved or computed again with the same answer.

    `checks` are {"name", "checked", "wrong", "text"}, `problems` the lines that name what is wrong; `ok` means that there are none.
    """

    id: str
    run: str
    started: str
    bundle: str | None = None  # SHA-256 of the bundle that was verified; None: a run of this store
    ok: bool
    n: int
    confirmed: int
    answers: str = ""  # seal.answers_digest of what was looked at: it speaks for these verdicts and for no others
    checks: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
