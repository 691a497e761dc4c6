"""Two residual nets for CIFAR-10 whose published weights are in the zoo; keys are those of their files."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

Images = Float[Tensor, "rows c h w"]
Maps = Float[Tensor, "rows width p q"]
Logits = Float[Tensor, "rows classes"]


class ResNet20(nn.Module):
    """He et al. 2016, sec. 4.2: three stages of three blocks, widths 16, 32, 64, strides 1, 2, 2; 269,722 parameters for 10 classes.

    Batch norm after every convolution, which therefore has no bias; global average before the one linear layer.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.classes = classes
        self.conv1, self.bn1 = _conv(3, 16, 1), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = _stage(16, 16, 1), _stage(16, 32, 2), _stage(32, 64, 2)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Images) -> Logits:
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


class PaddedBlock(nn.Module):
    """Two convolutions with batch norm; the shortcut (option A, no parameters) takes every second pixel and pads channels with zeros."""

    def __init__(self, planes: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(planes, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 1), nn.BatchNorm2d(width)
        self.stride, self.extra = stride, (width - planes) // 2

    def forward(self, x: Images) -> Maps:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        short = x[:, :, :: self.stride, :: self.stride]
        return (out + nn.functional.pad(short, (0, 0, 0, 0, self.extra, self.extra))).relu()  # type: ignore[no-any-return]


class ResNet2b(nn.Module):
    """The smaller residual net of the verification competitions: 8 channels, two blocks of 16, 100 hidden units, no batch norm.

    112,006 parameters for 10 classes. Source: alpha-beta-CROWN, complete_verifier/models/cifar10_resnet.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.classes = classes
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.layer1 = nn.Sequential(ProjectedBlock(8, 16, 2), ProjectedBlock(16, 16, 1))
        self.linear1, self.linear2 = nn.Linear(1024, 100), nn.Linear(100, classes)

    def forward(self, x: Images) -> Logits:
        x = self.layer1(self.conv1(x).relu()).flatten(1)
        return self.linear2(self.linear1(x).relu())  # type: ignore[no-any-return]


class ProjectedBlock(nn.Module):
    """Two convolutions with bias; the shortcut is a 1×1 convolution where the size changes, else the identity."""

    def __init__(self, planes: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(planes, width, 3, stride, 1)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)
        same = stride == 1 and planes == width
        self.shortcut = nn.Sequential() if same else nn.Sequential(nn.Conv2d(planes, width, 1, stride))

    def forward(self, x: Images) -> Maps:
        return (self.conv2(self.conv1(x).relu()) + self.shortcut(x)).relu()  # type: ignore[no-any-return]


def _conv(planes: int, width: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(planes, width, 3, stride, 1, bias=False)


def _stage(planes: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(PaddedBlock(planes, width, stride), *(PaddedBlock(width, width, 1) for _ in range(2)))
