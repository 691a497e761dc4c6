"""From a name in a card or on the command line to the object it stands for. Both ways execute the code that they name."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from rbench_core.errors import ModelError, UsageError
from rbench_core.files import reason


def from_package(spec: str) -> tuple[Any, str]:
    """The object "package.module:NAME" and the text of the module that defines it. Raises ModelError."""
    module_name, _, name = spec.rpartition(":")
    with guarded(spec):
        module = importlib.import_module(module_name)
    if not hasattr(module, name):
        raise ModelError(f"{module_name} has no {name!r}", fix="It is named by a card as its factory.")
    found = getattr(module, name)
    home = sys.modules.get(getattr(found, "__module__", ""), module)  # where it is defined, not where it is re-exported
    file = Path(getattr(home, "__file__", None) or "")
    return found, file.read_text(encoding="utf-8") if file.suffix == ".py" else repr(found)


def from_file(path: Path, name: str) -> tuple[Any, str]:
    """The object `name` of a Python file, which is executed, and the file's text. Its folder can be imported from meanwhile.

    Raises UsageError where the file or the name is absent, ModelError where the file does not parse or raises.
    """
    source = _source(path)
    module = ModuleType(f"rbench_file_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and inspect look their module up
    linecache.checkcache(str(path))
    with guarded(str(path)), importable(path.resolve().parent):
        exec(compile(source, str(path), "exec"), module.__dict__)  # not imported: no cached bytecode, no file left beside the user's
    if name not in module.__dict__:
        raise UsageError(f"{path} has no {name!r}", expected=_defined(module))
    return module.__dict__[name], source.decode("utf-8", errors="replace")


def _defined(module: ModuleType) -> str | None:
    """What a file itself defines and could be called."""
    own = [key for key, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == module.__name__]
    return f"one of: {', '.join(own[:8])}" if own else None


@contextlib.contextmanager
def guarded(what: str) -> Iterator[None]:
    """Whatever somebody else's code raises, sys.exit included, as one ModelError; what it prints goes to stderr."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (ModelError, UsageError):
        raise
    except SyntaxError as error:
        raise ModelError(f"{what}: line {error.lineno}: {error.msg}", expected="a Python file that parses") from error
    except (Exception, SystemExit) as error:
        raise ModelError(f"{what} raised {type(error).__name__}: {str(error)[:300]}") from error


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """The folder's modules can be imported, as when Python runs a file of it."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def _source(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file", expected="FILE.py:FACTORY") from error
    except OSError as error:
        raise UsageError(f"{path}: {reason(error)}", expected="FILE.py:FACTORY") from error
