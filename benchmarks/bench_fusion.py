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
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from _common import save, table
from torch import Tensor, nn

from actionfuse.fusion.attention import MultiHeadAttention
from actionfuse.fusion.mif import DMF, MIFParallel, mif_parallel
from actionfuse.fusion.mif_stages import DPES, sinusoids

Placed = TypeVar("Placed", bound=nn.Module)


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

    def place(self, module: Placed) -> Placed:
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

    streams: dict[str, int] = dict.fromkeys(["rgb", "flow", "audio"], setting.width)
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


def mcu(setting: Setting) -> list[Comparison]:
    """M-Mixer's units of two streams, d_h 512, from features and contents to the last hidden states: beside a cell of
    separate layers that is called for each stream and step, as equations 7 to 14 are written."""
    from actionfuse.fusion.mmixer import MCU

    width = 512

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = (setting.width, setting.width, 2 * width, width, width, width)
            self.layers = nn.ModuleList(nn.Linear(size, width, bias=False) for size in sizes)
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in sizes)

        def product(self, number: int, x: Tensor) -> Tensor:
            return self.norms[number](self.layers[number](x))

        def content(self, x: Tensor) -> Tensor:
            return self.product(1, x).tanh()

        def forward(self, x: Tensor, content: Tensor, hidden: Tensor) -> Tensor:
            feature = self.product(0, x).tanh()
            share = self.product(2, torch.cat([feature, content], -1)).sigmoid()
            mixed = share * feature + (1 - share) * content
            reset = self.product(3, mixed + hidden).sigmoid()
            update = self.product(4, mixed + hidden).sigmoid()
            new = self.product(5, reset * hidden + mixed).tanh()
            return update * new + (1 - update) * hidden

    features = [setting.sequence() for _ in range(2)]
    cells = [setting.place(Cell()) for _ in features]

    def loop(*, content_once: bool) -> None:
        last = []
        for cell, x, other in zip(cells, features, features[::-1], strict=True):
            summary = other.mean(1)
            content = cell.content(summary)
            hidden = x.new_zeros(setting.batch, width)
            for step in x.unbind(1):
                hidden = cell(step, content if content_once else cell.content(summary), hidden)
            last.append(hidden)
        torch.stack(last).sum().backward()

    units = setting.place(MCU([setting.width] * 2, [setting.width] * 2, width))

    def ours(units: Callable[..., tuple[list[Tensor], Tensor | None]]) -> None:
        units(features, [x.mean(1) for x in features[::-1]])[0][-1].sum().backward()

    contenders: dict[str, Callable[[], object]] = {
        "a cell for each stream and step": lambda: loop(content_once=False),
        "the same, content projected once": lambda: loop(content_once=True),
        "MCU": lambda: ours(units),
    }
    if setting.device == "cuda":
        compiled, replayed = torch.compile(units), torch.compile(units, mode="reduce-overhead")
        contenders["MCU, compiled"] = lambda: ours(compiled)
        contenders["MCU, compiled, CUDA graphs"] = lambda: ours(replayed)
        wanted = {"MCU, compiled, CUDA graphs": 5.0}
    else:
        wanted = {"MCU": 1.5}
    return [Comparison(title="M-Mixer: contextualization units", contenders=contenders, wanted=wanted)]


class PlainFusion(nn.Module):
    """Equations 1 to 3 of MIF, one module for each stream and pair: what `mif_parallel` does in one call."""

    def __init__(self, head: MIFParallel) -> None:
        super().__init__()
        self.pairs, self.places = head.pairs, {name: place for place, name in enumerate(head.streams)}
        width, heads = head.design.width, head.design.heads

        def separate(block: DPES | DMF) -> tuple[nn.ModuleList, nn.ModuleList]:
            ours, gains = block.attention, block.norm
            attentions, norms = nn.ModuleList(), nn.ModuleList()
            for g in range(len(ours.query)):
                attention, norm = MultiHeadAttention(width, heads, bias=False), nn.LayerNorm(width)
                attention.query.weight.data.copy_(ours.query[g].T)
                attention.key_value.weight.data.copy_(ours.key_value[g].T)
                attention.out.weight.data.copy_(ours.out[g].T)
                norm.weight.data.copy_(gains.weight.view(-1, width)[g])
                norm.bias.data.copy_(gains.bias.view(-1, width)[g])
                attentions.append(attention)
                norms.append(norm)
            return attentions, norms

        self.own, self.own_norms = separate(head.stage1)
        self.cross, self.cross_norms = separate(head.fusion)

    def stage1(self, streams: list[Tensor], positions: Tensor) -> list[Tensor]:
        found = []
        for x, attention, norm in zip(streams, self.own, self.own_norms, strict=True):
            z = x + positions
            found.append(norm(z + attention(z, z)[0]) + positions)
        return found

    def stage2(self, streams: list[Tensor]) -> Tensor:
        found = []
        for (i, j), attention, norm in zip(self.pairs, self.cross, self.cross_norms, strict=True):
            asking, looked_at = streams[self.places[i]], streams[self.places[j]]
            found.append(norm(attention(asking, looked_at)[0] + asking))
        return sum(found[1:], found[0])


def mif(setting: Setting) -> list[Comparison]:
    """`mif_parallel`, three streams, verbs and nouns: pairs batched against six modules called in turn.

    Both do the same multiplications. On a CPU these take most of the time but for small features, where the aim is.
    """
    if setting.device == "cuda":
        return mif_at(setting, 1.5)
    return [*mif_at(replace(setting, batch=1, steps=8, width=128), 1.5), *mif_at(setting, None)]


def mif_at(setting: Setting, wanted: float | None) -> list[Comparison]:
    streams = {"rgb": setting.width, "flow": setting.width, "objects": 352}
    classes = {"verb": 97, "noun": 300}
    head = setting.place(mif_parallel(streams=streams, classes=classes, width=setting.width, heads=8, dropout=0.0))
    plain = setting.place(PlainFusion(head))
    features = {name: setting.sequence(size) for name, size in streams.items()}
    stacked = torch.stack([setting.sequence() for _ in streams]).detach().requires_grad_()
    index = torch.arange(setting.steps, device=setting.device)
    sizes = f"B {setting.batch}, T {setting.steps}, D {setting.width}"

    def plain_stage2() -> Tensor:
        return plain.stage2([*stacked.unbind()]).mean(1)

    def our_stage2() -> Tensor:
        return head.interact(stacked)[0].sum(0)

    def plain_head() -> Tensor:
        projected = [head.project[name](x) for name, x in features.items()]
        positions = sinusoids(index, setting.width).to(setting.dtype)
        vector = plain.stage2(plain.stage1(projected, positions)).mean(1)
        return torch.cat([*head.stage3(vector).values()], 1)

    def our_head() -> Tensor:
        return torch.cat([*head(features).logits.values()], 1)

    with torch.no_grad():
        tolerance = 1e-4 if setting.dtype == torch.float32 else 0.1
        torch.testing.assert_close(our_stage2(), plain_stage2(), rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(our_head(), plain_head(), rtol=tolerance, atol=tolerance)

    def training(run: Callable[[], Tensor], *modules: nn.Module) -> Callable[[], None]:
        def both() -> None:
            run().sum().backward()
            for module in modules:
                module.zero_grad()

        return both

    return [
        Comparison(
            title=f"MIF, stage 2 of three streams, {sizes}",
            contenders={
                "six modules in turn": training(plain_stage2, plain),
                "batched": training(our_stage2, head),
            },
            wanted={} if wanted is None else {"batched": wanted},
        ),
        Comparison(
            title=f"MIF, the whole head, {sizes}",
            contenders={
                "a module for each stream and pair": training(plain_head, plain, head),
                "mif_parallel": training(our_head, head),
            },
            wanted={},
        ),
    ]


COMPARISONS: dict[str, Callable[[Setting], list[Comparison]]] = {
    # one line each: name on the command line -> function
    "interactive_pairs": interactive_pairs,
    "mif": mif,
    "mimo": mimo,
    "mcu": mcu,
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
