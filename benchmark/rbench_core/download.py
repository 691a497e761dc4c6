"""Files from known addresses: asked for with patience that ends, checked by digest, kept in the cache. Nothing unchecked is kept."""

from __future__ import annotations

import contextlib
import http.client
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from rbench_core.errors import Failure, FileError
from rbench_core.files import atomic_write, checked, read_checked, reason

PATIENCE = 10.0  # seconds that a download may stand still
SILENCE = 5.0  # seconds until a silent network counts as none
LARGEST = 1 << 31  # bytes of a file that is fetched


def reachable(addresses: Sequence[str], patience: float = SILENCE) -> bool:
    """Whether any server answers in time. In a thread, because a name server that is silent heeds no time limit."""
    answers: list[str] = []

    def ask(address: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            try:
                urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=patience).close()
            except urllib.error.HTTPError as refusal:  # a server that refuses HEAD is there all the same
                refusal.close()
            answers.append(address)

    threads = [threading.Thread(target=ask, args=(address,), daemon=True) for address in addresses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience)
    return bool(answers)


def fetched(url: str, sha256: str, kept: Path | None, *, error: type[Failure] = FileError, fix: str | None = None) -> bytes:
    """The file at the address, checked; from `kept` where it lies there already, else kept there. Raises `error`, FileError."""
    if kept is not None and kept.is_file():
        return read_checked(kept, sha256)
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            data: bytes = answer.read(LARGEST + 1)
    except (OSError, http.client.HTTPException) as trouble:
        why = getattr(trouble, "reason", None) or (reason(trouble) if isinstance(trouble, OSError) else type(trouble).__name__)
        raise error(f"{url}: {why}", fix=fix) from trouble
    checked(data, sha256, url)
    if kept is not None:
        with contextlib.suppress(FileError):  # a full or read-only cache costs a download next time, nothing more
            atomic_write(kept, data)
    return data
