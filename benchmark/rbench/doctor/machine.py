"""The machine: installed packages, torchvision's state, devices that compute, threads, a browser."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rbench.doctor import Finding, Place

if TYPE_CHECKING:
    from torch import Tensor

MODULES = {"scikit-learn": "sklearn", "pillow": "PIL", "tomli-w": "tomli_w"}  # distributions whose module has another name
SEALED = ("foolbox", "pyautoattack")  # imported as the attacks import them: without what they print
LARGEST_SMALL = 1024  # values of an image that is attacked with one thread, unless OMP_NUM_THREADS says otherwise
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "firefox", "msedge", "safari")
TOLERANCE = 1e-3  # of the largest entry of a gradient; float32 is within 1e-6


def packages(place: Place) -> Iterator[Finding]:
    """rbench, Python and what rbench needs: installed, in the versions that it was tested with, and importable."""
    yield Finding("rbench", "ok", f"{metadata.version('rbench')}, Python {platform.python_version()} on {platform.platform()}")
    good = []
    for requirement in metadata.requires("rbench") or []:
        if "extra ==" in requirement:
            continue
        name, wanted = _parted(requirement)
        found = _installed(name)
        trouble = _trouble(name, found, wanted)
        if trouble is None:
            good.append(f"{name} {found}")
        else:
            yield Finding(f"package {name}", "problem", trouble, f"pip install '{name}{wanted}'")
    yield Finding("packages", "ok" if good else "note", ", ".join(good))


def _parted(requirement: str) -> tuple[str, str]:
    """`torch<2.14,>=2.7` -> (`torch`, `<2.14,>=2.7`), without markers."""
    found = re.match(r"([\w.-]+)\s*(?:\[[^\]]*\])?\s*\(?([^;)]*)", requirement)
    assert found is not None
    return found[1], found[2].strip()


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _trouble(name: str, found: str | None, wanted: str) -> str | None:
    """Why a package cannot serve, or None. torchvision has a check of its own."""
    if found is None:
        return "not installed"
    if not meets(found, wanted):
        return f"{found}; expected {wanted}"
    if name == "torchvision":
        return None
    try:
        if name in SEALED:
            from rbench.attacks.sealed import library

            library(name)
        else:
            import_module(MODULES.get(name, name.lower() if name == "SQLAlchemy" else name))
    except (Exception, SystemExit) as error:
        return f"{found}, but it cannot be imported: {type(error).__name__}: {error}"
    return None


def meets(version: str, wanted: str) -> bool:
    """Whether a version lies within bounds such as `<2.14,>=2.7`; labels such as +cpu or rc1 are left out of the comparison."""
    bounds = re.findall(r"(>=|<=|==|!=|~=|<|>)\s*([\d.]+)", wanted)
    return all(_holds(_numbers(version), sign, _numbers(bound)) for sign, bound in bounds)


def _holds(a: list[int], sign: str, b: list[int]) -> bool:
    long = max(len(a), len(b))
    a, b = ([*part, *[0] * (long - len(part))] for part in (a, b))
    return {">=": a >= b, "<=": a <= b, "==": a == b, "!=": a != b, "<": a < b, ">": a > b, "~=": a >= b}[sign]


def _numbers(version: str) -> list[int]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return [int(part) for part in found[0].split(".")] if found else []


def torchvision(place: Place) -> Iterator[Finding]:
    """Whether torchvision, which only fetches data sets, works by itself or beside a CPU build of torch with its operators declared."""
    from rbench.data.torchvision_shim import is_shimmed, load_torchvision

    try:
        found = load_torchvision()
    except Exception as error:
        fix = "It only downloads data sets: put their files in place by hand (`rbench datasets`), or install it again."
        yield Finding("torchvision", "problem", f"cannot be imported: {type(error).__name__}: {error}", fix)
        return
    plain = "plain: works by itself"
    shimmed = "shimmed: a CUDA build beside a CPU build of torch; torchvision.ops and torchvision.io do not work, nothing here uses them"
    yield Finding("torchvision", "ok", f"{found.__version__}, {shimmed if is_shimmed() else plain}")


def devices(place: Place) -> Iterator[Finding]:
    """The CPU and every GPU, each with a small computation whose answer is known."""
    import torch

    yield _computes("cpu", f"{platform.processor() or platform.machine()}, {_cores()} cores")
    if not torch.cuda.is_available():
        built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
        fix = "Check the driver with nvidia-smi." if torch.version.cuda else "For a GPU install torch's CUDA build: pytorch.org says how."
        yield Finding("cuda", "note", f"no GPU can be used; {built}", fix)
        return
    for number in range(torch.cuda.device_count()):
        device = f"cuda:{number}"
        try:
            free, whole = torch.cuda.mem_get_info(number)
            told = f"{torch.cuda.get_device_name(number)}, {_bytes(free)} of {_bytes(whole)} free, CUDA {torch.version.cuda}"
        except Exception as error:
            yield Finding(device, "problem", f"{type(error).__name__}: {error}", "Check the driver with nvidia-smi, or use --device cpu.")
            continue
        yield _computes(device, told)


def _computes(device: str, told: str) -> Finding:
    """Logits and a gradient of a small convolution on the device against the same in float64 on the CPU."""
    import torch

    try:
        x = torch.arange(2 * 64, dtype=torch.float64).sin().view(2, 1, 8, 8)
        w = torch.arange(4 * 9, dtype=torch.float64).cos().view(4, 1, 3, 3)
        with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):  # float32 that is float32, as in a run
            there = _gradient(x.to(device, torch.float32), w.to(device, torch.float32))
        here = _gradient(x, w)
        worst = float((here - there).abs().max() / here.abs().max())
    except Exception as error:
        return Finding(device, "problem", f"{told}: {type(error).__name__}: {error}", "Use another --device, or install torch again.")
    if not worst < TOLERANCE:
        what = f"{told}: a small convolution is off by a share of {worst:.2g}"
        return Finding(device, "problem", what, "Do not trust a run on this device.")
    return Finding(device, "ok", f"{told}; computes")


def _gradient(x: Tensor, w: Tensor) -> Tensor:
    """d/dx of the log of the sum of squares of a convolution, in float64 on the CPU."""
    import torch

    x = x.clone().requires_grad_()
    with torch.enable_grad():
        found = torch.autograd.grad(torch.nn.functional.conv2d(x, w).relu().square().sum().log(), x)[0]
    return found.double().cpu()


def threads(place: Place) -> Iterator[Finding]:
    """How many threads torch takes, and when that is too many."""
    import torch

    cores, own, said = _cores(), torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    told = f"torch takes {own} of {cores} cores, OMP_NUM_THREADS {said or 'not set'}, load {load:.1f}"
    if own > cores:
        yield Finding("threads", "note", f"{told}: more threads than cores wait for each other", f"Set OMP_NUM_THREADS={cores} or less.")
    elif said is not None and own > 1:
        fix = "Unset it, or set OMP_NUM_THREADS=1, unless the machine is idle: see docs/performance.md."
        yield Finding("threads", "note", f"{told}: so images of up to {LARGEST_SMALL:,} values get {own} threads too, not one", fix)
    elif load > cores and own > 1:
        fix = "Runs beside others are faster with OMP_NUM_THREADS=1: see docs/performance.md."
        yield Finding("threads", "note", f"{told}: the machine is busy", fix)
    else:
        yield Finding("threads", "ok", told)


def browser(place: Place) -> Iterator[Finding]:
    """Something that opens the pages; and for those who test them, playwright."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    driver = "playwright is installed" if find_spec("playwright") else "playwright, which only the tests need, is not"
    if found or sys.platform in ("darwin", "win32"):
        yield Finding("browser", "ok", f"{found or 'the system has one'}; {driver}")
    else:
        fix = "The pages are plain files: copy the site's folder to where one is."
        yield Finding("browser", "note", f"none found on PATH; {driver}", fix)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bytes(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"
