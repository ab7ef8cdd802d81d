"""The law of the synthetic kitchen: its actions, their order, and what each stream shows of them.

An action is a pair (verb, noun). Actions follow one another by a Markov chain (`GRAMMAR`). What an instance of an
action looks and sounds like is decided by its facets: of each facet it gets one symbol, drawn from a known distribution
given its verb or its noun. A stream shows some facets and nothing else of the action, and it shows each symbol plainly.
So all that any predictor can know about an action from a set of streams is the symbols of their facets, and the best
possible accuracy is a sum over symbols.

    facet     tells   symbols                                                      shown by
    motion    verb    8 own, 1 that the two verbs of a pair share (4)              rgb, flow, depth, ir, boxes
    outline   noun    disc, blob, long, box: 3 nouns each, no noise                rgb, flow, depth, ir, boxes
    surface   noun    12 own, 1 plain one for each outline (4)                     rgb
    height    verb    rise, fall, bob, press; level says nothing                   depth
    relief    noun    dome, hollow, ridge; flat says nothing                       depth
    heat      noun    cold, warm, hot; neutral says nothing                        ir
    envelope  verb    8 own, 1 that the four verbs of a group share (2)            audio
    timbre    noun    ceramic, metal, wet, hard, soft; dull says nothing           audio

Whatever shows motion of pixels shows `motion`: rgb as well, as long as a model looks at more than single frames.
Audio has neither motion nor outline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Literal

import numpy as np

TIME_STEP_SECONDS = (
    0.25  # on which actions start and stop: whole frames at 24 and 12 fps, whole hundredths in csv files
)

STREAMS = ("rgb", "flow", "depth", "ir", "audio")

VERBS = ("take", "put", "wash", "cut", "stir", "turn", "shake", "squeeze")
NOUNS = (
    *("plate", "bowl", "pan"),  # disc
    *("tomato", "onion", "potato"),  # blob
    *("knife", "spoon", "carrot"),  # long
    *("board", "bread", "sponge"),  # box
)
OUTLINES = ("disc", "blob", "long", "box")  # of three nouns each, in their order
RELIEFS = ("dome", "hollow", "ridge")  # of the first, second and third noun of each outline
HEATS = ("warm", "cold", "hot")  # likewise
HEIGHTS = ("rise", "fall", "bob", "press")
TIMBRES = ("ceramic", "metal", "wet", "hard", "soft")

# Verbs 2k and 2k + 1 are a pair: they share a motion and differ in height.
_HEIGHT_OF_VERB = (0, 1, 3, 2, 0, 3, 2, 1)
_TIMBRE_OF_NOUN = (0, 0, 1, 2, 3, 3, 1, 1, 3, 4, 4, 2)

# What follows each action, and how often of the times that the chain does not stray (`KitchenLaw.stray`).
GRAMMAR: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "take plate": {"wash plate": 0.7, "put plate": 0.2, "take bowl": 0.1},
        "take bowl": {"stir bowl": 0.7, "put bowl": 0.2, "shake bowl": 0.1},
        "take tomato": {"wash tomato": 0.7, "cut tomato": 0.2, "squeeze tomato": 0.1},
        "take onion": {"cut onion": 0.8, "take knife": 0.2},
        "take knife": {"cut carrot": 0.6, "cut bread": 0.25, "cut tomato": 0.15},
        "take spoon": {"stir pan": 0.65, "stir bowl": 0.25, "turn spoon": 0.1},
        "take bread": {"cut bread": 0.7, "squeeze bread": 0.2, "put board": 0.1},
        "put plate": {"take bread": 0.65, "take bowl": 0.25, "wash pan": 0.1},
        "put bowl": {"take tomato": 0.65, "take onion": 0.25, "take spoon": 0.1},
        "put tomato": {"take onion": 0.75, "put board": 0.25},
        "put knife": {"squeeze sponge": 0.65, "wash carrot": 0.25, "take plate": 0.1},
        "put spoon": {"wash potato": 0.7, "take tomato": 0.3},
        "put board": {"take knife": 0.75, "take bread": 0.25},
        "wash plate": {"put plate": 0.75, "wash pan": 0.25},
        "wash pan": {"shake pan": 0.65, "stir pan": 0.25, "turn pan": 0.1},
        "wash tomato": {"cut tomato": 0.7, "put tomato": 0.3},
        "wash potato": {"cut potato": 0.7, "turn potato": 0.3},
        "wash spoon": {"put spoon": 0.8, "take spoon": 0.2},
        "wash carrot": {"cut carrot": 0.6, "shake carrot": 0.4},
        "cut tomato": {"put knife": 0.55, "squeeze tomato": 0.3, "take onion": 0.15},
        "cut onion": {"stir pan": 0.65, "put knife": 0.25, "take spoon": 0.1},
        "cut potato": {"shake pan": 0.65, "stir potato": 0.35},
        "cut carrot": {"take spoon": 0.65, "put board": 0.35},
        "cut bread": {"put board": 0.65, "put plate": 0.35},
        "stir bowl": {"turn spoon": 0.65, "put bowl": 0.35},
        "stir pan": {"turn pan": 0.65, "wash spoon": 0.35},
        "stir potato": {"wash spoon": 0.65, "turn potato": 0.35},
        "turn pan": {"wash spoon": 0.6, "take plate": 0.4},
        "turn spoon": {"put bowl": 0.7, "put spoon": 0.3},
        "turn potato": {"stir pan": 0.6, "stir potato": 0.4},
        "shake pan": {"turn potato": 0.65, "take bowl": 0.35},
        "shake bowl": {"put bowl": 0.75, "turn spoon": 0.25},
        "shake sponge": {"take plate": 0.75, "wash pan": 0.25},
        "shake carrot": {"cut carrot": 0.8, "take knife": 0.2},
        "squeeze tomato": {"stir bowl": 0.65, "shake bowl": 0.35},
        "squeeze bread": {"put board": 0.7, "take tomato": 0.3},
        "squeeze sponge": {"wash pan": 0.6, "shake sponge": 0.4},
    }
)


def _verb_noun(name: str) -> str:
    verb, noun = name.split()
    return f"{VERBS.index(verb)}_{NOUNS.index(noun)}"


# Numbered as RULSTM numbers EPIC's: sorted as the text "verb_noun".
ACTION_NAMES = tuple(sorted(GRAMMAR, key=_verb_noun))
ACTIONS = tuple(tuple(name.split()) for name in ACTION_NAMES)
VERB_OF = np.array([VERBS.index(verb) for verb, _ in ACTIONS])
NOUN_OF = np.array([NOUNS.index(noun) for _, noun in ACTIONS])

# Which pairs a compositional split tests: every verb and noun of theirs is in training pairs too, and among them are
# such as share a motion or a plain surface, so that they are no easier to tell apart than the others.
HELD_OUT = frozenset(
    {
        *("take bowl", "put plate", "take knife", "put spoon"),
        *("wash potato", "cut onion", "cut tomato"),
        *("stir pan", "turn pan"),
        *("shake sponge", "squeeze bread"),
    }
)
# Verbs of a few-shot split that are seen a few times only. Whole pairs: what they share stays to be told apart.
NOVEL_VERBS = ("wash", "cut", "shake", "squeeze")


@dataclass(frozen=True, kw_only=True)
class Facet:
    """One thing that an instance shows.

    of: what it tells. since: "look", shown as soon as the object is there; "act", as soon as the hand acts.
    symbols: names. confusion: float64 (classes of `of`, symbols), rows sum to 1: P(symbol | class).
    """

    name: str
    of: Literal["verb", "noun"]
    since: Literal["look", "act"]
    symbols: tuple[str, ...]
    confusion: np.ndarray


@dataclass(frozen=True, kw_only=True)
class KitchenLaw:
    """All amounts of the law. Probabilities are per instance of an action; times are seconds.

    shared_motion ... dull_timbre: how often a facet shows the symbol that does not tell the classes of its group apart.
    stray: share of steps of the chain that go to any action, all alike.
    durations_seconds, gaps_seconds: of actions, and from a stop to the next start; all equally likely.
    lead_in_seconds, lead_out_seconds: before the first action of a video and after its last.
    look_from: fraction of an action at which the object appears.
    act_from, act_from_probability: fractions of an action at which the hand begins to act, and how often each is.
    act_until: fraction at which it ends.
    """

    shared_motion: float = 0.6
    plain_surface: float = 0.65
    level_height: float = 0.5
    flat_relief: float = 0.7
    neutral_heat: float = 0.75
    shared_envelope: float = 0.35
    dull_timbre: float = 0.2
    stray: float = 0.06
    durations_seconds: tuple[float, ...] = (2.0, 2.25, 2.5, 2.75)
    gaps_seconds: tuple[float, ...] = (0.25, 0.5, 0.75)
    lead_in_seconds: float = 2.5
    lead_out_seconds: float = 0.5
    look_from: float = 0.15
    act_from: tuple[float, ...] = (0.3, 0.45, 0.6)
    act_from_probability: tuple[float, ...] = (0.5, 0.3, 0.2)
    act_until: float = 0.9

    def __post_init__(self) -> None:
        amounts = ("motion", "surface", "height", "relief", "heat", "envelope", "timbre")
        for name in (*(field for field in self.__dataclass_fields__ if field.endswith(amounts)), "stray"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a probability, 0 to 1")
        if len(self.act_from) != len(self.act_from_probability) or abs(sum(self.act_from_probability) - 1) > 1e-9:
            raise ValueError("act_from_probability needs a share for each act_from; they must sum to 1")
        if not 0 <= self.look_from <= min(self.act_from) <= max(self.act_from) < self.act_until <= 1:
            raise ValueError("fractions of an action must be 0 <= look_from <= act_from < act_until <= 1")
        times = (*self.durations_seconds, *self.gaps_seconds, self.lead_in_seconds, self.lead_out_seconds)
        if min(times) <= 0 or any(time % TIME_STEP_SECONDS for time in times):
            raise ValueError(
                f"durations, gaps, lead-in and lead-out must be multiples of {TIME_STEP_SECONDS} s, above 0"
            )

    @property
    def least_period_seconds(self) -> float:
        """Between the starts of two actions at least: up to this tau_a what ends the observation is the last action."""
        return min(self.durations_seconds) + min(self.gaps_seconds)


def shared_motion(pair: int) -> str:
    """The motion that verbs 2 pair and 2 pair + 1 share."""
    return f"{VERBS[2 * pair]} or {VERBS[2 * pair + 1]}"


@cache
def facets(law: KitchenLaw) -> Mapping[str, Facet]:
    """The facets by name."""
    verbs, nouns = np.arange(len(VERBS)), np.arange(len(NOUNS))
    outline = nouns // 3
    pairs = tuple(shared_motion(pair) for pair in range(len(VERBS) // 2))
    groups = ("of take, put, wash, cut", "of stir, turn, shake, squeeze")
    found = (
        Facet(
            name="motion",
            of="verb",
            since="act",
            symbols=(*VERBS, *pairs),
            confusion=_confusion(verbs, len(VERBS) + verbs // 2, law.shared_motion),
        ),
        Facet(name="outline", of="noun", since="look", symbols=OUTLINES, confusion=_confusion(outline, outline, 0.0)),
        Facet(
            name="surface",
            of="noun",
            since="look",
            symbols=(*NOUNS, *(f"plain {name}" for name in OUTLINES)),
            confusion=_confusion(nouns, len(NOUNS) + outline, law.plain_surface),
        ),
        Facet(
            name="height",
            of="verb",
            since="act",
            symbols=(*HEIGHTS, "level"),
            confusion=_confusion(np.array(_HEIGHT_OF_VERB), np.full(len(VERBS), 4), law.level_height),
        ),
        Facet(
            name="relief",
            of="noun",
            since="look",
            symbols=(*RELIEFS, "flat"),
            confusion=_confusion(nouns % 3, np.full(len(NOUNS), 3), law.flat_relief),
        ),
        Facet(
            name="heat",
            of="noun",
            since="look",
            symbols=(*HEATS, "neutral"),
            confusion=_confusion(nouns % 3, np.full(len(NOUNS), 3), law.neutral_heat),
        ),
        Facet(
            name="envelope",
            of="verb",
            since="act",
            symbols=(*VERBS, *groups),
            confusion=_confusion(verbs, len(VERBS) + verbs // 4, law.shared_envelope),
        ),
        Facet(
            name="timbre",
            of="noun",
            since="act",
            symbols=(*TIMBRES, "dull"),
            confusion=_confusion(np.array(_TIMBRE_OF_NOUN), np.full(len(NOUNS), 5), law.dull_timbre),
        ),
    )
    return MappingProxyType({facet.name: facet for facet in found})


# stream -> facets that it shows. A box is drawn around what moves, so `boxes` tells at most what `flow` tells.
SHOWN_BY: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "rgb": ("motion", "outline", "surface"),
        "flow": ("motion", "outline"),
        "depth": ("motion", "outline", "height", "relief"),
        "ir": ("motion", "outline", "heat"),
        "audio": ("envelope", "timbre"),
        "boxes": ("motion", "outline"),
    }
)


def _confusion(own: np.ndarray, shared: np.ndarray, amount: float) -> np.ndarray:
    """Class c shows symbol own[c], or with probability `amount` symbol shared[c]."""
    table = np.zeros((len(own), max(own.max(), shared.max()) + 1))
    rows = np.arange(len(own))
    table[rows, own] += 1 - amount
    table[rows, shared] += amount
    table.setflags(write=False)
    return table


@cache
def transitions(law: KitchenLaw) -> np.ndarray:
    """float64 (A, A): P(next action | action)."""
    table = np.full((len(ACTIONS),) * 2, law.stray / len(ACTIONS))
    for first, following in GRAMMAR.items():
        for name, share in following.items():
            table[ACTION_NAMES.index(first), ACTION_NAMES.index(name)] += (1 - law.stray) * share
    table.setflags(write=False)
    return table


@cache
def stationary(law: KitchenLaw) -> np.ndarray:
    """float64 (A,): how often each action is. The first one of a video is drawn from it, so every later one is too."""
    table = transitions(law)
    size = len(table)
    equations = np.vstack([table.T - np.eye(size), np.ones(size)])
    solution = np.linalg.lstsq(equations, np.r_[np.zeros(size), 1.0], rcond=None)[0]
    shares = solution.clip(0) / solution.clip(0).sum()
    shares.setflags(write=False)
    return shares
