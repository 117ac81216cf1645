"""Networks that turn images into feature vectors. Any nn.Module from (n, C, H, W) to (n, f) is one."""

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

#: Parameters of torchvision's AlexNet with 1,000 classes.
ALEXNET_PARAMETERS = 61_100_840

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class SmallCNN(nn.Module):
    """A residual network for images of about 28 x 28 or 32 x 32 pixels that trains on a CPU.

    One 3 x 3 convolution at full size, then a convolution and a residual block each at a half and a quarter of it, of 2
    and 4 times the width. A linear layer makes the features of the last map's mean and maximum.

    Parameters
    ----------
    in_channels : int
        1 for grey images, 3 for coloured ones.
    width : int
        Channels of the first convolution.
    out_features : int
        f, the dimension of the features.
    dropout : float
        Share of the features dropped in training.
    """

    def __init__(self, in_channels: int = 1, width: int = 32, out_features: int = 256, dropout: float = 0.0) -> None:
        super().__init__()
        self.out_features = out_features
        self.maps = nn.Sequential(
            *_convolution(in_channels, width),
            nn.MaxPool2d(2),
            *_convolution(width, 2 * width),
            _Residual(2 * width),
            nn.MaxPool2d(2),
            *_convolution(2 * width, 4 * width),
            _Residual(4 * width),
        )
        self.head = nn.Sequential(nn.Linear(8 * width, out_features), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, images: Tensor) -> Tensor:
        """(n, in_channels, H, W) -> (n, out_features)."""
        maps = self.maps(images)
        return self.head(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1))


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*_convolution(width, width), *_convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class AlexNet(nn.Module):
    """AlexNet (Krizhevsky et al., 2012) in torchvision's layout; the features are those of fc7, 4,096 numbers.

    Parameters and their names are torchvision's, so that its published weights load: `AlexNet.from_file`. Images
    should be 224 x 224, normalized by `IMAGENET_MEAN` and `IMAGENET_STD`.

    Parameters
    ----------
    num_classes : int
        Of the last layer, classifier.6, which is kept for the weights' sake and not used.
    dropout : float
    """

    out_features = 4096

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(64, 192, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(192, 384, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )

    @classmethod
    def from_file(cls, path: Path | str, dropout: float = 0.5) -> "AlexNet":
        """AlexNet with weights from a state_dict file such as torchvision's alexnet-owt-7be5be79.pth.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it holds something else: the error lists missing and unexpected names, and shapes that differ.
        """
        state = _read_state_dict(path)
        with torch.device("meta"):
            expected = {name: tensor.shape for name, tensor in cls().state_dict().items()}
        faults = [f"{name} is missing" for name in expected.keys() - state.keys()]
        faults += [f"{name} is not expected" for name in state.keys() - expected.keys()]
        faults += [
            f"{name} has shape {tuple(state[name].shape)}, expected {tuple(shape)}"
            for name, shape in expected.items()
            if name in state and state[name].shape != shape
        ]
        if faults:
            count = sum(tensor.numel() for tensor in state.values())
            raise ValueError(
                f"AlexNet.from_file: {path} has {count:,} parameters, expected torchvision's AlexNet with "
                f"{ALEXNET_PARAMETERS:,}: {'; '.join(sorted(faults))}"
            )
        model = cls(dropout=dropout)
        model.load_state_dict(state)
        return model

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, H, W), H and W at least 63 -> (n, 4096)."""
        x = self.avgpool(self.features(images)).flatten(1)
        return self.classifier[:6](x)


def _read_state_dict(path: Path | str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"AlexNet.from_file: {path} is not a file; expected torchvision's alexnet state_dict")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"AlexNet.from_file: {path} is not a file of torch.save with tensors alone: {error}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"AlexNet.from_file: {path} holds no state_dict (a dict from names to tensors)")
    return state
