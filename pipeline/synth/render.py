"""Frames of the synthetic kitchen in rgb, depth and ir, and the boxes around what is drawn in them.

All three cameras look from straight above, so that height shows in depth only, and shake alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from . import sprites
from .choreography import FPS, HEIGHT, WIDTH, Layout, Part, Pose, pose_at
from .law import OUTLINES, KitchenLaw, facets
from .script import Instance, VideoScript

_MARGIN = 8  # of the table around the frame, for the shake
_SKINS = ((224, 172, 138), (198, 134, 96), (141, 85, 54), (241, 194, 160), (100, 62, 42), (176, 118, 84))
_SLEEVES = ((60, 90, 150), (150, 60, 60), (70, 120, 80), (110, 80, 130), (50, 50, 60), (180, 150, 70), (90, 130, 150))


@dataclass(frozen=True)
class Shot:
    """One moment. box: x1 y1 x2 y2 in pixels, around all that is drawn of it in the frame; None where nothing is."""

    pose: Pose | None
    instance: Instance | None
    shake: tuple[float, float]
    hand_box: tuple[float, float, float, float] | None = None
    object_box: tuple[float, float, float, float] | None = None


class Scene:
    """One video to draw."""

    def __init__(self, law: KitchenLaw, script: VideoScript) -> None:
        self.law, self.script = law, script
        self._layouts = {instance.id: Layout.of(instance) for instance in script.instances}
        rng = np.random.default_rng((*script.seed, 2))
        self._shake_hertz = rng.uniform(0.25, 3.2, (2, 4))
        self._shake_phase = rng.uniform(0, 2 * np.pi, (2, 4))
        person = int(script.participant[1:]) - 1
        self._skin, self._sleeve = _SKINS[person % len(_SKINS)], _SLEEVES[person % len(_SLEEVES)]

    @cached_property
    def num_frames(self) -> int:
        return round(self.script.duration_seconds * FPS)

    @cached_property
    def _table(self) -> np.ndarray:
        return sprites.table_picture(self.script.seed, (WIDTH + 2 * _MARGIN, HEIGHT + 2 * _MARGIN))

    @cached_property
    def _grey_tables(self) -> dict[str, np.ndarray]:
        grey = self._table.mean(-1)
        contrast = grey - grey.mean()
        y = np.linspace(-6, 6, grey.shape[0], dtype=np.float32)[:, None]
        return {"depth": 70 + y + 0.04 * contrast, "ir": 44 + 0.10 * contrast}

    def shot(self, seconds: float) -> Shot:
        """Where everything is at a time of the video."""
        waves = np.sin(2 * np.pi * self._shake_hertz * seconds + self._shake_phase) * (0.9, 0.6, 0.4, 0.3)
        shake_x, shake_y = (float(v) for v in waves.sum(1))
        for instance in self.script.instances:
            pose = pose_at(self.law, instance, self._layouts[instance.id], seconds)
            if pose is not None:
                shot = Shot(pose, instance, (shake_x, shake_y))
                hand = _box(_hand_matrix(shot, pose.hand), _around(sprites.grey_hand_sprite(200, 90)))
                thing = None
                if pose.object is not None:
                    outline = self._outline(instance)
                    thing = _box(_object_matrix(shot, pose.object), _around(sprites.heat_sprite(outline, "hot")))
                return Shot(pose, instance, shot.shake, hand, thing)
        return Shot(None, None, (shake_x, shake_y))

    def _symbol(self, instance: Instance, facet: str) -> str:
        return facets(self.law)[facet].symbols[instance.symbols[facet]]

    def _outline(self, instance: Instance) -> str:
        return OUTLINES[instance.symbols["outline"]]

    def rgb(self, shot: Shot) -> np.ndarray:
        """uint8 (H, W, 3)."""
        frame = self._shaken(self._table, shot)
        if shot.pose is not None and shot.instance is not None:
            layout = self._layouts[shot.instance.id]
            if shot.pose.object is not None:
                sprite = sprites.object_sprite(self._symbol(shot.instance, "surface"))
                matrix = _object_matrix(shot, shot.pose.object)
                _shadow(frame, sprite, matrix, 2.0, 2.5)
                _lay(frame, sprite, matrix, layout.shade)
            hand = sprites.hand_sprite(self._skin, self._sleeve)
            matrix = _hand_matrix(shot, shot.pose.hand)
            _shadow(frame, hand, matrix, 3.0, 4.0)
            _lay(frame, hand, matrix)
        return frame.clip(0, 255).astype(np.uint8)

    def depth(self, shot: Shot) -> np.ndarray:
        """uint8 (H, W), lighter is nearer."""
        frame = self._shaken(self._grey_tables["depth"], shot)[..., None]
        if shot.pose is not None and shot.instance is not None:
            base = 10 * self._layouts[shot.instance.id].table_height
            if shot.pose.object is not None:
                sprite = sprites.relief_sprite(self._outline(shot.instance), self._symbol(shot.instance, "relief"))
                _lay(frame, sprite, _object_matrix(shot, shot.pose.object), offset=base + 38 * shot.pose.object_height)
            sprite = sprites.grey_hand_sprite(178, 196)
            _lay(frame, sprite, _hand_matrix(shot, shot.pose.hand), offset=base + 38 * shot.pose.hand_height)
        return frame[..., 0].clip(0, 255).astype(np.uint8)

    def ir(self, shot: Shot) -> np.ndarray:
        """uint8 (H, W), lighter is warmer."""
        frame = self._shaken(self._grey_tables["ir"], shot)[..., None]
        if shot.pose is not None and shot.instance is not None:
            if shot.pose.object is not None:
                sprite = sprites.heat_sprite(self._outline(shot.instance), self._symbol(shot.instance, "heat"))
                _lay(frame, sprite, _object_matrix(shot, shot.pose.object))
            _lay(frame, sprites.grey_hand_sprite(206, 110), _hand_matrix(shot, shot.pose.hand))
        return frame[..., 0].clip(0, 255).astype(np.uint8)

    def _shaken(self, table: np.ndarray, shot: Shot) -> np.ndarray:
        x, y = shot.shake
        matrix = np.array([[1, 0, x - _MARGIN], [0, 1, y - _MARGIN]], np.float64)
        return cv2.warpAffine(table, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _matrix(shot: Shot, part: Part, centre: tuple[float, float]) -> np.ndarray:
    """float64 (2, 3): sprite pixels to frame pixels."""
    angle = np.deg2rad(part.angle)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag([part.stretch_x, part.stretch_y]) / sprites.OVERSAMPLED
    place = np.array([part.x + shot.shake[0], part.y + shot.shake[1]])
    return np.column_stack([linear, place - linear @ np.array(centre)])


def _object_matrix(shot: Shot, part: Part) -> np.ndarray:
    return _matrix(shot, part, sprites.OBJECT_CENTRE)


def _hand_matrix(shot: Shot, part: Part) -> np.ndarray:
    return _matrix(shot, part, sprites.HAND_PALM)


def _lay(frame: np.ndarray, sprite: np.ndarray, matrix: np.ndarray, gain: float = 1.0, offset: float = 0.0) -> None:
    """Put a sprite over the frame (float32 (H, W, C)), in place."""
    placed = cv2.warpAffine(sprite, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR).astype(np.float32)
    opacity = placed[..., 3:] / 255
    frame *= 1 - opacity
    frame += placed[..., : frame.shape[-1]] * gain + offset * opacity


def _shadow(frame: np.ndarray, sprite: np.ndarray, matrix: np.ndarray, x: float, y: float) -> None:
    moved = matrix + np.array([[0, 0, x], [0, 0, y]])
    opacity = cv2.warpAffine(sprite[..., 3], moved, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)
    frame *= 1 - cv2.GaussianBlur(opacity, (7, 7), 2.0).astype(np.float32)[..., None] * (0.38 / 255)


_outlines: dict[int, np.ndarray] = {}


def _around(sprite: np.ndarray) -> np.ndarray:
    """float64 (N, 2): pixels all around what a cached sprite shows, just outside of it."""
    if id(sprite) not in _outlines:
        mask = cv2.dilate((sprite[..., 3] > 0).astype(np.uint8), np.ones((3, 3), np.uint8))
        found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        _outlines[id(sprite)] = np.concatenate(found)[:, 0].astype(np.float64)
    return _outlines[id(sprite)]


def _box(matrix: np.ndarray, around: np.ndarray) -> tuple[float, float, float, float] | None:
    """Around what is drawn in the frame, edges of pixels; None where less than two pixels of a side are seen."""
    points = around @ matrix[:, :2].T + matrix[:, 2] + 0.5  # pixel centres lie at whole numbers in warpAffine
    frame = np.array([WIDTH, HEIGHT], np.float64)
    points = points[((points > 0.3) & (points < frame - 0.3)).all(1)]  # what is nearer to the edge covers no pixel
    if not len(points):
        return None
    low, high = points.min(0), points.max(0)
    low, high = np.where(low < 1, 0, low), np.where(high > frame - 1, frame, high)
    if (high - low).min() < 2:
        return None
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])
