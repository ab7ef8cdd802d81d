"""The contract of every fusion head: features of streams in, one set of logits per task out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from actionfuse._registry import Registry

from ._options import check_options

FeatureLayout = Literal["map", "sequence"]
_NO_MODULES = nn.ModuleDict()
State = list[tuple[Tensor, ...]]  # of each recurrent unit of a head, whatever it keeps: (layers, B, width) each


@dataclass(frozen=True)
class Instances:
    """Boxes of hands, persons and objects in a batch of clips.

    boxes: float (B, T, N, 4), x1 y1 x2 y2 as shares of the frame's width and height (0..1).
    categories: int64 (B, T, N): 0 nothing there, 1 hand or person, 2 object.
    """

    boxes: Tensor
    categories: Tensor

    def __post_init__(self) -> None:
        boxes, categories = self.boxes, self.categories
        if boxes.ndim != 4 or boxes.shape[-1] != 4 or not boxes.is_floating_point():
            raise ValueError(f"boxes are {boxes.dtype} {tuple(boxes.shape)}; they must be float (B, T, N, 4)")
        if categories.shape != boxes.shape[:3] or categories.dtype != torch.int64:
            raise ValueError(
                f"categories are {categories.dtype} {tuple(categories.shape)}; "
                f"they must be int64 {tuple(boxes.shape[:3])}"
            )
        # on a GPU it would have to be waited for
        if (
            categories.device.type == "cpu"
            and categories.numel()
            and not 0 <= categories.min() <= categories.max() <= 2
        ):
            raise ValueError(
                f"categories go from {categories.min()} to {categories.max()}; "
                "they are 0 nothing there, 1 hand or person, 2 object"
            )

    @property
    def present(self) -> Tensor:
        """bool (B, T, N)."""
        return self.categories > 0


@dataclass
class Output:
    """What a head returns.

    logits: task -> (B, classes).
    losses: name -> scalar, weighted as the paper weights it: to be added to the tasks' losses as it is.
    auxiliary: name -> task -> logits (B, classes) or (B, steps, classes) of classifiers beside the main ones; training
        fits them to the same labels with the head's `auxiliary_weights[name]`, testing may look at them. Those called
        `past/...`, (B, T, classes), are fitted to what was done at each of T observed steps, where a recipe asks.
    extras: name -> what people look at: attention shares, modality weights, predicted boxes. Detached.
    pooled: stream -> (B, D), the mean over space and real steps of what the head got, where a model was asked for it.
    """

    logits: dict[str, Tensor]
    losses: dict[str, Tensor] = field(default_factory=dict)
    auxiliary: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)
    pooled: dict[str, Tensor] = field(default_factory=dict)


class FusionHead(nn.Module):
    """Fuses the feature maps (B, D, T, H, W) or sequences (B, T, D) of streams into logits.

    streams: stream -> D, its feature width, in the caller's order.
    classes: task -> number of classes.
    layout: what the head works on. Every head takes both: where it is "sequence", maps are averaged over space; where
        it is "map", a sequence is a map of one cell.
    needs_boxes: True where `boxes` must be given.
    boxes_suffice: True where the method looks at nothing but boxes: `streams` and `features` may then be empty.
    optional_streams: True where a batch may lack streams (all of their samples), False where each must be there. A
        stream that only some samples lack has masks that are False for them.
    same_steps: True where all streams must have the same T.
    recurrent: True where `step` takes the steps as they come and keeps a hidden state in place of what has passed.
    auxiliary_weights: Output.auxiliary's names -> weight of their loss; 1 where nothing is said.
    main_weight: of the loss of Output.logits; 0 where something auxiliary holds them.
    stepwise: the name in Output.auxiliary of logits (B, S, classes) that are told one entry after the other, the last
        at the end of what is observed; Output.logits are the `told_step`-th from the end. "" where a head tells once.
    name, options: what `create_head` was called with.

    A subclass defines `fuse`; `forward` has checked what it gets. One that is recurrent defines `advance` as well.
    """

    layout: FeatureLayout = "sequence"
    needs_boxes: bool = False
    boxes_suffice: bool = False
    optional_streams: bool = False
    same_steps: bool = False
    recurrent: bool = False
    auxiliary_weights: Mapping[str, float] = {}
    main_weight: float = 1.0
    stepwise: str = ""
    told_step: int = 1
    name: str = ""
    options: Mapping[str, object] = {}

    def __init__(self, *, streams: Mapping[str, int], classes: Mapping[str, int]) -> None:
        super().__init__()
        self.streams, self.classes = dict(streams), dict(classes)
        for what, sizes in (("streams", self.streams), ("classes", self.classes)):
            if not sizes and not (what == "streams" and self.boxes_suffice):
                raise ValueError(f"a head needs {what}: a dictionary of names and sizes, and got none")
            for name, size in sizes.items():
                if not isinstance(name, str) or not name or "." in name or hasattr(_NO_MODULES, name):
                    raise ValueError(
                        f"{what} have the name {name!r}, which cannot name a part of a network: it must be a string "
                        f"that is not empty, has no dot and is not one of nn.ModuleDict's own, such as 'type' or 'keys'"
                    )
                if not isinstance(size, int) or size < 1:
                    raise ValueError(f"{what}[{name!r}] is {size!r}; it must be a positive whole number")

    def forward(
        self,
        features: Mapping[str, Tensor],
        boxes: Instances | None = None,
        masks: Mapping[str, Tensor] | None = None,
        *,
        losses: bool | None = None,
        extras: bool = False,
    ) -> Output:
        """Logits of every task.

        features: stream -> (B, D, T, H, W) or (B, T, D). A head that takes RoI features as well says so.
        masks: stream -> bool (B, T), False where a step is padding or missing; a row without any True is a stream that
            this sample lacks. A stream without a mask is all there. Results are those of the real steps alone; where
            some come first that are not, `mimo` and `query` count these too when they tell which place is which.
        losses: also compute the head's own losses; None = in training mode only.
        extras: also return what people look at. It can cost time (attention weights), so nobody gets it unasked.
        """
        chosen = self._checked(features, boxes)
        checked = self._checked_masks(chosen, masks or {})
        if self.layout == "sequence":
            chosen = {name: as_sequence(x) for name, x in chosen.items()}
        else:
            chosen = {name: as_map(x) for name, x in chosen.items()}
        return self.fuse(chosen, boxes, checked, losses=self.training if losses is None else losses, extras=extras)

    def fuse(
        self,
        features: dict[str, Tensor],
        boxes: Instances | None,
        masks: dict[str, Tensor],
        *,
        losses: bool,
        extras: bool,
    ) -> Output:
        """The head itself. features: in the order of `self.streams`, all of `self.layout`; masks: those given."""
        raise TypeError(f"{type(self).__name__} defines no fuse")

    def step(
        self,
        features: Mapping[str, Tensor],
        state: State | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> tuple[Output, State]:
        """The next steps of sequences that go on: the logits of `forward` over all steps so far, in memory and time
        that do not grow with them.

        features, masks: as in `forward`, of the new steps alone. state: what the last call returned; None = the start.
        Raises: ValueError where the head is not recurrent: it looks at whole sequences.
        """
        if not self.recurrent:
            raise ValueError(
                f"head {self.name or type(self).__name__!r} looks at whole sequences, so no state can stand for what "
                "has passed; give it the last steps with forward"
            )
        chosen = {name: as_sequence(x) for name, x in self._checked(features, None).items()}
        return self.advance(chosen, self._checked_masks(chosen, masks or {}), state)

    def advance(
        self, features: dict[str, Tensor], masks: dict[str, Tensor], state: State | None
    ) -> tuple[Output, State]:
        """`step` itself. features: sequences (B, T, D)."""
        raise TypeError(f"{type(self).__name__} defines no advance")

    def _checked(self, features: Mapping[str, Tensor], boxes: Instances | None) -> dict[str, Tensor]:
        for name in features:
            if name not in self.streams:
                near = get_close_matches(name, self.streams, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(f"no stream of this head is named {name!r}; {hint}it fuses {', '.join(self.streams)}")
        missing = [name for name in self.streams if name not in features]
        if missing and not self.boxes_suffice and (len(missing) == len(self.streams) or not self.optional_streams):
            raise ValueError(
                f"features of {', '.join(map(repr, missing))} are missing; this head needs {', '.join(self.streams)}"
                + (" (any of them)" if self.optional_streams else "")
            )
        chosen = {name: features[name] for name in self.streams if name in features}
        batch: dict[str, int] = {}
        steps: dict[str, int] = {}
        for name, x in chosen.items():
            axis = self._width_axis(name, x)
            if not x.is_floating_point() or x.shape[axis] != self.streams[name] or 0 in x.shape:
                wanted = {2: "(B, T, {0})", 1: "(B, {0}, T, H, W)", 3: "(B, T, N, {0}, s, s)"}[axis]
                raise ValueError(
                    f"stream {name!r} is {x.dtype} {tuple(x.shape)}; it must be float "
                    + wanted.format(self.streams[name])
                )
            batch[name], steps[name] = x.shape[0], x.shape[2 if axis == 1 else 1]
        if len(set(batch.values())) > 1:
            raise ValueError(f"the streams have different batches: {_sizes(batch)}")
        if self.same_steps and len(set(steps.values())) > 1:
            raise ValueError(
                f"{type(self).__name__} needs the same number of steps in all streams; it got {_sizes(steps)}"
            )
        if boxes is None and self.needs_boxes:
            raise ValueError(f"{type(self).__name__} needs boxes: pass boxes=Instances(boxes, categories)")
        if boxes is not None and batch and boxes.boxes.shape[0] not in batch.values():
            raise ValueError(f"boxes are {tuple(boxes.boxes.shape)} but the streams' batch is {_sizes(batch)}")
        return chosen

    def _width_axis(self, name: str, x: Tensor) -> int:
        """Where D stands in this stream's features. Heads that eat RoI features (B, T, N, D, s, s) say so here."""
        if x.ndim not in (3, 5):
            width = self.streams[name]
            raise ValueError(
                f"stream {name!r} is {tuple(x.shape)}; "
                f"it must be a sequence (B, T, {width}) or a map (B, {width}, T, H, W)"
            )
        return 2 if x.ndim == 3 else 1

    def _checked_masks(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for name, mask in masks.items():
            if name not in self.streams:
                raise ValueError(f"a mask is for {name!r}; this head fuses {', '.join(self.streams)}")
            if name not in features:
                continue
            x = features[name]
            wanted = (x.shape[0], x.shape[2] if self._width_axis(name, x) == 1 else x.shape[1])
            if mask.dtype != torch.bool or tuple(mask.shape) != wanted:
                raise ValueError(f"the mask of {name!r} is {mask.dtype} {tuple(mask.shape)}; it must be bool {wanted}")
        return {name: masks[name] for name in features if name in masks}


def as_sequence(x: Tensor) -> Tensor:
    """A map (B, D, T, H, W) averaged over space, as (B, T, D); anything else as it is."""
    return x.mean((3, 4)).transpose(1, 2) if x.ndim == 5 else x


def as_map(x: Tensor) -> Tensor:
    """A sequence (B, T, D) as a map (B, D, T, 1, 1); anything else as it is."""
    return x.transpose(1, 2)[..., None, None] if x.ndim == 3 else x


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over T of a sequence (B, T, D), of the steps where mask (B, T) is True; zeros where it never is."""
    if mask is None:
        return x.mean(1)
    # `where` and not a product: what stands in a masked step may be NaN
    kept = torch.where(mask[..., None], x, torch.zeros((), dtype=x.dtype, device=x.device))
    return kept.sum(1) / mask.sum(1, keepdim=True).clamp(min=1).to(x.dtype)


def one_of(option: str, value: object, choices: Sequence[str]) -> None:
    """ValueError unless the option's value is one of its choices."""
    if value not in choices:
        raise ValueError(f"{option} is {value!r}; it is {' or '.join(map(repr, choices))}")


def _sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())


@dataclass(frozen=True, kw_only=True)
class HeadCard:
    """What is told about a registered head without building it. paper: first author, venue and year."""

    paper: str
    summary: str


Maker = TypeVar("Maker", bound=Callable[..., FusionHead])
HEADS: Registry[FusionHead] = Registry("head")
CARDS: dict[str, HeadCard] = {}


def register(name: str, *, paper: str, summary: str) -> Callable[[Maker], Maker]:
    """Decorator of the class or function that builds a head from `streams`, `classes` and its own keyword options."""

    def remember(make: Maker) -> Maker:
        HEADS.register(name)(make)
        CARDS[name] = HeadCard(paper=paper, summary=summary)
        return make

    return remember


def create_head(name: str, *, streams: Mapping[str, int], classes: Mapping[str, int], **options: object) -> FusionHead:
    """Make a fusion head.

    name: a registered name (`list_heads()`).
    streams: stream -> width of its features, for instance {"rgb": 1024, "flow": 1024}. The order counts where the
        head's method has an order.
    classes: task -> number of classes, for instance {"verb": 97, "noun": 300}.
    options: keyword options of the head, listed by its docstring and by `actionfuse models --heads`.

    Raises ValueError for an unknown name or option, which says what there is, and for a value that is not allowed.
    """
    make = HEADS[name]
    known = dict(head_options(name))
    for option in options:
        if option not in known:
            near = get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(known)) or 'none'}"
            raise ValueError(f"head {name!r} has no option {option!r}; {hint}")
    check_options(name, make, options)
    head = make(streams=streams, classes=classes, **options)
    head.name, head.options = name, dict(options)
    return head


def head_options(name: str) -> Iterator[tuple[str, object]]:
    """(option, default) of a head's own keyword options."""
    for option in inspect.signature(HEADS[name]).parameters.values():
        if option.name not in ("streams", "classes"):
            yield option.name, option.default


def list_heads(pattern: str = "*") -> list[str]:
    """Registered names that match a shell pattern, sorted."""
    return HEADS.names(pattern)
