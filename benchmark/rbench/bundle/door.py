"""What `rbench verify` and `rbench merge` do with whatever they are given: a stored run, a bundle, a database."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbench.bundle.receive import Bundle, opened, rebuild
from rbench.progress import Progress
from rbench.verification.claim import of_snapshot, witness_files
from rbench.verification.verify import Verified, recorded, verify, verify_claim
from rbench_core.errors import FileError, RbenchError, StoreError, UsageError
from rbench_core.files import atomic_write, canonical_json, results_folder
from rbench_results.database import FILE
from rbench_results.merge import Merged, add, merge, snapshot
from rbench_results.reading import read_snapshot, written
from rbench_results.seal import is_named_by_content, set_digest
from rbench_results.site.build import build_site
from rbench_results.snapshot import Snapshot, check
from rbench_results.store import Store


@dataclass(frozen=True, slots=True)
class VerifiedBundle:
    """What came of every run of a bundle."""

    bundle: Path
    sha256: str
    runs: list[Verified]
    note: str | None

    @property
    def exit_code(self) -> int:
        """1 when something is wrong in one of them."""
        return max(run.exit_code for run in self.runs)

    def to_json(self) -> str:
        """One object per run."""
        return json.dumps(
            {
                "bundle": str(self.bundle),
                "sha256": self.sha256,
                "note": self.note,
                "runs": [json.loads(run.to_json()) for run in self.runs],
            },
            indent=2,
        )

    def to_table(self) -> str:
        """For a person, as plain text."""
        return "\n\n".join(
            [
                f"bundle {self.bundle.name}, SHA-256 {self.sha256}",
                *(run.to_table() for run in self.runs),
                *([self.note] if self.note else []),
            ]
        )

    __str__ = to_table


def verify_any(what: str, *, run_code: bool = False, results: Path | str | None = None, **options: Any) -> Verified | VerifiedBundle:
    """A bundle where `what` is a file, else a stored run (`verify`); the site is drawn anew. Options: those of `verify`."""
    folder = Path(results).expanduser() if results is not None else results_folder()
    path = Path(what).expanduser()
    if path.is_file() or what.endswith(".zip"):
        found: Verified | VerifiedBundle = verify_bundle(path, run_code=run_code, results=folder, **options)
    elif run_code:
        raise UsageError("--run-code is for a bundle", expected="a file from `rbench submit`")
    else:
        found = verify(what, results=folder, **options)
    return _with_pages(found, folder)


def verify_bundle(
    path: Path,
    *,
    run_code: bool = False,
    results: Path,
    dataset: Any = None,
    data: Path | str | None = None,
    sample: int | str | None = None,
    seed: int | None = None,
    device: str = "cpu",
    width: int | None = None,
    model: Any = None,
    progress: Progress | None = None,
) -> VerifiedBundle:
    """Every run of a bundle checked as `verify` checks a stored one; results kept in the store, for the day when it is merged.

    A model that only the bundle's own Python can build is built with `run_code` alone. Without it digests, seals, labels and the
    membership of the witnesses are checked, and no answer of the model is confirmed. Raises RbenchError.
    """
    if model is not None:
        raise UsageError("--model beside a bundle", expected="neither: a bundle brings its model")
    verified, note = [], None
    with opened(path) as bundle:
        if bundle.runs_code and not run_code:
            factory = bundle.card.architecture.factory
            note = f"note   The model's answers are not confirmed: {factory} is code of the bundle. Read it, then add --run-code."
        for run in bundle.submitted:
            claim = of_snapshot(bundle.records, run, bundle.archive.read)
            found = None if note is not None else rebuild(bundle)
            named = dataset or run.dataset_name
            one = verify_claim(
                claim, found, named, data=data, sample=sample, seed=seed, device=device, width=width, progress=progress,
                bundle=bundle.archive.sha256,
            )  # fmt: skip
            unseen = found is None and one.record.ok  # nothing was confirmed, so it must not hide what was
            verified.append(one if unseen else recorded(one, results))
        return VerifiedBundle(path, bundle.archive.sha256, verified, note)


# --- merging ------------------------------------------------------------------------------------------------------------------------


def merge_any(what: Path | str, *, results: Path | str | None = None) -> tuple[Merged, Store]:
    """Add a bundle, a database or a folder of results to a store, all of it or nothing; then the site is drawn anew. Raises RbenchError.

    Databases are joined: of two verdicts the one that says more stays. A bundle is a stranger's: it adds, and changes nothing that is here.
    """
    folder, path = Path(results).expanduser() if results is not None else results_folder(), Path(what).expanduser()
    if path.is_dir():
        path = path / FILE
    if not path.is_file():
        raise UsageError(f"{path}: no such file", expected="a bundle from `rbench submit`, an rbench.sqlite, or a folder that holds one")
    with path.open("rb") as stream:
        is_database = stream.read(16) == b"SQLite format 3\0"
    if is_database:
        if path.resolve() == (folder / FILE).resolve():
            raise UsageError(f"{path} would be merged into itself", expected="another database")
        return _merged(folder, merge, _of_database(path), witness_files(path.parent))
    with opened(path) as bundle:
        _prove(bundle)
        return _merged(folder, add, bundle.records, bundle.archive.read)


def _prove(bundle: Bundle) -> None:
    """Make every certificate of a bundle again, as a proof shields an image from all attacks. Raises StoreError for one that does not hold.

    A model that only the bundle's own Python can build stays as it is until `rbench verify --run-code`.
    """
    for run in bundle.submitted if not bundle.runs_code else ():
        claim = of_snapshot(bundle.records, run, bundle.archive.read)
        if not any(row.status == "certified" for _, row in claim.all_rows()):
            continue
        named = {"data": None, "device": "cpu", "width": None, "progress": None}
        one = verify_claim(claim, rebuild(bundle), run.dataset_name, sample=0, seed=0, **named)  # type: ignore[arg-type]
        if not one.record.ok:
            raise StoreError(f"{bundle.archive.path.name}: {one.record.problems[0]}", fix="Nothing was added.")


def _merged(
    folder: Path, how: Callable[[Store, Snapshot], Merged], records: Snapshot, file: Callable[[str], bytes]
) -> tuple[Merged, Store]:
    """Witness files first: a verdict never speaks of a file that is not there yet."""
    check(records)
    with Store.open(folder) as store:
        for name in sorted({row.witness for rows in records.verdicts.values() for row in rows if row.witness is not None}):
            _copy(folder, name, file)
        for question in records.questions if how is merge else ():  # a bundle brings no pictures of sets
            _copy_portrait(folder, f"sets/{set_digest(question.set)}.safetensors", file)
        done = how(store, records)
        build_site(store)
        return done, store


def _copy(folder: Path, name: str, file: Callable[[str], bytes]) -> None:
    """A witness file into the folder, unless it is there. One that the source has lost is lost here too: its verdicts say what they say."""
    target = (folder / name).resolve()
    if not target.is_relative_to((folder / "witnesses").resolve()):
        raise StoreError(f"a witness file named {name[:120]!r}", expected="a path under witnesses/")
    if target.is_file():
        return
    try:
        data = file(name)
    except FileError:
        return
    if not is_named_by_content(name, data):
        raise FileError(f"witness file {name}: its content has another digest", fix="It was changed: ask for the original.")
    atomic_write(target, data)


def _copy_portrait(folder: Path, name: str, file: Callable[[str], bytes]) -> None:
    """What a page shows of a set, unless it is here: it decides no figure."""
    if not (folder / name).is_file():
        with suppress(FileError):
            atomic_write(folder / name, file(name))


def _of_database(path: Path) -> Snapshot:
    """The records of a database, read from a copy: the original is neither migrated nor locked."""
    with tempfile.TemporaryDirectory(prefix="rbench-merge-") as scratch:
        try:
            source = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
            target = sqlite3.connect(Path(scratch) / FILE)
            try:
                source.backup(target)
            finally:
                target.close()
                source.close()
        except sqlite3.Error as error:
            raise StoreError(f"{path}: {error}", fix="Restore a copy of the database.") from error
        try:
            with Store.open(Path(scratch)) as store:
                return read_snapshot(json.loads(canonical_json(written(snapshot(store)))))  # whoever wrote it: every field in its type
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(f"{path}: a record does not read ({error})", expected="a database that rbench wrote") from error
        except StoreError as error:
            raise StoreError(str(error).replace(str(Path(scratch) / FILE), str(path))) from error


def _with_pages(found: Verified | VerifiedBundle, folder: Path) -> Verified | VerifiedBundle:
    """The pages drawn anew; where they cannot be, that is a note: the result is worth more than its picture."""
    try:
        if (folder / FILE).is_file():
            with Store.open(folder, create=False) as store:
                build_site(store)
    except RbenchError as error:
        (found if isinstance(found, Verified) else found.runs[-1]).notes.append(f"the pages were not drawn: {error}")
    return found
