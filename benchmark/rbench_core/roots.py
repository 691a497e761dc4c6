"""Where data sets lie: the folder that the user named, then the cache, which alone is written to. One folder may be named for a while."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from rbench_core.files import cache_folder

_NAMED: ContextVar[Path | None] = ContextVar("rbench data folder", default=None)


def data_roots(root: Path | str | None = None, cache: Path | None = None) -> list[Path]:
    """The folder given, else that of `data_under`, else RBENCH_DATA; then the user's cache."""
    within = _NAMED.get() if root is None else Path(root)
    named = str(within) if within is not None else os.environ.get("RBENCH_DATA", "").strip()
    own = cache_folder() / "data" if cache is None else cache
    return [Path(named).expanduser(), own] if named else [own]


@contextmanager
def data_under(root: Path | str | None) -> Iterator[None]:
    """Within the block, `root` (a command's --data; None: nothing was said) is where data is looked for first."""
    token = _NAMED.set(None if root is None else Path(root))
    try:
        yield
    finally:
        _NAMED.reset(token)
