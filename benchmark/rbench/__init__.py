"""How robust is this image classifier, really? Verdicts per example, kept with their evidence.

The public names load on first use, so that `import rbench` and the command line's help stay free of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rbench.api import evaluate, load_model
    from rbench.report import Report

    __version__: str

__all__ = ["Report", "__version__", "evaluate", "load_model"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("rbench")
    if name in __all__:
        return getattr(import_module("rbench.report" if name == "Report" else "rbench.api"), name)
    raise AttributeError(f"module 'rbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
