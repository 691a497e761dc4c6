"""The nets of our own zoo, and any other that a table of layers can say."""

from rbench_zoo.architectures.layers import Layers, Normalise
from rbench_zoo.architectures.small import MLP, SmallCNN

__all__ = ["MLP", "Layers", "Normalise", "SmallCNN"]
