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
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import timm
import torch
from _common import save, table
from bench_fusion import Comparison, measure
from torch import Tensor, nn
from torchvision.models import video

from actionfuse.backbones import Backbone, create_backbone
from actionfuse.backbones._stage_net import pytorchvideo
from actionfuse.backbones.gate_shift import GSM
from actionfuse.backbones.mvit import V2
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


class Unfolded(nn.Module):
    """Convolution, norm and ReLU one after another."""

    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = unit.get_submodule("conv"), unit.get_submodule("norm")

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(self.conv(maps)).relu_()


def _unfold(module: nn.Module) -> None:
    for name, child in module.named_children():
        if hasattr(child, "fold"):
            setattr(module, name, Unfolded(child))
        else:
            _unfold(child)


def bninception(setting: Setting) -> dict[str, Backbone]:
    """The trunk with norms folded into convolutions against the same layer by layer."""
    plain = create_backbone("bninception", num_classes=400)
    for block in plain.get_submodule("body").children():
        _unfold(block)
    return {"layer by layer": plain, "bninception": create_backbone("bninception", num_classes=400)}


class PlainGSM(GSM):
    """As it is mostly written: a contiguous copy in (B, C, T, H, W), then steps one by one."""

    def forward(self, maps: Tensor) -> Tensor:
        x = maps.transpose(1, 2).contiguous()
        gates = torch.tanh(self.conv3D(torch.relu(self.bn(x))))
        half, found = x.shape[1] // 2, []
        for group in (0, 1):
            part = x[:, group * half : (group + 1) * half]
            gated = gates[:, group : group + 1] * part
            rest, none = part - gated, torch.zeros_like(part[:, :, :1])
            gated = torch.cat((gated[:, :, 1:], none) if group == 0 else (none, gated[:, :, :-1]), 2)
            joined = (gated + rest).unflatten(1, (2, -1)).transpose(1, 2).contiguous()
            found.append(joined.flatten(1, 2))
        return torch.cat(found, 1).transpose(1, 2).contiguous()


def gsm(setting: Setting) -> dict[str, Backbone]:
    """Gates as they are mostly written against ours."""
    plain = create_backbone("gsm:bninception", num_classes=400)
    for module in list(plain.modules()):
        if isinstance(gate := getattr(module, "gate", None), GSM):
            written = PlainGSM(gate.channels).eval()
            written.load_state_dict(gate.state_dict())
            module.add_module("gate", written)
    return {"plain gates": plain, "gsm:bninception": create_backbone("gsm:bninception", num_classes=400)}


class FrameByFrame(nn.Module):
    """A network of images on every frame of a clip, its logits averaged."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Tensor) -> Tensor:
        return self.network(clips.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(clips), -1)).mean(1)


def tsn(setting: Setting) -> dict[str, nn.Module]:
    """Frames through timm's network."""
    plain = FrameByFrame(timm.create_model("resnet50", num_classes=400))
    return {"timm, frame by frame": plain, "tsn:resnet50": Classified(create_backbone("tsn:resnet50", num_classes=400))}


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
        return {f"pytorchvideo {name}": nn.Sequential(*list(network.blocks)[:-1]), name: create_backbone(name)}

    return compare


def mvit(setting: Setting) -> dict[str, nn.Module]:
    """torchvision's network, built for this size of clip."""
    plain = video.mvit.MViT(
        spatial_size=(setting.size, setting.size),
        temporal_size=setting.frames,
        block_setting=V2.blocks(),
        residual_pool=V2.residual_pool,
        residual_with_cls_embed=False,
        rel_pos_embed=V2.relative,
        proj_after_attn=V2.widen_in_attention,
        stochastic_depth_prob=0.2,
    )
    ours = create_backbone("mvit_v2_s", num_classes=400, frames=setting.frames, crop=setting.size)
    return {"torchvision mvit_v2_s": plain, "mvit_v2_s": Classified(ours)}


COMPARISONS: dict[str, Callable[[Setting], Mapping[str, nn.Module]]] = {
    "tsm": tsm,
    "bninception": bninception,
    "gsm": gsm,
    "tsn": tsn,
    **{name: of_torchvision(name) for name in ("r3d_18", "mc3_18", "r2plus1d_18", "swin3d_t")},
    "mvit": mvit,
    **{name: of_pytorchvideo(name) for name in ("i3d_r50", "slow_r50", "c2d_r50", "r2plus1d_r50", "csn_r101")},
}
# What a name may cost at most, as a ratio to the plain one.
LIMIT = 1.05
LIMITS = {"tsm:resnet50": 1.10}

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
        limit = "" if name in (plain, "plain shift") else f"<= {LIMITS.get(name, LIMIT):g}"
        rows.append([name, f"{1000 * statistics.median(seconds):.2f}", told, limit])
    return f"### {title}\n\n{table(['', 'ms', 'times the plain one', 'aim'], rows)}\n"


def compare(name: str, setting: Setting, rounds: int) -> list[str]:
    """Forward, and forward and backward, of one comparison."""
    clips, parts = setting.clips(), []
    networks = COMPARISONS[name](setting)
    for mode, make in (("forward", _forward), ("forward and backward, training", _training)):
        contenders = {}
        for label, network in networks.items():
            placed = network.to(setting.device, setting.dtype).train(make is _training)
            if setting.compiled:
                placed.compile()
            contenders[label] = make(placed, clips)
        comparison = Comparison(title=f"{name}, {mode}", contenders=contenders, wanted={})
        parts.append(report(comparison.title, measure(comparison, rounds, setting.device)))
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
    for name in args.names or COMPARISONS:
        parts += [f"## {name}\n", *compare(name, setting, args.rounds)]
    size = f"{args.frames}x{args.size}"
    save(f"backbones-{args.device}-{args.dtype}-{how}-{size}", "Backbones", "\n".join(parts))


if __name__ == "__main__":
    main()
