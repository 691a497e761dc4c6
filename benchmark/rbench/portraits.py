"""What pages show of sets that have to be seen: rendered by the command that has the set, stored once per set, drawn without it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from rbench.data.dataset import Dataset
from rbench.questions import set_record
from rbench_core.files import atomic_write
from rbench_results.seal import set_digest
from rbench_threats.protocol import PerturbationSet, Portrait

SHOWN = 8  # images of the data set that a portrait may draw from


def digest_of(space: PerturbationSet) -> str:
    """SHA-256 of a set by content: what names its page."""
    return set_digest(set_record(space))


def store_portraits(folder: Path, spaces: Sequence[PerturbationSet], data: Dataset) -> None:
    """Write `sets/DIGEST.safetensors` for every set that can be drawn (capability "portrait") and is not there yet. Raises FileError."""
    for space in spaces:
        path = folder / "sets" / f"{digest_of(space)}.safetensors"
        if "portrait" in space.capabilities and not path.exists():
            with torch.no_grad():
                portrait: Portrait = space.portrait(data.x[:SHOWN])  # type: ignore[attr-defined]  # the capability
            atomic_write(path, packed(space, portrait, data))


def packed(space: PerturbationSet, portrait: Portrait, data: Dataset) -> bytes:
    """A portrait as one safetensors file: images as bytes, (rows, cols, c, h, w), and the words as JSON in its metadata."""
    images: dict[str, Tensor] = {}
    panels: list[dict[str, Any]] = []
    for number, panel in enumerate(portrait.panels):
        images[f"panel{number}"] = (panel.images.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).contiguous()
        panels.append({"title": panel.title, "caption": panel.caption, "rows": list(panel.rows), "cols": list(panel.cols)})
    facts = [{"name": fact.name, "value": fact.value, "note": fact.note} for fact in portrait.facts]
    words = {
        "spec": str(space),
        "family": space.family,
        "sentence": space.sentence,
        "dataset": data.name,
        "panels": panels,
        "facts": facts,
    }
    return save(images, metadata={"portrait": json.dumps(words, ensure_ascii=False, allow_nan=False)})
