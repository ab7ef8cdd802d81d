"""What the kitchen is drawn with: hands, objects and tables as small pictures, made by arithmetic and no photograph.

A sprite is uint8 (H, W, 4): colour times opacity, and opacity. The picture of an object is decided by its outline and
its surface (depth: relief, ir: heat) and nothing else of its action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from .law import NOUNS, OUTLINES

OBJECT_SIDE = 112  # sprites are drawn at `OVERSAMPLED` pixels a frame pixel
OVERSAMPLED = 2
OBJECT_CENTRE = (OBJECT_SIDE - 1) / 2, (OBJECT_SIDE - 1) / 2
HAND_SIZE = 100, 300  # width, height; the palm's centre lies at HAND_PALM
HAND_PALM = 50.0, 62.0

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Grid:
    """Coordinates of an object's sprite, float32 (side, side): x, y in frame pixels from the centre, polar radius, turn
    in radians, and `edge`: pixels to the outline, positive inside."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    turn: np.ndarray
    edge: np.ndarray


@cache
def grid(outline: str) -> Grid:
    """The grid of an outline: disc, blob, long or box."""
    axis = (np.arange(OBJECT_SIDE, dtype=np.float32) + 0.5 - OBJECT_SIDE / 2) / OVERSAMPLED
    x, y = np.meshgrid(axis, axis)
    radius, turn = np.hypot(x, y), np.arctan2(y, x)
    if outline == "disc":
        edge = 19.0 - radius
    elif outline == "blob":
        edge = 14.0 + 1.2 * np.sin(3 * turn + 0.5) + 0.7 * np.sin(5 * turn) - radius
    elif outline == "long":
        edge = _box_edge(x, y, 24.0, 4.6, 4.0)
    elif outline == "box":
        edge = _box_edge(x, y, 18.0, 12.0, 3.5)
    else:
        raise ValueError(f"no outline is called {outline!r}; there are {', '.join(OUTLINES)}")
    return Grid(x, y, radius, turn, edge.astype(np.float32))


def _box_edge(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float, corner: float) -> np.ndarray:
    dx, dy = np.abs(x) - half_width + corner, np.abs(y) - half_height + corner
    return corner - np.hypot(dx.clip(0), dy.clip(0)) - np.minimum(np.maximum(dx, dy), 0)


def _opacity(g: Grid) -> np.ndarray:
    return (g.edge * OVERSAMPLED + 0.5).clip(0, 1)


def _noise(seed: int, size: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth noise, float32 (height, width), about 0 mean and 1 at most."""
    rng = np.random.default_rng((seed, 977))
    width, height = size
    coarse = rng.uniform(-1, 1, (max(2, cells * height // width), cells)).astype(np.float32)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


# Surfaces: for each noun its colours (float32 (side, side, 3)), and plain ones that the nouns of an outline share.

Painter = Callable[[Grid], np.ndarray]


def _flat(g: Grid, colour: Colour) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.float32), (*g.x.shape, 3)).copy()


def _blend(picture: np.ndarray, colour: Colour, where: np.ndarray) -> np.ndarray:
    share = where.astype(np.float32)[..., None]
    return picture * (1 - share) + np.array(colour, np.float32) * share


def _soft(values: np.ndarray) -> np.ndarray:
    return (values * OVERSAMPLED + 0.5).clip(0, 1)


def _plate(g: Grid) -> np.ndarray:
    picture = _blend(_flat(g, (240, 240, 246)), (40, 80, 190), _soft(1.3 - np.abs(g.radius - 15.5)))
    return _blend(picture, (205, 210, 226), _soft(1.0 - np.abs(g.radius - 11)))


def _bowl(g: Grid) -> np.ndarray:
    picture = _blend(_flat(g, (30, 150, 140)), (245, 220, 120), (np.cos(8 * g.turn) > 0.3) & (g.radius > 10))
    return _blend(picture, (18, 100, 96), _soft(9 - g.radius))


def _pan(g: Grid) -> np.ndarray:
    picture = _blend(_flat(g, (52, 52, 58)), (150, 150, 158), _soft(1.5 - np.abs(g.radius - 17.2)))
    return _blend(picture, (84, 84, 92), (np.sin(g.radius * 2.4) > 0.4) & (g.radius < 14))


def _tomato(g: Grid) -> np.ndarray:
    picture = _blend(_flat(g, (215, 38, 28)), (250, 150, 130), _soft(2.6 - np.hypot(g.x + 4, g.y + 5)))
    return _blend(picture, (40, 130, 40), _soft(3.6 + 2.6 * np.cos(5 * g.turn) - g.radius))


def _onion(g: Grid) -> np.ndarray:
    picture = _blend(_flat(g, (150, 50, 130)), (235, 200, 230), np.sin(g.radius * 1.9) > 0.35)
    return _blend(picture, (110, 30, 95), _soft(1.8 - g.radius))


def _potato(g: Grid) -> np.ndarray:
    picture = _flat(g, (178, 132, 74))
    picture += 26 * _noise(5, g.x.shape, 14)[..., None]
    return _blend(picture, (96, 62, 28), _noise(6, g.x.shape, 22) > 0.62)


def _knife(g: Grid) -> np.ndarray:
    picture = _blend(_flat(g, (212, 216, 224)), (30, 30, 34), g.x > 5)
    picture = _blend(picture, (250, 250, 255), (np.abs(g.y) < 0.9) & (g.x < 4))
    return _blend(picture, (220, 200, 90), (g.x > 7) & (np.hypot((g.x - 11) % 7 - 3.5, g.y) < 1.0))


def _spoon(g: Grid) -> np.ndarray:
    picture = _flat(g, (196, 138, 66)) + 22 * np.sin(g.y * 3.1 + 0.6 * np.sin(g.x * 0.4))[..., None]
    return _blend(picture, (120, 72, 24), _soft(1.2 - np.abs(np.hypot((g.x + 15) / 1.8, g.y) - 3.4)))


def _carrot(g: Grid) -> np.ndarray:
    picture = _blend(_flat(g, (240, 120, 20)), (190, 80, 5), np.abs((g.x + 40) % 6 - 3) < 0.8)
    return _blend(picture, (50, 150, 50), g.x > 16)


def _board(g: Grid) -> np.ndarray:
    picture = _flat(g, (166, 108, 58)) + 16 * np.sin(g.y * 1.5 + 1.4 * np.sin(g.x * 0.16))[..., None]
    return _blend(picture, (84, 50, 22), np.abs((g.y + 40) % 8 - 4) > 3.4)


def _bread(g: Grid) -> np.ndarray:
    picture = _blend(_flat(g, (236, 204, 140)), (150, 88, 36), _soft(3.0 - g.edge))
    return _blend(picture, (206, 166, 96), (_noise(9, g.x.shape, 20) > 0.5) & (g.edge > 3))


def _sponge(g: Grid) -> np.ndarray:
    picture = _blend(_flat(g, (246, 222, 40)), (40, 150, 60), g.y > 4)
    return _blend(picture, (190, 160, 10), (_noise(11, g.x.shape, 26) > 0.45) & (g.y < 4))


def _plain(g: Grid) -> np.ndarray:
    return _flat(g, (150, 146, 146)) + 34 * _noise(13, g.x.shape, 16)[..., None]


_PAINTERS: dict[str, Painter] = {
    "plate": _plate,
    "bowl": _bowl,
    "pan": _pan,
    "tomato": _tomato,
    "onion": _onion,
    "potato": _potato,
    "knife": _knife,
    "spoon": _spoon,
    "carrot": _carrot,
    "board": _board,
    "bread": _bread,
    "sponge": _sponge,
}


@cache
def object_sprite(surface: str) -> np.ndarray:
    """The rgb sprite of a surface: a noun, or "plain" and an outline."""
    plain = surface.startswith("plain ")
    outline = surface.removeprefix("plain ") if plain else OUTLINES[NOUNS.index(surface) // 3]
    g = grid(outline)
    picture = _plain(g) if plain else _PAINTERS[surface](g)
    light = 1.0 + 0.10 * (-g.x - g.y) / 26 - 0.28 * _soft(1.4 - g.edge)  # from the upper left, a dark rim: all alike
    return _sprite(picture * light[..., None], _opacity(g))


@cache
def relief_sprite(outline: str, relief: str) -> np.ndarray:
    """The depth sprite of an outline: grey around 128, lighter is nearer."""
    g = grid(outline)
    depth = (g.edge / g.edge.max()).clip(0, 1)  # 0 at the outline, 1 at the middle
    profiles = {
        "flat": np.zeros_like(depth),
        "dome": 62 * np.sqrt(depth) - 20,
        "hollow": 34 - 78 * np.sqrt(depth),
        "ridge": 46 * np.sin(np.abs(g.x if outline == "long" else g.radius) * 1.25),
    }
    return _grey_sprite(128 + profiles[relief], _opacity(g))


@cache
def heat_sprite(outline: str, heat: str) -> np.ndarray:
    """The ir sprite of an outline: lighter is warmer."""
    g = grid(outline)
    level = {"cold": 8, "neutral": 84, "warm": 150, "hot": 244}[heat]
    return _grey_sprite(np.full(g.x.shape, level, np.float32) - 6 * _soft(1.5 - g.edge), _opacity(g))


def _grey_sprite(values: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    return _sprite(np.repeat(values[..., None], 3, -1), opacity)


def _sprite(picture: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    colours = picture.clip(0, 255) * opacity[..., None]
    sprite = np.concatenate([colours, 255 * opacity[..., None]], -1)
    return np.ascontiguousarray(np.rint(sprite).astype(np.uint8))


# Hands


@cache
def hand_sprite(skin: Colour, sleeve: Colour) -> np.ndarray:
    """A right hand seen from above, fingers up, with its forearm in a sleeve."""
    fine = 4
    width, height = HAND_SIZE[0] * fine, HAND_SIZE[1] * fine
    mask, lines = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    cloth, nails = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)

    def stroke(canvas: np.ndarray, first: tuple[float, float], last: tuple[float, float], thick: float) -> None:
        ends = [(round(x * fine), round(y * fine)) for x, y in (first, last)]
        cv2.line(canvas, ends[0], ends[1], 255, round(thick * fine), cv2.LINE_8)
        for end in ends:
            cv2.circle(canvas, end, round(thick * fine / 2), 255, -1)

    fingers = (((34, 52), (24, 18)), ((44, 48), (41, 7)), ((55, 48), (58, 8)), ((65, 53), (73, 21)))
    for base, tip in fingers:
        stroke(mask, base, tip, 11)
        cv2.ellipse(nails, (round(tip[0] * fine), round((tip[1] - 1) * fine)), (3 * fine, 4 * fine), 0, 0, 360, 255, -1)
    stroke(mask, (32, 76), (11, 52), 12)  # the thumb
    palm = [(29, 50), (42, 45), (58, 45), (70, 52), (71, 78), (63, 96), (37, 96), (27, 78)]
    cv2.fillPoly(mask, [np.array(palm, np.int32) * fine], 255)
    stroke(mask, (50, 92), (50, 135), 30)
    for (x0, y0), (x1, y1) in zip([f[0] for f in fingers], [f[0] for f in fingers][1:], strict=False):
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        stroke(lines, (x, y - 6), (x, y + 5), 1.6)
    cuff = [(30, 112), (70, 112), (86, HAND_SIZE[1]), (14, HAND_SIZE[1])]
    cv2.fillPoly(cloth, [np.array(cuff, np.int32) * fine], 255)
    stripes = np.zeros_like(cloth)
    for y in range(124, HAND_SIZE[1], 22):
        cv2.line(stripes, (0, y * fine), (width, y * fine), 255, 6 * fine)

    def small(canvas: np.ndarray) -> np.ndarray:
        return cv2.resize(canvas, HAND_SIZE, interpolation=cv2.INTER_AREA).astype(np.float32) / 255

    flesh, fabric = small(mask), small(cloth)
    inside = cv2.GaussianBlur(flesh, (0, 0), 4.5)
    light = (0.62 + 0.42 * inside)[..., None]
    picture = np.array(skin, np.float32) * light * (1 - 0.3 * small(lines)[..., None])
    picture = _blend(picture, tuple(min(255, round(c * 1.12) + 18) for c in skin), 0.7 * small(nails))  # type: ignore[arg-type]
    worn = np.array(sleeve, np.float32) * (0.75 + 0.35 * cv2.GaussianBlur(fabric, (0, 0), 6))[..., None]
    worn = worn * (1 - 0.28 * small(stripes)[..., None])
    picture = picture * (1 - fabric[..., None]) + worn * fabric[..., None]
    return _sprite(picture, np.maximum(flesh, fabric))


@cache
def grey_hand_sprite(hand: int, sleeve: int) -> np.ndarray:
    """The hand of depth and ir: one grey for hand and one for sleeve."""
    rgb = hand_sprite((200, 200, 200), (90, 90, 90))
    opacity = rgb[..., 3].astype(np.float32) / 255
    values = np.full(opacity.shape, hand, np.float32)
    values[224:] = sleeve
    values[112:224] = np.linspace(hand, sleeve, 112)[:, None]
    return _grey_sprite(values - 14 * (1 - cv2.GaussianBlur(opacity, (0, 0), 4)), opacity)


# Tables


def table_picture(seed: tuple[int, ...], size: tuple[int, int]) -> np.ndarray:
    """float32 (height, width, 3): a textured table of wood, stone, tiles or cloth; which one is drawn from the seed."""
    rng = np.random.default_rng((*seed, 1))
    width, height = size
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    number = int(rng.integers(1 << 30))
    kind = int(rng.integers(4))
    colours = ((136, 96, 62), (112, 116, 120), (176, 182, 178), (122, 138, 150))
    colour = np.array(colours[kind], np.float32) + rng.uniform(-16, 16, 3).astype(np.float32)
    grain = 0.5 * _noise(number, size, 64) + 0.5 * _noise(number + 1, size, 24)
    if kind == 0:  # wood: planks with grain along x
        stretched = cv2.resize(_noise(number + 2, (width // 8, height), 12), size, interpolation=cv2.INTER_LINEAR)
        value = 0.14 * np.sin(0.55 * y + 5 * stretched) + 0.1 * grain - 0.3 * (np.mod(y + 7, 31) < 1.5)
    elif kind == 1:  # stone: speckles
        value = 0.16 * grain + 0.22 * (_noise(number + 3, size, 80) > 0.55)
        value = value - 0.16 * (_noise(number + 4, size, 70) > 0.6)
    elif kind == 2:  # tiles
        joints = (np.mod(x + 11, 34) < 2) | (np.mod(y + 5, 34) < 2)
        chequer = np.mod(np.floor((x + 11) / 34) + np.floor((y + 5) / 34), 2)
        value = 0.07 * grain - 0.34 * joints + 0.05 * (chequer - 0.5)
    else:  # cloth: a woven check
        value = 0.1 * (np.mod(x, 22) < 11) + 0.1 * (np.mod(y, 22) < 11) + 0.07 * np.sin(3.1 * x) * np.sin(3.1 * y)
        value = value + 0.06 * grain - 0.08
    light = 1.06 - 0.22 * ((x / width - 0.4) ** 2 + (y / height - 0.35) ** 2)
    return (colour * (1 + value)[..., None] * light[..., None]).clip(0, 255).astype(np.float32)
