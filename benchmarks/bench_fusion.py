"""What fusion heads do about speed, as ratios to the plain way of computing the same.

    bench_fusion.py [NAMES ...] [--device cuda] [--rounds 9]      without names: all of them

Contenders of one comparison compute the same from the same tensors; one run is a forward and a backward pass. They take
turns, in a new order in each round, and figures are ratios within a round: the time of the first contender, the plain
one, to that of the others. On a GPU: bfloat16 weights and features, T 64, D 1024, B 32; on a CPU: float32 and smaller.

A comparison is a function that gets a Setting and returns Comparisons, and a line in COMPARISONS.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from _common import save, table
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes of the features (B, T, D) and where they are."""

    device: str
    dtype: torch.dtype
    batch: int
    steps: int
    width: int

    def sequence(self, width: int | None = None) -> Tensor:
        """Random features (B, T, D) that want a gradient, as those of a trained backbone do."""
        shape = (self.batch, self.steps, width or self.width)
        return torch.randn(shape, device=self.device, dtype=self.dtype, requires_grad=True)

    def place(self, module: nn.Module) -> nn.Module:
        """The module on the device in the dtype, in training mode."""
        return module.to(self.device, self.dtype).train()


GPU = Setting(device="cuda", dtype=torch.bfloat16, batch=32, steps=64, width=1024)
CPU = Setting(device="cpu", dtype=torch.float32, batch=8, steps=16, width=256)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """contenders: name -> one run, forward and backward; the first is the plain one that others are compared with.

    wanted: name -> the ratio that is aimed at; below 1 where a contender does more than the plain one.
    """

    title: str
    contenders: dict[str, Callable[[], object]]
    wanted: dict[str, float]


# --- comparisons: one function each


def interactive_pairs(setting: Setting) -> list[Comparison]:
    """Messages of every ordered pair of 4 instances by its kind (`interactive`, equation 2), as the public code has it:
    a Linear for each kind over all pairs, the pairs of other kinds set to zero."""
    from actionfuse.fusion.interactive import PAIR_KINDS, CompositionalReasoning

    width, kinds_number = setting.width, len(PAIR_KINDS)
    reasoning = CompositionalReasoning(width, variant="released")
    setting.place(reasoning)
    shape = (setting.batch, setting.steps, 4)
    joint = torch.randn(*shape, width, device=setting.device, dtype=setting.dtype, requires_grad=True)
    kinds = reasoning.kinds_of(torch.randint(0, 3, shape, device=setting.device))
    halves = reasoning.pairs.weight.detach().view(2, kinds_number, width, width)
    weights = [torch.cat([*half], 1).clone().requires_grad_() for half in halves.unbind(1)]

    def plain() -> None:
        wide = (*shape, 4, width)
        pairs = torch.cat([joint[..., :, None, :].expand(wide), joint[..., None, :, :].expand(wide)], -1)
        total = joint.new_zeros(())
        for number, weight in enumerate(weights):
            of_kind = pairs * (kinds == number)[..., None]
            total = total + nn.functional.linear(of_kind, weight).relu()
        total.sum(-2).sum().backward()

    def ours() -> None:
        reasoning.messages(joint, kinds).sum(-2).sum().backward()

    return [
        Comparison(
            title="interactive: messages of pairs",
            contenders={"a Linear for each kind over all pairs": plain, "interactive": ours},
            wanted={"interactive": 1.5},
        )
    ]


def mimo(setting: Setting) -> list[Comparison]:
    """Training of `mimo` and of `query`, the same without the allocating loss; three streams, verbs and nouns."""
    from actionfuse.fusion import create_head

    streams = dict.fromkeys(("rgb", "flow", "audio"), setting.width)
    classes = {"verb": 97, "noun": 300}
    labels = {task: torch.randint(0, n, (setting.batch,), device=setting.device) for task, n in classes.items()}
    shape = (setting.batch, setting.width, max(1, setting.steps // 8), 7, 7)
    maps = {
        stream: torch.randn(shape, device=setting.device, dtype=setting.dtype, requires_grad=True) for stream in streams
    }
    sequences = {stream: setting.sequence() for stream in streams}

    def training(name: str, features: dict[str, Tensor], depth: int) -> Callable[[], None]:
        options = {"width": setting.width, "heads": 8, "depth": depth, "block": "encoder" if depth > 1 else "attention"}
        head = setting.place(create_head(name, streams=streams, classes=classes, **options))

        def run() -> None:
            output = head(features)
            loss = sum(output.losses.values(), torch.zeros((), device=setting.device))
            for logits in (output.logits, *output.auxiliary.values()):
                for task, x in logits.items():
                    loss = loss + nn.functional.cross_entropy(x, labels[task])
            loss.backward()

        return run

    return [
        Comparison(
            title=title,
            contenders={
                "without the allocating loss": training("query", features, depth),
                "with it": training("mimo", features, depth),
            },
            wanted={"with it": 1 / 1.3},
        )
        for title, features, depth in (
            (f"MIMO, sequences of {setting.steps} steps", sequences, 1),
            (f"MIMO, maps of {shape[2]} x 7 x 7", maps, 1),
            (f"MIMO, maps of {shape[2]} x 7 x 7, two encoder layers", maps, 2),
        )
    ]


COMPARISONS: dict[str, Callable[[Setting], list[Comparison]]] = {
    # one line each: name on the command line -> function
    "interactive_pairs": interactive_pairs,
    "mimo": mimo,
}


# --- measuring


def seconds_of(run: Callable[[], object], calls: int, device: str) -> float:
    """Seconds of one run, the mean of `calls`."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(calls):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / calls


def measure(comparison: Comparison, rounds: int, device: str, least_seconds: float = 0.2) -> dict[str, list[float]]:
    """Seconds of each contender, one entry a round; a turn is as many runs as take `least_seconds`."""
    calls = {}
    for name, run in comparison.contenders.items():
        for _ in range(3):  # compiling, choosing kernels, first allocations
            run()
        calls[name] = max(1, round(least_seconds / seconds_of(run, 2, device)))
    found: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(rounds):
        for name in order:
            found[name].append(seconds_of(comparison.contenders[name], calls[name], device))
        order = order[1:] + order[:1]
    return found


def report(comparison: Comparison, found: dict[str, list[float]]) -> str:
    plain, *_ = found
    rows = []
    for name, seconds in found.items():
        ratios = [a / b for a, b in zip(found[plain], seconds, strict=True)]
        told = f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f}..{max(ratios):.2f})" if name != plain else "1"
        aim = comparison.wanted.get(name)
        rows.append([name, f"{1000 * statistics.median(seconds):.2f}", told, "" if aim is None else f">= {aim:g}"])
    return f"### {comparison.title}\n\n{table(['', 'ms', 'times as fast', 'aim'], rows)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAMES", help=f"of {', '.join(COMPARISONS)}")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    if unknown := set(args.names) - set(COMPARISONS):
        parser.error(f"nothing is called {', '.join(sorted(unknown))}; there are {', '.join(COMPARISONS)}")
    setting = GPU if args.device == "cuda" else CPU
    torch.manual_seed(0)
    parts = []
    for name in args.names or COMPARISONS:
        parts.append(f"## {name}\n")
        for comparison in COMPARISONS[name](setting):
            parts.append(report(comparison, measure(comparison, args.rounds, args.device)))
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    head = f"{where}, {str(setting.dtype).removeprefix('torch.')}, B {setting.batch}, T {setting.steps}, "
    save(
        f"fusion-{args.device}", "Fusion heads", "\n".join([f"{head}D {setting.width}, {args.rounds} rounds\n", *parts])
    )


if __name__ == "__main__":
    main()
