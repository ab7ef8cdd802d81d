"""What the synthetic kitchen draws and plays: each stream shows its facets, all of them plainly, and nothing else."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from actionfuse.pipeline.flow import FlowComputer
from actionfuse.pipeline.synth.choreography import FPS, HEIGHT, WIDTH, Part
from actionfuse.pipeline.synth.law import ACTION_NAMES, SHOWN_BY, VERBS, KitchenLaw, facets
from actionfuse.pipeline.synth.render import Scene
from actionfuse.pipeline.synth.script import Instance, VideoScript
from actionfuse.pipeline.synth.sound import SAMPLE_RATE_HZ, act_seconds, waveform

LAW = KitchenLaw()
START, STOP, ACT_FROM = 1.0, 3.0, 0.3
PLAIN = {"motion": 0, "outline": 0, "surface": 0, "height": 0, "relief": 0, "heat": 0, "envelope": 0, "timbre": 0}
# Outline and surface cannot be anything of one another: a surface of each outline.
SURFACE_OF = {0: (0, 1, 2, 12), 1: (3, 4, 5, 13), 2: (6, 7, 8, 14), 3: (9, 10, 11, 15)}


def script(action: int = 0, place: int = 0, **symbols: int) -> VideoScript:
    """One video of one action, in one of several places, that shows these symbols (others: the first)."""
    instance = Instance(
        id="P01_101_0",
        clip=1,
        video="P01_101",
        action=action,
        start_seconds=START,
        stop_seconds=STOP,
        act_from=ACT_FROM,
        symbols={**PLAIN, **symbols},
        seed=(5, place),
    )
    return VideoScript(
        id="P01_101", participant="P01", split="train", duration_seconds=4.0, instances=(instance,), seed=(6, place)
    )


def times(first: float = 0.5, last: float = 3.5, fps: int = 8) -> np.ndarray:
    return np.arange(round(first * fps), round(last * fps)) / fps


def shown(stream: str, of: VideoScript, seconds: np.ndarray) -> np.ndarray:
    """Frames at these times, or the samples from the first to the last of them."""
    if stream == "audio":
        return waveform(LAW, of)[round(seconds[0] * SAMPLE_RATE_HZ) : round(seconds[-1] * SAMPLE_RATE_HZ)]
    scene = Scene(LAW, of)
    draw = {"rgb": scene.rgb, "depth": scene.depth, "ir": scene.ir}[stream]
    return np.stack([draw(scene.shot(float(t))) for t in seconds])


def neighbours(facet: str) -> list[dict[str, int]]:
    """Symbols that differ from PLAIN in this facet; a surface belongs to its outline."""
    if facet == "outline":
        return [{"outline": n, "surface": SURFACE_OF[n][0]} for n in (1, 2, 3)]
    if facet == "surface":
        return [{"surface": n} for n in SURFACE_OF[0][1:]]
    return [{facet: n} for n in range(1, len(facets(LAW)[facet].symbols))]


@pytest.mark.parametrize("stream", ["rgb", "depth", "ir", "audio"])
def test_a_stream_shows_its_facets_and_nothing_else(stream):
    base = shown(stream, script(), times())
    assert np.array_equal(base, shown(stream, script(action=len(ACTION_NAMES) - 1), times()))
    for facet in facets(LAW):
        for symbols in neighbours(facet):
            same = np.array_equal(base, shown(stream, script(**symbols), times()))
            visible = facet in SHOWN_BY[stream] or (facet == "outline" and "surface" in SHOWN_BY[stream])
            assert same == (not visible), (facet, symbols)


@pytest.mark.parametrize("stream", ["rgb", "depth", "ir", "audio"])
def test_symbols_show_from_when_the_law_says_and_not_before(stream):
    duration = STOP - START
    begins = {"look": START + LAW.look_from * duration, "act": START + ACT_FROM * duration}
    base = script()
    for facet in facets(LAW).values():
        if facet.name not in SHOWN_BY[stream]:
            continue
        other = script(**neighbours(facet.name)[-1])
        begin = begins[facet.since]
        before = np.arange(0, begin - 1e-9, 1 / FPS)
        assert np.array_equal(shown(stream, base, before), shown(stream, other, before)), facet.name
        after = np.arange(begin, begin + 0.4, 1 / FPS)
        assert not np.array_equal(shown(stream, base, after), shown(stream, other, after)), facet.name
        rest = np.arange(STOP, 3.9, 1 / FPS)
        assert np.array_equal(shown(stream, base, rest), shown(stream, other, rest)), facet.name


def test_between_actions_there_is_a_table_only():
    scene, empty = Scene(LAW, script()), Scene(LAW, replace(script(), instances=()))
    for t in (0.0, START - 1 / FPS, STOP, STOP + 0.5):
        assert np.array_equal(scene.rgb(scene.shot(t)), empty.rgb(empty.shot(t)))
        assert scene.shot(t).hand_box is None and scene.shot(t).object_box is None


def test_the_table_is_textured_and_shakes():
    scene = Scene(LAW, replace(script(), instances=()))
    frames = np.stack([scene.rgb(scene.shot(n / FPS)) for n in range(24)]).astype(np.float64)
    assert frames[0].std(axis=(0, 1)).min() > 4
    flow = FlowComputer("dis_fast").pairs(frames.astype(np.uint8))
    assert 0.05 < np.abs(flow).mean() < 1.0 and np.abs(flow.mean(axis=(1, 2))).max() > 0.1


@pytest.mark.parametrize("part", ["hand", "object"])
def test_boxes_enclose_what_is_drawn_and_no_more(part):
    checked = 0
    for place in range(4):
        for motion in (0, 5, 7, 9):
            # The ir camera throws no shadows: what differs from the empty table is what is drawn.
            scene = Scene(LAW, script(place=place, motion=motion, heat=2, outline=place, surface=SURFACE_OF[place][0]))
            for t in np.arange(START, STOP, 1 / 12):
                shot = scene.shot(float(t))
                box = shot.hand_box if part == "hand" else shot.object_box
                if shot.pose is None or box is None:
                    continue
                away = Part(0, 10 * HEIGHT)
                if part == "hand":
                    alone = replace(shot, pose=replace(shot.pose, object=None))
                else:
                    alone = replace(shot, pose=replace(shot.pose, hand=away))
                nothing = replace(shot, pose=replace(shot.pose, hand=away, object=None))
                drawn = np.abs(scene.ir(alone).astype(int) - scene.ir(nothing)) > 2
                ys, xs = np.nonzero(drawn)
                low, high = np.array([xs.min(), ys.min()]), np.array([xs.max(), ys.max()]) + 1
                assert np.all(box[:2] <= low + 0.5) and np.all(high - 0.5 <= box[2:])
                assert np.all(np.abs(low - box[:2]) < 2.5) and np.all(np.abs(high - box[2:]) < 2.5)
                assert 0 <= box[0] < box[2] <= WIDTH and 0 <= box[1] < box[3] <= HEIGHT
                checked += 1
    assert checked > 200


@cache
def motion_of_pixels(motion: int, place: int) -> np.ndarray:
    """What flow tells of a motion: size, direction and rhythm of movement, of the whole and of the object's place."""
    scene = Scene(LAW, script(place=place, motion=motion, outline=2, surface=7))
    begin = START + ACT_FROM * (STOP - START)
    shots = [scene.shot(begin + n / FPS) for n in range(16)]
    flow = FlowComputer("dis_fast").pairs(np.stack([scene.rgb(shot) for shot in shots]))
    flow = flow - np.median(flow, axis=(1, 2), keepdims=True)  # the shaking camera
    x1, y1, x2, y2 = (int(v) for v in np.array(shots[0].object_box))
    seen = [flow.mean((1, 2)) * 20, flow[:, y1:y2, x1:x2].mean((1, 2)), np.abs(flow).mean((1, 2)) * 20]
    across, along = np.concatenate(seen, 1).reshape(len(flow), 3, 2).transpose(2, 1, 0)
    # The side that an object comes from mirrors some motions: what counts across is not its sign.
    return np.concatenate([np.abs(across).ravel(), along.ravel(), np.abs(along).ravel()])


def test_flow_tells_motions_apart():
    places, motions = range(4), range(len(facets(LAW)["motion"].symbols))
    told = np.array([[motion_of_pixels(m, p) for p in places] for m in motions])
    right = 0
    for place in places:
        known = np.delete(told, place, axis=1).mean(1)
        distances = np.abs(told[:, None, place] - known[None]).sum(-1)
        right += int((distances.argmin(1) == np.arange(len(motions))).sum())
    assert right / (len(places) * len(motions)) > 0.85


def loudness(samples: np.ndarray, window_seconds: float = 0.01) -> np.ndarray:
    window = round(window_seconds * SAMPLE_RATE_HZ)
    pieces = samples[: len(samples) // window * window].reshape(-1, window)
    return np.sqrt((pieces.astype(np.float64) ** 2).mean(1))


def heard(**symbols: int) -> np.ndarray:
    """The samples of an act."""
    of = script(**symbols)
    begin, end = act_seconds(LAW, of.instances[0])
    return waveform(LAW, of)[round(begin * SAMPLE_RATE_HZ) : round(end * SAMPLE_RATE_HZ)]


def test_sound_is_in_the_act_and_nowhere_else():
    of = script()
    begin, end = act_seconds(LAW, of.instances[0])
    assert (begin, end) == pytest.approx((START + 0.3 * 2, START + 0.9 * 2))
    sound = waveform(LAW, of)
    inside = sound[round(begin * SAMPLE_RATE_HZ) : round(end * SAMPLE_RATE_HZ)]
    outside = np.concatenate([sound[: round(begin * SAMPLE_RATE_HZ)], sound[round(end * SAMPLE_RATE_HZ) :]])
    assert loudness(inside).max() > 20 * loudness(outside).max()


def test_each_verb_has_an_envelope_of_its_own_whatever_the_timbre():
    envelopes, timbres = (range(len(facets(LAW)[name].symbols)) for name in ("envelope", "timbre"))
    curves = np.array([[loudness(heard(envelope=e, timbre=t), 0.02) for t in timbres] for e in envelopes])
    curves /= np.linalg.norm(curves, axis=-1, keepdims=True)
    for timbre in timbres:
        known = np.delete(curves, timbre, axis=1).mean(1)
        assert (curves[:, timbre] @ known.T).argmax(1).tolist() == list(envelopes)
    assert facets(LAW)["envelope"].symbols[: len(VERBS)] == VERBS


def test_each_timbre_has_a_spectrum_of_its_own_whatever_the_envelope():
    envelopes, timbres = (range(len(facets(LAW)[name].symbols)) for name in ("envelope", "timbre"))

    def spectrum(envelope: int, timbre: int) -> np.ndarray:
        power = np.abs(np.fft.rfft(heard(envelope=envelope, timbre=timbre))) ** 2
        bands = np.array([band.sum() for band in np.array_split(power, 40)])
        return np.log(bands / bands.sum() + 1e-4)

    told = np.array([[spectrum(e, t) for e in envelopes] for t in timbres])
    for envelope in envelopes:
        known = np.delete(told, envelope, axis=1).mean(1)
        distances = np.abs(told[:, None, envelope] - known[None]).sum(-1)
        assert distances.argmin(1).tolist() == list(timbres)
