"""The names of the certificates, the cheapest first. No torch: command line and listings need no more."""

from __future__ import annotations

METHODS = ("ibp", "crown-ibp")
