"""Witnesses as one PNG that stands alone: per witness a caption and three tiles, magnified in whole steps so that pixels stay pixels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rbench_results.site.pictures import TILES, Pair, magnification, tiles

if TYPE_CHECKING:
    from PIL.Image import Image

EDGE = 192  # pixels that a tile's longer side takes at least
GAP, CAPTION = 8, 16
LARGEST = 24_000_000  # pixels of the whole: what does not fit is left out


def strip_png(shown: Sequence[tuple[str, Pair]]) -> bytes | None:
    """The PNG of (caption, (clean, adversarial)), one below the other; None where there is none."""
    from PIL import Image as pillow

    strips: list[Image] = []
    for caption, pair in shown:
        strip = _strip(caption, pair)
        if strips and sum(each.width * each.height for each in [*strips, strip]) > LARGEST:
            break
        strips.append(strip)
    if not strips:
        return None
    whole = pillow.new("RGB", (max(each.width for each in strips), sum(each.height for each in strips)), "white")
    top = 0
    for strip in strips:
        whole.paste(strip, (0, top))
        top += strip.height
    stream = io.BytesIO()
    whole.save(stream, "PNG")
    return stream.getvalue()


def _strip(caption: str, pair: Pair) -> Image:
    """Caption, then clean, adversarial and difference side by side on white."""
    from PIL import Image as pillow
    from PIL import ImageDraw

    height, width = pair[0].shape[1:]
    times = max(1, EDGE // max(height, width))
    row = pillow.fromarray(tiles(*pair))
    strip = pillow.new("RGB", (TILES * (times * width + GAP) + GAP, times * height + 2 * CAPTION + 2 * GAP), "white")
    pen = ImageDraw.Draw(strip)
    pen.text((GAP, GAP // 2), _plain(caption), "black")
    names = ("clean", "adversarial", f"difference x {magnification(*pair):g}")
    for place, name in enumerate(names):
        left, top = GAP + place * (times * width + GAP), GAP // 2 + 2 * CAPTION
        pen.text((left, GAP // 2 + CAPTION), name, "gray")
        tile = row.crop((place * width, 0, (place + 1) * width, height)).resize((times * width, times * height), pillow.Resampling.NEAREST)
        strip.paste(tile, (left, top), tile)
    return strip


def _plain(text: str) -> str:
    """What every font of Pillow can draw, on one line."""
    return " ".join(text.split()).encode("ascii", "replace").decode()
