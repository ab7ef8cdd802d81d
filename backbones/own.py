"""Our own checkpoints: one safetensors file whose header says how to build the backbone and what it eats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from actionfuse._files import write_atomically

from .contract import Backbone, InputSpec, Stream, create_backbone

_KEY = "actionfuse.backbone"


@dataclass(frozen=True, kw_only=True)
class OwnHeader:
    """What `create_backbone` is called with to hold the file's tensors, and what they were trained on."""

    name: str
    stream: Stream
    num_classes: int
    options: Mapping[str, Any]
    input_spec: InputSpec
    class_names: tuple[str, ...] = ()
    tasks: Mapping[str, int] = field(default_factory=dict)
    several: bool = False


def save_backbone(backbone: Backbone, path: str | Path) -> None:
    """Write a backbone made by `create_backbone` to a safetensors file; it is there whole or not at all."""
    path = Path(path)
    if not backbone.name:
        raise ValueError(f"this {type(backbone).__name__} has no name to be built by; make it with create_backbone")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} should end in .safetensors, which is what is written")
    header = {
        "name": backbone.name,
        "stream": backbone.input_spec.stream,
        "num_classes": backbone.num_classes,
        "options": dict(backbone.options),
        "input_spec": asdict(backbone.input_spec),
        "class_names": backbone.class_names,
        "tasks": dict(backbone.tasks),
        "several": backbone.several,
    }
    # Copies: safetensors takes neither channels-last memory nor two names for one tensor.
    state = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in backbone.state_dict().items()}
    content = save(state, metadata={_KEY: json.dumps(header), "format": "pt"})
    write_atomically(path, content)


def load_backbone(path: str | Path) -> Backbone:
    """The backbone that `save_backbone` wrote, in eval mode, with its input spec and class names."""
    header = read_header(path)
    if header is None:
        raise ValueError(f"{path} was not written by save_backbone; use create_backbone(NAME, weights=PATH)")
    return create_backbone(
        header.name, weights=path, stream=header.stream, num_classes=header.num_classes, **header.options
    )


def read_header(path: str | Path) -> OwnHeader | None:
    """The header of our own checkpoint; None where the file is something else."""
    if Path(path).suffix != ".safetensors" or not Path(path).is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except SafetensorError:
        return None  # read_checkpoint says what is wrong with it
    if text is None:
        return None
    header = json.loads(text)
    spec = header["input_spec"]
    unknown = set(spec) - {each.name for each in fields(InputSpec)}
    if unknown:
        raise ValueError(f"{path} was written by a later version: it says {', '.join(sorted(unknown))} of its input")
    spec = {key: tuple(value) if isinstance(value, list) else value for key, value in spec.items()}
    return OwnHeader(
        name=header["name"],
        stream=header["stream"],
        num_classes=header["num_classes"],
        options=header["options"],
        input_spec=InputSpec(**spec),
        class_names=tuple(header["class_names"]),
        tasks=header.get("tasks", {}),  # files of before do not say
        several=header.get("several", False),
    )


def read_own(path: str | Path) -> tuple[dict[str, Tensor], OwnHeader] | None:
    """Tensors and header of our own checkpoint; None where the file is something else."""
    header = read_header(path)
    return None if header is None else (load_file(path), header)
