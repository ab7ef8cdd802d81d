"""TSN: any image network on every frame, logits averaged (Wang et al., "Temporal Segment Networks", ECCV 2016).

`tsn:NETWORK` takes any image network of timm by its name there (`actionfuse models 'tsn:resnet*'` lists them). Flow and
spectrograms go through a first layer that is the mean of the rgb kernels (section 3.2 of the paper). Holds timm's own
checkpoints, torchvision's where the names agree (ResNets) and those of the public TSN code:
mit-han-lab/temporal-shift-module (without shift) and epic-kitchens/C1-Action-Recognition-TSN-TRN-TSM.
Differs: features are the maps of the last stage before pooling, not pooled vectors; `pool_clip` gives those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from timm.models import PretrainedCfg
from torch import Tensor, nn

from .bundled import BUNDLED_NETWORK, bundled_state
from .contract import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    InputSpec,
    Layout,
    Stream,
    channels_last,
    register,
    stream_spec,
)
from .convert import install, load_weights, published

# Cells a side of Temporal Binding Network's spectrograms.
_SPECTROGRAM_SIDE = 256
# Where timm keeps the blocks of a network that come one after another.
_SERIES = ("blocks", "stages", "layers", "features")
_CONTAINERS = (nn.Sequential, nn.ModuleList)
# Poolings that read the patch tokens alone, so that maps are enough to classify.
_TOKEN_AVERAGES = ("avg", "avgmax", "max")


class FrameModel(Backbone):
    """A timm network on every frame: (B, C, T, H, W) -> (B, D, T, h, w); T may be anything.

    The network runs on (B * T, C, H, W) in channels-last memory, which is what `InputSpec.normalise` hands over.
    Token networks (ViT) give their patch tokens as a map, without class and register tokens.

    network: timm's name, with or without a tag of weights ("resnet50", "vit_small_patch16_224.augreg_in21k").
    frames: T of the input spec.
    crop: pixels; 0 = the network's own size, 256 cells for spectrograms. Networks of a fixed size are built for it.
    flow_stack: u, v fields in one entry, for stream "flow".
    drop_rate: dropout before the classifier.
    """

    network: Any  # a timm model: a Module with forward_features, forward_head and reset_classifier

    def __init__(
        self,
        network: str,
        *,
        stream: Stream = "rgb",
        num_classes: int = 0,
        frames: int = 8,
        crop: int = 0,
        flow_stack: int = 5,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        config = _config(network)
        side = crop or (_SPECTROGRAM_SIDE if stream == "audio" else int(config.input_size[-1]))
        rgb = InputSpec(
            frames=frames,
            crop=side,
            resize_side=max(side, math.floor(side / config.crop_pct)),
            interpolation="bicubic" if config.interpolation == "bicubic" else "bilinear",
            mean=tuple(config.mean),
            std=tuple(config.std),
        )
        self.input_spec = stream_spec(rgb, stream, flow_stack=flow_stack if stream == "flow" else 1)
        self.network_name = network
        self.timm_size = _size_arguments(network, side) if config.fixed_input_size else ()
        self.fixed_size = config.fixed_input_size and "dynamic_img_size" not in dict(self.timm_size)
        try:
            self.network = timm.create_model(
                network,
                in_chans=self.input_spec.channels,
                num_classes=num_classes,
                drop_rate=drop_rate or None,
                **dict(self.timm_size),
            )
        except (NotImplementedError, TypeError) as error:  # encoders without classifiers, networks without dropout
            raise ValueError(f"timm's {network} cannot be built so: {error}") from error
        if num_classes and self.network.num_classes != num_classes:
            raise ValueError(f"timm's {network} takes no classifier; leave num_classes out")
        channels_last(self.network)
        self.feature_dim = int(self.network.num_features)
        self.num_classes = num_classes
        self._form, self._prefix_tokens = self._recognise_form(side)
        head = config.classifier if isinstance(config.classifier, str) else (config.classifier or ("",))[0]
        self.classifier_weight = f"network.{head}.weight" if head else ""
        self.layouts = (
            EPIC_TSN,
            TSN,
            Layout(
                name="timm, or torchvision where its names are timm's",
                recognises=partial(_is_timm, frozenset(self.network.state_dict())),
                convert=_from_timm,
            ),
        )

    def forward(self, clips: Tensor) -> Tensor:
        return self._to_maps(self._features(clips), clips)

    def forward_and_classify(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        features = self._features(clips)
        return self._to_maps(features, clips), self._logits(features, len(clips))

    def classify(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes): timm's head on every frame, then the mean over frames (TSN's average consensus)."""
        if (
            self.num_classes
            and self._prefix_tokens
            and getattr(self.network, "global_pool", None) not in _TOKEN_AVERAGES
        ):
            raise ValueError(
                f"{self.network_name} classifies by its class token, which a map has not; call forward_and_classify"
            )
        features = maps.transpose(1, 2).flatten(0, 1)
        if self._form == "NHWC":
            features = features.permute(0, 2, 3, 1)
        elif self._form == "NLC":
            # Averages skip the first tokens, so what stands in their place does not matter.
            features = nn.functional.pad(features.flatten(2).transpose(1, 2), (0, 0, self._prefix_tokens, 0))
        return self._logits(features, len(maps))

    def stages(self) -> list[list[nn.Module]]:
        """The network's children, its blocks or stages one by one; the classifier belongs to none."""
        classifier = self.network.get_classifier()
        found: list[list[nn.Module]] = []
        for name, child in self.network.named_children():
            if classifier in child.modules() or not any(True for _ in child.parameters()):
                continue
            parts = list(child.children()) if name in _SERIES and isinstance(child, _CONTAINERS) else [child]
            found += [[part] for part in parts if any(True for _ in part.parameters())]
        return found

    def stage_map(self, output: Tensor, clips: Tensor) -> Tensor:
        if isinstance(output, Tensor) and output.ndim == 3 and self._form == "NLC":
            patches = output[:, self._prefix_tokens :].transpose(1, 2)
            output = patches.unflatten(2, self._grid(patches.shape[2], *clips.shape[3:]))
        elif isinstance(output, Tensor) and output.ndim == 4 and self._form == "NHWC":
            output = output.permute(0, 3, 1, 2)
        return super().stage_map(output, clips)

    def output_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(T, h, w), by the network's shapes on torch's meta device."""
        self._check_size(height, width)
        shape = _feature_shape(self.network_name, self.timm_size, height, width)
        if self._form == "NLC":
            return (frames, *self._grid(shape[1] - self._prefix_tokens, height, width))
        rows, columns = shape[1:3] if self._form == "NHWC" else shape[2:4]
        return frames, rows, columns

    def reset_classifier(self, num_classes: int) -> None:
        self.network.reset_classifier(num_classes)
        self.set_classes(num_classes)

    def _features(self, clips: Tensor) -> Tensor:
        self._check(clips)
        frames = clips.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return self.network.forward_features(frames)

    def _logits(self, features: Tensor, batch: int) -> Tensor:
        if not self.num_classes:
            return super().classify(features)
        logits = self.network.forward_head(features)
        return logits.unflatten(0, (batch, -1)).mean(1)

    def _to_maps(self, features: Tensor, clips: Tensor) -> Tensor:
        """What the network gives for all frames -> (B, D, T, h, w), as a view."""
        if self._form == "NHWC":
            features = features.permute(0, 3, 1, 2)
        elif self._form == "NLC":
            tokens = features[:, self._prefix_tokens :].transpose(1, 2)
            features = tokens.unflatten(2, self._grid(tokens.shape[2], clips.shape[3], clips.shape[4]))
        return features.unflatten(0, (clips.shape[0], -1)).transpose(1, 2)

    def _grid(self, tokens: int, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patches of a frame: as many as there are, in the frame's proportions."""
        rows = round(math.sqrt(tokens * height / width))
        if not rows or tokens % rows:
            raise ValueError(f"{self.network_name} gives {tokens} tokens for {height} x {width} pixels: no map")
        return rows, tokens // rows

    def _check(self, clips: Tensor) -> None:
        spec = self.input_spec
        if clips.ndim != 5 or clips.shape[1] != spec.channels:
            raise ValueError(f"clips are {tuple(clips.shape)}; this backbone eats (B, {spec.channels}, T, H, W)")
        self._check_size(*clips.shape[3:])

    def _check_size(self, height: int, width: int) -> None:
        spec = self.input_spec
        if self.fixed_size and (height, width) != (spec.crop, spec.crop):
            raise ValueError(
                f"{self.network_name} was built for {spec.crop} x {spec.crop} pixels and got {height} x {width}; "
                f"build it with crop={height}"
            )
        if self.fixed_size:
            return
        patch = self._patch
        if height % patch[0] or width % patch[1]:
            raise ValueError(
                f"{self.network_name} cuts frames into patches of {patch[0]} x {patch[1]} pixels; {height} x {width} "
                "is no multiple of that"
            )

    @property
    def _patch(self) -> tuple[int, int]:
        patch = getattr(getattr(self.network, "patch_embed", None), "patch_size", None)
        if self._form != "NLC" or not patch:
            return 1, 1
        return (patch, patch) if isinstance(patch, int) else (patch[0], patch[1])

    def _recognise_form(self, side: int) -> tuple[str, int]:
        """How the network lays features out: NCHW, NHWC or NLC, and how many tokens in front are no patches."""
        shape = _feature_shape(self.network_name, self.timm_size, side, side)
        if len(shape) == 4:
            if shape[1] == self.feature_dim:
                return "NCHW", 0
            if shape[3] == self.feature_dim:
                return "NHWC", 0
        elif len(shape) == 3 and shape[2] == self.feature_dim:
            prefix = getattr(self.network, "num_prefix_tokens", None)
            if prefix is None:
                prefix = shape[1] - math.isqrt(shape[1]) ** 2
            patches = shape[1] - prefix
            if math.isqrt(patches) ** 2 == patches and (patches > 1 or not prefix):
                return "NLC", prefix
        raise ValueError(
            f"timm's {self.network_name} gives {shape or 'several tensors'} for a frame of {side} x {side} pixels, "
            f"which is no map of {self.feature_dim} features; take another network"
        )


FrameModelT = TypeVar("FrameModelT", bound=FrameModel)


@cache
def _feature_shape(network: str, size: tuple[tuple[str, Any], ...], height: int, width: int) -> tuple[int, ...]:
    """Shape of the features of one frame, () for several tensors, by a run on torch's meta device.

    There tensors have shapes but no values, so that it takes a fraction of a second for the largest network.
    """
    with torch.device("meta"):
        built: Any = timm.create_model(network, num_classes=0, **dict(size)).eval()
        features = built.forward_features(torch.empty(1, 3, height, width))
    return tuple(features.shape) if isinstance(features, Tensor) else ()


@cache
def _all_networks() -> frozenset[str]:
    return frozenset(timm.list_models())


def _config(network: str) -> PretrainedCfg:
    """timm's PretrainedCfg of a network's name, with or without a tag."""
    base, _, tag = network.partition(".")
    if base not in _all_networks():
        near = get_close_matches(base, _all_networks(), n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "see actionfuse models 'tsn:*'"
        raise ValueError(f"timm has no image network {base!r}; {hint}")
    try:
        config = timm.get_pretrained_cfg(network, allow_unregistered=False)
    except RuntimeError as error:
        tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{base}.*")]
        raise ValueError(f"timm has no weights {tag!r} for {base!r}; there are {', '.join(tags) or 'none'}") from error
    assert config is not None
    return config


@cache
def _size_arguments(network: str, side: int) -> tuple[tuple[str, Any], ...]:
    """How timm is told the frame size of a network whose tables depend on it.

    Position tables of ViTs are resampled where another size comes (`dynamic_img_size`), which costs nothing where none
    does. Window attention would have to rebuild its masks each time, so that such networks keep the one size.
    """
    candidates: tuple[dict[str, Any], ...] = ({"img_size": side, "dynamic_img_size": True}, {"img_size": side})
    for arguments in candidates:
        try:
            with torch.device("meta"):
                built = timm.create_model(network, num_classes=0, **arguments)
        except TypeError:  # the network does not know the argument
            continue
        patch = getattr(getattr(built, "patch_embed", None), "patch_size", None) or 1
        whole = side % (patch if isinstance(patch, int) else patch[0]) == 0  # else only a fixed size is cut off
        if "dynamic_img_size" not in arguments or (whole and getattr(built, "pos_embed", None) is not None):
            return tuple(arguments.items())
    return ()


def _is_timm(own: frozenset[str], state: Mapping[str, Tensor]) -> bool:
    return not own.isdisjoint(state)


def _from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"network.{key}": tensor for key, tensor in state.items()}


def _from_tsn(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    rules = (("base_model.", "network."), ("new_fc.", "network.fc."))
    converted = {}
    for key, tensor in state.items():
        bare = key.removeprefix("model.")
        start, ours = next((rule for rule in rules if bare.startswith(rule[0])), ("", ""))
        converted[ours + bare.removeprefix(start)] = tensor
    return converted


def _is_tsn(state: Mapping[str, Tensor]) -> bool:
    more = (".net.", ".gsf.", ".gsm_", "consensus.")  # of networks that also mix frames
    if any(part in f".{key}" for key in state for part in more):
        return False
    return any(key.removeprefix("model.").startswith("base_model.") for key in state)


def _is_epic_tsn(state: Mapping[str, Tensor]) -> bool:
    heads = [tensor for key, tensor in state.items() if key.removeprefix("model.") == "new_fc.weight"]
    return _is_tsn(state) and [len(head) for head in heads] == [97 + 300]


# Classes of EPIC-KITCHENS-100: the C1 networks' classifier holds both, verbs first.
EPIC_TASKS = {"verb": 97, "noun": 300}
TSN_SPEC = {"resize_side": 256, "crop": 224, "interpolation": "bilinear", "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
TSN = published(
    Layout(name="mit-han-lab/temporal-shift-module (TSN)", recognises=_is_tsn, convert=_from_tsn, spec=TSN_SPEC)
)
EPIC_TSN = published(
    Layout(
        name="epic-kitchens/C1-Action-Recognition-TSN-TRN-TSM (TSN)",
        recognises=_is_epic_tsn,
        convert=_from_tsn,
        # Its rgb configurations give the mean as std, and the released weights were trained so.
        spec={**TSN_SPEC, "std": IMAGENET_MEAN},
        tasks=EPIC_TASKS,
    )
)


@register(
    "tsn",
    paper="Wang et al., ECCV 2016",
    streams=("rgb", "flow", "audio", "depth", "ir"),
    weights_from="timm, torchvision, mit-han-lab TSN, EPIC-KITCHENS C1 TSN; bundled for tf_efficientnet_lite0",
    networks=timm.list_models,
)
def tsn(
    *,
    network: str,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 8,
    crop: int = 0,
    flow_stack: int = 5,
    drop_rate: float = 0.0,
) -> FrameModel:
    """timm's `network` on every frame; options as in FrameModel."""
    backbone = FrameModel(
        network,
        stream=stream,
        num_classes=num_classes,
        frames=frames,
        crop=crop,
        flow_stack=flow_stack,
        drop_rate=drop_rate,
    )
    backbone.frame_by_frame = True  # not of the class: networks that mix frames are built on it
    return load_frame_weights(backbone, weights, num_classes=num_classes, crop=crop)


def load_frame_weights(
    backbone: FrameModelT, weights: str | Path | None, *, num_classes: int = 0, crop: int = 0
) -> FrameModelT:
    """Weights by path, "pretrained" (timm's) or "bundled" into a FrameModel; the caller's `crop` stays."""
    network = backbone.network_name
    if weights == "pretrained":
        _load_pretrained(backbone, network, num_classes)
    elif weights == "bundled":
        if network.partition(".")[0] != BUNDLED_NETWORK:
            raise ValueError(f"bundled weights are there for tsn:{BUNDLED_NETWORK} only, not for {network!r}")
        _load_imagenet(backbone, bundled_state(), num_classes, what="the bundled EfficientNet-Lite0")
    else:
        load_weights(backbone, weights, num_classes=num_classes)
        if crop:  # what the caller asks for stays; the views keep the share of the frame that the weights' own had
            spec = backbone.input_spec
            backbone.input_spec = replace(spec, crop=crop, resize_side=round(spec.resize_side * crop / spec.crop))
    return backbone


def _load_pretrained(backbone: FrameModel, network: str, num_classes: int) -> None:
    config = _config(network)
    if not config.has_weights:
        raise ValueError(f"timm has no pretrained weights for {network!r}; give a path or leave weights out")
    # In rgb and at the weights' own number of classes; install() then averages the first layer as TSN does (timm would
    # rescale it) and sorts out the classifier.
    source = timm.create_model(network, pretrained=True, **dict(backbone.timm_size))
    _load_imagenet(backbone, source.state_dict(), num_classes, what=f"timm's {network}")


def _load_imagenet(backbone: FrameModel, state: Mapping[str, Tensor], num_classes: int, *, what: str) -> None:
    """timm's names into `backbone`; where their ImageNet classifier stays, its classes get their names."""
    install(backbone, _from_timm(state), num_classes=num_classes, what=what)
    width = next((len(state[key]) for key in state if f"network.{key}" == backbone.classifier_weight), 0)
    subset = infer_imagenet_subset({"num_classes": width})
    if subset and backbone.num_classes == width and num_classes in (0, width):
        backbone.class_names = tuple(ImageNetInfo(subset).label_descriptions())
