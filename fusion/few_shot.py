"""Few-shot transfer: a head trained on many classes learns new ones with its last layers alone.

Source: the few-shot protocol of Materzynska et al., "Something-Else", CVPR 2020 (88 base classes, then 5 or 10 videos
of each of 86 new ones), which Yan et al., Interactive Fusion (arXiv:2012.05689, table 3), follow: train on the base
classes, replace the classifier, freeze everything else. In both public codes dropout stays on and batch norms go on
measuring while the classifier learns; put the head into eval mode to keep them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from .contract import FusionHead, create_head


def classifier_parameters(head: FusionHead) -> list[str]:
    """Names of the parameters whose shape depends on the number of classes: last layers of every task's classifier,
    auxiliary ones too.

    head: made by `create_head`, which remembers how; ValueError otherwise.
    """
    # a head of the same options and one more class each tells which shapes follow; meta tensors cost nothing
    more = _like(head, {task: number + 1 for task, number in head.classes.items()})
    shapes = {name: parameter.shape for name, parameter in more.named_parameters()}
    return [name for name, parameter in head.named_parameters() if shapes[name] != parameter.shape]


def freeze_all_but_classifier(head: FusionHead, *others: nn.Module) -> list[str]:
    """Let gradients reach nothing but `classifier_parameters(head)`, whose names are returned.

    others: modules, such as backbones, to freeze whole.
    """
    trained = classifier_parameters(head)
    for other in others:
        other.requires_grad_(False)
    for name, parameter in head.named_parameters():
        parameter.requires_grad_(name in trained)
    return trained


def reset_classifier(head: FusionHead, classes: Mapping[str, int]) -> FusionHead:
    """A head for other classes with this one's weights, on the same device and of the same type, and random
    `classifier_parameters`.

    classes: task -> number of classes. Other tasks are allowed where nothing but the classifiers depends on them;
        ValueError otherwise.
    """
    new = _like(head, classes, device="cpu")
    old_state, own = head.state_dict(), set(classifier_parameters(head))
    fresh = set(classifier_parameters(new))
    kept = {name: tensor for name, tensor in old_state.items() if name not in own}
    wanted = {name: tensor.shape for name, tensor in new.state_dict().items() if name not in fresh}
    if wanted != {name: tensor.shape for name, tensor in kept.items()}:
        differ = sorted(
            name
            for name in {*wanted, *kept}
            if name not in kept or name not in wanted or kept[name].shape != wanted[name]
        )
        raise ValueError(
            f"weights of {type(head).__name__} beside the classifiers depend on its tasks "
            f"({', '.join(head.classes)}; wanted {', '.join(classes)}): {', '.join(differ)}"
        )
    new.load_state_dict(kept, strict=False)
    reference = next(iter(head.parameters()))
    return new.to(reference.device, reference.dtype).train(head.training)


def _like(head: FusionHead, classes: Mapping[str, int], device: str = "meta") -> FusionHead:
    if not head.name:
        raise ValueError(
            f"this {type(head).__name__} was not made by create_head, so nothing knows its options; make it by "
            "create_head(name, streams=..., classes=..., ...)"
        )
    with torch.device(device):
        return create_head(head.name, streams=head.streams, classes=classes, **head.options)
