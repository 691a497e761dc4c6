"""The one place that imports torchvision, and its downloads, which fail within seconds where there is no network."""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from rbench_core.download import reachable
from rbench_core.errors import DataError

CLASSES = {"mnist": ("MNIST", "MNIST"), "fashion-mnist": ("FashionMNIST", "FashionMNIST"), "cifar10": ("CIFAR10", "cifar-10-batches-py")}
PATIENCE = 5.0  # seconds until a silent network counts as none
STALL = 30.0  # seconds that a download under way may stand still
_KEEP: list[Any] = []  # the operator library must live as long as the process


def load_torchvision() -> ModuleType:
    """torchvision, also beside a CPU build of torch, where PyPI's (CUDA) wheel fails with "operator torchvision::nms does not exist".

    A build that works is left alone: declaring its operators twice would break it. After the remedy `torchvision.ops` and
    `torchvision.io` raise when used; data sets, transforms and models work.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torchvision says about its missing image library is no news to a reader of .gz files
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
        _declare_operators()
        return importlib.import_module("torchvision")


def is_shimmed() -> bool:
    """Whether torchvision needed the remedy in this process."""
    return bool(_KEEP)


def _declare_operators() -> None:
    import torch

    for name in [module for module in sys.modules if module.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library: Any = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEEP.append(library)


def download(name: str, folder: Path) -> None:
    """Fetch a published data set by torchvision (which checks MD5 sums) and put it whole into `folder`. Raises DataError.

    The files appear under their final name only when all are there, so that a killed or a second process sees all or nothing.
    """
    kind, result = CLASSES[name]
    try:
        load_torchvision()
        dataset = getattr(importlib.import_module("torchvision.datasets"), kind)
        if not _reachable(_addresses(dataset)):
            raise OSError("no network")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch, _civil():
            for train in (True, False):
                dataset(scratch, train=train, download=True)
            _publish(Path(scratch, result), folder / result)
    except Exception as error:  # torchvision raises RuntimeError, URLError, OSError, EOFError, …: all mean the same to the user
        raise DataError(f"{name}: the download failed ({_words(error)})") from error


def _addresses(dataset: Any) -> list[str]:
    """The places a torchvision data set is fetched from, as torchvision knows them."""
    return [str(address) for address in getattr(dataset, "mirrors", None) or [dataset.url]]


def _reachable(addresses: list[str]) -> bool:
    """Whether any server answers within PATIENCE."""
    return reachable(addresses, PATIENCE)


@contextlib.contextmanager
def _civil() -> Iterator[None]:
    """Downloads that give up when they stall, keep stdout for results, and are silent where nobody watches."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL)
    try:
        with contextlib.ExitStack() as stack:
            quiet = None if sys.stderr.isatty() else stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(quiet or sys.stderr))
            stack.enter_context(contextlib.redirect_stderr(quiet or sys.stderr))
            yield
    finally:
        socket.setdefaulttimeout(before)


def _publish(made: Path, target: Path) -> None:
    """Move a finished folder into place: at once where nothing stands there, else file by file over what does; nothing is deleted."""
    if not target.exists():
        with contextlib.suppress(OSError):  # another process may be first
            made.rename(target)
            return
    for path in sorted(path for path in made.rglob("*") if path.is_file()):
        final = target / path.relative_to(made)
        final.parent.mkdir(parents=True, exist_ok=True)
        path.replace(final)


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
