"""actionfuse models: what is printed, and that the numbers are right."""

from __future__ import annotations

import json

import pytest
import torch
from fvcore.nn import FlopCountAnalysis

from actionfuse.backbones import create_backbone, list_backbones
from actionfuse.backbones.catalog import count_macs, describe
from actionfuse.cli import main


def test_published_numbers():
    # Multiply-adds and parameters as pytorchvideo, Video Swin and timm give them, without classifiers.
    for name, gmacs, millions in (("i3d_r50", 28.4, 27.2), ("swin3d_t", 88, 27.9), ("tsn:resnet18", 8 * 1.82, 11.2)):
        entry = describe(name)
        assert entry.gmacs == pytest.approx(gmacs, rel=0.01)
        assert entry.parameters is not None and entry.parameters / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("name", ["tsn:test_resnet", "tsn:test_vit"])
def test_counts_as_fvcore_does(name):
    backbone = create_backbone(name)
    theirs = FlopCountAnalysis(backbone, backbone.input_spec.example(1)[:, :, :1])
    theirs.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    # fvcore leaves fused attention out and counts norms; compare without either.
    counted = sum(number for op, number in theirs.by_operator().items() if op in ("conv", "linear", "matmul", "addmm"))
    with torch.device("meta"):
        ours = count_macs(create_backbone(name), 1, 160, 160)
    attention = 0
    if name == "tsn:test_vit":
        tokens, width = 101, backbone.feature_dim
        attention = 2 * tokens * tokens * width * len(backbone.network.blocks)
    assert ours == pytest.approx(counted + attention, rel=0.01)


def test_table(capsys):
    assert main(["models", "i3d*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["name", "input", "M"]
    rows = [line.split() for line in lines[1:]]
    assert [row[0] for row in rows] == list_backbones("i3d*")
    assert rows[0][1:8] == ["64x224", "@", "25/s", "12.3", "111.2", "1024", "8x7x7"]


def test_one_name_tells_its_options(capsys):
    assert main(["models", "tsn:test_resnet"]) == 0
    out = capsys.readouterr().out
    assert "flow_stack=5" in out and "timm" in out


def test_json_lines(capsys):
    assert main(["models", "tsn:test_conv*", "--json"]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["name"] for entry in entries] == list_backbones("tsn:test_conv*")
    for entry in entries:
        backbone = create_backbone(entry["name"])
        assert entry["feature_dim"] == backbone.feature_dim
        assert tuple(entry["map_size"]) == backbone.output_size(entry["frames"], entry["crop"], entry["crop"])
        assert entry["parameters"] == sum(each.numel() for each in backbone.parameters())


def test_long_lists_are_not_built(capsys):
    assert main(["models", "tsn:resnet*", "--json"]) == 0
    out, err = capsys.readouterr()
    entries = [json.loads(line) for line in out.splitlines()]
    assert len(entries) > 50 and all(entry["gmacs"] is None for entry in entries)
    assert "--flops" in err


def test_names_without_maps_are_reported_and_unknown_ones_refused(capsys):
    assert main(["models", "tsn:crossvit_tiny_240"]) == 1
    assert "no map" in capsys.readouterr().err
    assert main(["models", "i4d"]) == 2
    assert "i3d" in capsys.readouterr().err
