"""Published networks as they are mostly written, for bench_backbones.py: what no installed library has.

Layers are those of a backbone of ours, with its weights, so that the same is computed; the forward passes are plain:
one operation after another, nothing folded, nothing in place, copies where one makes them without thinking.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actionfuse.backbones import Backbone
from actionfuse.backbones._convolution import Conv2d, Conv3d
from actionfuse.backbones.gate_shift import GSF, GSM
from actionfuse.backbones.i3d import SameMaxPool3d, Unit3d
from actionfuse.backbones.i3d_resnet import Bottleneck as I3DBottleneck
from actionfuse.backbones.i3d_resnet import ConvNorm, NonLocal
from actionfuse.backbones.p3d import Bottleneck as P3DBottleneck


def replace_all(module: nn.Module, kind: type[nn.Module], make: type[nn.Module]) -> nn.Module:
    """`module` with make(each) in the place of every `kind` in it."""
    for name, child in module.named_children():
        setattr(module, name, make(child)) if isinstance(child, kind) else replace_all(child, kind, make)  # pyright: ignore
    return module


Module = TypeVar("Module", bound=nn.Module)


def torchs_own(module: Module) -> Module:
    """`module` with torch's convolutions and memory layout in the place of ours."""
    for layer in module.modules():
        if isinstance(layer, Conv2d | Conv3d):
            kind = nn.Conv2d if isinstance(layer, Conv2d) else nn.Conv3d
            object.__setattr__(layer, "__class__", kind)
    for weight in module.parameters():
        weight.data = weight.data.contiguous()
    return module


class ConvNormRelu(nn.Module):
    """Of a unit with `conv` and `norm`: one after another."""

    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = unit.get_submodule("conv"), unit.get_submodule("norm")
        self.relu = getattr(unit, "relu", True)

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.norm(self.conv(maps))
        return F.relu(maps) if self.relu else maps


def _same(maps: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Zeros around, as TensorFlow pads."""
    sides: list[int] = []
    for size, k, s in reversed(list(zip(maps.shape[2:], kernel, stride, strict=True))):
        total = max((math.ceil(size / s) - 1) * s + k - size, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(maps, sides)


class I3DUnit(nn.Module):
    def __init__(self, unit: Unit3d) -> None:
        super().__init__()
        self.conv, self.norm = unit.conv3d, unit.bn

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(_same(maps, self.conv.kernel_size, self.conv.stride))))


class I3DPool(nn.Module):
    def __init__(self, pool: SameMaxPool3d) -> None:
        super().__init__()
        self.kernel, self.stride = pool.kernel, pool.stride

    def forward(self, maps: Tensor) -> Tensor:
        return F.max_pool3d(_same(maps, self.kernel, self.stride), self.kernel, self.stride)


def i3d(ours: Backbone) -> nn.Module:
    """pytorch-i3d: every unit pads its input into a new map."""
    return replace_all(replace_all(ours, Unit3d, I3DUnit), SameMaxPool3d, I3DPool)  # pyright: ignore


class C3D(nn.Module):
    """c3d-pytorch."""

    def __init__(self, ours: Backbone) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for name, layer in ours.named_children():
            if name.startswith("conv"):
                layers += [layer, nn.ReLU()]
            elif name.startswith("pool"):
                layers.append(layer)
        self.maps = nn.Sequential(*layers)
        relu, drop = nn.ReLU, nn.Dropout
        fc6, fc7, fc8 = (ours.get_submodule(name) for name in ("fc6", "fc7", "fc8"))
        self.head = nn.Sequential(nn.Flatten(), fc6, relu(), drop(), fc7, relu(), drop(), fc8)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.maps(clips))


class P3DBlock(nn.Module):
    def __init__(self, block: P3DBottleneck) -> None:
        super().__init__()
        self.block = block

    def forward(self, maps: Tensor) -> Tensor:
        b, kind = self.block, self.block.arrangement
        x = F.relu(b.bn1(b.conv1(maps)))
        if kind is None:
            x = F.relu(b.bn_normal(b.conv_normal(x)))
        else:
            space = F.relu(b.bn2(b.conv2(x)))
            time = F.relu(b.bn3(b.conv3(x if kind == "B" else space)))
            x = time if kind == "A" else space + time
        shortcut = maps if b.downsample is None else b.downsample(maps)
        return F.relu(b.bn4(b.conv4(x)) + shortcut)


def p3d(ours: Backbone) -> nn.Module:
    """pseudo-3d-pytorch."""
    return replace_all(ours, P3DBottleneck, P3DBlock)


class NonLocalPlain(nn.Module):
    """As PySlowFast writes it: the whole matrix of affinities by einsum."""

    def __init__(self, block: NonLocal) -> None:
        super().__init__()
        self.block = block

    def forward(self, maps: Tensor) -> Tensor:
        b = self.block
        theta = b.theta(maps)
        seen = F.max_pool3d(maps, (1, 2, 2))
        theta, phi, g = (x.reshape(*x.shape[:2], -1) for x in (theta, b.phi(seen), b.g(seen)))
        share = (torch.einsum("nct,ncp->ntp", theta, phi) * theta.shape[1] ** -0.5).softmax(2)
        y = torch.einsum("ntg,ncg->nct", share, g).reshape(len(maps), -1, *maps.shape[2:])
        return maps + b.norm(b.out(y))


class BottleneckPlain(nn.Module):
    def __init__(self, block: I3DBottleneck) -> None:
        super().__init__()
        self.a, self.b, self.c = (ConvNormRelu(part) for part in (block.a, block.b, block.c))
        self.shortcut = ConvNormRelu(block.shortcut) if isinstance(block.shortcut, ConvNorm) else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.c(self.b(self.a(maps))) + self.shortcut(maps))


def i3d_r50_nln(ours: Backbone) -> nn.Module:
    """PySlowFast's I3D with non-local blocks."""
    network = replace_all(ours, I3DBottleneck, BottleneckPlain)
    return replace_all(replace_all(network, NonLocal, NonLocalPlain), ConvNorm, ConvNormRelu)


class PlainGSM(GSM):
    """A contiguous copy in (B, C, T, H, W), then steps one by one."""

    def forward(self, maps: Tensor) -> Tensor:
        x = maps.transpose(1, 2).contiguous()
        taken = x[:, : self.channels]
        gates = torch.tanh(self.conv3D(torch.relu(self.bn(taken))))
        half, found = self.channels // 2, []
        for group in (0, 1):
            part = taken[:, group * half : (group + 1) * half]
            gated = gates[:, group : group + 1] * part
            rest, none = part - gated, torch.zeros_like(part[:, :, :1])
            moved = torch.cat((gated[:, :, 1:], none) if group == 0 else (none, gated[:, :, :-1]), 2)
            joined = self.join(group, moved, rest).unflatten(1, (2, -1)).transpose(1, 2).contiguous()
            found.append(joined.flatten(1, 2))
        found.append(x[:, self.channels :])
        return torch.cat(found, 1).transpose(1, 2).contiguous()

    def overwrite(self, maps: Tensor) -> Tensor:
        return self(maps)

    def join(self, group: int, moved: Tensor, rest: Tensor) -> Tensor:
        return moved + rest


class PlainGSF(PlainGSM, GSF):
    def join(self, group: int, moved: Tensor, rest: Tensor) -> Tensor:
        means = torch.stack((moved.mean((3, 4)), rest.mean((3, 4))), 1)  # (B, 2, C / 2, T)
        conv = self.channel_conv2 if group else self.channel_conv1
        weight = torch.sigmoid(conv(means)).squeeze(1)[..., None, None]
        return weight * moved + (1 - weight) * rest


def plain_gates(backbone: Backbone) -> Backbone:
    """The backbone with gates as they are mostly written."""
    for module in list(backbone.modules()):
        gate = getattr(module, "gate", None)
        if isinstance(gate, GSM):
            written = object.__new__(PlainGSF if isinstance(gate, GSF) else PlainGSM)
            written.__dict__.update(gate.__dict__)
            module.add_module("gate", written)
    return backbone


class FrameByFrame(nn.Module):
    """A network of images on every frame of a clip, its logits averaged."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Tensor) -> Tensor:
        return self.network(clips.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(clips), -1)).mean(1)


class TRN(nn.Module):
    """One relation of all frames."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.trunk = timm.create_model("resnet50", num_classes=0)
        self.project = nn.Sequential(nn.Dropout(0.7), nn.Linear(2048, 256))
        self.relation = nn.Sequential(nn.ReLU(), nn.Linear(256 * frames, 512), nn.ReLU(), nn.Linear(512, 400))

    def forward(self, clips: Tensor) -> Tensor:
        features = self.project(self.trunk(clips.transpose(1, 2).flatten(0, 1)))
        return self.relation(features.reshape(len(clips), -1))


class SlowFusion(nn.Module):
    """Karpathy's slow fusion over timm's ResNet-50, one window and one pair after another."""

    def __init__(self) -> None:
        super().__init__()
        self.network: Any = timm.create_model("resnet50", num_classes=400, in_chans=12)
        self.first, self.second = nn.Conv2d(512, 256, 1, bias=False), nn.Conv2d(1024, 512, 1, bias=False)

    def forward(self, clips: Tensor) -> Tensor:
        net: Any = self.network
        frames = clips.shape[2]
        windows = [clips[:, :, t : t + 4].transpose(1, 2).flatten(1, 2) for t in range(0, frames - 3, 2)]
        steps = [net.layer1(net.maxpool(net.act1(net.bn1(net.conv1(window))))) for window in windows]
        for mix, layer in ((self.first, net.layer2), (self.second, None)):
            pairs = zip(steps[::2], steps[1::2], strict=False)
            steps = [mix(torch.cat(pair, 1)) for pair in pairs]
            steps = [layer(step) for step in steps] if layer is not None else steps
        logits = [net.forward_head(net.layer4(net.layer3(step))) for step in steps]
        return torch.stack(logits).mean(0)


class Attended(nn.Module):
    """ego-rnn's trunk: logits, maps and class activation maps, one frame after another."""

    def __init__(self) -> None:
        super().__init__()
        self.network: Any = timm.create_model("resnet34", num_classes=1000)

    def forward(self, clips: Tensor) -> Tensor:
        net: Any = self.network
        found = []
        for t in range(clips.shape[2]):
            maps = net.forward_features(clips[:, :, t])
            logits = net.fc(maps.mean((2, 3)))
            weight = net.fc.weight[logits.argmax(1)]
            cam = torch.bmm(weight[:, None], maps.flatten(2))
            found.append(logits.mean() + cam.mean())
        return torch.stack(found)


class TwoPathways(nn.Module):
    """pytorchvideo's SlowFast on one clip."""

    def __init__(self, network: nn.Module, alpha: int = 4) -> None:
        super().__init__()
        self.stages, self.alpha = nn.Sequential(*list(network.blocks)[:5]), alpha  # pyright: ignore

    def forward(self, clips: Tensor) -> Tensor:
        count = clips.shape[2] // self.alpha
        slow = torch.index_select(clips, 2, torch.linspace(0, clips.shape[2] - 1, count).long())
        slow, fast = self.stages([slow, clips])
        return torch.cat((slow.mean((2, 3, 4)), fast.mean((2, 3, 4))), 1)
