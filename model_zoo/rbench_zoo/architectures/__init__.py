"""The nets of our own zoo and of the published one, and any other that a table of layers can say."""

from rbench_zoo.architectures.abs import ABS
from rbench_zoo.architectures.layers import Layers, Normalise
from rbench_zoo.architectures.resnets import ResNet2b, ResNet20
from rbench_zoo.architectures.small import MLP, SmallCNN

__all__ = ["ABS", "MLP", "Layers", "Normalise", "ResNet2b", "ResNet20", "SmallCNN"]
