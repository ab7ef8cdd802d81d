"""Where hand and object are at every moment of an action, in pixels of the frame, from the symbols that it shows.

An action by fractions of its duration: the hand comes in from below (0 to `look_from`); the object slides in from one
side and the hand meets it; they rest; from `act_from` the hand acts, in seconds, so that a motion is as fast in short
actions as in long ones; from `act_until` both leave. Only the act depends on verb and noun, by the symbols `motion`
and `height`; what else varies (place, side, angles, size) is drawn alike for all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .law import KitchenLaw, facets, shared_motion
from .script import Instance

WIDTH, HEIGHT = 128, 96
FPS = 24  # of the rgb video
CLIP_FPS = 12  # of depth, ir and the clips of Something-Else: every second frame

_PIXELS_A_SECOND = 34.0  # of steady motions
_REACH = 26.0  # pixels, how far they go
_MEET = 0.12  # fraction of an action that the object needs to slide in, from `look_from`


@dataclass(frozen=True)
class Part:
    """Pose of hand or object. x, y: its centre; angle in degrees, clockwise on screen; stretch along its own axes."""

    x: float
    y: float
    angle: float = 0.0
    stretch_x: float = 1.0
    stretch_y: float = 1.0


@dataclass(frozen=True)
class Pose:
    """A moment. object: None while it is not there. Heights: above the table, 0 at rest, about -1 to 1."""

    hand: Part
    object: Part | None
    hand_height: float = 0.0
    object_height: float = 0.0


@dataclass(frozen=True)
class Layout:
    """What varies from instance to instance whatever the action. side: 1 the object comes from the right, -1 left."""

    x: float
    y: float
    side: int
    object_angle: float
    hand_angle: float
    scale: float
    shade: float
    table_height: float

    @classmethod
    def of(cls, instance: Instance) -> Layout:
        rng = np.random.default_rng(instance.seed)
        side = 1 if rng.random() < 0.5 else -1
        return cls(
            x=WIDTH / 2 + rng.uniform(-14, 14),
            y=HEIGHT / 2 - 4 + rng.uniform(-5, 5),
            side=side,
            object_angle=rng.uniform(-35, 35),
            hand_angle=-side * rng.uniform(8, 22),
            scale=rng.uniform(0.9, 1.1),
            shade=rng.uniform(0.9, 1.1),
            table_height=rng.uniform(-0.15, 0.15),
        )


def pose_at(law: KitchenLaw, instance: Instance, layout: Layout, seconds: float) -> Pose | None:
    """The pose at a time of the video; None outside the action."""
    if not instance.start_seconds <= seconds < instance.stop_seconds:
        return None
    fraction = (seconds - instance.start_seconds) / instance.duration_seconds
    side = layout.side
    rest_object = Part(layout.x, layout.y, layout.object_angle, layout.scale, layout.scale)
    rest_hand = Part(layout.x - side * 12, layout.y + 25, layout.hand_angle)
    waiting = Part(rest_hand.x - side * 14, rest_hand.y + 8, layout.hand_angle * 1.6)
    below = Part(waiting.x - side * 12, HEIGHT + 42, layout.hand_angle * 1.6)
    aside = replace(rest_object, x=WIDTH / 2 + side * (WIDTH / 2 + 32), angle=layout.object_angle + side * 40)
    if fraction < law.look_from:
        return Pose(_between(below, waiting, fraction / law.look_from), None)
    meeting = (fraction - law.look_from) / _MEET
    if fraction < instance.act_from:
        return Pose(_between(waiting, rest_hand, meeting), _between(aside, rest_object, meeting))
    elapsed = (min(fraction, law.act_until) - instance.act_from) * instance.duration_seconds
    pose = _act(law, instance, layout, Pose(rest_hand, rest_object), elapsed)
    if fraction < law.act_until or pose.object is None:
        return pose
    leaving = (fraction - law.act_until) / (1 - law.act_until)
    gone = replace(aside, y=pose.object.y, x=aside.x + 3 * side)
    return Pose(
        _between(pose.hand, below, leaving, ease=False),
        _between(pose.object, gone, leaving, ease=False),
        pose.hand_height * (1 - leaving),
        pose.object_height * (1 - leaving),
    )


def _between(first: Part, last: Part, share: float, ease: bool = True) -> Part:
    share = min(max(share, 0.0), 1.0)
    share = 1 - (1 - share) ** 2 if ease else share**2
    values = (getattr(first, name) * (1 - share) + getattr(last, name) * share for name in Part.__dataclass_fields__)
    return Part(*values)


def _act(law: KitchenLaw, instance: Instance, layout: Layout, rest: Pose, seconds: float) -> Pose:
    """The pose after so many seconds of the motion and the height that the instance shows."""
    assert rest.object is not None
    motion = facets(law)["motion"].symbols[instance.symbols["motion"]]
    hand, thing, side = rest.hand, rest.object, layout.side
    steady = min(_PIXELS_A_SECOND * seconds, _REACH)
    grown = min(seconds / 0.12, 1.0)  # oscillations start from rest, without a jump

    def wave(hertz: float, quarter: float = 0.0) -> float:
        return grown * float(np.sin(2 * np.pi * hertz * seconds + quarter * np.pi / 2))

    if motion == "take":  # towards the body
        hand, thing = _moved(hand, 0, steady), _moved(thing, 0, steady)
    elif motion == "put":  # away from it
        hand, thing = _moved(hand, 0, -steady), _moved(thing, 0, -steady)
    elif motion == shared_motion(0):  # sideways
        hand, thing = _moved(hand, -side * steady, 0), _moved(thing, -side * steady, 0)
    elif motion == "wash":  # rubs across
        hand = _moved(hand, 11 * wave(2.5), -10 * grown)
    elif motion == "cut":  # strokes along
        hand = _moved(hand, 0, -10 * grown + 11 * wave(2.5))
    elif motion == shared_motion(1):  # rubs slantwise
        hand = _moved(hand, side * 8.5 * wave(2.5), -10 * grown + 8.5 * wave(2.5))
    elif motion == "stir":  # the hand goes round over the object
        hand = _moved(hand, 11 * wave(1.6), -10 * grown + 11 * wave(1.6, 1))
    elif motion == "turn":  # the object turns on the spot under a hand that twists
        hand = replace(hand, angle=hand.angle + 24 * wave(1.2))
        thing = replace(thing, angle=thing.angle + side * 230 * seconds)
    elif motion == shared_motion(2):  # both go round together
        hand, thing = (_moved(part, 9 * wave(1.6), 9 * (wave(1.6, 1) - grown)) for part in (hand, thing))
    elif motion == "shake":  # both to and fro, across
        hand, thing = (_moved(part, 8 * wave(3.0), 0) for part in (hand, thing))
    elif motion == "squeeze":  # the object is pressed out of shape
        pulse = 0.5 * (1 - float(np.cos(2 * np.pi * 1.8 * seconds)))
        thing = replace(
            thing, stretch_x=thing.stretch_x * (1 - 0.42 * pulse), stretch_y=thing.stretch_y * (1 + 0.3 * pulse)
        )
    elif motion == shared_motion(3):  # both to and fro, along
        hand, thing = (_moved(part, 0, 8 * wave(3.0)) for part in (hand, thing))
    else:
        raise ValueError(f"no motion is drawn for {motion!r}")
    height = facets(law)["height"].symbols[instance.symbols["height"]]
    ramp = min(seconds / 0.5, 1.0)
    hand_height, object_height = {
        "rise": (ramp, ramp),
        "fall": (-ramp, -ramp),
        "bob": (0.7 * wave(2.5), 0.7 * wave(2.5)),
        "press": (0.0, -ramp),
        "level": (0.0, 0.0),
    }[height]
    return Pose(hand, thing, hand_height, object_height)


def _moved(part: Part, x: float, y: float) -> Part:
    return replace(part, x=part.x + x, y=part.y + y)
