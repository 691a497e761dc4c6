"""Images with labels: read from their published files, or handed over by the user. The names load torch on first use only."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rbench.data.dataset import Dataset
    from rbench.data.sources import default_n, from_loader, from_tensors, listing, load, names

__all__ = ["Dataset", "default_n", "from_loader", "from_tensors", "listing", "load", "names"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("rbench.data.dataset" if name == "Dataset" else "rbench.data.sources"), name)
    raise AttributeError(f"module 'rbench.data' has no attribute {name!r}")
