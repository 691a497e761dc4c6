"""The file itself: a zip archive of few and known names, read as something that an enemy may have packed.

bundle.json            what this is: format, engine, versions, model, runs, and the SHA-256 of every other file
card.toml              the model's card
weights.safetensors    its weights
factory.py             the Python that builds it, where rbench does not
record.json            data set, questions, runs, verdicts and costs
witnesses/KEY/….safetensors
"""

from __future__ import annotations

import io
import json
import re
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbench_core.errors import FileError
from rbench_core.files import reason, sha256_bytes, sha256_file

FORMAT = 1
MIB = 1 << 20
LARGEST = {"bundle.json": 4 * MIB, "card.toml": MIB, "factory.py": MIB, "record.json": 512 * MIB, "weights.safetensors": 2048 * MIB}
WITNESS = re.compile(r"witnesses/[0-9a-f]{16}/[0-9]{6}-[0-9a-f]{64}\.safetensors")
LARGEST_WITNESS, LARGEST_ALL, MOST_FILES = 512 * MIB, 4096 * MIB, 20_000
NEEDED = ("bundle.json", "card.toml", "weights.safetensors", "record.json")


@dataclass(frozen=True, slots=True)
class Archive:
    """An opened bundle. `manifest` is bundle.json; every file's digest is that of the manifest."""

    path: Path
    sha256: str
    manifest: dict[str, Any]
    names: frozenset[str]

    def read(self, name: str) -> bytes:
        """A file of the bundle. Raises FileError."""
        if name not in self.names:
            raise FileError(f"{self.path.name} has no file {name[:120]}")
        with _opened(self.path) as archive:
            return _read(archive, name, self.path)


def write(path: Path, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """The archive's bytes, equal for equal content: fixed times, fixed order. path: only for messages. Raises FileError."""
    listed = {name: {"sha256": sha256_bytes(data), "bytes": len(data)} for name, data in sorted(files.items())}
    head = json.dumps({"format": FORMAT, **manifest, "files": listed}, indent=1, sort_keys=True).encode()
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, data in [("bundle.json", head), *sorted(files.items())]:
            if len(data) > _limit(name):
                raise FileError(f"{path.name}: {name} has {len(data):,} bytes", expected=f"at most {_limit(name):,}")
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            packed = zipfile.ZIP_STORED if name.endswith(".safetensors") else zipfile.ZIP_DEFLATED
            archive.writestr(info, data, packed)
    return held.getvalue()


def read(path: Path) -> Archive:
    """Open a bundle and check every name, size and digest before anything is parsed. Raises FileError."""
    with _opened(path) as archive:
        names = _names(archive, path)
        try:
            manifest = json.loads(_read(archive, "bundle.json", path))
            listed = {name: (entry["sha256"], entry["bytes"]) for name, entry in manifest["files"].items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise FileError(
                f"{path.name}: bundle.json does not read ({type(error).__name__})", expected="what `rbench submit` writes"
            ) from error
        if manifest.get("format") != FORMAT:
            raise FileError(
                f"{path.name}: format {manifest.get('format')!r:.40}", expected=str(FORMAT), fix="Update rbench, or have it submitted anew."
            )
        _complete(names - {"bundle.json"}, set(listed), path)
        for name, (sha256, size) in listed.items():
            data = _read(archive, name, path)
            if len(data) != size or sha256_bytes(data) != sha256:
                raise FileError(
                    f"{path.name}: {name} has SHA-256 {sha256_bytes(data)[:12]}…", expected=f"{str(sha256)[:12]}…: it was changed"
                )
    return Archive(path, sha256_file(path), manifest, frozenset(names))


def _complete(there: set[str], listed: set[str], path: Path) -> None:
    for name in sorted(there ^ listed):
        what = "is in it and not in its list" if name in there else "is in its list and not in it"
        raise FileError(f"{path.name}: {name[:120]} {what}", expected="a whole bundle with nothing added")
    for name in NEEDED[1:]:
        if name not in there:
            raise FileError(f"{path.name}: no {name}", expected=f"a bundle with {', '.join(NEEDED)}")


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise FileError(f"{path}: {reason(error)}") from error
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise FileError(f"{path}: no bundle ({error})", expected="a file from `rbench submit`") from error


def _names(archive: zipfile.ZipFile, path: Path) -> set[str]:
    """The names in the archive, none of them twice, none a link, none but those that a bundle has, none too large."""
    entries = archive.infolist()
    if len(entries) > MOST_FILES:
        raise FileError(f"{path.name}: {len(entries):,} files", expected=f"at most {MOST_FILES:,}")
    names: set[str] = set()
    for entry in entries:
        name = entry.filename
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if name in names:
            raise FileError(f"{path.name}: {name[:120]!r} twice")
        if kind not in (0, stat.S_IFREG) or entry.flag_bits & 1:
            raise FileError(f"{path.name}: {name[:120]!r} is a link, a device or encrypted", expected="plain files")
        if name not in LARGEST and not WITNESS.fullmatch(name):
            raise FileError(
                f"{path.name}: a file named {name[:120]!r}", expected=f"{', '.join(LARGEST)} and witnesses/KEY/NAME.safetensors"
            )
        if entry.file_size > _limit(name):
            raise FileError(f"{path.name}: {name} unpacks to {entry.file_size:,} bytes", expected=f"at most {_limit(name):,}")
        if name.endswith(".safetensors") and entry.compress_type != zipfile.ZIP_STORED:
            raise FileError(f"{path.name}: {name} is compressed", expected="tensors stored as they are")
        names.add(name)
    if sum(entry.file_size for entry in entries) > LARGEST_ALL:
        raise FileError(f"{path.name} unpacks to more than {LARGEST_ALL:,} bytes")
    if "bundle.json" not in names:
        raise FileError(f"{path.name}: no bundle.json", expected="a file from `rbench submit`")
    return names


def _limit(name: str) -> int:
    return LARGEST.get(name, LARGEST_WITNESS)


def _read(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    """Never more than the limit, whatever the archive's directory says of the size."""
    try:
        with archive.open(name) as stream:
            data = stream.read(_limit(name) + 1)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise FileError(
            f"{path.name}: {name[:120]} does not unpack ({str(error)[:120]})", expected="the file as it was submitted"
        ) from error
    except Exception as error:  # zlib.error and its kin share no base
        raise FileError(
            f"{path.name}: {name[:120]} does not unpack ({type(error).__name__})", expected="the file as it was submitted"
        ) from error
    if len(data) > _limit(name):
        raise FileError(f"{path.name}: {name[:120]} unpacks to more than {_limit(name):,} bytes")
    return data
