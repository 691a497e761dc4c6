"""How robust is this image classifier, really? Verdicts per example, kept with their evidence.

The public names load on first use, so that `import rbench` and the command line's help stay free of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rbench.api import evaluate, load_model
    from rbench.bundle.door import merge_any as merge
    from rbench.bundle.door import verify_any as verify
    from rbench.bundle.submit import submit
    from rbench.everything import evaluate_all
    from rbench.report import Report

    __version__: str

__all__ = ["Report", "__version__", "evaluate", "evaluate_all", "load_model", "merge", "submit", "verify"]

_HOMES = {  # of the names that load on first use
    "Report": "rbench.report:Report",
    "evaluate": "rbench.api:evaluate",
    "evaluate_all": "rbench.everything:evaluate_all",
    "load_model": "rbench.api:load_model",
    "merge": "rbench.bundle.door:merge_any",
    "submit": "rbench.bundle.submit:submit",
    "verify": "rbench.bundle.door:verify_any",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("rbench")
    if name in _HOMES:
        module, _, attribute = _HOMES[name].partition(":")
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'rbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
