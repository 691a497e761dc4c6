"""Other people's code, sealed: seeded and silent, the model frozen; afterwards the interpreter is as it was.

Attack libraries draw from the global generators, warn, log to the root logger (which installs a handler there), switch the trace
function off (coverage and debuggers stop) and leave gradients in the weights.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rbench_core.errors import Failure, ModelError, RbenchError

LIBRARIES = frozenset({"pyautoattack", "foolbox", "eagerpy"})  # eagerpy is foolbox's tensor layer
LOGGERS = ("", "auto-attack")  # foolbox logs to the root logger
KNOWN_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    (r".*scipy\.ndimage\.filters", DeprecationWarning),  # foolbox 3.3.4 imports a name that scipy has moved
    (r"LinearSearchBlendedUniformNoiseAttack failed to draw", UserWarning),  # rows without a start: the others go on
    (r"Mean of empty slice", RuntimeWarning),  # the statistics of foolbox's BoundaryAttack
    (r"At the first initialisation the optimizer needs to be compiled", UserWarning),  # foolbox's Brendel and Bethge, with numba
    (r"The given NumPy array is not writable", UserWarning),  # likewise
)


@cache
def library(name: str) -> Any:
    """The module of that name, imported without a word. Raises Failure.

    GitPython, which foolbox imports, refuses to load where there is no git executable unless its variable says otherwise.
    """
    before = os.environ.get("GIT_PYTHON_REFRESH")
    os.environ["GIT_PYTHON_REFRESH"] = before or "quiet"
    try:
        with silent():
            return import_module(name)
    except ImportError as error:
        raise Failure(f"{name} cannot be imported: {error}", fix=f"pip install {name}") from error
    finally:
        if before is None:
            del os.environ["GIT_PYTHON_REFRESH"]


@contextmanager
def sealed(model: nn.Module, seed: int, device: torch.device) -> Iterator[None]:
    """Run a library on the model: every generator starts from seed, and all that the block touches globally is put back."""
    with silent(), _trace_kept(), _frozen(model), _generators_kept(device), torch.enable_grad():
        _seed(seed)
        yield


def _seed(seed: int) -> None:
    """Start the generators of torch, NumPy and Python from one number."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def silent() -> Iterator[None]:
    """Drop the warnings listed above and whatever the libraries log; everything else is heard as before."""
    root, loggers = logging.getLogger(), [logging.getLogger(name) for name in LOGGERS]
    # logging.info() calls basicConfig() on a root logger without handlers: the handler that Python falls back to stands in
    stand_in = None if root.handlers else logging.lastResort or logging.NullHandler()
    mute = _Mute()
    with warnings.catch_warnings():
        for message, category in KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message, category)
        if stand_in is not None:
            root.addHandler(stand_in)
        for logger in loggers:
            logger.addFilter(mute)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(mute)
            if stand_in is not None:
                root.removeHandler(stand_in)


class _Mute(logging.Filter):
    """Drops what code of the libraries logs. One object per block: logging keeps a filter once, and an inner block would take it away."""

    def filter(self, record: logging.LogRecord) -> bool:
        return LIBRARIES.isdisjoint(Path(record.pathname).parts)


@contextmanager
def _trace_kept() -> Iterator[None]:
    before = sys.gettrace()
    try:
        yield
    finally:
        if sys.gettrace() is not before:
            sys.settrace(before)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no weight gradients; each module's mode and each weight's flag come back."""
    modes = [(part, part.training) for part in model.modules()]
    flags = [(weight, weight.requires_grad) for weight in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for weight, flag in flags:
            weight.requires_grad_(flag)


@contextmanager
def _generators_kept(device: torch.device) -> Iterator[None]:
    python, numpy_ = random.getstate(), np.random.get_state()
    # manual_seed seeds every CUDA device, and pyautoattack the current one: so all are kept, and the current one is the model's
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_)


@contextmanager
def reported(who: str, smaller: str) -> Iterator[None]:
    """Any exception of the block as a ModelError of one line that names who raised it. smaller: what to try when memory ran out."""
    try:
        yield
    except RbenchError:
        raise
    except Exception as error:
        raise ModelError(f"{who} failed: {_said(error)}", fix=smaller if _out_of_memory(error) else None) from error


def raised_inside(error: BaseException) -> bool:
    """Whether the library's own code raised it, and not the model that it called."""
    return not LIBRARIES.isdisjoint(origin(error).parts)


def origin(error: BaseException) -> Path:
    """The file of the innermost Python frame."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return Path(frames[-1].f_code.co_filename) if frames else Path()


def _said(error: Exception) -> str:
    message = str(error).strip()
    name = type(error).__name__
    return f"{name}: {message.splitlines()[0][:200]}" if message else f"{name} in {origin(error).name}"


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "out of memory" in text or "allocate memory" in text
