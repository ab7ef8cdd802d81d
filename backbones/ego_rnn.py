"""ResNet-34 that tells where it looks: the trunk of ego-rnn and LSTA.

Sources: Sudhakaran and Lanz, "Attention is All We Need: Nailing Down Object-centric Attention for Egocentric Activity
Recognition", BMVC 2018 (arXiv:1807.11794), code swathikirans/ego-rnn; Sudhakaran, Escalera and Lanz, "LSTA", CVPR 2019.
Class activation maps: Zhou et al., CVPR 2016. The recurrent part is no backbone; of a whole model's checkpoint the
trunk is taken.
Differs: frames of any size, where the public code has 7 x 7 places; ties between classes go to the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from timm.models.resnet import BasicBlock
from torch import Tensor

from ._resnets import ClipResNet, from_tsn_code
from .contract import Layout, Stream, register
from .convert import published
from .frame_models import TSN_SPEC, load_frame_weights

IMAGENET_CLASSES = 1000


class AttentionFeatures(NamedTuple):
    """Of clips (B, C, T, H, W), for each frame by itself.

    logits: (B, T, num_classes) of the image classifier.
    maps: (B, 512, T, h, w), after the last ReLU: what the classifier pools.
    raw_maps: (B, 512, T, h, w), the last block without its last norm and ReLU: what attention weights and the recurrent
        cells read.
    cam: (B, 1, T, h, w), class activation map of each frame's most likely class, raw: no softmax yet.
    """

    logits: Tensor
    maps: Tensor
    raw_maps: Tensor
    cam: Tensor


class EgoRNNTrunk(ClipResNet):
    """(B, C, T, H, W) -> maps after the last ReLU (B, 512, T, h, w); `attend` gives the rest of AttentionFeatures."""

    def attend(self, clips: Tensor) -> AttentionFeatures:
        """Everything that ego-rnn and LSTA read, of one pass. It needs the classifier of images."""
        if not self.num_classes:
            raise ValueError("class activation maps need a classifier: build the trunk with num_classes or weights")
        network, last = self.network, self.network.layer4[-1]
        assert isinstance(last, BasicBlock) and last.downsample is None
        self._check(clips)
        frames = clips.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        maps = network.maxpool(network.act1(network.bn1(network.conv1(frames))))
        maps = network.layer4[:-1](network.layer3(network.layer2(network.layer1(maps))))
        residual = last.conv2(last.act1(last.bn1(last.conv1(maps))))
        raw, final = residual + maps, (last.bn2(residual) + maps).relu_()
        logits = network.fc(final.mean((2, 3)))
        cam = torch.einsum("nd,ndhw->nhw", network.fc.weight[logits.argmax(1)], final)[:, None]
        folded = (x.unflatten(0, (len(clips), -1)) for x in (final, raw, cam))
        return AttentionFeatures(logits.unflatten(0, (len(clips), -1)), *(x.transpose(1, 2) for x in folded))


# Of a network of two streams, what the rgb one is called.
_RGB = "frameModel."


def _is_published(state: Mapping[str, Tensor]) -> bool:
    key = "resNet.layer4.2.conv2.weight"
    return key in state or _RGB + key in state


def _from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The recurrent cell and the classifier of actions are not the trunk's; `weight_softmax` is `resNet.fc.weight`."""
    plain = {key.removeprefix(_RGB): x for key, x in state.items()}
    inside = {key.replace("resNet.", "base_model.", 1): x for key, x in plain.items() if key.startswith("resNet.")}
    return from_tsn_code(inside)


PUBLISHED = published(
    Layout(
        name="swathikirans/ego-rnn, LSTA (ego_rnn)",
        recognises=_is_published,
        convert=_from_published,
        spec=TSN_SPEC,
    )
)


@register(
    "ego_rnn",
    paper="Sudhakaran and Lanz, BMVC 2018",
    weights_from="swathikirans/ego-rnn and LSTA; timm's and torchvision's resnet34 ('pretrained')",
)
def ego_rnn(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 25,
    crop: int = 0,
) -> EgoRNNTrunk:
    """ResNet-34 with class activation maps. num_classes 0: 1000, ImageNet's, or what the weights carry."""
    backbone = EgoRNNTrunk(
        "resnet34", stream=stream, num_classes=num_classes or IMAGENET_CLASSES, frames=frames, crop=crop
    )
    backbone.layouts = (PUBLISHED, backbone.layouts[-1])
    spec = backbone.input_spec
    backbone.input_spec = replace(spec, interpolation="bilinear", resize_side=spec.crop * 256 // 224)
    return load_frame_weights(backbone, weights, num_classes=num_classes, crop=crop)
