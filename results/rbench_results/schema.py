"""The tables. A verdict row belongs to (question, example index); models, data sets and questions are keyed by content, runs by name.

The tables a database really has come from `migrations/`; a test holds the two together. JSON columns hold what is never searched.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Double, ForeignKey, Index, MetaData, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

HEAD = "0004"  # the newest revision in migrations/versions: lets an up-to-date database open without importing Alembic

# Constraints need fixed names: SQLite's ALTER rebuilds a table and finds them by name.
NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
}


class Base(DeclarativeBase):
    """Columns carry the names of the records' fields, so that a row and a record turn into one another without a table of names."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON, float: Double}


class Model(Base):
    """See ModelRecord."""

    __tablename__ = "model"
    digest: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(index=True)
    title: Mapped[str]
    dataset: Mapped[str]
    card: Mapped[dict[str, Any]]
    parameters: Mapped[int]
    classes: Mapped[int]
    probe: Mapped[list[Any]]


class Dataset(Base):
    """See DatasetRecord."""

    __tablename__ = "dataset"
    digest: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    split: Mapped[str]
    size: Mapped[int]
    shape: Mapped[list[Any]]
    classes: Mapped[list[Any]]
    note: Mapped[str | None]
    of: Mapped[str | None]


class Question(Base):
    """See QuestionRecord. `id` stands for the 64 characters of `key` in the large tables: verdict rows are half as long."""

    __tablename__ = "question"
    __table_args__ = (Index(None, "model", "dataset", "family", "objective"),)  # what a board looks for
    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    model: Mapped[str] = mapped_column(ForeignKey("model.digest"))
    dataset: Mapped[str] = mapped_column(ForeignKey("dataset.digest"))
    spec: Mapped[str]
    set: Mapped[dict[str, Any]]
    family: Mapped[str]
    extent: Mapped[dict[str, Any]]
    objective: Mapped[str]
    plan: Mapped[str]
    plan_json: Mapped[list[Any]]
    seed: Mapped[int]
    engine: Mapped[str]
    precision: Mapped[str]
    title: Mapped[str]
    sentence: Mapped[str]
    kind: Mapped[str]


class Run(Base):
    """See RunRecord; `number` counts runs in the order in which they were stored."""

    __tablename__ = "run"
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    started: Mapped[str]
    finished: Mapped[str | None]
    state: Mapped[str]
    model: Mapped[str] = mapped_column(ForeignKey("model.digest"))
    model_name: Mapped[str]
    dataset: Mapped[str] = mapped_column(ForeignKey("dataset.digest"))
    dataset_name: Mapped[str]
    threat: Mapped[str]
    spec: Mapped[str]
    title: Mapped[str]
    sentence: Mapped[str]
    n: Mapped[int]
    first: Mapped[int]
    plan: Mapped[str]
    seed: Mapped[int]
    full: Mapped[bool]
    command: Mapped[str]
    card: Mapped[dict[str, Any]]
    environment: Mapped[dict[str, Any]]
    warnings: Mapped[list[Any]]
    seconds: Mapped[float]
    request: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    submitted: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class RunQuestion(Base):
    """The questions of a run in the order of the threat's members."""

    __tablename__ = "run_question"
    run: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    question_id: Mapped[int] = mapped_column(ForeignKey("question.id"), index=True)
    spec: Mapped[str]


class Stage(Base):
    """See StageRecord; chunks of one run add up in one row, those of the pilot in another."""

    __tablename__ = "stage"
    run: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    question_id: Mapped[int] = mapped_column(ForeignKey("question.id"), primary_key=True, index=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    attack: Mapped[str]
    entered: Mapped[int]
    broken: Mapped[int]
    refused: Mapped[int]
    errors: Mapped[int]
    forward: Mapped[int]
    backward: Mapped[int]
    useful: Mapped[int]
    seconds: Mapped[float]
    pilot: Mapped[bool] = mapped_column(primary_key=True, server_default=false())
    model_seconds: Mapped[float] = mapped_column(server_default="0")
    step_seconds: Mapped[float] = mapped_column(server_default="0")


class Pilot(Base):
    """See PilotRecord."""

    __tablename__ = "pilot"
    question_id: Mapped[int] = mapped_column(ForeignKey("question.id"), primary_key=True)
    run: Mapped[str] = mapped_column(ForeignKey("run.id"))
    facts: Mapped[dict[str, Any]]


class Curve(Base):
    """See CurveRow."""

    __tablename__ = "curve"
    __table_args__ = {"sqlite_with_rowid": False}
    run: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    question_id: Mapped[int] = mapped_column(ForeignKey("question.id"), primary_key=True, index=True)
    index: Mapped[int] = mapped_column(primary_key=True)
    spec: Mapped[str]
    gauge: Mapped[float | None]
    attack: Mapped[str | None]


class Verdict(Base):
    """See VerdictRecord. Stored in the order of its key (WITHOUT ROWID), so a slice of one question is one stretch of the file."""

    __tablename__ = "verdict"
    __table_args__ = {"sqlite_with_rowid": False}
    question_id: Mapped[int] = mapped_column(ForeignKey("question.id"), primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[int]
    status: Mapped[str]
    clean: Mapped[int | None]
    predicted: Mapped[int | None]
    attack: Mapped[str | None]
    margin: Mapped[float | None]
    gauge: Mapped[float | None]
    target: Mapped[int | None]
    restart: Mapped[int | None]
    reason: Mapped[str | None]
    witness: Mapped[str | None]
    row: Mapped[int | None]
    width: Mapped[int]
    device: Mapped[str]
    threads: Mapped[int]
    torch: Mapped[str]
    run: Mapped[str] = mapped_column(ForeignKey("run.id"))
    oracle: Mapped[int | None]
    seal: Mapped[str] = mapped_column(server_default="")


class Verification(Base):
    """See VerificationRecord. A bundle is verified before its run is in the store, so `run` refers to no row."""

    __tablename__ = "verification"
    id: Mapped[str] = mapped_column(primary_key=True)
    run: Mapped[str] = mapped_column(index=True)
    started: Mapped[str]
    bundle: Mapped[str | None]
    ok: Mapped[bool]
    n: Mapped[int]
    confirmed: Mapped[int]
    answers: Mapped[str]
    checks: Mapped[list[Any]]
    problems: Mapped[list[Any]]
    environment: Mapped[dict[str, Any]]
    seconds: Mapped[float]
