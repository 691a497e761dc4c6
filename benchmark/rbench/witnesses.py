"""Witness files: clean image, adversarial image and θ of refereed falls, as safetensors that anyone can open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from rbench.attacks.stage import Witness
from rbench_core.errors import UsageError
from rbench_core.files import atomic_write, sha256_bytes

KEEP = ("all", "sample", "none")
SAMPLE = 16  # per question and chunk


def check(keep: str) -> str:
    """keep, if it is a policy. Raises UsageError."""
    if keep not in KEEP:
        raise UsageError(f"witnesses={keep!r}", expected=f"one of: {', '.join(KEEP)}")
    return keep


def store_witnesses(
    folder: Path, key: str, first: int, found: Mapping[int, Witness], clean: Mapping[int, Float[Tensor, "c h w"]], keep: str
) -> dict[int, tuple[str, int]]:
    """Write one chunk's witnesses, whole or not at all; where each index lies: (file relative to folder, row).

    The name carries the content's SHA-256: the same chunk computed twice, after a kill say, is the same file, and a changed one is told.
    """
    chosen = sorted(found)
    if keep == "sample":
        chosen = sorted(sorted(chosen, key=lambda index: sha256_bytes(f"{key}{index}".encode()))[:SAMPLE])
    if keep == "none" or not chosen:
        return {}
    tensors = {
        "index": torch.tensor(chosen),
        "x": torch.stack([clean[index].cpu() for index in chosen]),
        "x_adv": torch.stack([found[index].image for index in chosen]),
        "theta": torch.stack([found[index].theta for index in chosen]),
    }
    data = save(tensors)
    name = f"witnesses/{key[:16]}/{first:06d}-{sha256_bytes(data)}.safetensors"
    atomic_write(folder / name, data)
    return {index: (name, row) for row, index in enumerate(chosen)}
