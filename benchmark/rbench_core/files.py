"""Files that are whole or absent, digests that are checked before use, and where a user's files lie."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import platformdirs

from rbench_core.errors import FileError


def sha256_bytes(data: bytes) -> str:
    """SHA-256 as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, read in blocks. Raises FileError."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"{path}: {reason(error)}") from error


def read_checked(path: Path, sha256: str) -> bytes:
    """The bytes of a file whose digest is known; nothing is parsed before the digest agrees. Raises FileError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: {reason(error)}") from error
    return checked(data, sha256, path)


def checked(data: bytes, sha256: str, where: object) -> bytes:
    """The data itself if its digest is that; a web page that was saved in a file's place is called one. Raises FileError."""
    found = sha256_bytes(data)
    if found == sha256:
        return data
    page = " and it looks like an HTML page" if looks_like_html(data) else ""
    what = f"{where}: SHA-256 is {found[:12]}… of {len(data):,} bytes{page}"
    raise FileError(what, expected=f"{sha256[:12]}…", fix="Fetch the file again; it is damaged or another one.")


def looks_like_html(data: bytes) -> bool:
    """Whether it begins as a web page does: what a server sends in place of a file that it has not."""
    start = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype html", b"<html"))


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader, a crash or a full disk never sees half of it. Raises FileError."""
    if isinstance(data, str):
        data = data.encode()
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise FileError(f"cannot write {path}: {reason(error)}", fix="Free space or choose another folder with --results.") from error


def reason(error: OSError) -> str:
    """The system's words for an error, without Python's wrapping."""
    return error.strerror or str(error)


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, exact fractions as "a/b"; what digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False, default=_exact)


def _exact(value: object) -> str:
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    raise TypeError(f"not canonical: {type(value).__name__}")


def folder_from(variable: str, fallback: Path) -> Path:
    """The folder that an environment variable names, or the fallback."""
    named = os.environ.get(variable, "").strip()
    return Path(named).expanduser() if named else fallback


def results_folder() -> Path:
    """Where a user's database and site lie unless `--results` says otherwise: RBENCH_RESULTS or the user's data folder."""
    return folder_from("RBENCH_RESULTS", Path(platformdirs.user_data_dir("rbench", appauthor=False)))


def cache_folder() -> Path:
    """Where downloads are kept."""
    return Path(platformdirs.user_cache_dir("rbench", appauthor=False))
