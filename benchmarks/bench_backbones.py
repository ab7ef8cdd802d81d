"""What backbones cost, as ratios to the plain way of computing the same.

    bench_backbones.py [NAMES ...] [--device cuda] [--dtype bfloat16] [--compile] [--rounds 9]    without names: all

Contenders of one comparison see the same clips; one run is a forward pass without gradients, or a forward and a
backward pass in training. They take turns, in a new order in each round, and figures are ratios within a round: the
time of a contender to that of the first, the plain one; 1.10 is ten percent slower.

A comparison is a function that gets a Setting and returns networks by name, the plain one first, and a line in
COMPARISONS.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import plain_networks
import timm
import torch
from _common import save, table
from bench_fusion import Comparison, measure
from torch import Tensor, nn
from torchvision.models import video

from actionfuse.backbones import Backbone, create_backbone, pool_clip
from actionfuse.backbones._inception import ConvUnit
from actionfuse.backbones._stage_net import pytorchvideo
from actionfuse.backbones.ego_rnn import EgoRNNTrunk
from actionfuse.backbones.mvit import V1, V2, Version
from actionfuse.backbones.tsm import TSM


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Clips (batch, 3, frames, size, size) and where they are."""

    device: str
    dtype: torch.dtype
    batch: int
    frames: int
    size: int
    compiled: bool

    def clips(self) -> Tensor:
        """Laid out as the pipeline hands them over, channels last."""
        shape = (self.batch, self.frames, self.size, self.size, 3)
        return torch.randn(shape, device=self.device, dtype=self.dtype).permute(0, 4, 1, 2, 3)


# --- comparisons: one function each


class PlainShift:
    """Forward pre-hook: the shift as it is mostly written, three writes into a map of zeros."""

    def __init__(self, frames: int) -> None:
        self.frames = frames

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        clips = inputs[0].unflatten(0, (-1, self.frames))
        fold, shifted = clips.shape[2] // 8, torch.zeros_like(clips)
        shifted[:, :-1, :fold] = clips[:, 1:, :fold]
        shifted[:, 1:, fold : 2 * fold] = clips[:, :-1, fold : 2 * fold]
        shifted[:, :, 2 * fold :] = clips[:, :, 2 * fold :]
        return shifted.flatten(0, 1)


def tsm(setting: Setting) -> dict[str, Backbone]:
    """The temporal shift against the ResNet alone, and against the plain shift."""
    written = create_backbone("tsm:resnet50", num_classes=400)
    assert isinstance(written, TSM)
    for name, module in written.network.named_modules():
        if name.startswith("layer") and name.endswith("conv1"):
            module._forward_pre_hooks.clear()
            module.register_forward_pre_hook(PlainShift(setting.frames))
    return {
        "tsn:resnet50": create_backbone("tsn:resnet50", num_classes=400),
        "tsm:resnet50": create_backbone("tsm:resnet50", num_classes=400),
        "plain shift": written,
    }


def bninception(setting: Setting) -> dict[str, nn.Module]:
    """The trunk with norms folded into convolutions against the same layer by layer."""
    plain = plain_networks.replace_all(create_backbone("bninception"), ConvUnit, plain_networks.ConvNormRelu)
    return {"layer by layer": plain, "bninception": create_backbone("bninception")}


def gates(name: str) -> Callable[[Setting], dict[str, nn.Module]]:
    """Gates as they are mostly written against ours."""

    def compare(setting: Setting) -> dict[str, nn.Module]:
        return {f"{name}, plain gates": plain_networks.plain_gates(create_backbone(name)), name: create_backbone(name)}

    return compare


def gated_resnets(setting: Setting) -> dict[str, nn.Module]:
    """What gates cost: against the ResNet alone."""
    return {name: create_backbone(name) for name in ("tsn:resnet50", "gsm:resnet50", "gsf:resnet50")}


def tsn(setting: Setting) -> dict[str, nn.Module]:
    """Frames through timm's network."""
    plain = plain_networks.FrameByFrame(timm.create_model("resnet50", num_classes=400))
    return {"timm, frame by frame": plain, "tsn:resnet50": Classified(create_backbone("tsn:resnet50", num_classes=400))}


def written(name: str, plain: Callable[[], nn.Module]) -> Callable[[Setting], dict[str, nn.Module]]:
    """A published network as it is mostly written, maps against maps."""

    def compare(setting: Setting) -> dict[str, nn.Module]:
        return {f"{name}, plain": plain(), name: create_backbone(name)}

    return compare


def c3d(setting: Setting) -> dict[str, nn.Module]:
    ours = create_backbone("c3d", num_classes=400, frames=setting.frames, crop=setting.size)
    return {"c3d, plain": plain_networks.C3D(copy.deepcopy(ours)), "c3d": Classified(ours)}


def trn(setting: Setting) -> dict[str, nn.Module]:
    ours = Classified(create_backbone("trn:resnet50", num_classes=400, frames=setting.frames))
    return {"trn:resnet50, plain": plain_networks.TRN(setting.frames), "trn:resnet50": ours}


def slow_fusion(setting: Setting) -> dict[str, nn.Module]:
    ours = create_backbone("karpathy:resnet50", num_classes=400, frames=setting.frames)
    return {"slow fusion, plain": plain_networks.SlowFusion(), "karpathy:resnet50": Classified(ours)}


class Attended(nn.Module):
    def __init__(self, trunk: EgoRNNTrunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, clips: Tensor) -> Tensor:
        found = self.trunk.attend(clips)
        return found.logits.mean((0, 2)) + found.cam.mean((0, 1, 3, 4))


def ego_rnn(setting: Setting) -> dict[str, nn.Module]:
    trunk = create_backbone("ego_rnn")
    assert isinstance(trunk, EgoRNNTrunk)
    return {"ego-rnn, plain": plain_networks.Attended(), "ego_rnn": Attended(trunk)}


class Classified(nn.Module):
    """A backbone with its classifier, as the published networks are."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, clips: Tensor) -> Tensor:
        return self.backbone.forward_and_classify(clips)[1]


def of_torchvision(name: str) -> Callable[[Setting], dict[str, nn.Module]]:
    """torchvision's network of the same name."""

    def compare(setting: Setting) -> dict[str, nn.Module]:
        ours = create_backbone(name, num_classes=400)
        return {f"torchvision {name}": getattr(video, name)(num_classes=400), name: Classified(ours)}

    return compare


def of_pytorchvideo(name: str) -> Callable[[Setting], dict[str, nn.Module]]:
    """pytorchvideo's stages of the same name; its head pools one size of clip only, so neither has one."""

    def compare(setting: Setting) -> dict[str, nn.Module]:
        network = getattr(pytorchvideo("hub"), name)(pretrained=False)
        stages: list[nn.Module] = list(network.blocks)[:-1]
        if name.startswith("x3d"):
            head = network.blocks[-1].pool
            stages += [head.pre_conv, head.pre_norm, head.pre_act]
        return {f"pytorchvideo {name}": nn.Sequential(*stages), name: create_backbone(name)}

    return compare


def slowfast(setting: Setting) -> dict[str, nn.Module]:
    """pytorchvideo's stages, the pathways cut from the clip, both pooled."""
    plain = plain_networks.TwoPathways(pytorchvideo("hub").slowfast_r50(pretrained=False))
    return {"pytorchvideo slowfast_r50": plain, "slowfast_r50": Pooled(create_backbone("slowfast_r50"))}


class Pooled(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, clips: Tensor) -> Tensor:
        return pool_clip(self.backbone(clips))


def s3d(setting: Setting) -> dict[str, nn.Module]:
    """torchvision's stages; its head pools one size of clip only."""
    return {"torchvision s3d": video.s3d().features, "s3d": create_backbone("s3d")}


def mvit(name: str, version: Version) -> Callable[[Setting], dict[str, nn.Module]]:
    """torchvision's network, built for this size of clip."""

    def compare(setting: Setting) -> dict[str, nn.Module]:
        plain = video.mvit.MViT(
            spatial_size=(setting.size, setting.size),
            temporal_size=setting.frames,
            block_setting=version.blocks(),
            residual_pool=version.residual_pool,
            residual_with_cls_embed=False,
            rel_pos_embed=version.relative,
            proj_after_attn=version.widen_in_attention,
            stochastic_depth_prob=0.2,
        )
        ours = create_backbone(name, num_classes=400, frames=setting.frames, crop=setting.size)
        return {f"torchvision {name}": plain, name: Classified(ours)}

    return compare


COMPARISONS: dict[str, Callable[[Setting], Mapping[str, nn.Module]]] = {
    "tsm": tsm,
    "tsn": tsn,
    "gates": gated_resnets,
    "bninception": bninception,
    **{name: gates(name) for name in ("gsm:bninception", "gsm:inception_v3", "gsf:resnet50")},
    "trn": trn,
    "slow_fusion": slow_fusion,
    "ego_rnn": ego_rnn,
    "i3d": written("i3d", plain_networks.i3d),
    "i3d_r50_nln": written("i3d_r50_nln", plain_networks.i3d_r50_nln),
    "p3d63": written("p3d63", plain_networks.p3d),
    "c3d": c3d,
    "s3d": s3d,
    "slowfast": slowfast,
    "mvit_v1_b": mvit("mvit_v1_b", V1),
    "mvit_v2_s": mvit("mvit_v2_s", V2),
    **{name: of_torchvision(name) for name in ("r3d_18", "mc3_18", "r2plus1d_18", "swin3d_t")},
    **{name: of_pytorchvideo(name) for name in ("i3d_r50", "slow_r50", "c2d_r50", "r2plus1d_r50", "csn_r101", "x3d_s")},
}
# Fewest frames and least side of networks that take no less.
LEAST = {"c3d": (16, 32), "p3d63": (16, 32), "s3d": (8, 32), "slow_fusion": (10, 32), "gsm:inception_v3": (1, 96)}
# What a name may cost at most, as a ratio to the plain one.
LIMIT = 1.05
LIMITS = {"tsm:resnet50": 1.10, "gsm:resnet50": 1.10, "gsf:resnet50": 1.10}

# --- timing


def _forward(network: nn.Module, clips: Tensor) -> Callable[[], object]:
    def run() -> None:
        with torch.inference_mode():
            network(clips)

    return run


def _training(network: nn.Module, clips: Tensor) -> Callable[[], object]:
    def run() -> None:
        network(clips).square().mean().backward()
        network.zero_grad(set_to_none=True)

    return run


def report(title: str, found: dict[str, list[float]]) -> str:
    """Markdown of one comparison: median and range of the ratios of its rounds."""
    plain, *_ = found
    rows = []
    for name, seconds in found.items():
        ratios = [b / a for a, b in zip(found[plain], seconds, strict=True)]
        told = f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f}..{max(ratios):.2f})" if name != plain else "1"
        most = LIMITS.get(name, LIMIT) if plain.startswith("tsn") else LIMIT
        limit = "" if name in (plain, "plain shift") else f"<= {most:g}"
        rows.append([name, f"{1000 * statistics.median(seconds):.2f}", told, limit])
    return f"### {title}\n\n{table(['', 'ms', 'times the plain one', 'aim'], rows)}\n"


def compare(name: str, setting: Setting, rounds: int, least_seconds: float) -> list[str]:
    """Forward, and forward and backward, of one comparison."""
    frames, size = LEAST.get(name, (1, 1))
    setting = replace(setting, frames=max(setting.frames, frames), size=max(setting.size, size))
    clips, parts = setting.clips(), []
    networks = COMPARISONS[name](setting)
    for mode, make in (("forward", _forward), ("forward and backward, training", _training)):
        contenders = {}
        for label, network in networks.items():
            placed = network.to(setting.device, setting.dtype).train(make is _training)
            if setting.compiled:
                placed.compile()
            contenders[label] = make(placed, clips)
        comparison = Comparison(title=f"{name}, {mode}, {tuple(clips.shape)}", contenders=contenders, wanted={})
        parts.append(report(comparison.title, measure(comparison, rounds, setting.device, least_seconds)))
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAMES", help=f"of {', '.join(COMPARISONS)}")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile every contender")
    parser.add_argument("--batch", type=int, default=0, help="clips (default: 16 on a GPU, 1 on a CPU)")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="pixels of a frame's side")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--least", type=float, default=0.2, metavar="SECONDS", help="that one turn takes")
    parser.add_argument("--part", default="", metavar="WORD", help="ends the file's name, where a run is done in parts")
    args = parser.parse_args()
    if unknown := set(args.names) - set(COMPARISONS):
        parser.error(f"nothing is called {', '.join(sorted(unknown))}; there are {', '.join(COMPARISONS)}")
    setting = Setting(
        device=args.device,
        dtype=getattr(torch, args.dtype),
        batch=args.batch or (16 if args.device == "cuda" else 1),
        frames=args.frames,
        size=args.size,
        compiled=args.compile,
    )
    torch.manual_seed(0)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    how = "compiled" if args.compile else "eager"
    parts = [f"{where}, {args.dtype}, {how}, clips {tuple(setting.clips().shape)}, {args.rounds} rounds\n"]
    try:
        for name in args.names or COMPARISONS:
            parts += [f"## {name}\n", *compare(name, setting, args.rounds, args.least)]
    finally:  # a run that was stopped keeps what it has
        _save(args, how, parts)


def _save(args: argparse.Namespace, how: str, parts: list[str]) -> None:
    size = f"{args.frames}x{args.size}" + (f"-{args.part}" if args.part else "")
    save(f"backbones-{args.device}-{args.dtype}-{how}-{size}", "Backbones", "\n".join(parts))


if __name__ == "__main__":
    main()
