"""timm's ResNets as frame models whose layers may look at other frames of the clip: what shift and gate hang on."""

from __future__ import annotations

from collections.abc import Mapping

import timm
from timm.models.resnet import ResNet
from torch import Tensor, nn

from ._clip_length import ClipLength
from .contract import Stream
from .convert import rename
from .frame_models import FrameModel

LAYERS = ("layer1", "layer2", "layer3", "layer4")


def resnets(pattern: str) -> list[str]:
    """timm's names of ResNets that match a shell pattern."""
    return timm.list_models(pattern, module="resnet")


class ClipResNet(FrameModel):
    """A FrameModel of one of timm's ResNets that tells its layers how long the clip is."""

    def __init__(
        self,
        network: str,
        *,
        stream: Stream = "rgb",
        num_classes: int = 0,
        frames: int = 8,
        crop: int = 0,
        flow_stack: int = 5,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(
            network,
            stream=stream,
            num_classes=num_classes,
            frames=frames,
            crop=crop,
            flow_stack=flow_stack,
            drop_rate=drop_rate,
        )
        if not isinstance(self.network, ResNet):
            raise ValueError(f"timm's {network} is no ResNet; take one of `actionfuse models 'tsm:*'`")
        self.clip_length = ClipLength()

    def _features(self, clips: Tensor) -> Tensor:
        self.clip_length.frames = clips.shape[2]
        return super()._features(clips)

    def stages(self) -> list[list[nn.Module]]:
        """The stem and the four layers."""
        network = self.network
        # without act1, which overwrites its input, so that it cannot be run again
        return [[network.conv1, network.bn1, network.maxpool], *([getattr(network, layer)] for layer in LAYERS)]

    def blocks(self, layer: str) -> list[nn.Module]:
        return list(self.network.get_submodule(layer).children())


def last_conv(block: nn.Module) -> nn.Conv2d:
    """Of a residual branch."""
    conv = block.get_submodule("conv3" if hasattr(block, "conv3") else "conv2")
    assert isinstance(conv, nn.Conv2d)
    return conv


def bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the `model.` of Lightning's checkpoints."""
    return {key.removeprefix("model."): tensor for key, tensor in state.items()}


def from_tsn_code(state: Mapping[str, Tensor], *rules: tuple[str, str]) -> dict[str, Tensor]:
    """Names of the TSN code, `base_model.` and `new_fc.`, to those of a FrameModel of a ResNet; `rules` go first."""
    return rename(state, *rules, (r"base_model\.(.+)", r"network.\1"), (r"new_fc\.(.+)", r"network.fc.\1"))


def is_epic(state: Mapping[str, Tensor]) -> bool:
    """Whether the classifier is of 97 verbs and 300 nouns: EPIC-KITCHENS-100's C1 networks."""
    head = bare(state).get("new_fc.weight")
    return head is not None and len(head) == 97 + 300
