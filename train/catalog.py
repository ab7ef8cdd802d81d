"""What backbones and fusion heads there are, what they eat, cost and give.

  actionfuse models                     all backbones
  actionfuse models 'swin3d*'           those that match a shell pattern
  actionfuse models 'tsn:resnet*'       networks of the library behind a family
  actionfuse models i3d                 one of them, with its options and the checkpoints that it loads
  actionfuse models --heads             all fusion heads with paper, options and defaults
  actionfuse models --heads 'mif*'      those that match; a single one with the values that its options may take

Backbones: input is T x crop @ entries a second (all = every frame); features is the width D, map is T' x H' x W'.
GMAC are 1e9 multiply-adds of one clip through convolutions, matrix products and attention, without the classifier: the
number that papers mostly print as GFLOPs. One multiply-add is two floating-point operations.
Heads: M params are those of rgb and flow, 1024 channels each, with 97 verbs and 300 nouns, and the default options. A
head takes maps and sequences; "works on" is what it turns them into. Streams and classes are the caller's.
"""

from __future__ import annotations

import argparse
import inspect
import json
import textwrap
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, get_origin

import torch

from ..backbones import catalog as backbones
from ..backbones import list_backbones
from ..fusion import create_head, list_heads
from ..fusion.contract import CARDS, HEADS

EXAMPLE_STREAMS = {"rgb": 1024, "flow": 1024}
EXAMPLE_CLASSES = {"verb": 97, "noun": 300}


@dataclass(frozen=True, kw_only=True)
class Option:
    """One keyword option of a head. choices: what it may be, where that is a short list."""

    name: str
    default: Any
    choices: tuple[object, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HeadEntry:
    """One head; the numbers are those of the example above, None where the head cannot be made for it.

    layout: "map" or "sequence". needs_boxes, optional_streams, same_steps: see FusionHead.
    """

    name: str
    paper: str
    summary: str
    options: tuple[Option, ...]
    layout: str | None = None
    needs_boxes: bool | None = None
    optional_streams: bool | None = None
    same_steps: bool | None = None
    parameters: int | None = None


def describe_head(name: str) -> HeadEntry:
    """The row of one head, made on the meta device, without memory or numbers."""
    card = CARDS[name]
    options = tuple(
        Option(name=each.name, default=each.default, choices=_choices(each.annotation))
        for each in inspect.signature(HEADS[name], eval_str=True).parameters.values()
        if each.name not in ("streams", "classes")
    )
    told = {"name": name, "paper": card.paper, "summary": card.summary, "options": options}
    try:
        with torch.device("meta"):
            head = create_head(name, streams=EXAMPLE_STREAMS, classes=EXAMPLE_CLASSES)
    except ValueError:  # it wants other streams than those of the example
        return HeadEntry(**told)
    return HeadEntry(
        **told,
        layout=head.layout,
        needs_boxes=head.needs_boxes,
        optional_streams=head.optional_streams,
        same_steps=head.same_steps,
        parameters=sum(each.numel() for each in head.parameters()),
    )


def _choices(annotation: Any) -> tuple[object, ...]:
    """What a Literal allows, alone or in a union with None."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    found = [_choices(each) for each in get_args(annotation)]
    found = [each for each in found if each]
    return (*found[0], None) if len(found) == 1 and type(None) in get_args(annotation) else ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    backbones.add_arguments(parser)
    parser.add_argument("--heads", action="store_true", help="fusion heads instead of backbones")


def main(args: argparse.Namespace) -> int:
    if not args.heads:
        if not list_backbones(args.pattern) and list_heads(args.pattern):
            raise ValueError(f"no backbone matches {args.pattern!r}, but a fusion head does: add --heads")
        return backbones.main(args)
    if args.flops:
        raise ValueError("--flops counts those of backbones; leave it out with --heads")
    names = list_heads(args.pattern)
    if not names:
        raise ValueError(f"no head matches {args.pattern!r}; there are {', '.join(list_heads())}")
    entries = [describe_head(name) for name in names]
    if args.json:
        for entry in entries:
            print(json.dumps(asdict(entry), default=str))
        return 0
    columns = f"{{:{max(map(len, names))}}}  {{:>8}}  {{:9}}  {{:5}}  {{}}"
    print(columns.format("name", "M params", "works on", "boxes", "paper"))
    for entry in entries:
        millions = "-" if entry.parameters is None else f"{entry.parameters / 1e6:.2f}"
        boxes = "-" if entry.needs_boxes is None else "yes" if entry.needs_boxes else "no"
        print(columns.format(entry.name, millions, entry.layout or "-", boxes, entry.paper).rstrip())
        print(f"    {entry.summary}")
        if len(entries) > 1:
            options = ", ".join(f"{each.name}={each.default!r}" for each in entry.options)
            print(
                textwrap.fill(f"options: {options or 'none'}", 110, initial_indent=" " * 4, subsequent_indent=" " * 8)
            )
    if len(entries) == 1:
        _print_details(entries[0])
    return 0


def _print_details(entry: HeadEntry) -> None:
    if entry.optional_streams is not None:
        print(f"a batch may lack streams: {'yes' if entry.optional_streams else 'no'}")
        print(f"streams must have the same number of steps: {'yes' if entry.same_steps else 'no'}")
    print("options:" if entry.options else "options: none")
    for each in entry.options:
        allowed = f"  ({' | '.join(map(repr, each.choices))})" if each.choices else ""
        print(f"    {each.name}={each.default!r}{allowed}")
