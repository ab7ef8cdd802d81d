"""C3D: 3 x 3 x 3 convolutions and 2 x 2 x 2 poolings, "the VGG of 3-D networks".

Source: Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks", ICCV 2015 (arXiv:1412.0767).
Holds `c3d.pickle` of DavideA/c3d-pytorch (Sports-1M, 487 classes).
Differs: in place of the mean clip of Sports-1M, a number for every pixel, stands one for every channel (90, 98, 102 for
blue, green, red). The published head ends in a softmax; here `classify` gives its logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

from torch import Tensor, nn

from ._stage_net import STREAMS, linear, sized
from .contract import Backbone, InputSpec, Layout, Stream, channels_last, register, stream_spec
from .convert import load_weights, published

Layer = Literal["conv5b", "pool5", "fc6", "fc7"]

# 16 frames, one after another, of 128 x 171 pixels.
C3D_SPEC = InputSpec(
    frames=16,
    fps=None,
    resize_side=128,
    crop=112,
    scale=1.0,
    mean=(90.0, 98.0, 102.0),
    std=(1.0, 1.0, 1.0),
    channel_order="bgr",
)
# Name and width of every convolution, between the poolings.
STAGES = (
    (("conv1", 64),),
    (("conv2", 128),),
    (("conv3a", 256), ("conv3b", 256)),
    (("conv4a", 512), ("conv4b", 512)),
    (("conv5a", 512), ("conv5b", 512)),
)
LAYERS: tuple[Layer, ...] = ("conv5b", "pool5", "fc6", "fc7")
HIDDEN = 4096


class C3D(Backbone):
    """Clips (B, C, T, H, W) of one size -> maps of one of its layers, sizes rounded down.

    fc6 reads pool5 place by place, so that the network is built for the spec's frames (16 or more) and crop.

    layer: "conv5b": (B, 512, T / 8, H / 16, W / 16). "pool5": (B, 512, T / 16, H / 32 + 1, W / 32 + 1). "fc6",
        "fc7": (B, 4096, 1, 1, 1), the features that most papers took.
    dropout: after fc6 and fc7, in training.
    """

    classifier_weight = "fc8.weight"
    fixed_size = True

    def __init__(
        self,
        *,
        spec: InputSpec = C3D_SPEC,
        layer: Layer = "pool5",
        layouts: tuple[Layout, ...] = (),
        num_classes: int = 0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if layer not in LAYERS:
            raise ValueError(f"layer is {layer!r}; it is one of {', '.join(LAYERS)}")
        if spec.frames < 16 or spec.crop < 32:
            raise ValueError(f"C3D takes 16 frames of 32 pixels a side or more, not {spec.frames} of {spec.crop}")
        self.input_spec, self.layer, self.layouts = spec, layer, layouts
        self.min_size = (spec.frames, spec.crop, spec.crop)
        self.feature_dim = 512 if layer in ("conv5b", "pool5") else HIDDEN
        width = spec.channels
        for number, stage in enumerate(STAGES, start=1):
            for name, outputs in stage:
                conv = nn.Conv3d(width, outputs, 3, padding=1)
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, conv.bias))
                self.add_module(name, conv)
                width = outputs
            window = (1, 2, 2) if number == 1 else (2, 2, 2)
            self.add_module(f"pool{number}", nn.MaxPool3d(window, padding=(0, 1, 1) if number == 5 else 0))
        channels_last(self)
        self.dropout = nn.Dropout(dropout)
        self.fc6: nn.Linear | None = None
        self.fc7: nn.Linear | None = None
        self.reset_classifier(num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        if tuple(clips.shape[2:]) != self.min_size:
            given, built = (" x ".join(map(str, size)) for size in (clips.shape[2:], self.min_size))
            raise ValueError(
                f"this C3D was built for clips of {built} (T, H, W) and got {given}; build it with "
                f"frames={clips.shape[2]}, crop={clips.shape[3]}"
            )
        maps = clips
        for number, stage in enumerate(STAGES, start=1):
            for name, _ in stage:
                maps = self.get_submodule(name)(maps).relu_()
            if number < 5 or self.layer != "conv5b":
                maps = self.get_submodule(f"pool{number}")(maps)
        for name in LAYERS[2 : LAYERS.index(self.layer) + 1]:
            maps = self._hidden(maps, name)
        return maps

    def _hidden(self, maps: Tensor, name: str) -> Tensor:
        return self.get_submodule(name)(self.dropout(maps.flatten(1)) if name == "fc7" else maps.flatten(1)).relu_()[
            :, :, None, None, None
        ]

    def output_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        if self.layer in ("fc6", "fc7"):
            return 1, 1, 1
        t, h, w = frames // 8, height // 16, width // 16
        return (t, h, w) if self.layer == "conv5b" else (t // 2, h // 2 + 1, w // 2 + 1)

    def stages(self) -> list[list[nn.Module]]:
        """conv1, conv2, conv3, conv4 and conv5, each with its pooling; fc6 and fc7 where the map is theirs."""
        groups = []
        for number, stage in enumerate(STAGES, start=1):
            pool = [f"pool{number}"] if number < 5 or self.layer != "conv5b" else []
            groups.append([self.get_submodule(name) for name in (*(name for name, _ in stage), *pool)])
        return groups + [[self.get_submodule(name)] for name in LAYERS[2 : LAYERS.index(self.layer) + 1]]

    def stage_map(self, output: Tensor, clips: Tensor) -> Tensor:
        return super().stage_map(output[:, :, None, None, None] if output.ndim == 2 else output, clips)

    def classify(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes): the layers that follow the map's."""
        if self.fc8 is None:
            return super().classify(maps)
        if self.layer == "conv5b":
            maps = self.get_submodule("pool5")(maps)
        for name in LAYERS[max(LAYERS.index(self.layer) + 1, 2) :]:
            maps = self._hidden(maps, name)
        return self.fc8(self.dropout(maps.flatten(1)))

    def reset_classifier(self, num_classes: int) -> None:
        """0 also takes off the layers before the classifier that the map does not need."""
        self.set_classes(num_classes)
        t, h, w = (size // down for size, down in zip(self.min_size, (8, 16, 16), strict=True))
        places = (t // 2) * (h // 2 + 1) * (w // 2 + 1)
        for name, inputs in (("fc6", 512 * places), ("fc7", HIDDEN)):
            needed = num_classes > 0 or name in LAYERS[: LAYERS.index(self.layer) + 1]
            if not needed:
                setattr(self, name, None)
            elif getattr(self, name) is None:
                setattr(self, name, nn.Linear(inputs, HIDDEN))
        self.fc8 = linear(HIDDEN, num_classes) if num_classes else None


def _is_davide(state: Mapping[str, Tensor]) -> bool:
    return "conv3a.weight" in state and "conv5b.bias" in state


DAVIDE = published(Layout(name="DavideA/c3d-pytorch (c3d)", recognises=_is_davide, convert=dict))


@register("c3d", paper="Tran et al., ICCV 2015", streams=STREAMS, weights_from="DavideA/c3d-pytorch (c3d.pickle)")
def c3d(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 16,
    crop: int = 112,
    layer: Layer = "pool5",
) -> C3D:
    """C3D; layer: whose output the map is (see C3D)."""
    spec = stream_spec(sized(C3D_SPEC, frames, crop), stream)
    backbone = C3D(spec=spec, layer=layer, layouts=(DAVIDE,), num_classes=num_classes)
    return load_weights(backbone, weights, num_classes=num_classes)
