"""TRN: relations between ordered frames (Zhou, Andonian, Oliva and Torralba, ECCV 2018, arXiv:1711.08496).

`trn:NETWORK` reads the T frames of the clip as one relation, `mtrn:NETWORK` sums relations of 2 to T frames. Every
frame goes through any image network of timm, or bninception or inception_v3 (tsn-pytorch's, with 299 pixels), its
pooled features are projected to 256 numbers, and an MLP reads those of k frames in order. Maps are the trunk's; the
relations are in `classify`, so that whole checkpoints load.
Sources: zhoubolei/TRN-pytorch and epic-kitchens/C1-Action-Recognition-TSN-TRN-TSM, whose files load.
Differs: tests of the public code draw 3 relations of each length at random, and give other logits each time. Here they
are their expectation: 3 times the mean over all of that length. `random_test=True` draws them. The last linear layers
of all lengths are one, on what they read side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from math import comb
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from . import bninception, inception_v3
from ._inception import INCEPTIONS, Inception, caffe_spec, inceptions
from ._resnets import bare, is_epic
from .contract import IMAGENET_MEAN, Backbone, Layout, Stream, register
from .convert import load_weights, published, rename
from .frame_models import EPIC_TASKS, TSN_SPEC, FrameModel, load_frame_weights

STREAMS: tuple[Stream, ...] = ("rgb", "flow", "audio", "depth", "ir")
PER_LENGTH = 3  # relations of each length that are summed
MOST_FRAMES = 16  # 65 519 relations
_INCEPTION_V3_CROP = 299
Choose = Callable[[int, int], Sequence[int]]


def _draw(count: int, wanted: int) -> Sequence[int]:
    return torch.randperm(count)[:wanted].tolist()


class Relations(nn.Module):
    """Features (B, T, D) -> (B, lengths * width): for each length, what an MLP reads in its relations, summed.

    lengths: frames in a relation, longest first. width: of the MLP.
    choose: (how many relations there are, how many are wanted) -> their numbers in lexicographic order, where they are
        drawn; torch's global generator unless replaced.
    """

    def __init__(self, features: int, frames: int, lengths: Sequence[int], width: int, *, random_test: bool) -> None:
        super().__init__()
        self.random_test, self.choose = random_test, _draw
        self.outputs = len(lengths) * width
        self.readers = nn.ModuleList(nn.Linear(length * features, width) for length in lengths)
        # frames of all relations of each length (relations, length); indices in a list would be sent to the GPU anew at
        # every call
        for k, length in enumerate(lengths):
            frames_of = torch.tensor(list(combinations(range(frames), length)))
            self.register_buffer(f"relations{k}", frames_of, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        features, read = features.relu(), []
        for k, reader in enumerate(self.readers):
            relations = self.get_buffer(f"relations{k}")
            count, wanted = len(relations), min(PER_LENGTH, len(relations))
            if self.training or self.random_test:
                if wanted < count:
                    relations = torch.stack([relations[number] for number in self.choose(count, wanted)])
                read.append(reader(features[:, relations].flatten(2)).relu().sum(1))
            else:
                read.append(reader(features[:, relations].flatten(2)).relu().mean(1) * wanted)
        return torch.cat(read, 1)


class RelationHead(nn.Module):
    """Pooled features (B, T, D) -> logits (B, num_classes); what TRN has instead of a linear classifier."""

    def __init__(self, pooled: int, features: int, dropout: float, relations: Relations) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(pooled, features)
        self.relations = relations
        self.classifier: nn.Linear | None = None
        nn.init.normal_(self.project.weight, std=0.001)
        nn.init.zeros_(self.project.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        assert self.classifier is not None
        return self.classifier(self.relations(self.project(self.dropout(pooled))))


def _check_frames(frames: int, multi_scale: bool) -> None:
    if not 2 <= frames <= (MOST_FRAMES if multi_scale else frames):
        raise ValueError(f"frames is {frames}; relations need at least 2, and of all lengths at most {MOST_FRAMES}")


def _make_head(
    pooled: int, *, multi_scale: bool, frames: int, features: int, dropout: float, random_test: bool
) -> RelationHead:
    lengths = range(frames, 1, -1) if multi_scale else (frames,)
    relations = Relations(features, frames, lengths, 256 if multi_scale else 512, random_test=random_test)
    return RelationHead(pooled, features, dropout, relations)


def _relate(backbone: Backbone, head: RelationHead, pooled: Tensor) -> Tensor:
    """Pooled features (B, T, D) -> (B, num_classes), where there is a classifier and T is what it was built for."""
    if not backbone.num_classes:
        raise ValueError("this TRN has no classifier: build it with num_classes or weights that carry one")
    if pooled.shape[1] != backbone.input_spec.frames:
        raise ValueError(
            f"the clips have {pooled.shape[1]} frames, and this TRN reads relations of {backbone.input_spec.frames}; "
            f"build it with frames={pooled.shape[1]}"
        )
    return head(pooled)


class TRN(FrameModel):
    """(B, C, T, H, W) -> the trunk's maps (B, D, T, h, w); logits need the number of frames it was built for.

    multi_scale: relations of all lengths from 2. features: numbers a frame is described by. dropout: before those.
    random_test: draw relations outside training too; see Relations.choose.
    """

    def __init__(
        self,
        network: str,
        *,
        multi_scale: bool,
        stream: Stream = "rgb",
        num_classes: int = 0,
        frames: int = 8,
        crop: int = 0,
        flow_stack: int = 5,
        features: int = 256,
        dropout: float = 0.7,
        random_test: bool = False,
    ) -> None:
        super().__init__(network, stream=stream, frames=frames, crop=crop, flow_stack=flow_stack)
        _check_frames(frames, multi_scale)
        self.min_size = (frames, *self.min_size[1:])
        self.head = _make_head(
            int(self.network.head_hidden_size),
            multi_scale=multi_scale,
            frames=frames,
            features=features,
            dropout=dropout,
            random_test=random_test,
        )
        self.classifier_weight = "head.classifier.weight"
        convert = partial(_from_published, multi_scale)
        self.layouts = (
            replace(EPIC, convert=convert),
            replace(PUBLISHED, convert=convert),
        )
        self.reset_classifier(num_classes)

    def _logits(self, features: Tensor, batch: int) -> Tensor:
        """What the trunk gives for all frames -> (B, num_classes)."""
        pooled = self.network.forward_head(features, pre_logits=True).unflatten(0, (batch, -1))
        return _relate(self, self.head, pooled)

    def reset_classifier(self, num_classes: int) -> None:
        self.set_classes(num_classes)
        self.head.classifier = nn.Linear(self.head.relations.outputs, num_classes) if num_classes else None


class _Relating(Inception):
    """An Inception whose classifier is that of TRN. Its class is made together with that of the trunk, below."""

    classifier_weight = "head.classifier.weight"
    head: RelationHead | None

    def relate(self, head: RelationHead, num_classes: int) -> None:
        self.head = head
        self.reset_classifier(num_classes)

    def classify(self, maps: Tensor) -> Tensor:
        assert self.head is not None
        return _relate(self, self.head, maps.mean((3, 4)).transpose(1, 2))

    def reset_classifier(self, num_classes: int) -> None:
        self.set_classes(num_classes)
        head = getattr(self, "head", None)
        if head is None:  # the trunk is being built
            self.head = None
            return
        head.classifier = nn.Linear(head.relations.outputs, num_classes) if num_classes else None


class BNInceptionTRN(_Relating, bninception.BNInception):
    """TRN on BNInception; see TRN."""


class InceptionV3TRN(_Relating, inception_v3.InceptionV3):
    """TRN on Inception-v3; see TRN."""


def _is_published(state: Mapping[str, Tensor]) -> bool:
    state = bare(state)
    return "consensus.classifier.1.weight" in state or "consensus.fc_fusion_scales.0.1.weight" in state


def _is_epic(state: Mapping[str, Tensor]) -> bool:
    state = bare(state)
    last = state.get("consensus.classifier.3.weight", state.get("consensus.fc_fusion_scales.0.3.weight"))
    return _is_published(state) and (is_epic(state) or (last is not None and len(last) == 97 + 300))


def _from_published(multi_scale: bool, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = bare(state)
    kinds = {True: "mtrn", False: "trn"}
    found = "consensus.fc_fusion_scales.0.1.weight" in state
    if found != multi_scale:
        raise ValueError(f"these are weights of {kinds[found]}:NETWORK, and this is {kinds[multi_scale]}:NETWORK")
    ours = rename(
        state,
        (r"base_model\.(.+)", r"network.\1"),
        (r"new_fc\.(.+)", r"head.project.\1"),
        (r"consensus\.classifier\.1\.(.+)", r"head.relations.readers.0.\1"),
        (r"consensus\.classifier\.3\.(.+)", r"head.classifier.\1"),
        (r"consensus\.fc_fusion_scales\.(\d+)\.1\.(.+)", r"head.relations.readers.\1.\2"),
    )
    last = "consensus.fc_fusion_scales.{}.3.{}"
    lengths = sum(key.startswith("head.relations.readers.") and key.endswith(".weight") for key in ours)
    if multi_scale and all(last.format(k, leaf) in ours for k in range(lengths) for leaf in ("weight", "bias")):
        weights = [ours.pop(last.format(k, "weight")) for k in range(lengths)]
        biases = [ours.pop(last.format(k, "bias")) for k in range(lengths)]
        frames = lengths + 1
        # each relation that is summed adds the bias of its length
        times = [min(PER_LENGTH, comb(frames, frames - k)) for k in range(lengths)]
        ours["head.classifier.weight"] = torch.cat(weights, 1)
        ours["head.classifier.bias"] = torch.stack([n * b for n, b in zip(times, biases, strict=True)]).sum(0)
    return ours


def _from_inception(
    trunk: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], multi_scale: bool, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Names of the trunk by its own converter, of the rest by TRN's. The trunk's classifier of images is left out."""
    state = bare(state)
    unused = tuple(f"base_model.{head}." for head in ("fc", "last_linear", "top_cls_fc"))
    inside = {key: x for key, x in state.items() if key.startswith("base_model.") and not key.startswith(unused)}
    rest = {key: x for key, x in state.items() if not key.startswith("base_model.")}
    return {**trunk(inside), **_from_published(multi_scale, rest)}


PUBLISHED = published(
    Layout(
        name="TRN-pytorch (trn, mtrn)",
        recognises=_is_published,
        convert=partial(_from_published, True),
        spec=TSN_SPEC,
    )
)
EPIC = Layout(
    name="epic-kitchens/C1-Action-Recognition-TSN-TRN-TSM (TRN)",
    recognises=_is_epic,
    convert=partial(_from_published, True),
    spec={**TSN_SPEC, "std": IMAGENET_MEAN},  # as its TSN: the mean was given for the std
    tasks=EPIC_TASKS,
)


def _networks(pattern: str) -> list[str]:
    return inceptions(pattern) + timm.list_models(pattern)


def _build(
    network: str,
    *,
    multi_scale: bool,
    stream: Stream,
    num_classes: int,
    weights: str | Path | None,
    frames: int,
    crop: int,
    flow_stack: int,
    features: int,
    dropout: float,
    random_test: bool,
) -> TRN | _Relating:
    if network not in INCEPTIONS:
        backbone = TRN(
            network,
            multi_scale=multi_scale,
            stream=stream,
            num_classes=num_classes,
            frames=frames,
            crop=crop,
            flow_stack=flow_stack,
            features=features,
            dropout=dropout,
            random_test=random_test,
        )
        return load_frame_weights(backbone, weights, num_classes=num_classes, crop=crop)
    _check_frames(frames, multi_scale)
    if network == "bninception":
        make, trunk = BNInceptionTRN, bninception
    else:
        make, trunk = InceptionV3TRN, inception_v3
        crop = crop or _INCEPTION_V3_CROP
    layout = replace(PUBLISHED, convert=partial(_from_inception, trunk.from_published, multi_scale), spec={})
    spec = caffe_spec(stream, frames=frames, crop=crop, flow_stack=flow_stack)
    inception = make(spec=spec, layouts=(layout,), dropout=dropout)
    inception.min_size = (frames, *inception.min_size[1:])
    head = _make_head(
        inception.feature_dim,
        multi_scale=multi_scale,
        frames=frames,
        features=features,
        dropout=dropout,
        random_test=random_test,
    )
    inception.relate(head, num_classes)
    return load_weights(inception, weights, num_classes=num_classes)


@register(
    "trn",
    paper="Zhou et al., ECCV 2018",
    streams=STREAMS,
    weights_from="EPIC-KITCHENS C1 TRN, TRN-pytorch",
    networks=_networks,
)
def trn(
    *,
    network: str,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 8,
    crop: int = 0,
    flow_stack: int = 5,
    features: int = 256,
    dropout: float = 0.7,
) -> TRN | _Relating:
    """One relation of all `frames` frames. Options as in TRN and FrameModel."""
    return _build(
        network,
        multi_scale=False,
        stream=stream,
        num_classes=num_classes,
        weights=weights,
        frames=frames,
        crop=crop,
        flow_stack=flow_stack,
        features=features,
        dropout=dropout,
        random_test=False,
    )


@register(
    "mtrn",
    paper="Zhou et al., ECCV 2018",
    streams=STREAMS,
    weights_from="EPIC-KITCHENS C1 TRN (its released files), TRN-pytorch",
    networks=_networks,
)
def mtrn(
    *,
    network: str,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 8,
    crop: int = 0,
    flow_stack: int = 5,
    features: int = 256,
    dropout: float = 0.7,
    random_test: bool = False,
) -> TRN | _Relating:
    """Relations of 2 to `frames` frames. Options as in TRN and FrameModel."""
    return _build(
        network,
        multi_scale=True,
        stream=stream,
        num_classes=num_classes,
        weights=weights,
        frames=frames,
        crop=crop,
        flow_stack=flow_stack,
        features=features,
        dropout=dropout,
        random_test=random_test,
    )
