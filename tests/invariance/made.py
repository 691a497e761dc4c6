"""Small files of candidates, right or wrong in one way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rbench_threats.candidates import pack


def arrays(**changes: Any) -> dict[str, Any]:
    """Four 8 x 8 candidates, each 51 of 255 grey levels from its clean image; people call two of them something else. None drops a key."""
    random = np.random.default_rng(0)
    clean = random.integers(60, 190, (4, 8, 8)).astype(np.uint8)
    adv = (clean + 51 * np.sign(random.standard_normal(clean.shape))).astype(np.uint8)
    given = {
        "adv": adv,
        "clean": clean,
        "index": np.array([5, 3, 8, 9]),
        "label": np.array([0, 1, 2, 3]),
        "human": np.array([0, 7, 2, 8]),
        "declared": np.array("linf(eps=0.2)"),
        **changes,
    }
    return {key: value for key, value in given.items() if value is not None}


def write(folder: Path, name: str = "set.npz", **changes: Any) -> Path:
    """The same as a file."""
    path = folder / name
    path.write_bytes(pack(arrays(**changes)))
    return path
