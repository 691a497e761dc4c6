"""Evidence looked at again: of a stored run or of a bundle, with the model at hand or without it."""

from rbench.verification.verify import Verified, verify

__all__ = ["Verified", "verify"]
