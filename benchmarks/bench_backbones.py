"""What backbones cost, as ratios to the public implementation or to the plain way of computing the same.

    bench_backbones.py [NAMES ...] [--device cuda] [--dtype bfloat16] [--compile] [--rounds 5]    without names: all

Contenders of one comparison hold the same weights, give the same (checked before anything is timed, but where their
outputs mean different things) and see the same clips: ours channels last in memory, as the pipeline hands them over,
networks of a library as (B, C, T, H, W), as its own transforms do. One run is a forward pass without gradients, or a
forward and a backward pass in training; bfloat16 is autocast. In each round they take turns forth and back (A B B A);
figures are ratios within a round: the time of a contender to that of the first, the plain one; 1.10 is ten percent
slower. Time is that of the processor where one thread computes, else that of the clock.

A comparison is a function that gets a Setting and returns networks by name, the plain one first, and a line in
COMPARISONS.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import plain_networks
import timm
import torch
from _common import save, table
from torch import Tensor, nn
from torchvision.models import video

from actionfuse.backbones import Backbone, create_backbone, pool_clip
from actionfuse.backbones._clip_length import ClipLength
from actionfuse.backbones._inception import ConvUnit
from actionfuse.backbones._stage_net import pytorchvideo
from actionfuse.backbones.ego_rnn import EgoRNNTrunk
from actionfuse.backbones.gate_shift import GSM, GatedResNet
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
        return torch.randn(shape, device=self.device).permute(0, 4, 1, 2, 3)


# --- comparisons: one function each


class OfLibrary(nn.Module):
    """A network of a library, with clips as its own transforms hand them over."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Tensor) -> Tensor:
        return self.network(clips)


def with_weights_of(network: nn.Module, name: str, **options: object) -> Backbone:
    """Our backbone, from a file of the library's network."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "published.pt")
        torch.save(network.state_dict(), path)
        return create_backbone(name, weights=path, **options)  # pyright: ignore[reportArgumentType]


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
    ours = create_backbone("bninception")
    plain = plain_networks.torchs_own(copy.deepcopy(ours))
    return {
        "layer by layer": plain_networks.replace_all(plain, ConvUnit, plain_networks.ConvNormRelu),
        "bninception": ours,
    }


def gates(name: str) -> Callable[[Setting], dict[str, nn.Module]]:
    """Gates as they are mostly written against ours."""

    def compare(setting: Setting) -> dict[str, nn.Module]:
        ours = create_backbone(name)
        plain = plain_networks.plain_gates(plain_networks.torchs_own(copy.deepcopy(ours)))
        return {f"{name}, plain gates": plain, name: ours}

    return compare


class GateAlone:
    """Forward hook in the place of a gate: its norm and convolution are computed, and nothing is moved."""

    def __init__(self, gate: GSM, length: ClipLength) -> None:
        self.gate, self.length = gate, length

    def __call__(self, _conv: nn.Module, _inputs: tuple[Tensor, ...], maps: Tensor) -> Tensor:
        gates = self.gate.gates(self.length.split(maps)[:, :, : self.gate.channels])
        return maps + 0 * gates.mean() if maps.requires_grad else maps


def gated_resnets(setting: Setting) -> dict[str, nn.Module]:
    """What gates cost: against the ResNet alone. The arithmetic that the ResNet has not got is told apart."""
    found: dict[str, nn.Module] = {"tsn:resnet50": create_backbone("tsn:resnet50")}
    for name in ("gsm:resnet50", "gsf:resnet50"):
        found[name] = create_backbone(name)
        counted = create_backbone(name)
        assert isinstance(counted, GatedResNet)
        for module in counted.modules():
            if isinstance(gate := getattr(module, "gate", None), GSM):
                module._forward_hooks.clear()
                module.register_forward_hook(GateAlone(gate, counted.clip_length))
        found[f"{name}: norms and convolutions of its gates alone"] = counted
    return found


def tsn(setting: Setting) -> dict[str, nn.Module]:
    """Frames through timm's network."""
    plain = timm.create_model("resnet50", num_classes=400)
    ours = Classified(with_weights_of(plain, "tsn:resnet50", num_classes=400))
    return {"timm, frame by frame": plain_networks.FrameByFrame(plain), "tsn:resnet50": ours}


def written(name: str, plain: Callable[[Backbone], nn.Module]) -> Callable[[Setting], dict[str, nn.Module]]:
    """A published network as it is mostly written, maps against maps."""

    def compare(setting: Setting) -> dict[str, nn.Module]:
        ours = create_backbone(name)
        return {f"{name}, plain": plain(plain_networks.torchs_own(copy.deepcopy(ours))), name: ours}

    return compare


def c3d(setting: Setting) -> dict[str, nn.Module]:
    ours = create_backbone("c3d", num_classes=400, frames=setting.frames, crop=setting.size)
    plain = plain_networks.C3D(plain_networks.torchs_own(copy.deepcopy(ours)))
    return {"c3d, plain": plain, "c3d": Classified(ours)}


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
        plain = getattr(video, name)(num_classes=400)
        return {f"torchvision {name}": OfLibrary(plain), name: Classified(with_weights_of(plain, name))}

    return compare


def of_pytorchvideo(name: str) -> Callable[[Setting], dict[str, nn.Module]]:
    """pytorchvideo's stages of the same name; its head pools one size of clip only, so neither has one."""

    def compare(setting: Setting) -> dict[str, nn.Module]:
        network = getattr(pytorchvideo("hub"), name)(pretrained=False)
        stages: list[nn.Module] = list(network.blocks)[:-1]
        if name.startswith("x3d"):
            head = network.blocks[-1].pool
            stages += [head.pre_conv, head.pre_norm, head.pre_act]
        return {f"pytorchvideo {name}": OfLibrary(nn.Sequential(*stages)), name: with_weights_of(network, name)}

    return compare


def slowfast(setting: Setting) -> dict[str, nn.Module]:
    """pytorchvideo's stages, the pathways cut from the clip, both pooled."""
    plain = pytorchvideo("hub").slowfast_r50(pretrained=False)
    ours = Pooled(with_weights_of(plain, "slowfast_r50"))
    return {"pytorchvideo slowfast_r50": OfLibrary(plain_networks.TwoPathways(plain)), "slowfast_r50": ours}


class Pooled(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, clips: Tensor) -> Tensor:
        return pool_clip(self.backbone(clips))


def s3d(setting: Setting) -> dict[str, nn.Module]:
    """torchvision's stages; its head pools one size of clip only."""
    plain = video.s3d()
    return {"torchvision s3d": OfLibrary(plain.features), "s3d": with_weights_of(plain, "s3d")}


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
        ours = with_weights_of(plain, name, frames=setting.frames, crop=setting.size)
        return {f"torchvision {name}": OfLibrary(plain), name: Classified(ours)}

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
# Whose outputs mean different things, or whose classifiers are random.
DIFFERENT = ("tsm", "gates", "trn", "slow_fusion", "ego_rnn")
# What a name may cost at most, as a ratio to the plain one.
LIMIT = 1.05
LIMITS = {"tsm:resnet50": 1.10, "gsm:resnet50": 1.10, "gsf:resnet50": 1.10}

# --- timing


def _forward(network: nn.Module, clips: Tensor, dtype: torch.dtype) -> Callable[[], object]:
    def run() -> None:
        with torch.inference_mode(), torch.autocast(clips.device.type, dtype, enabled=dtype != torch.float32):
            network(clips)

    return run


def _training(network: nn.Module, clips: Tensor, dtype: torch.dtype) -> Callable[[], object]:
    def run() -> None:
        with torch.autocast(clips.device.type, dtype, enabled=dtype != torch.float32):
            loss = network(clips).float().square().mean()
        loss.backward()
        network.zero_grad(set_to_none=True)

    return run


def measure(
    contenders: dict[str, Callable[[], object]], rounds: int, device: str, least: float
) -> dict[str, list[float]]:
    """Seconds of one run of each contender, one entry a round; a turn is as many runs as take `least` seconds."""
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter

    def seconds_of(run: Callable[[], object], calls: int) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        began = clock()
        for _ in range(calls):
            run()
        if device == "cuda":
            torch.cuda.synchronize()
        return (clock() - began) / calls

    calls = {}
    for name, run in contenders.items():
        for _ in range(2):  # compiling, choosing kernels, first allocations
            run()
        calls[name] = max(1, round(least / seconds_of(run, 1)))
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        order = list(contenders)[:: -1 if number % 2 else 1]
        turns: dict[str, list[float]] = {name: [] for name in contenders}
        for name in (*order, *order[::-1]):
            turns[name].append(seconds_of(contenders[name], calls[name]))
        for name, seconds in turns.items():
            found[name].append(sum(seconds) / len(seconds))
    return found


def check_same(name: str, networks: Mapping[str, nn.Module], clips: Mapping[str, Tensor]) -> None:
    """ValueError where contenders compute different things."""
    # TF32, as which a GPU's convolutions are measured, would be told for another thing
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        outputs = {label: network.eval()(clips[label]) for label, network in networks.items()}
    (_, plain), *others = outputs.items()
    for label, output in others:
        error = float((output - plain).abs().max() / plain.abs().max())
        if not error < 1e-3:
            raise ValueError(f"{name}: {label} gives other numbers than the plain one, by {error:.1e} of the largest")


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


MODES = {"forward": _forward, "forward and backward, training": _training}


def compare(name: str, setting: Setting, rounds: int, least_seconds: float, modes: Sequence[str]) -> list[str]:
    """One comparison in some of MODES."""
    frames, size = LEAST.get(name, (1, 1))
    setting = replace(setting, frames=max(setting.frames, frames), size=max(setting.size, size))
    ours, parts = setting.clips(), []
    networks = {label: network.to(setting.device) for label, network in COMPARISONS[name](setting).items()}
    clips = {label: ours.contiguous() if isinstance(x, OfLibrary) else ours for label, x in networks.items()}
    if name not in DIFFERENT:
        check_same(name, networks, clips)
    for mode in modes:
        make, contenders = MODES[mode], {}
        for label, network in networks.items():
            network.train(make is _training)
            if setting.compiled:
                network.compile()
            contenders[label] = make(network, clips[label], setting.dtype)
        found = measure(contenders, rounds, setting.device, least_seconds)
        parts.append(report(f"{name}, {mode}, {tuple(ours.shape)}", found))
        print(parts[-1], flush=True)
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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--least", type=float, default=0.2, metavar="SECONDS", help="that one turn takes")
    parser.add_argument("--forward", action="store_true", help="forward passes alone")
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
    modes = list(MODES)[: 1 if args.forward else None]
    try:
        for name in args.names or COMPARISONS:
            parts += [f"## {name}\n", *compare(name, setting, args.rounds, args.least, modes)]
    finally:  # a run that was stopped keeps what it has
        _save(args, how, parts)


def _save(args: argparse.Namespace, how: str, parts: list[str]) -> None:
    size = f"{args.frames}x{args.size}" + (f"-{args.part}" if args.part else "")
    save(f"backbones-{args.device}-{args.dtype}-{how}-{size}", "Backbones", "\n".join(parts))


if __name__ == "__main__":
    main()
