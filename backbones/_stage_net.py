"""Networks of torchvision and pytorchvideo: stages in series, the mean over the map, a linear classifier."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from .contract import Backbone, InputSpec, Layout, Stream, channels_last
from .convert import install, load_weights
from .first_layer import adapt_first_layer

STREAMS: tuple[Stream, ...] = ("rgb", "flow", "audio", "depth", "ir")

B = TypeVar("B", bound=Backbone)


class StageNet(Backbone):
    """Clips (B, C, T, H, W) -> maps (B, D, T', H', W'), each side divided by its stride and rounded up.

    trunk: the stages, in order and by the library's names; pooling layers stand with the stage after them. It may eat
        rgb only: its first layer is then averaged for the spec's stream.
    strides: of the whole trunk over (T, H, W).
    dropout: before the classifier, in training.
    """

    classifier_weight = "head.weight"
    head: Any  # None without a classifier

    def __init__(
        self,
        trunk: nn.Sequential,
        *,
        spec: InputSpec,
        feature_dim: int,
        strides: tuple[int, int, int],
        layouts: tuple[Layout, ...] = (),
        num_classes: int = 0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.input_spec, self.feature_dim, self.layouts = spec, feature_dim, layouts
        self.strides = strides
        adapt_first_layer(trunk, spec.channels)
        self.trunk = trunk
        channels_last(self.trunk)
        self.dropout = nn.Dropout(dropout)
        self.reset_classifier(num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        return self.trunk(clips)

    def output_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        t, h, w = (-(-size // stride) for size, stride in zip((frames, height, width), self.strides, strict=True))
        return t, h, w

    def stages(self) -> list[list[nn.Module]]:
        """The trunk's stages; one without parameters belongs to the next."""
        groups: list[list[nn.Module]] = []
        waiting: list[nn.Module] = []
        for part in self.trunk:
            waiting.append(part)
            if any(True for _ in part.parameters()):
                groups.append(waiting)
                waiting = []
        return groups

    def classify(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) of the mean over time and space."""
        if self.head is None:
            return super().classify(maps)
        return self.head(self.dropout(maps.mean((2, 3, 4))))

    def reset_classifier(self, num_classes: int) -> None:
        self.set_classes(num_classes)
        self.head = linear(self.feature_dim, num_classes) if num_classes else None


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A classifier that starts near zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def sized(spec: InputSpec, frames: int, crop: int) -> InputSpec:
    """`spec` for clips of `frames` entries and a square of `crop` pixels, cut from as much of the frame as before."""
    return replace(spec, frames=frames, crop=crop, resize_side=round(spec.resize_side * crop / spec.crop))


def load_torchvision(
    backbone: B, weights: str | Path | None, published: WeightsEnum, *, num_classes: int, layout: Layout
) -> B:
    """Weights by path, or torchvision's own ("pretrained") with the names of their classes, into `backbone`."""
    if weights != "pretrained":
        return load_weights(backbone, weights, num_classes=num_classes)
    state: Mapping[str, Tensor] = published.get_state_dict(progress=True, check_hash=True)
    install(backbone, layout.convert(state), num_classes=num_classes, what=f"torchvision's {published}")
    if backbone.num_classes == len(published.meta["categories"]):
        backbone.class_names = tuple(published.meta["categories"])
    return backbone


def pytorchvideo(module: str) -> Any:
    """pytorchvideo.models.MODULE, without what torch says about the scripted functions in it."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, message=".*torch.jit.script.*")
        return import_module(f"pytorchvideo.models.{module}")


def download(weights: str | Path | None, url: str) -> str | Path | None:
    """`weights`; for "pretrained" the file at `url`, fetched once into torch's cache."""
    if weights != "pretrained":
        return weights
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path))
    return path
