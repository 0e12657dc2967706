"""The network architectures of the field, written so that its published checkpoints fit as they are.

Every network returns logits: the softmax is applied once, by whoever needs probabilities. Every network
takes pixels in [0, 1]: normalisation is a layer of the network, because noise is added before it
and radii are counted in pixels.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet, resnet50

MEAN_STD: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Channel means and standard deviations that the field normalises with, by data set."""


class Normalize(nn.Module):
    """Subtract the channel means and divide by the channel standard deviations.

    The constants are not part of the state dict: the field's checkpoints do not hold them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class FromProbabilities(nn.Module):
    """Make logits of a network that ends in a softmax: softmax(log p) = p, so softmax is applied once."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).clamp_min(torch.finfo(torch.float32).tiny).log()


class CifarResNet(nn.Module):
    """The 6n+2-layer ResNet for 32x32 images (He et al. 2016, section 4.2), with projection shortcuts.

    Parameter names are those of the checkpoints of Cohen et al., Salman et al. and MACER.
    """

    def __init__(self, depth: int, num_classes: int = 10):
        super().__init__()
        if (depth - 2) % 6:
            raise ValueError(f"expected a depth of 6n+2 (20, 32, 44, 56, 110), got {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        shortcut = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        rest = [BasicBlock(outputs, outputs) for _ in range(1, blocks)]
        return nn.Sequential(BasicBlock(inputs, outputs, stride, shortcut), *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def cifar_resnet18(num_classes: int = 10) -> ResNet:
    """ResNet-18 for 32x32 images: a 3x3 first convolution of stride 1 and no max-pooling."""
    network = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()  # type: ignore[assignment]
    return network


def ddrs_resnet18(num_classes: int = 10) -> ResNet:
    """The ResNet-18 of the official DDRS code: ImageNet's stem on 32x32 images, without its BatchNorm.

    Theirs ends in a softmax and normalises inside; this one returns logits and is given its normalisation
    like every other network.
    """
    network = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
    network.bn1 = nn.Identity()  # type: ignore[assignment]
    return network


class DigitsCNN(nn.Module):
    """Three small convolutions and a linear layer for 8x8 grey images: 20,106 parameters."""

    def __init__(self, num_classes: int = 10, width: int = 32):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "digits_cnn": DigitsCNN,
    **{
        f"cifar_resnet{depth}": lambda num_classes=10, depth=depth: CifarResNet(depth, num_classes)
        for depth in (20, 110)
    },
    "cifar_resnet18": cifar_resnet18,
    "ddrs_resnet18": ddrs_resnet18,
    "resnet50": lambda num_classes=1000: resnet50(num_classes=num_classes),
}
"""Networks by the name the field gives them; each takes `num_classes` and has random weights."""
