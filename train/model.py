"""ActionModel: a backbone per stream, or its stored features, and one fusion head; saved and loaded as one folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from actionfuse._files import write_atomically

from ..backbones import Backbone, InputSpec, create_backbone
from ..fusion import FusionHead, Instances, Output, State, create_head
from ..fusion.contract import as_sequence, masked_mean
from .transition import Transitions

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = 1
LAST = "last/"  # before a task: of the action that was seen last, which only training asks for (`loss.last_action`)


def head_classes(classes: Mapping[str, int], last_action: bool) -> dict[str, int]:
    """task -> classes of a head that is to name the action seen last as well."""
    return {**classes, **({LAST + task: count for task, count in classes.items()} if last_action else {})}


def _of_last(by_task: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {LAST + task: value for task, value in by_task.items()}


def asked(by_task: Mapping[str, Any]) -> dict[str, Any]:
    """What is there for the tasks of the recipe."""
    return {task: value for task, value in by_task.items() if not task.startswith(LAST)}


class ActionModel(nn.Module):
    """Clips or stored features of several streams to logits of every task.

    backbones: stream -> backbone; streams of the head without one are fed with stored features.
    class_names: task -> names by class number, where they are known.
    transition: the head names what was seen last, and a table leads from there to what comes next (transition.py).
    """

    def __init__(
        self,
        backbones: Mapping[str, Backbone],
        head: FusionHead,
        class_names: Mapping[str, tuple[str, ...]] | None = None,
        *,
        transition: bool = False,
    ) -> None:
        super().__init__()
        for stream, backbone in backbones.items():
            if stream not in head.streams:
                raise ValueError(f"a backbone is for {stream!r}, but the head fuses {', '.join(head.streams)}")
            if backbone.feature_dim != head.streams[stream]:
                raise ValueError(
                    f"the head expects {head.streams[stream]} channels of {stream!r}; its backbone gives "
                    f"{backbone.feature_dim}"
                )
        self.backbones, self.head = nn.ModuleDict(backbones), head
        self.class_names = {task: tuple(names) for task, names in (class_names or {}).items()}
        self.transition = Transitions(head.classes) if transition else None
        self.frozen: set[str] = set()
        self._in_eval: list[nn.Module] = []  # parts of backbones that stay in eval mode while the rest trains

    @property
    def input_specs(self) -> dict[str, InputSpec]:
        """stream -> what its backbone eats, for streams that have one."""
        return {stream: backbone.input_spec for stream, backbone in self._backbones()}

    @property
    def classes(self) -> dict[str, int]:
        """task -> number of classes, of the tasks that tests and predictions tell."""
        return asked(self.head.classes)

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        boxes: Instances | None = None,
        masks: Mapping[str, Tensor] | None = None,
        *,
        losses: bool | None = None,
        extras: bool = False,
        pooled: bool = False,
    ) -> Output:
        """Logits of every task; see FusionHead.forward for the rest.

        inputs: stream -> clips (B, T, H, W, C) as the pipeline gives them (uint8 or float, see InputSpec.normalise),
            or, for streams without a backbone, features (B, D, T, H, W) or (B, T, D).
        masks: stream -> bool (B, T) over the entries of its input; a step of a feature map is there where any of the
            entries that it covers is.
        pooled: also return the streams' mean features.
        """
        features, kept = self._features(inputs, masks)
        output = self.head(features, boxes, kept, losses=losses, extras=extras)
        if self.transition is not None:
            output.auxiliary = {name: _of_last(logits) for name, logits in output.auxiliary.items()}
            output.logits = {**self.transition(output.logits), **_of_last(output.logits)}
        if not (self.training if losses is None else losses):
            output.logits = asked(output.logits)
            output.auxiliary = {name: told for name, each in output.auxiliary.items() if (told := asked(each))}
        if pooled:
            output.pooled = {stream: masked_mean(as_sequence(x), kept.get(stream)) for stream, x in features.items()}
        return output

    def step(
        self, inputs: Mapping[str, Tensor], state: State | None = None, masks: Mapping[str, Tensor] | None = None
    ) -> tuple[Output, State]:
        """The next entries of streams that go on; inputs and masks as in `forward`, the rest as in FusionHead.step."""
        features, kept = self._features(inputs, masks)
        output, state = self.head.step(features, state, kept)
        output.logits = asked(output.logits) if self.transition is None else self.transition(output.logits)
        return output, state

    def _features(
        self, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        features, kept = {}, dict(masks or {})
        for stream, x in inputs.items():
            if stream not in self.backbones:
                features[stream] = x
                continue
            features[stream] = self.encode(stream, x)
            if stream in kept:
                kept[stream] = mask_of_steps(kept[stream], features[stream].shape[2])
        return features, kept

    def encode(self, stream: str, clips: Tensor) -> Tensor:
        """Feature map (B, D, T', H', W') of a stream's clips (B, T, H, W, C)."""
        backbone: Any = self.backbones[stream]
        with torch.set_grad_enabled(torch.is_grad_enabled() and stream not in self.frozen):
            return backbone(backbone.input_spec.normalise(clips))

    def freeze(self, *streams: str) -> None:
        """Leave these backbones as they are: no gradients, always in eval mode."""
        for stream in streams:
            if stream not in self.backbones:
                raise ValueError(
                    f"no backbone is there for {stream!r}; there are {', '.join(self.backbones) or 'none'}"
                )
            self.backbones[stream].requires_grad_(False).eval()
        self.frozen |= set(streams)

    def freeze_stages(self, stream: str, count: int) -> None:
        """Leave the first stages of a backbone as they are, their norms in eval mode; see Backbone.stages."""
        backbone: Any = self.backbones[stream]
        backbone.freeze_stages(count)
        self._in_eval += [module for modules in backbone.stages()[:count] for module in modules]
        self.train(self.training)

    def partial_bn(self, stream: str) -> None:
        """All batch norms of a backbone but the first keep statistics and weights (TSN, Wang et al., ECCV 2016)."""
        norms = [m for m in self.backbones[stream].modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms[1:]:
            norm.requires_grad_(False)
        self._in_eval += norms[1:]
        self.train(self.training)

    def synchronise_norms(self) -> None:
        """Make batch norms measure over all processes (`nn.SyncBatchNorm`), in place, their tensors the same."""
        kept = [name for name, module in self.named_modules() if any(module is each for each in self._in_eval)]
        # timm's: torch's own loses the activation of norms that have one
        convert_sync_batchnorm(self)
        self._in_eval = [self.get_submodule(name) for name in kept]

    def train(self, mode: bool = True) -> ActionModel:
        super().train(mode)
        for stream in self.frozen:
            self.backbones[stream].eval()
        for module in self._in_eval:
            module.eval()
        return self

    def _backbones(self) -> list[tuple[str, Backbone]]:
        return list(self.backbones.items())  # pyright: ignore[reportReturnType]


def mask_of_steps(mask: Tensor, steps: int) -> Tensor:
    """bool (B, T) of entries -> bool (B, steps) of a feature map's steps: True where any entry that it covers is."""
    entries = mask.shape[1]
    if entries == steps:
        return mask
    # Entry i falls into step floor(i * steps / entries); maps longer than the clip take the nearest entry.
    if steps > entries:
        return mask[:, torch.arange(steps, device=mask.device) * entries // steps]
    step = torch.arange(entries, device=mask.device) * steps // entries
    counts = torch.zeros(len(mask), steps, device=mask.device).index_add_(1, step, mask.float())
    return counts > 0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What builds the model that holds a file's weights: `config.json`.

    backbones: stream -> name, stream, options and the input spec that the weights were trained with.
    task: what was observed in training, as `Recipe.task` says it; clips: how each stream was cut.
    """

    backbones: dict[str, dict[str, Any]]
    head: dict[str, Any]
    class_names: dict[str, list[str]]
    task: dict[str, Any] = field(default_factory=dict)
    clips: dict[str, dict[str, Any]] = field(default_factory=dict)
    transition: bool = False
    format: int = FORMAT


def config_of(model: ActionModel, **further: Any) -> ModelConfig:
    """The config of a model whose parts were made by `create_backbone` and `create_head`."""
    head = model.head
    if not head.name:
        raise ValueError(f"this {type(head).__name__} has no name to be built by; make it with create_head")
    backbones = {}
    for stream, backbone in model._backbones():
        if not backbone.name:
            raise ValueError(f"the backbone of {stream!r} has no name to be built by; make it with create_backbone")
        backbones[stream] = {
            "name": backbone.name,
            "stream": backbone.input_spec.stream,
            "num_classes": backbone.num_classes,
            "options": dict(backbone.options),
            "input_spec": asdict(backbone.input_spec),
        }
    return ModelConfig(
        backbones=backbones,
        head={"name": head.name, "streams": head.streams, "classes": head.classes, "options": dict(head.options)},
        class_names={task: list(names) for task, names in model.class_names.items()},
        transition=model.transition is not None,
        **further,
    )


def build_from_config(config: ModelConfig) -> ActionModel:
    """The model with random weights."""
    backbones = {}
    for stream, made in config.backbones.items():
        backbone = create_backbone(
            made["name"], stream=made["stream"], num_classes=made["num_classes"], **made["options"]
        )
        spec: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in made["input_spec"].items()
        }
        backbone.input_spec = InputSpec(**spec)
        backbones[stream] = backbone
    head = create_head(
        config.head["name"], streams=config.head["streams"], classes=config.head["classes"], **config.head["options"]
    )
    names = {task: tuple(each) for task, each in config.class_names.items()}
    return ActionModel(backbones, head, names, transition=config.transition)


def state_of(model: ActionModel) -> dict[str, Tensor]:
    """Parameters and buffers as safetensors takes them: on the CPU, contiguous, no two names for one memory."""
    return {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}


def save_model(model: ActionModel, folder: str | Path, config: ModelConfig | None = None) -> None:
    """Write `model.safetensors` and `config.json`; each is there whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(config or config_of(model)), indent=1)
    write_atomically(folder / WEIGHTS, save(state_of(model), metadata={"format": "pt"}))
    write_atomically(folder / CONFIG, text.encode())


def load_model(run_or_folder: str | Path) -> ActionModel:
    """The model of a run (its best checkpoint, else its last) or of a folder that `save_model` wrote; in eval mode.

    Raises: ValueError where nothing is there or the weights do not fit.
    """
    folder = find_model(Path(run_or_folder))
    config = read_config(folder)
    model = build_from_config(config)
    missing, unexpected = model.load_state_dict(load_file(folder / WEIGHTS), strict=False)
    if missing or unexpected:
        raise ValueError(
            f"{folder / WEIGHTS} does not fit its {CONFIG}: missing {', '.join(missing[:8]) or 'nothing'}; "
            f"left over {', '.join(unexpected[:8]) or 'nothing'}"
        )
    return model.eval()


def read_config(folder: Path) -> ModelConfig:
    """`config.json` of a folder with a model."""
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if content.get("format") != FORMAT:
        raise ValueError(f"{folder / CONFIG} has format {content.get('format')!r}; this version reads {FORMAT}")
    return ModelConfig(**content)


def checkpoints(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, the newest first, whole or not."""
    found = [path for path in run.glob("checkpoints/step-*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def find_model(path: Path) -> Path:
    """The folder that holds model.safetensors: the path itself, the run's `best`, or its newest checkpoint."""
    path = path.parent if path.name == WEIGHTS else path
    if path.is_symlink() and not path.exists():
        raise ValueError(
            f"{path} is a link to {path.readlink()}, which is not there; a run's best is such a link: copy what it "
            "leads to, by cp -rL"
        )
    for folder in (path, path / "best", *checkpoints(path)):
        if (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file():
            return folder
    raise ValueError(
        f"{path} holds no model: there is no {WEIGHTS} with a {CONFIG} in it, its best/ or its checkpoints/"
    )
