"""What `bench_kitchen.py` trains: recipes of the synthetic kitchen, as plain mappings that `actionfuse train` reads.

Backbones are tuned on whole actions, one stream at a time. Features are windows of a second, four a second, of whole
videos, so that recognition and anticipation read the same store; a row says when its window ends, and anticipation
takes none that ends after what may be seen. Heads are then trained on the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STREAMS = ("rgb", "flow", "depth", "ir", "audio")
FUSED = ("rgb", "depth", "ir", "audio")  # flow is computed from rgb: the ceiling with it is that without it
PICTURES = ("rgb", "depth", "ir")  # streams with videos of their own
SEEDS = 3
FEATURE_FPS = 4  # rows of a store a second
TAU_O = 5.0
TAU_A = (2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25)

# Pictures: Karpathy's early fusion over pieces of four frames, so that the first layer sees motion and the network runs
# four times a clip. Sound: a network on each spectrogram.
PIECE = 4
BACKBONES = {
    **{stream: "karpathy:test_resnet" for stream in ("rgb", "flow", "depth", "ir")},
    "audio": "tsn:test_resnet",
}
FRAMES_FPS = 8.0

# How a clip is cut: in tuning, and as `actionfuse extract` cuts windows. Pictures lose a quarter of their width.
_PICTURE = {"frames": 16, "fps": FRAMES_FPS, "side": 48, "crop": 48}
TUNED: dict[str, dict[str, Any]] = {
    "rgb": _PICTURE,
    "flow": {**_PICTURE, "side": 64, "crop": 64, "flow_method": "dis_fast"},
    "depth": _PICTURE,
    "ir": _PICTURE,
    "audio": {"frames": 2, "fps": FEATURE_FPS, "audio_preset": "vggish"},  # of 0.975 s, in each half of an action
}
# End to end: five pieces, and a spectrogram each half a second.
_LONG_PICTURE = {"frames": 20}
_LONG_SOUND = {"frames": 5, "fps": 2}
EXTRACTED = {
    stream: ["--fps", "8", "--clip-frames", str(PIECE), "--clip-stride", "2"]
    + ["--side", str(clip["side"]), "--crop", str(clip["crop"])]
    for stream, clip in TUNED.items()
    if stream != "audio"
}
EXTRACTED["audio"] = ["--fps", "4", "--clip-frames", "1", "--clip-stride", "1", "--audio-preset", "vggish"]

TUNING = {
    "name": "adamw",
    "lr": 4e-3,
    "batch": 32,
    "weight_decay": 0.05,
    "no_decay_norms": True,
    "schedule": "cosine",
    "warmup_epochs": 3,
    "clip_norm": 5.0,
}
HEADS = {**TUNING, "lr": 1e-3, "warmup_epochs": 1}
TUNING_EPOCHS = {"rgb": 30, "flow": 16, "depth": 24, "ir": 16, "audio": 14}
COMPOSITIONAL_EPOCHS = 20
TUNING_AUGMENT = {"crop": "multi_scale", "scales": [1.0, 0.875], "flip": 0.5}
HEAD_EPOCHS = {"recognition": 12, "anticipation": 12}

# What comes next is a label that is never certain: heads learn what was seen last, and a table what follows it.
LAST: dict[str, Any] = {"loss": {"last_action": 1.0}}
DIRECT = "MIF, progressive, direct"  # without

WIDTH = 64  # of heads
# method -> (head, its options)
FUSIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "concat": ("concat", {"dropout": 0.2}),
    "late fusion": ("late_fusion", {"width": WIDTH, "heads": 4}),
    "MIF, parallel": ("mif_parallel", {"width": WIDTH, "heads": 4}),
    "MIF, progressive": ("mif_progressive", {"width": WIDTH, "heads": 4}),
    "MIMO without allocation": ("query", {"width": WIDTH, "heads": 4}),
    "MIMO": ("mimo", {"width": WIDTH, "heads": 4, "allocation_weight": 0.1}),
    "MIMO, encoder block": ("mimo", {"width": WIDTH, "heads": 4, "allocation_weight": 0.1, "block": "encoder"}),
    "M-Mixer": ("mmixer", {"width": WIDTH}),
}
# What a single stream gets: its backbone's own linear classifier, or where order matters MIF's encoder and classifier.
ALONE: dict[str, tuple[str, dict[str, Any]]] = {
    "recognition": ("concat", {"dropout": 0.2}),
    "anticipation": ("late_fusion", {"width": WIDTH, "heads": 4}),
}
REALLOCATED = "MIMO with reallocation"
INTERACTIVE: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("interactive", {"width": 128, "steps": 16, "interaction": False}),
    "interaction": ("interactive", {"width": 128, "steps": 16, "prediction": False}),
    "interaction and prediction": ("interactive", {"width": 128, "steps": 16, "prediction_weight": 5.0}),
}
TASKS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    # task -> (task, sampling, rows of a store in a sample)
    "recognition": ({"kind": "recognition"}, {"rule": "ends"}, 8),
    "anticipation": (
        {"kind": "anticipation", "tau_a": 1.0, "tau_o": TAU_O}
        | {"train_tau_a": list(TAU_A), "test_tau_a": [t for t in TAU_A if t != 1.0]},
        {"rule": "last", "stride_frames": 2},  # rows of half a second, side by side
        round(TAU_O * FEATURE_FPS / 2),
    ),
}


@dataclass(frozen=True)
class Planned:
    """One run: its place in the tables, and the recipe. name is that of its folder."""

    name: str
    group: str
    method: str
    seed: int
    recipe: dict[str, Any]


def tuning(work: Path, *, split: str = "", streams: tuple[str, ...] = STREAMS) -> Iterator[Planned]:
    """Backbones: one stream each, one seed. split: "" or "compositional", for which maps keep all their steps."""
    for stream in streams:
        data = {"dataset": "kitchen", "root": str(work / "kitchen")}
        if split:
            data |= {"train": f"{split}_train", "test": f"{split}_validation", "tasks": ["verb", "noun"]}
        yield Planned(
            f"tune-{split}-{stream}" if split else f"tune-{stream}",
            f"backbone {split}".strip(),
            stream,
            0,
            {
                "data": data,
                "sampling": {"rule": "segments" if stream == "audio" else "strided"},
                "streams": {stream: all_steps(stream) if split else pixels(stream)},
                "head": {"name": "concat", "options": {"dropout": 0.2}},
                "augment": TUNING_AUGMENT,
                "optim": TUNING,
                "run": {
                    "epochs": COMPOSITIONAL_EPOCHS if split else TUNING_EPOCHS[stream],
                    "precision": "bf16",
                    "workers": 0,
                    "keep": 1,
                    "test_every": COMPOSITIONAL_EPOCHS if split else TUNING_EPOCHS[stream],
                    "save_minutes": 2.0,
                    "monitor": "verb/top1_accuracy" if split else "action/top1_accuracy",
                },
            },
        )


def pixels(stream: str) -> dict[str, Any]:
    """A stream of clips through its backbone."""
    options: dict[str, Any] = {} if stream == "audio" else {"fusion": "early_fusion", "frames": PIECE}
    if stream == "flow":
        options["flow_stack"] = 1
    return {"backbone": BACKBONES[stream], "clip": TUNED[stream], "options": options}


def all_steps(stream: str) -> dict[str, Any]:
    """A stream through a network that keeps its frames apart, as boxes are given by frame."""
    return {"backbone": "tsm:test_resnet", "clip": TUNED[stream]}


def on_features(work: Path, widths: Mapping[str, int], seeds: int, tasks: tuple[str, ...]) -> Iterator[Planned]:
    """Heads on stored features: all seeds of the first, then the next ones."""
    for task in tasks:
        observed, sampling, rows = TASKS[task]
        methods = {method: (*head, FUSED) for method, head in FUSIONS.items() if set(FUSED) <= set(widths)} | {
            stream: (*ALONE[task], (stream,)) for stream in widths
        }
        if task == "anticipation" and "MIF, progressive" in methods:
            methods[DIRECT] = methods["MIF, progressive"]
        for seed in range(seeds):
            for method, (head, options, streams) in methods.items():
                ahead = task == "anticipation" and method != DIRECT
                yield Planned(
                    f"{task}-{slug(method)}-{seed}",
                    task,
                    method,
                    seed,
                    {
                        "data": {"dataset": "kitchen", "root": str(work / "kitchen")},
                        "task": observed,
                        "sampling": sampling,
                        "inputs": "features",
                        "streams": {
                            stream: {
                                "features": str(store(work, stream)),
                                "feature_dim": widths[stream],
                                "key": "{video}.mp4",
                                "clip": {"frames": rows, "fps": FEATURE_FPS},
                            }
                            for stream in streams
                        },
                        "head": {"name": head, "options": options, **({"transition": True} if ahead else {})},
                        "optim": HEADS,
                        **(LAST if ahead else {}),
                        "run": {
                            "epochs": HEAD_EPOCHS[task],
                            "seed": seed,
                            "workers": 0,
                            "keep": 1,
                            "test_every": HEAD_EPOCHS[task],
                            "monitor": "action/top1_accuracy",
                        },
                    },
                )


def from_pixels(work: Path, methods: tuple[str, ...], seeds: int) -> Iterator[Planned]:
    """Fusions end to end, from the tuned backbones and the heads on their features, on clips as long as actions are."""
    for seed in range(seeds):
        for method in methods:
            head, options = FUSIONS[method]
            yield Planned(
                f"pixels-{slug(method)}-{seed}",
                "recognition, end to end",
                method,
                seed,
                {
                    "data": {"dataset": "kitchen", "root": str(work / "kitchen")},
                    "sampling": {"rule": "strided"},
                    "streams": {
                        stream: {**pixels(stream), "weights": str(weights(work, stream)), "lr_scale": 0.4}
                        | {"clip": {**TUNED[stream], **(_LONG_SOUND if stream == "audio" else _LONG_PICTURE)}}
                        for stream in FUSED
                    },
                    "head": {"name": head, "options": options},
                    "augment": TUNING_AUGMENT,
                    "optim": {**TUNING, "lr": 5e-4, "warmup_epochs": 0.5},
                    "init_from": str(work / "runs" / f"recognition-{slug(method)}-{seed}"),
                    "run": {
                        "epochs": 2,
                        "precision": "bf16",
                        "seed": seed,
                        "workers": 0,
                        "keep": 1,
                        "test_every": 2,
                        "save_minutes": 2.0,
                        "monitor": "action/top1_accuracy",
                    },
                },
            )


def interactive(work: Path, seeds: int) -> Iterator[Planned]:
    """Interactive Fusion of boxes and maps of rgb. The backbone was tuned on the same training pairs and is frozen."""
    for seed in range(seeds):
        for method, (head, options) in INTERACTIVE.items():
            yield Planned(
                f"compositional-{slug(method)}-{seed}",
                "compositional",
                method,
                seed,
                {
                    "data": {
                        "dataset": "kitchen",
                        "root": str(work / "kitchen"),
                        "train": "compositional_train",
                        "test": "compositional_validation",
                        "tasks": ["verb", "noun"],
                    },
                    "sampling": {"rule": "strided"},
                    "streams": {
                        "rgb": {
                            **all_steps("rgb"),
                            "weights": str(weights(work, "rgb", "compositional")),
                            "freeze": True,
                        }
                    },
                    "head": {"name": head, "options": options},
                    "augment": TUNING_AUGMENT,
                    "optim": HEADS,
                    "run": {
                        "epochs": 8,
                        "precision": "bf16",
                        "seed": seed,
                        "workers": 0,
                        "keep": 1,
                        "test_every": 8,
                        "save_minutes": 2.0,
                        "monitor": "verb/top1_accuracy",
                    },
                },
            )


def decoded(streams: Iterable[str]) -> list[str]:
    """Streams of pictures whose frames these are made of."""
    return sorted({"rgb" if stream == "flow" else stream for stream in streams} - {"audio"})


def weights(work: Path, stream: str, split: str = "") -> Path:
    """The tuned backbone of a stream."""
    return work / "backbones" / f"{split}-{stream}.safetensors".lstrip("-")


def store(work: Path, stream: str) -> Path:
    """The features of a stream, as `actionfuse extract` names their folder."""
    return work / "features" / f"{BACKBONES[stream].replace(':', '-')}-{stream}"


def slug(method: str) -> str:
    return method.lower().replace(",", "").replace(" ", "-")
