"""Scripts of the synthetic kitchen: which actions happen when in which video, and what each of them shows.

Everything follows from (law, size, seed). Each video is drawn from a generator of its own, so that one can be made
without the others and in any process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .law import (
    ACTION_NAMES,
    HELD_OUT,
    NOUN_OF,
    NOVEL_VERBS,
    VERB_OF,
    VERBS,
    KitchenLaw,
    facets,
    stationary,
    transitions,
)

# What a generator is for: the second number of its seed.
_SCRIPT, LOOKS, SHOTS, CEILINGS = range(4)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is made. Unseen participants are in validation videos only, every third one of which is of theirs."""

    train_videos: int
    validation_videos: int
    actions_per_video: int
    participants: int
    unseen_participants: int
    histories: int  # of the Monte Carlo sums of `ceilings.json`


SIZES: Mapping[str, Size] = {
    "tiny": Size(
        train_videos=6,
        validation_videos=3,
        actions_per_video=4,
        participants=2,
        unseen_participants=1,
        histories=2_000,
    ),
    "small": Size(
        train_videos=24,
        validation_videos=9,
        actions_per_video=10,
        participants=6,
        unseen_participants=2,
        histories=20_000,
    ),
    "full": Size(
        train_videos=200,
        validation_videos=75,
        actions_per_video=12,
        participants=20,
        unseen_participants=6,
        histories=50_000,
    ),
}


@dataclass(frozen=True)
class Draw:
    """M chains of H actions each.

    actions, symbols: int (M, H), symbols by facet. durations, gaps_before, act_from: float64 (M, H); the gap before the
    first action of a chain is not that of a video, which has its lead-in.
    """

    actions: np.ndarray
    symbols: Mapping[str, np.ndarray]
    durations: np.ndarray
    gaps_before: np.ndarray
    act_from: np.ndarray


def draw(law: KitchenLaw, rng: np.random.Generator, chains: int, length: int) -> Draw:
    """Draw from the law. The first action of each chain has the stationary distribution."""
    shape = chains, length
    actions = np.empty(shape, np.int64)
    steps = rng.random(shape)
    actions[:, 0] = _pick(np.broadcast_to(stationary(law), (chains, len(ACTION_NAMES))), steps[:, 0])
    for at in range(1, length):
        actions[:, at] = _pick(transitions(law)[actions[:, at - 1]], steps[:, at])
    symbols = {}
    for facet in facets(law).values():
        classes = (VERB_OF if facet.of == "verb" else NOUN_OF)[actions]
        symbols[facet.name] = _pick(facet.confusion[classes], rng.random(shape))
    shares = np.broadcast_to(law.act_from_probability, (*shape, len(law.act_from)))
    act_from = np.array(law.act_from)[_pick(shares, rng.random(shape))]
    durations = rng.choice(law.durations_seconds, shape)
    return Draw(actions, symbols, durations, rng.choice(law.gaps_seconds, shape), act_from)


def _pick(probabilities: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """One index a row (..., n): the first whose running sum is above the uniform number (...)."""
    above = uniform[..., None] < np.cumsum(probabilities, -1)
    above[..., -1] = True  # sums may end a rounding error below 1
    return above.argmax(-1)


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One action in one video.

    id: EPIC's narration id. clip: number of its own small video. seed: of the generator of its looks.
    act_from: fraction of the action at which the hand begins to act.
    """

    id: str
    clip: int
    video: str
    action: int
    start_seconds: float
    stop_seconds: float
    act_from: float
    symbols: Mapping[str, int]
    seed: tuple[int, ...]

    @property
    def verb(self) -> int:
        return int(VERB_OF[self.action])

    @property
    def noun(self) -> int:
        return int(NOUN_OF[self.action])

    @property
    def duration_seconds(self) -> float:
        return self.stop_seconds - self.start_seconds


@dataclass(frozen=True, kw_only=True)
class VideoScript:
    """One video. seed: of the generator of its looks; participant decides hand and sleeve as well."""

    id: str
    participant: str
    split: str
    duration_seconds: float
    instances: tuple[Instance, ...]
    seed: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that decides a kitchen."""

    law: KitchenLaw
    size: Size
    seed: int

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"the seed is {self.seed}; it must be 0 or more")

    @cached_property
    def videos(self) -> tuple[VideoScript, ...]:
        """Training videos, then those of validation."""
        size, taken, found = self.size, dict[str, int](), []
        seen = [f"P{n + 1:02d}" for n in range(size.participants)]
        unseen = [f"P{size.participants + n + 1:02d}" for n in range(size.unseen_participants)]
        for number in range(size.train_videos + size.validation_videos):
            split, at = ("train", number) if number < size.train_videos else ("validation", number - size.train_videos)
            group = unseen if split == "validation" and at % 3 == 2 else seen
            participant = group[(at // 3 if group is unseen else at) % len(group)]
            taken[participant] = taken.get(participant, 100) + 1
            found.append(self._video(number, f"{participant}_{taken[participant]}", participant, split))
        return tuple(found)

    def _video(self, number: int, name: str, participant: str, split: str) -> VideoScript:
        law, length = self.law, self.size.actions_per_video
        drawn = draw(law, np.random.default_rng((self.seed, _SCRIPT, number)), 1, length)
        start, instances = law.lead_in_seconds, []
        for at in range(length):
            start += float(drawn.gaps_before[0, at]) if at else 0.0
            stop = start + float(drawn.durations[0, at])
            instances.append(
                Instance(
                    id=f"{name}_{at}",
                    clip=1 + number * length + at,
                    video=name,
                    action=int(drawn.actions[0, at]),
                    start_seconds=start,
                    stop_seconds=stop,
                    act_from=float(drawn.act_from[0, at]),
                    symbols={facet: int(symbol[0, at]) for facet, symbol in drawn.symbols.items()},
                    seed=(self.seed, LOOKS, number, at + 1),
                )
            )
            start = stop
        return VideoScript(
            id=name,
            participant=participant,
            split=split,
            duration_seconds=start + law.lead_out_seconds,
            instances=tuple(instances),
            seed=(self.seed, LOOKS, number, 0),
        )

    def instances(self, split: str) -> list[Instance]:
        """Of the videos of "train" or "validation", in order."""
        return [instance for video in self.videos if video.split == split for instance in video.instances]

    @cached_property
    def subsets(self) -> Mapping[str, tuple[Instance, ...]]:
        """The compositional and few-shot splits by name.

        compositional_*: verb-noun pairs of validation (`HELD_OUT`) are never in train. few_shot_base_*: all verbs but
        the `NOVEL_VERBS`. few_shot_5_train, few_shot_10_train: so many training instances of each novel verb, or all
        where there are fewer. few_shot_5_validation, few_shot_10_validation: the validation instances of these verbs.
        Instances of a train split are from training videos, those of the others from validation videos.
        """
        train, validation = self.instances("train"), self.instances("validation")
        novel = [VERBS.index(name) for name in NOVEL_VERBS]
        order = np.random.default_rng((self.seed, SHOTS)).permutation(len(train))
        shots = {k: [i for verb in novel for i in [n for n in order if train[n].verb == verb][:k]] for k in (5, 10)}
        return {
            "compositional_train": tuple(i for i in train if ACTION_NAMES[i.action] not in HELD_OUT),
            "compositional_validation": tuple(i for i in validation if ACTION_NAMES[i.action] in HELD_OUT),
            "few_shot_base_train": tuple(i for i in train if i.verb not in novel),
            "few_shot_base_validation": tuple(i for i in validation if i.verb not in novel),
            **{f"few_shot_{k}_train": tuple(train[n] for n in sorted(rows)) for k, rows in shots.items()},
            **{f"few_shot_{k}_validation": tuple(i for i in validation if i.verb in novel) for k in shots},
        }
