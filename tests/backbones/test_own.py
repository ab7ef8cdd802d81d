"""Our own checkpoints carry what is needed to build and feed the backbone again."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from actionfuse.backbones import create_backbone, load_backbone, save_backbone
from actionfuse.backbones.own import read_header


def test_everything_comes_back(tmp_path):
    path = tmp_path / "deep" / "net.safetensors"
    backbone = create_backbone("tsn:test_resnet", stream="flow", num_classes=3, frames=5, flow_stack=2)
    backbone.class_names = ("cut", "pour", "wash")
    backbone.input_spec = replace(backbone.input_spec, fps=None, std=(0.3,) * 4)
    save_backbone(backbone, path)
    again = load_backbone(path)
    assert (again.name, again.options) == ("tsn:test_resnet", {"frames": 5, "flow_stack": 2})
    assert again.input_spec == backbone.input_spec
    assert again.class_names == backbone.class_names
    clips = backbone.input_spec.example(1)[..., :64, :64]
    with torch.inference_mode():
        assert torch.equal(again.forward_and_classify(clips)[1], backbone.forward_and_classify(clips)[1])
    assert [file.name for file in path.parent.iterdir()] == ["net.safetensors"]


def test_is_also_weights_for_a_fine_tuning(tmp_path):
    path = tmp_path / "net.safetensors"
    backbone = create_backbone("tsn:test_resnet", num_classes=3, frames=5)
    backbone.input_spec = replace(backbone.input_spec, channel_order="bgr")
    save_backbone(backbone, path)
    tuned = create_backbone("tsn:test_resnet", weights=path, num_classes=4)
    assert tuned.num_classes == 4 and tuned.input_spec.channel_order == "bgr"
    audio = create_backbone("tsn:test_resnet", weights=path, stream="audio")
    assert audio.input_spec.channels == 1 and audio.input_spec.scale == 1.0
    with pytest.raises(ValueError, match=r"tsn:test_resnet"):
        create_backbone("tsn:test_convnext", weights=path)


def test_other_files_are_told_apart(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    for name in ("plain.safetensors", "torn.safetensors", "absent.safetensors"):
        assert read_header(tmp_path / name) is None
        with pytest.raises(ValueError, match="save_backbone"):
            load_backbone(tmp_path / name)


def test_a_later_version_is_named(tmp_path):
    path = tmp_path / "net.safetensors"
    save_backbone(create_backbone("tsn:test_resnet"), path)
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        state = {key: file.get_tensor(key) for key in file.keys()}
    header = json.loads(metadata["actionfuse.backbone"])
    header["input_spec"]["smell"] = 1
    save_file(state, path, {**metadata, "actionfuse.backbone": json.dumps(header)})
    with pytest.raises(ValueError, match="later version.*smell"):
        load_backbone(path)


def test_only_named_backbones_into_safetensors(tmp_path):
    backbone = create_backbone("tsn:test_resnet")
    with pytest.raises(ValueError, match=r"\.safetensors"):
        save_backbone(backbone, tmp_path / "net.pth")
    backbone.name = ""
    with pytest.raises(ValueError, match="create_backbone"):
        save_backbone(backbone, tmp_path / "net.safetensors")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    save_backbone(create_backbone("tsn:test_resnet"), path)
    before = path.read_bytes()

    def full(_handle):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        save_backbone(create_backbone("tsn:test_resnet"), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]
