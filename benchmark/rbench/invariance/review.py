"""The page on which people say what candidates show: one HTML file with its pictures inside, and no word to the network."""

from __future__ import annotations

import base64
import io
import json
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from rbench_core.files import sha256_bytes
from rbench_threats.candidates import CLASSES, Candidates, unpack

BRIGHTER, DARKER, GROUND = np.array([209, 100, 28]), np.array([11, 87, 148]), np.array([252, 252, 250])  # the site's colours


def page(content: bytes, where: Path) -> str:
    """The review page of a file of candidates, in the order of their digests, which tells nobody anything. Raises DataError."""
    found = unpack(content, where)
    items = sorted((_item(found, place) for place in range(len(found.adv))), key=lambda item: str(item["image"]))
    sha256 = sha256_bytes(content)
    data = {"sha256": sha256, "classes": CLASSES, "items": items}
    about = f"{len(items)} candidates{f', said to lie in {found.declared}' if found.declared else ''}; SHA-256 {sha256[:16]}…."
    template = Template(files(__package__).joinpath("review.html").read_text(encoding="utf-8"))
    return template.substitute(data=json.dumps(data).replace("<", "\\u003c"), about=about.replace("&", "&amp;").replace("<", "&lt;"))


def image_digest(adv: Float[np.ndarray, "c h w"]) -> str:
    """What names a candidate in votes: SHA-256 of its grey levels (0-255) as little-endian float32."""
    return sha256_bytes(np.ascontiguousarray(adv, dtype="<f4").tobytes())


def _item(found: Candidates, place: int) -> dict[str, Any]:
    adv, clean = found.adv[place], found.clean[place]
    return {
        "image": image_digest(adv),
        "adv": _png(_shown(adv)),
        "clean": _png(_shown(clean)),
        "difference": _png(_difference(adv - clean)),
        "label": int(found.label[place]),
        "target": None if found.target is None else int(found.target[place]),
    }


def _shown(image: Float[np.ndarray, "c h w"]) -> UInt8[np.ndarray, "h w 3"]:
    levels: UInt8[np.ndarray, "c h w"] = np.round(image).astype(np.uint8)
    return np.repeat(levels, 3, 0).transpose(1, 2, 0) if len(levels) == 1 else levels.transpose(1, 2, 0)


def _difference(change: Float[np.ndarray, "c h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Orange where the candidate is brighter, blue where it is darker, full colour at the largest change."""
    mean = change.mean(0)
    weight = np.abs(mean)[:, :, None] / max(float(np.abs(mean).max()), 1e-9)
    colour = np.where(mean[:, :, None] > 0, BRIGHTER, DARKER)
    shown: UInt8[np.ndarray, "h w 3"] = np.round(GROUND + weight * (colour - GROUND)).astype(np.uint8)
    return shown


def _png(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
