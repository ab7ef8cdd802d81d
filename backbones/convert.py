"""Checkpoints into backbones: published layouts are recognised by their keys, and loading is strict.

Nothing in a file is ever run: tensors are read by `torch.load(weights_only=True)` (torch_file.py), safetensors or, for
Caffe2's pickles, an unpickler that knows arrays only (caffe2.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .caffe2 import read_caffe2
from .contract import Backbone, Layout
from .own import read_own
from .torch_file import read_torch

B = TypeVar("B", bound=Backbone)

# Where trainers keep the network inside the file.
WRAPPERS = ("state_dict", "model_state", "model_state_dict", "model")
# Put before every key by DistributedDataParallel and torch.compile.
PREFIXES = ("module.", "_orig_mod.")
# How files begin that downloads leave in place of weights.
_NOT_WEIGHTS = {
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "a page of xml",
    b"version https://git-lfs": "a pointer of Git LFS",
}
OUT_OF_A_RUN = "save_backbone(load_model(RUN).backbones[STREAM], FILE) writes such a file"
# Constants of the architecture or mere counters: the module has its own, a file need not.
CONSTANTS = ("relative_position_index",)
COUNTERS = ("num_batches_tracked",)
# Of an InputSpec, what weights of any picture were trained with; the rest is of rgb.
GEOMETRY = ("resize_side", "crop", "interpolation")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint file by name: out of its wrappers, without the prefixes that trainers add.

    path: safetensors, torch.save (zip or older) or Caffe2 pickle. Omnivore's two parts become `trunk.` and `heads.`.
    Raises ValueError where there is no such file, or it holds no tensors, or could only be read by running its code.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file of weights; of a run, {OUT_OF_A_RUN}")
    if not path.is_file():
        raise ValueError(f"there is no weights file {path}")
    with path.open("rb") as file:
        start = file.read(64)
    for beginning, what in _NOT_WEIGHTS.items():
        if start.lstrip().lower().startswith(beginning):
            raise ValueError(f"{path} is {what}, not the weights that it stands for; fetch the file itself")
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        try:
            return _plain(load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{path} is no whole safetensors file: {error}") from error
    # torch's older format starts with a pickled magic number, 0x1950a86a20f9469cfc6c
    if not start.startswith(b"PK") and b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" not in start:
        return _plain(read_caffe2(path))
    return unwrap(read_torch(path), what=str(path))


def unwrap(content: object, *, what: str) -> dict[str, Tensor]:
    """The network's tensors out of what a trainer saved: {'state_dict': ...}, {'trunk': ..., 'heads': ...}."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    tensors = dict(_flatten(content)) if isinstance(content, Mapping) else {}
    if not tensors:
        held = f"It is a {type(content).__name__}"
        if isinstance(content, Mapping):
            held = f"It holds {', '.join(map(str, list(content)[:10])) or 'nothing'}"
        raise ValueError(
            f"{what} holds no named tensors, which are looked for at its top and under {', '.join(WRAPPERS)}. {held}. "
            "Where the weights are elsewhere in it, save them alone, torch.save(content[...], path), and give that file"
        )
    return _plain(tensors)


def _flatten(content: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping) and key in ("trunk", "heads"):
            yield from _flatten(value, f"{prefix}{key}.")


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = {}
    for key, tensor in state.items():
        while key.startswith(PREFIXES):
            key = key.partition(".")[2]
        plain[key] = tensor
    return plain


def tensors_of(weights: str | Path | None) -> Mapping[str, Tensor]:
    """A file's tensors by their own names, for networks whose layers depend on it; none where no path is given."""
    if weights is None or str(weights) in ("pretrained", "bundled"):
        return {}
    own = read_own(weights)
    return own[0] if own else read_checkpoint(weights)


def load_weights(backbone: B, weights: str | Path | None, *, num_classes: int = 0) -> B:
    """Load a checkpoint file, published or our own, into `backbone` in place, and its preprocessing into `input_spec`.

    weights: path; None leaves the random ones.
    num_classes: 0 takes the file's classifier, if it has one. Another number than the file's leaves that out and keeps
        a random one of this width.

    A file of an rgb network goes into a backbone for flow, audio, depth or ir by the mean of its first layer. Streams
    but rgb keep their own normalisation; of what the layout says of frames, pictures of any kind take size and crop.
    Raises ValueError for an unknown layout and for keys that are missing, left over or of another shape.
    """
    if weights is None:
        return backbone
    if str(weights) in ("pretrained", "bundled"):
        raise ValueError(f"{type(backbone).__name__} has no {weights} weights; give the path of a checkpoint")
    own = read_own(weights)
    if own is not None:
        state, header = own
        install(backbone, state, num_classes=num_classes, what=f"{weights} (our own, of {header.name})")
        if header.input_spec.stream == backbone.input_spec.stream:
            backbone.input_spec = header.input_spec
        if header.num_classes == backbone.num_classes:
            backbone.class_names = header.class_names
            backbone.tasks, backbone.several = header.tasks, header.several
        return backbone
    state = read_checkpoint(weights)
    layout = recognise(state, backbone.layouts, what=str(weights))
    converted = layout.convert(state)
    averaged = install(backbone, converted, num_classes=num_classes, what=f"{weights} ({layout.name})")
    width = len(converted.get(backbone.classifier_weight, ()))
    if width and backbone.num_classes == width:
        backbone.tasks, backbone.several = layout.tasks, width in layout.several
    stream = backbone.input_spec.stream
    spec = dict(layout.spec) if stream in ("rgb", "rgbd") and not averaged else {}
    if stream != "audio":
        spec |= {name: value for name, value in layout.spec.items() if name in GEOMETRY}
    backbone.input_spec = replace(backbone.input_spec, **spec)  # pyright: ignore[reportArgumentType]
    return backbone


def published(layout: Layout) -> Layout:
    """Remember a layout, so that a file given to the wrong backbone is still called by its name."""
    _PUBLISHED.append(layout)
    return layout


_PUBLISHED: list[Layout] = []


def recognise(state: Mapping[str, Tensor], layouts: Iterable[Layout], *, what: str) -> Layout:
    """The first of `layouts` that knows these keys. ValueError where none does: it names those there are."""
    layouts = tuple(layouts)
    for layout in layouts:
        if layout.recognises(state):
            return layout
    known = "; ".join(layout.name for layout in layouts) or "none but our own"
    other = next((layout.name for layout in _PUBLISHED if layout.recognises(state)), None)
    guess = f"It looks like a file of {other}. " if other else ""
    if any(key.startswith("backbones.") for key in state):
        guess = f"It looks like the whole model of a run: {OUT_OF_A_RUN}. "
    raise ValueError(
        f"{what}: this backbone does not know the layout of these weights. {guess}It takes {known}, or a file that "
        f"save_backbone wrote. The file's {len(state)} keys begin with {', '.join(list(state)[:5])}"
    )


def install(backbone: Backbone, state: Mapping[str, Tensor], *, num_classes: int = 0, what: str) -> bool:
    """Put converted weights in: the classifier by `num_classes` (see load_weights), the first layer averaged if needed.

    Returns whether the first layer was averaged over the channels. Raises ValueError as load_state does.
    """
    given, state = state, backbone.adapt(state)
    key = backbone.classifier_weight
    classifier = key.rpartition(".")[0] + "."
    optional: tuple[str, ...] = ()
    if key in state and num_classes in (0, len(state[key])):
        if backbone.num_classes != len(state[key]):
            backbone.reset_classifier(len(state[key]))
    elif key:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(classifier)}
        optional = (classifier,)
    load_state(backbone, state, what=what, optional=optional)
    # rgb is averaged for other streams only; an rgb network may still have taken other shapes
    changed = any(key in given and tensor.shape != given[key].shape for key, tensor in state.items())
    return changed and backbone.input_spec.channels != 3


def load_state(backbone: Backbone, state: Mapping[str, Tensor], *, what: str, optional: tuple[str, ...] = ()) -> None:
    """Strict load. Counters of batch norm and constant position indices may be missing, and the latter are never taken.

    what: the file's name for the error. optional: beginnings of keys that need not be in `state`.
    Raises ValueError that lists keys (20 of each kind) that are missing, left over or of another shape.
    """
    own = backbone.state_dict()
    state = {key: tensor for key, tensor in state.items() if not (key in own and key.endswith(CONSTANTS))}
    free = tuple(key for key in own if key.endswith(CONSTANTS + COUNTERS) or key.startswith(optional or ("\0",)))
    missing = [key for key in own if key not in state and key not in free]
    left_over = [key for key in state if key not in own]
    shapes = [
        f"{key} {tuple(tensor.shape)}, wanted {tuple(own[key].shape)}"
        for key, tensor in state.items()
        if key in own and tensor.shape != own[key].shape
    ]
    problems = [
        f"{len(keys)} {kind}: {', '.join(keys[:20])}{', ...' if len(keys) > 20 else ''}"
        for keys, kind in ((missing, "missing"), (left_over, "left over"), (shapes, "of another shape"))
        if keys
    ]
    if problems:
        raise ValueError(
            f"{what} does not fit {type(backbone).__name__} ({len(own)} keys). Keys " + "; ".join(problems)
        )
    backbone.load_state_dict({**own, **state})


def rename(state: Mapping[str, Tensor], *rules: tuple[str, str]) -> dict[str, Tensor]:
    """Keys by the first of `rules` (pattern of the whole key, replacement) that matches; others stay as they are."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    renamed = {}
    for key, tensor in state.items():
        match = next(((m, new) for rule, new in compiled if (m := rule.fullmatch(key))), None)
        renamed[match[0].expand(match[1]) if match else key] = tensor
    return renamed
