"""Certificates: proofs that no image of an element-wise box changes the label, by an engine of ours over the net's operators."""

from rbench.certificates.certify import Certifier, Proof
from rbench.certificates.graph import Graph, trace
from rbench.certificates.methods import METHODS
from rbench_core.errors import Unsupported

__all__ = ["METHODS", "Certifier", "Graph", "Proof", "Unsupported", "trace"]
