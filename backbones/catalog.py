"""Rows of `actionfuse models`: what every backbone eats, costs and gives. train/catalog.py explains the columns."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from dataclasses import asdict, dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from .contract import BACKBONES, CARDS, Backbone, create_backbone, list_backbones

# More networks of a library than this are listed by name alone: building one takes about half a second.
_MOST_BUILT = 20


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row; the numbers are those of the rgb input that the name eats by itself, None where it was not built.

    frames, crop, fps: the input. parameters: without classifier. gmacs: of one clip.
    feature_dim, map_size: D and (T', H', W').
    """

    name: str
    paper: str
    streams: tuple[str, ...]
    weights_from: str
    frames: int | None = None
    crop: int | None = None
    fps: float | None = None
    parameters: int | None = None
    gmacs: float | None = None
    feature_dim: int | None = None
    map_size: tuple[int, int, int] | None = None


def count_macs(backbone: Backbone, frames: int, height: int, width: int) -> int:
    """Multiply-adds of one clip (convolutions, matrix products, attention), for a backbone on the meta device."""
    clips = torch.empty(1, backbone.input_spec.channels, frames, height, width, device="meta")
    # fvcore traces with torch.jit, which convolutions on the meta device do not survive; on real tensors both agree
    # but for the normalisation layers, which fvcore counts as well (about half a percent).
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(clips)
    return counter.get_total_flops() // 2


def describe(name: str, *, build: bool = True) -> Entry:
    """The row of one name; `build` makes it on the meta device, without memory or numbers."""
    card = CARDS[name.partition(":")[0]]
    told = {"name": name, "paper": card.paper, "streams": card.streams, "weights_from": card.weights_from}
    if not build or name.endswith(":NETWORK"):
        return Entry(**told)
    with torch.device("meta"):
        backbone = create_backbone(name)
    spec = backbone.input_spec
    size = (spec.frames, spec.crop, spec.crop)
    return Entry(
        **told,
        frames=spec.frames,
        crop=spec.crop,
        fps=spec.fps,
        parameters=sum(each.numel() for each in backbone.parameters()),
        gmacs=round(count_macs(backbone, *size) / 1e9, 3),
        feature_dim=backbone.feature_dim,
        map_size=backbone.output_size(*size),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pattern", nargs="?", default="*", metavar="PATTERN", help="shell pattern of names (default: *)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    parser.add_argument(
        "--flops",
        action="store_true",
        help=f"build and count all that match, about 0.5 s each (default: library networks only up to {_MOST_BUILT})",
    )


def main(args: argparse.Namespace) -> int:
    names = list_backbones(args.pattern)
    if not names:
        near = list_backbones(f"{args.pattern}*")
        hint = f"'{args.pattern}*' does: {', '.join(near)}" if near else f"there are {', '.join(list_backbones())}"
        raise ValueError(f"no backbone matches {args.pattern!r}; {hint}")
    build = args.flops or ":" not in args.pattern or len(names) <= _MOST_BUILT
    columns = f"{{:{max(map(len, names))}}}  {{:>14}}  {{:>8}}  {{:>7}}  {{:>8}}  {{:>8}}  {{:27}}  {{}}"
    if not args.json:
        print(columns.format("name", "input", "M params", "GMAC", "features", "map", "streams", "paper"))
    failed = []
    for name in names:
        try:
            entry = describe(name, build=build)
        except ValueError as error:  # a network of the library that gives no map
            failed.append(str(error))
            entry = describe(name, build=False)
        print(json.dumps(asdict(entry)) if args.json else columns.format(*_cells(entry)).rstrip(), flush=True)
    if len(names) == 1 and not args.json:
        _print_details(names[0])
    if not build:
        print(
            f"{len(names)} networks; narrow the pattern to {_MOST_BUILT} or give --flops to build all", file=sys.stderr
        )
    for problem in failed:
        print(problem, file=sys.stderr)
    return 1 if failed else 0


def _cells(entry: Entry) -> list[str]:
    told = [" ".join(entry.streams), entry.paper]
    if entry.parameters is None or entry.gmacs is None or entry.map_size is None:
        return [entry.name, *"-----", *told]
    rate = "all" if entry.fps is None else f"{entry.fps:g}/s"
    return [
        entry.name,
        f"{entry.frames}x{entry.crop} @ {rate}",
        f"{entry.parameters / 1e6:.1f}",
        f"{entry.gmacs:.1f}",
        str(entry.feature_dim),
        "x".join(map(str, entry.map_size)),
        *told,
    ]


def _print_details(name: str) -> None:
    family = name.partition(":")[0]
    skipped = {"network", "stream", "num_classes", "weights"}
    parameters = inspect.signature(BACKBONES[family]).parameters.values()
    options = [f"{each.name}={each.default!r}" for each in parameters if each.name not in skipped]
    print(f"options: {', '.join(options) or 'none'}")
    print(f"weights: {CARDS[family].weights_from}")
