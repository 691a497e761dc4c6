"""The widths that batches may have. No network ever sees another, and none below 15 rows, where some kernels round differently.

On the published MNIST, Fashion-MNIST and CIFAR-10 nets a row's logits and gradients are the same bits at every width of the list.
"""

from __future__ import annotations

WIDTHS: tuple[int, ...] = (*range(16, 256, 8), *range(256, 512, 32), *range(512, 1024, 64), *range(1024, 2049, 128))
WIDTHS_SAID = "a multiple of 8 from 16 on, of 32 from 256, of 64 from 512, of 128 from 1024 to 2048"
WIDER = 3  # by how much, where no backward pass needs what the forward pass made: a call costs the same, and caches hold it still


def width_for(rows: int, width: int) -> int:
    """The smallest width of the list that holds all rows, at most `width`."""
    return min((w for w in WIDTHS if rows <= w < width), default=width)


def first_width(rows: int, width: int) -> int:
    """The width, at most `width`, at which rows of one length leave the least padding: batch after batch, the last as narrow as it may be.

    89 rows run as 48 and 48, not as 64 and 64; 65 as 40 and 32. Never more batches than at `width`.
    """
    batches: int = max(-(-rows // width), 1)
    fit = [w for w in (*WIDTHS, width) if w <= width and w * batches >= rows] or [width]
    return min(fit, key=lambda w: ((batches - 1) * w + width_for(rows - (batches - 1) * w, w), w))


def at_most(width: int) -> int:
    """The largest width of the list that is not above `width`; the smallest where all are."""
    return max((w for w in WIDTHS if w <= width), default=WIDTHS[0])
