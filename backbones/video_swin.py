"""Video Swin Transformer and Omnivore.

Sources: Liu et al., "Video Swin Transformer", CVPR 2022 (arXiv:2106.13230); Girdhar et al., "Omnivore", CVPR 2022
(arXiv:2201.08377). The network is torchvision's SwinTransformer3d, which computes exactly what
SwinTransformer/Video-Swin-Transformer does. Omnivore is the same trunk, with a second patch embedding for depth whose
tokens are added to those of rgb, and heads for images, RGB-D images and video. A single image is a clip of one frame.
Differs: depth / 75 is taken as it is, as in Omnivore's training configuration; its tutorial goes on to a mean of 0.0418
and a std of 0.0295.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models import video as tv
from torchvision.models.video.swin_transformer import PatchEmbed3d, SwinTransformer3d

from .contract import Backbone, InputSpec, Layout, Stream, register, stream_spec
from .convert import install, load_weights, published, rename, tensors_of

Head = Literal["video", "image", "rgbd"]
STREAMS: tuple[Stream, ...] = ("rgb", "flow", "audio", "depth", "ir", "rgbd")

# 32 frames, every second of 30 a second; ImageNet mean and std.
VIDEO_SWIN_SPEC = InputSpec(frames=32, fps=15.0, resize_side=256, crop=224)
# 160 frames of 10 seconds, in pieces of 32; the shorter side is the crop's.
OMNIVORE_SPEC = replace(VIDEO_SWIN_SPEC, fps=16.0, resize_side=224)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Widths and depths of a published network."""

    embed_dim: int
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]
    window: tuple[int, int, int] = (8, 7, 7)


TINY = Size(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
SMALL = Size(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24))
BASE = Size(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
LARGE = Size(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48))
BASE_LONG = replace(BASE, window=(16, 7, 7))


class VideoSwin(Backbone):
    """Clips (B, C, T, H, W) -> maps (B, 8 embed_dim, ceil(T / 2), ceil(H / 32), ceil(W / 32)), after the last norm.

    An rgbd network eats clips of four channels (rgb, depth) and of three (rgb alone).
    stochastic_depth: greatest probability that a block is left out in training. dropout: before the classifier.
    """

    classifier_weight = "head.weight"

    def __init__(
        self,
        size: Size,
        *,
        spec: InputSpec = VIDEO_SWIN_SPEC,
        layouts: tuple[Layout, ...] = (),
        num_classes: int = 0,
        stochastic_depth: float = 0.1,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.input_spec, self.layouts = spec, layouts
        rgbd = spec.stream == "rgbd"
        trunk = SwinTransformer3d(
            patch_size=[2, 4, 4],
            embed_dim=size.embed_dim,
            depths=list(size.depths),
            num_heads=list(size.num_heads),
            window_size=list(size.window),
            stochastic_depth_prob=stochastic_depth,
            patch_embed=partial(PatchEmbed3d, in_channels=3 if rgbd else spec.channels),
            num_classes=1,
        )
        self.feature_dim = trunk.num_features
        self.patch_embed = trunk.patch_embed
        self.depth_patch_embed = (
            PatchEmbed3d([2, 4, 4], in_channels=1, embed_dim=size.embed_dim, norm_layer=nn.LayerNorm) if rgbd else None
        )
        self.features, self.norm = trunk.features, trunk.norm
        self.dropout = nn.Dropout(dropout)
        self.reset_classifier(num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        if self.depth_patch_embed is None or clips.shape[1] == 3:
            tokens = self.patch_embed(clips)
        else:
            tokens = self.patch_embed(clips[:, :3]) + self.depth_patch_embed(clips[:, 3:])
        return self.norm(self.features(tokens)).permute(0, 4, 1, 2, 3)

    def output_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        return ceil(frames / 2), ceil(height / 32), ceil(width / 32)

    def stages(self) -> list[list[nn.Module]]:
        """Patch embedding, four stages (each with the merging before it), the last norm."""
        embeds: list[nn.Module] = [self.patch_embed]
        if self.depth_patch_embed is not None:
            embeds.insert(0, self.depth_patch_embed)
        parts = list(self.features)
        blocks = [[parts[0]], *([parts[i - 1], parts[i]] for i in range(2, len(parts), 2))]
        return [embeds, *blocks, [self.norm]]

    def stage_map(self, output: Tensor, clips: Tensor) -> Tensor:
        return super().stage_map(output.permute(0, 4, 1, 2, 3), clips)

    def classify(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) of the mean over time and space."""
        if self.head is None:
            return super().classify(maps)
        return self.head(self.dropout(maps.mean((2, 3, 4))))

    def reset_classifier(self, num_classes: int) -> None:
        self.set_classes(num_classes)
        self.head = nn.Linear(self.feature_dim, num_classes) if num_classes else None
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)


def _convert(state: Mapping[str, Tensor], *, depth: bool, head: Head) -> dict[str, Tensor]:
    """Keys of Video-Swin (`backbone.`), Omnivore (`trunk.`) and bare trunks to torchvision's.

    The heads of Omnivore's other inputs are dropped, and so is its depth branch where the network eats no depth.
    """
    state = {key.removeprefix("backbone.").removeprefix("trunk."): tensor for key, tensor in state.items()}
    others = tuple(f"heads.{name}." for name in ("video", "image", "rgbd") if name != head)
    dropped = others if depth else (*others, "depth_patch_embed.")
    state = {key: tensor for key, tensor in state.items() if not key.startswith(dropped)}
    rules = [(rf"layers\.{i}\.downsample\.(.+)", rf"features.{2 * i + 1}.\1") for i in range(3)]
    for i in range(4):
        here, ours = rf"layers\.{i}\.blocks\.(\d+)", rf"features.{2 * i}.\1"
        rules.append((here + r"\.mlp\.fc1\.(.+)", ours + r".mlp.0.\2"))
        rules.append((here + r"\.mlp\.fc2\.(.+)", ours + r".mlp.3.\2"))
        rules.append((here + r"\.(.+)", ours + r".\2"))
    rules.append((r"cls_head\.fc_cls\.(.+)", r"head.\1"))
    rules.append((rf"heads\.(?:{head}\.)?(?:1\.)?(weight|bias)", r"head.\1"))
    return rename(state, *rules)


def _inflate(state: Mapping[str, Tensor], *, window_frames: int) -> dict[str, Tensor]:
    """Keys and shapes of an image Swin to those of the video's (section 3.4 of the paper): the patch embedding twice
    over time, each half as strong, and the table of relative positions once for each offset in time.
    """
    state = {key: tensor for key, tensor in state.items() if not key.endswith(("attn_mask", "position_index"))}
    patches = state["patch_embed.proj.weight"][:, :, None]
    state["patch_embed.proj.weight"] = patches.repeat(1, 1, 2, 1, 1) / 2
    for key, tensor in state.items():
        if key.endswith("relative_position_bias_table"):
            state[key] = tensor.repeat(2 * window_frames - 1, 1)
    return _convert(state, depth=False, head="video")


def _is_image_swin(state: Mapping[str, Tensor]) -> bool:
    patches = state.get("patch_embed.proj.weight")
    return "layers.0.blocks.0.attn.qkv.weight" in state and patches is not None and patches.ndim == 4


def _has(key: str, state: Mapping[str, Tensor]) -> bool:
    return key in state


def layouts_for(*, depth: bool, head: Head, window_frames: int) -> tuple[Layout, ...]:
    """The published layouts, read for a network that eats depth or not, with the head of one kind of input and so many
    patches in time in a window of attention."""
    ours = partial(_convert, depth=depth, head=head)
    block, blocks = "layers.0.blocks.0.attn.qkv.weight", "features.0.0.attn.qkv.weight"
    return (
        Layout(
            name="Video-Swin-Transformer, mmaction (swin3d_*)",
            recognises=partial(_has, f"backbone.{block}"),
            convert=ours,
        ),
        Layout(
            name="Omnivore, trunk and heads (omnivore_swin_*)", recognises=partial(_has, f"trunk.{block}"), convert=ours
        ),
        Layout(
            name="Swin-Transformer of images, inflated (swin3d_*)",
            recognises=_is_image_swin,
            convert=partial(_inflate, window_frames=window_frames),
        ),
        Layout(
            name="bare trunk of Video-Swin or Omnivore (swin3d_*, omnivore_swin_*)",
            recognises=partial(_has, block),
            convert=ours,
        ),
        Layout(name="torchvision (swin3d_*)", recognises=partial(_has, blocks), convert=dict),
    )


for _layout in layouts_for(depth=False, head="video", window_frames=8):
    published(_layout)


def _build(
    size: Size,
    spec: InputSpec,
    stream: Stream,
    num_classes: int,
    weights: str | Path | None,
    frames: int,
    crop: int,
    stochastic_depth: float,
    head: Head = "video",
) -> VideoSwin:
    if head not in ("video", "image", "rgbd"):
        raise ValueError(f"head is {head!r}; it is 'video', 'image' or 'rgbd'")
    spec = replace(spec, frames=frames, crop=crop, resize_side=max(crop, spec.resize_side))
    backbone = VideoSwin(
        size,
        spec=stream_spec(spec, stream),
        layouts=layouts_for(depth=stream == "rgbd", head=head, window_frames=size.window[0]),
        num_classes=num_classes,
        stochastic_depth=stochastic_depth,
    )
    return load_weights(backbone, weights, num_classes=num_classes)


def _window_of(weights: str | Path | None) -> int | None:
    """How far attention sees in time, in patches of 2 frames, by a file's first table of relative positions. None for
    images, which say nothing of time.
    """
    state = tensors_of(weights)
    table = next((x for key, x in state.items() if key.endswith("attn.relative_position_bias_table")), None)
    return None if table is None or _is_image_swin(state) else (len(table) // 13**2 + 1) // 2


def _video_swin(
    size: Size,
    pretrained: WeightsEnum | None,
    stream: Stream,
    num_classes: int,
    weights: str | Path | None,
    frames: int,
    crop: int,
    window_frames: int | None,
    stochastic_depth: float,
) -> VideoSwin:
    usual = size.window[0]
    window = (_window_of(weights) or usual) if window_frames is None else window_frames
    size = replace(size, window=(window, 7, 7))
    best = pretrained if weights == "pretrained" else None
    file = weights if best is None else None
    backbone = _build(size, VIDEO_SWIN_SPEC, stream, num_classes, file, frames, crop, stochastic_depth)
    backbone.settled = {"window_frames": window} if window != usual else {}
    if best is not None:
        state = best.get_state_dict(progress=True, check_hash=True)
        install(backbone, state, num_classes=num_classes, what=f"torchvision's {best}")
        if backbone.num_classes == len(best.meta["categories"]):
            backbone.class_names = tuple(best.meta["categories"])
    return backbone


def _omnivore(
    size: Size,
    stream: Stream,
    num_classes: int,
    weights: str | Path | None,
    frames: int,
    crop: int,
    head: Head | None,
    stochastic_depth: float,
) -> VideoSwin:
    taken: Head = head or ("rgbd" if stream == "rgbd" else "video")
    return _build(size, OMNIVORE_SPEC, stream, num_classes, weights, frames, crop, stochastic_depth, taken)


FROM_VIDEO_SWIN = "torchvision ('pretrained'), Video-Swin-Transformer (mmaction), Swin-Transformer (images)"


@register("swin3d_t", paper="Liu et al., CVPR 2022", streams=STREAMS, weights_from=FROM_VIDEO_SWIN)
def swin3d_t(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 32,
    crop: int = 224,
    window_frames: int | None = None,
    stochastic_depth: float = 0.1,
) -> VideoSwin:
    """Video Swin T. weights "pretrained": torchvision's, Kinetics-400.

    window_frames: of attention, in patches of 2 frames; None: as the weights have it, 8 without.
    """
    best = tv.Swin3D_T_Weights.DEFAULT
    return _video_swin(TINY, best, stream, num_classes, weights, frames, crop, window_frames, stochastic_depth)


@register("swin3d_s", paper="Liu et al., CVPR 2022", streams=STREAMS, weights_from=FROM_VIDEO_SWIN)
def swin3d_s(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 32,
    crop: int = 224,
    window_frames: int | None = None,
    stochastic_depth: float = 0.1,
) -> VideoSwin:
    """Video Swin S; options as swin3d_t."""
    best = tv.Swin3D_S_Weights.DEFAULT
    return _video_swin(SMALL, best, stream, num_classes, weights, frames, crop, window_frames, stochastic_depth)


@register("swin3d_b", paper="Liu et al., CVPR 2022", streams=STREAMS, weights_from=FROM_VIDEO_SWIN)
def swin3d_b(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 32,
    crop: int = 224,
    window_frames: int | None = None,
    stochastic_depth: float = 0.3,
) -> VideoSwin:
    """Video Swin B; options as swin3d_t. The Something-Something V2 checkpoint has a window of 16."""
    best = tv.Swin3D_B_Weights.KINETICS400_IMAGENET22K_V1
    return _video_swin(BASE, best, stream, num_classes, weights, frames, crop, window_frames, stochastic_depth)


@register("swin3d_l", paper="Liu et al., CVPR 2022", streams=STREAMS, weights_from="mmaction (swin_large)")
def swin3d_l(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 32,
    crop: int = 224,
    window_frames: int | None = None,
    stochastic_depth: float = 0.4,
) -> VideoSwin:
    """Video Swin L; options as swin3d_t. torchvision has no weights of this size."""
    return _video_swin(LARGE, None, stream, num_classes, weights, frames, crop, window_frames, stochastic_depth)


@register("omnivore_swin_t", paper="Girdhar et al., CVPR 2022", streams=STREAMS, weights_from="Omnivore (swinT)")
def omnivore_swin_t(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 32,
    crop: int = 224,
    head: Head | None = None,
    stochastic_depth: float = 0.2,
) -> VideoSwin:
    """Omnivore T.

    stream "rgbd": clips of four channels, rgb and inverse depth clamped to 0.01..75 (InputSpec divides it by 75); one
        frame is an image. Loaded for any other stream, the depth branch of a checkpoint is left out.
    head: whose classifier of the checkpoint to take, Kinetics-400 ("video"), ImageNet ("image") or SUN RGB-D ("rgbd");
        None: "rgbd" for that stream, else "video".
    """
    return _omnivore(TINY, stream, num_classes, weights, frames, crop, head, stochastic_depth)


@register("omnivore_swin_s", paper="Girdhar et al., CVPR 2022", streams=STREAMS, weights_from="Omnivore (swinS)")
def omnivore_swin_s(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 32,
    crop: int = 224,
    head: Head | None = None,
    stochastic_depth: float = 0.3,
) -> VideoSwin:
    """Omnivore S; options as omnivore_swin_t."""
    return _omnivore(SMALL, stream, num_classes, weights, frames, crop, head, stochastic_depth)


@register(
    "omnivore_swin_b", paper="Girdhar et al., CVPR 2022", streams=STREAMS, weights_from="Omnivore (swinB, swinB_In21k)"
)
def omnivore_swin_b(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 32,
    crop: int = 224,
    head: Head | None = None,
    stochastic_depth: float = 0.3,
) -> VideoSwin:
    """Omnivore B, window (16, 7, 7); options as omnivore_swin_t."""
    return _omnivore(BASE_LONG, stream, num_classes, weights, frames, crop, head, stochastic_depth)


@register("omnivore_swin_l", paper="Girdhar et al., CVPR 2022", streams=STREAMS, weights_from="Omnivore (swinL_In21k)")
def omnivore_swin_l(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 32,
    crop: int = 224,
    head: Head | None = None,
    stochastic_depth: float = 0.3,
) -> VideoSwin:
    """Omnivore L, window (8, 7, 7); options as omnivore_swin_t."""
    return _omnivore(LARGE, stream, num_classes, weights, frames, crop, head, stochastic_depth)


@register(
    "omnivore_swin_b_epic",
    paper="Girdhar et al., CVPR 2022",
    streams=("rgb", "flow", "audio", "depth", "ir"),
    weights_from="Omnivore (swinB_epic)",
)
def omnivore_swin_b_epic(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 32,
    crop: int = 224,
    stochastic_depth: float = 0.4,
) -> VideoSwin:
    """Omnivore B tuned on EPIC-KITCHENS-100: no depth branch, one head of 3806 actions (verb and noun pairs)."""
    spec = replace(OMNIVORE_SPEC, fps=15.0)
    return _build(BASE_LONG, spec, stream, num_classes, weights, frames, crop, stochastic_depth)
