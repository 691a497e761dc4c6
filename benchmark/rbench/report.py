"""What a run found, for Python: the report with its table, its frame and its adversarial images. torch only where images are asked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rbench_core.errors import FileError
from rbench_core.files import reason, results_folder

if TYPE_CHECKING:
    import pandas
    from torch import Tensor

    from rbench_results.example import Example
    from rbench_results.records import VerdictRecord


class Adversarial(NamedTuple):
    """The kept witnesses of a run, one per broken example: the first member's that broke it."""

    indices: Tensor  # (k,), in the data set
    label: Tensor  # (k,)
    predicted: Tensor  # (k,)
    x: Tensor  # (k, C, H, W)
    x_adv: Tensor  # (k, C, H, W)
    member: list[str]  # the set of each, as its spec


@dataclass(frozen=True)
class Report:
    """What a run found. `data` is the object of `rbench show RUN --json`; `str` is the table; notebooks show HTML."""

    data: dict[str, Any]
    folder: Path

    @classmethod
    def stored(cls, run: str, results: Path | str | None = None) -> Report:
        """A stored run by its id, the beginning of one, or `latest`. Raises StoreError, UnknownName."""
        from rbench_results.report import run_report
        from rbench_results.store import Store

        folder = Path(results).expanduser() if results is not None else results_folder()
        with Store.open(folder, create=False) as store:
            return cls(run_report(store, run), folder)

    @property
    def run(self) -> str:
        """The run's id."""
        return str(self.data["run"])

    @property
    def exit_code(self) -> int:
        """1 when a broken example carries a certificate: one of the two is wrong."""
        return 1 if self.data.get("alarm") else 0

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.data, indent=2, allow_nan=False)

    def to_table(self) -> str:
        """The report for a person, as plain text."""
        from rbench_results.table import report_table

        return report_table(self.data)

    __str__ = to_table

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(self.to_table())}</pre>"

    def to_frame(self) -> pandas.DataFrame:
        """One row per example: index, label, status, attack, and the status under each member."""
        import pandas

        rows = [{**{k: row[k] for k in ("index", "label", "status", "attack")}, **row["members"]} for row in self.data["verdicts"]]
        return pandas.DataFrame(rows).set_index("index")

    def adversarial(self) -> Adversarial:
        """The adversarial images that were kept (`witnesses`), from the results folder. Raises FileError for one that is lost."""
        return _adversarial(self.folder, self.run)

    def example(self, index: int) -> Example:
        """The whole history of one example: all that any run found out about it for this model, with pictures. Raises UsageError."""
        from rbench_results.example import Example
        from rbench_results.store import Store

        with Store.open(self.folder, create=False) as store:
            return Example.of(store, self.run, index)

    def to_robustbench(self) -> dict[str, Any]:
        """The run in the shape of RobustBench's model_info files. Raises UsageError unless its threat is one lp ball."""
        from rbench_results.robustbench import model_info
        from rbench_results.store import Store

        with Store.open(self.folder, create=False) as store:
            return model_info(store, self.run)


def _adversarial(folder: Path, run: str) -> Adversarial:
    import torch

    from rbench_results.store import Store

    with Store.open(folder, create=False) as store:
        record = store.run(run)
        rows = {}
        for key, spec in reversed(record.questions):
            kept = (row for row in store.verdicts(key, record.first, record.n) if row.witness is not None)
            rows.update({row.index: (row, spec) for row in kept})
    files = {name: _tensors(folder, name) for name in sorted({str(row.witness) for row, _ in rows.values()})}
    chosen = [rows[index] for index in sorted(rows)]
    pictures = [_pair(folder, files[str(row.witness)], row) for row, _ in chosen]
    none = torch.empty(0)
    return Adversarial(
        torch.tensor([row.index for row, _ in chosen]),
        torch.tensor([row.label for row, _ in chosen]),
        torch.tensor([row.predicted for row, _ in chosen]),
        torch.stack([x for x, _ in pictures]) if pictures else none,
        torch.stack([x_adv for _, x_adv in pictures]) if pictures else none,
        [spec for _, spec in chosen],
    )


LOST = "The adversarial images of this chunk are lost; its verdicts are not."


def _tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """One witness file. Raises FileError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = (folder / name).resolve()
    try:
        if not path.is_relative_to(folder.resolve()):  # a database may come from anybody
            raise OSError("outside the folder of results")
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        what = reason(error) if isinstance(error, OSError) else str(error)
        raise FileError(f"{path}: {what}", fix=LOST) from error
    return tensors


def _pair(folder: Path, tensors: dict[str, Tensor], verdict: VerdictRecord) -> tuple[Tensor, Tensor]:
    """Clean and adversarial image (C, H, W) of a verdict, if the file agrees that its row is this example's. Raises FileError."""
    row, index = verdict.row, tensors.get("index")
    x, x_adv = tensors.get("x"), tensors.get("x_adv")
    if index is None or x is None or x_adv is None or row is None or not 0 <= row < min(map(len, (index, x, x_adv))):
        raise FileError(f"{folder / str(verdict.witness)}: no row {row}, which should hold example {verdict.index}", fix=LOST)
    if int(index[row]) != verdict.index:
        raise FileError(
            f"{folder / str(verdict.witness)}: row {row} holds example {int(index[row])}", expected=str(verdict.index), fix=LOST
        )
    return x[row], x_adv[row]
