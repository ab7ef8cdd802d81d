"""What public code calls the layers of networks, written out piece by piece; converters go the other way."""

from __future__ import annotations

BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}
NONLOCAL = [(3, 1), (3, 3), (4, 1), (4, 3), (4, 5)]
# Stages of PySlowFast -> blocks of pytorchvideo; where blocks.2 is a pooling layer.
STAGES = {"s1": 0, "s2": 1, "s3": 2, "s4": 3, "s5": 4}
POOLED = {"s1": 0, "s2": 1, "s3": 3, "s4": 4, "s5": 5}
NORM = ("weight", "bias", "running_mean", "running_var")


def slowfast_name(key: str, blocks: dict[str, int], *, x3d: bool) -> str:
    """Our key in PySlowFast's words, piece by piece: the converter goes the other way, by patterns."""
    if key.startswith("head."):
        return (
            {"head.post_conv": "head.lin_5"}.get(key.rpartition(".")[0], "head.projection") + "." + key.split(".")[-1]
        )
    parts = key.split(".")
    stage = next(s for s, block in {**blocks, "conv_5": 5 if x3d else -1}.items() if str(block) == parts[1])
    rest = parts[2:]
    if stage == "conv_5":
        return f"head.conv_5{'_bn' if rest[0] == 'norm' else ''}.{rest[1]}"
    if rest[0] == "multipathway_fusion":
        return f"{stage}_fuse.{'conv_f2s' if rest[1] == 'conv_fast_to_slow' else 'bn'}.{rest[2]}"
    path = 0
    if rest[0] == "multipathway_blocks":
        path, rest = int(rest[1]), rest[2:]
    if rest[0] != "res_blocks":
        conv = {("conv", "conv_t"): "conv_xy", ("conv", "conv_xy"): "conv"}.get((rest[0], rest[1]), rest[0])
        return f"{stage}.pathway{path}_stem.{'bn' if rest[0] == 'norm' else conv}.{rest[-1]}"
    if rest[2] == "nonlocal":
        layer = "bn" if rest[3] == "norm" else f"conv_{rest[3]}"
        return f"{stage}.pathway{path}_nonlocal{rest[1]}.{layer}.{rest[-1]}"
    head, leaf = f"{stage}.pathway{path}_res{rest[1]}", rest[-1]
    if rest[2].startswith("branch1"):
        return f"{head}.branch1{'_bn' if 'norm' in rest[2] else ''}.{leaf}"
    kind, letter = rest[3].split("_")
    if x3d and kind == "norm" and letter == "b" and rest[4] == "1":
        return f"{head}.branch2.se.fc{1 if rest[6] == '0' else 2}.{leaf}"
    return f"{head}.branch2.{letter}{'_bn' if kind == 'norm' else ''}.{leaf}"


def caffe2_name(key: str) -> str:
    """A PySlowFast name in Caffe2's words."""
    module, _, leaf = key.rpartition(".")
    norm = module.endswith("bn")
    leaf = {"weight": "s" if norm else "w", "bias": "b", "running_mean": "rm", "running_var": "riv"}[leaf]
    last = {"1": "pool1", "2": "res2_2", "3": "res3_3", "4": "res4_5"}
    if "_fuse." in module:
        stage = module[1]
        base = f"t_{last[stage]}" + ("" if stage == "1" else "_branch2c_bn") + "_subsample"
        return f"{base}_bn_{leaf}" if norm else f"{base}_{leaf}"
    if module == "head.projection":
        return f"pred_{leaf}"
    stage, rest = module.split(".", 1)
    if "_nonlocal" in rest:
        number, layer = rest.removeprefix("pathway0_nonlocal").split(".")
        return f"nonlocal_conv{stage[1]}_{number}_{layer.removeprefix('conv_')}_{leaf}"
    t = "t_" if rest.startswith("pathway1") else ""
    rest = rest.removeprefix("pathway0_").removeprefix("pathway1_")
    if rest.startswith("stem"):
        return f"{t}res_conv1_bn_{leaf}" if norm else f"{t}conv1_{leaf}"
    block, _, branch = rest.partition(".")
    branch = branch.replace("branch2.", "branch2")
    return f"{t}res{stage[1]}_{block.removeprefix('res')}_{branch}_{leaf}"


def vmz_name(key: str) -> str:
    """Our key of a CSN in VMZ's words."""
    if key.startswith("head."):
        return key.replace("head", "fc")
    parts = key.split(".")
    if parts[1] == "0":
        return f"stem.{0 if parts[2] == 'conv' else 1}.{parts[-1]}"
    head = f"layer{parts[1]}.{parts[3]}"
    if parts[4].startswith("branch1"):
        return f"{head}.downsample.{int('norm' in parts[4])}.{parts[-1]}"
    kind, letter = parts[5].split("_")
    return f"{head}.conv{'abc'.index(letter) + 1}.{int(kind == 'norm')}.{parts[-1]}"


def mvit_name(key: str) -> str:
    """Our key of an MViT in PySlowFast's words."""
    if key.startswith("pos_encoding."):
        return {
            "class_token": "cls_token",
            "spatial_pos": "pos_embed_spatial",
            "temporal_pos": "pos_embed_temporal",
            "class_pos": "pos_embed_class",
        }[key.split(".")[1]]
    first, *rest = key.split(".")
    if first == "head":
        return f"head.projection.{rest[-1]}"
    if first == "conv_proj":
        return f"patch_embed.proj.{rest[-1]}"
    if first != "blocks" or rest[1].startswith("norm"):
        return key
    block, leaf = f"blocks.{rest[0]}", rest[-1]
    if rest[1] == "project":
        return f"{block}.proj.{leaf}"
    if rest[1] == "mlp":
        return f"{block}.mlp.fc{1 if rest[2] == '0' else 2}.{leaf}"
    if rest[2] == "project":
        return f"{block}.attn.proj.{leaf}"
    if rest[2].startswith("pool_"):
        return f"{block}.attn.{rest[2] if rest[3] == 'pool' else rest[2].replace('pool', 'norm')}.{leaf}"
    return key  # qkv and tables of relative positions


def resnet_keys(style: str, *, nonlocals: bool = False) -> dict[str, str]:
    """Our key -> the published one, written out from the layouts' descriptions; both for I3D-R50."""
    table = {}

    def norm(ours: str, theirs: str) -> None:
        names = NORM if style != "caffe2" else ("s", "b", "rm", "riv")
        joint = "_" if style == "caffe2" else "."
        table.update({f"{ours}.{mine}": f"{theirs}{joint}{other}" for mine, other in zip(NORM, names, strict=True)})

    stem = {"slowfast": "s1.pathway0_stem.conv.weight", "caffe2": "conv1_w", "stin": "conv1.weight"}
    stem_norm = {"slowfast": "s1.pathway0_stem.bn", "caffe2": "res_conv1_bn", "stin": "bn1"}
    table["stem.conv.weight"] = stem[style]
    norm("stem.norm", stem_norm[style])
    for stage, blocks in BLOCKS.items():
        for block in range(blocks):
            for number, part in enumerate("abc", start=1):
                ours = f"res{stage}.blocks.{block}.{part}"
                if style == "slowfast":
                    theirs = f"s{stage}.pathway0_res{block}.branch2.{part}"
                    weight, bn = f"{theirs}.weight", f"{theirs}_bn"
                elif style == "caffe2":
                    theirs = f"res{stage}_{block}_branch2{part}"
                    weight, bn = f"{theirs}_w", f"{theirs}_bn"
                else:
                    theirs = f"layer{stage - 1}.{block}.conv{number}"
                    weight, bn = f"{theirs}.0.weight", f"{theirs}.1"
                table[f"{ours}.conv.weight"] = weight
                norm(f"{ours}.norm", bn)
            if block == 0:
                ours = f"res{stage}.blocks.0.shortcut"
                if style == "slowfast":
                    weight, bn = f"s{stage}.pathway0_res0.branch1.weight", f"s{stage}.pathway0_res0.branch1_bn"
                elif style == "caffe2":
                    weight, bn = f"res{stage}_0_branch1_w", f"res{stage}_0_branch1_bn"
                else:
                    weight, bn = f"layer{stage - 1}.0.shortcut.0.weight", f"layer{stage - 1}.0.shortcut.1"
                table[f"{ours}.conv.weight"] = weight
                norm(f"{ours}.norm", bn)
    for stage, block in NONLOCAL if nonlocals else ():
        ours = f"res{stage}.nonlocals.{block}"
        theirs = f"s{stage}.pathway0_nonlocal{block}" if style == "slowfast" else f"nonlocal_conv{stage}_{block}"
        for part in ("theta", "phi", "g", "out"):
            for leaf in ("weight", "bias"):
                table[f"{ours}.{part}.{leaf}"] = (
                    f"{theirs}.conv_{part}.{leaf}" if style == "slowfast" else f"{theirs}_{part}_{leaf[0]}"
                )
        norm(f"{ours}.norm", f"{theirs}.bn" if style == "slowfast" else f"{theirs}_bn")
    head = {"slowfast": "head.projection.{}", "caffe2": "pred_{0[0]}", "stin": "classifier.{}"}[style]
    table |= {f"head.{leaf}": head.format(leaf) for leaf in ("weight", "bias")}
    return table


def inception_v3_name(key: str, kind: str) -> str:
    """Our key of a gated Inception-v3 in GSM's and GSF's words."""
    parts = key.split(".")
    if parts[0] == "head":
        return f"new_fc.{parts[1]}"
    name = f"{parts[1]}_{parts[3]}" if parts[2] == "units" else parts[1]
    rest = parts[4:] if parts[2] == "units" else parts[2:]
    if rest[:2] == ["conv", "gate"]:
        return f"base_model.{kind}_{name}_Conv2D." + ".".join(rest[2:])
    return f"base_model.{name}_{'Conv2D' if rest[0] == 'conv' else 'batchnorm'}.{rest[1]}"
