"""Small video files made on the spot: frame *i* encodes *i* in its pixels, in ordinary and in troublesome files.

`write_counting_video` writes one; `read_code` reads the number back from decoded RGB, also after scaling and lossy
coding. `make(kind, folder)` writes one of `GOOD` (must be read right) or `DAMAGED` and says what a right reader finds
in it; `make_broken` writes one of `BROKEN`, which must be refused with a reason. No file comes from elsewhere.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np

GRID = 4  # a code is 4 x 4 blocks: 12 bits of the number and 4 bits of checksum
MAX_NUMBER = 1 << 12


def _code_bits(number: int) -> np.ndarray:
    if not 0 <= number < MAX_NUMBER:
        raise ValueError(f"a counting frame carries 0..{MAX_NUMBER - 1}, not {number}")
    checksum = (number ^ (number >> 4) ^ (number >> 8) ^ 0b0101) & 0b1111
    word = number | checksum << 12
    return np.array([word >> bit & 1 for bit in range(GRID * GRID)], bool).reshape(GRID, GRID)


def counting_frame(number: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """uint8 (H, W, 3) RGB picture of `number`, size (width, height): 4 x 4 blocks, light = 1 and dark = 0, tinted."""
    width, height = size
    light = np.array([[235, 205, 150], [200, 230, 170], [215, 190, 225], [230, 215, 190]], np.uint8)
    dark = np.array([[60, 10, 20], [10, 40, 70], [20, 45, 10], [40, 15, 55]], np.uint8)
    bits = _code_bits(number)
    blocks = np.where(bits[..., None], light[None, :], dark[None, :])
    rows = np.arange(height) * GRID // height
    columns = np.arange(width) * GRID // width
    return np.ascontiguousarray(blocks[rows[:, None], columns[None, :]])


def read_code(frame: np.ndarray, rotation_degrees: int = 0) -> int:
    """The number that a decoded uint8 (H, W, 3) frame carries, at any size from 12 pixels on the short side.

    rotation_degrees: counter-clockwise turn that the display applied (VideoInfo.rotation_degrees); undone first.
    Raises ValueError where the checksum does not fit: the picture is damaged, turned or no counting frame at all.
    """
    upright = np.rot90(frame, -rotation_degrees // 90)
    height, width = upright.shape[:2]
    luma = upright.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    bits = np.zeros((GRID, GRID), bool)
    for row in range(GRID):
        for column in range(GRID):
            # The middle half of a block: edges are blurred by scaling and by the codec.
            y0, y1 = (row + 0.25) * height / GRID, (row + 0.75) * height / GRID
            x0, x1 = (column + 0.25) * width / GRID, (column + 0.75) * width / GRID
            patch = luma[int(y0) : max(int(y0) + 1, round(y1)), int(x0) : max(int(x0) + 1, round(x1))]
            bits[row, column] = patch.mean() > 120
    number = sum(1 << bit for bit in range(12) if bits.flat[bit])
    if not np.array_equal(bits, _code_bits(number)):
        raise ValueError("no counting frame: the checksum does not fit")
    return number


def read_codes(frames: np.ndarray, rotation_degrees: int = 0) -> list[int]:
    """`read_code` of each frame of a (T, H, W, 3) array."""
    return [read_code(frame, rotation_degrees) for frame in frames]


def write_counting_video(
    path: str | Path,
    num_frames: int = 60,
    size: tuple[int, int] = (64, 48),
    fps: float | Fraction = 25,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    bframes: int = 0,
    first_number: int = 0,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    audio: bool = False,
    container: str | None = None,
    container_options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    pictures: Callable[[int], np.ndarray] | None = None,
) -> Path:
    """Write frames `first_number`, `first_number + 1`, ... at `fps`, or at time stamps `pts` in units of `time_base`.

    audio: adds one second of 440 Hz sine per second of video (AAC, 16 kHz mono).
    pictures: number -> uint8 (H, W, 3), in place of `counting_frame` (a natural picture, say).
    """
    path = Path(path)
    fps = Fraction(fps).limit_denominator(100_000)
    options = dict(codec_options or {})
    if codec == "libx264":
        options = {"preset": "veryfast", "crf": "12", "sc_threshold": "0"} | options
    elif codec == "libx265":
        options = {"preset": "ultrafast", "crf": "12", "x265-params": "log-level=none:pools=none"} | options
    elif codec == "libvpx-vp9":
        options = {"deadline": "realtime", "cpu-used": "8", "crf": "20"} | options
    elif codec in ("mpeg4", "mpeg2video", "mjpeg"):
        options = {"b": "1000000"} | options
    with av.open(str(path), "w", format=container, options=container_options or {}) as out:
        stream = out.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.thread_count = 1
        stream.gop_size = gop
        stream.max_b_frames = bframes
        if time_base is not None:
            stream.time_base = stream.codec_context.time_base = time_base
        step = 1 / (fps * (time_base or 1 / fps))
        sound = out.add_stream("aac", rate=16_000, layout="mono") if audio else None
        for index in range(num_frames):
            number = first_number + index
            picture = pictures(number) if pictures else counting_frame(number, size)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = pts[index] if pts is not None else round(index * step)
            frame.time_base = time_base or 1 / fps
            for packet in stream.encode(frame):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
        if sound is not None:
            samples = np.arange(int(16_000 * num_frames / fps), dtype=np.float32)
            wave = (0.3 * np.sin(samples * (2 * np.pi * 440 / 16_000))).astype(np.float32)
            for start in range(0, len(wave), 1024):
                piece = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], "fltp", "mono")
                piece.sample_rate, piece.pts, piece.time_base = 16_000, start, Fraction(1, 16_000)
                for packet in sound.encode(piece):
                    out.mux(packet)
            for packet in sound.encode():
                out.mux(packet)
    return path


def ffmpeg(*arguments: str | Path, stdin: bytes | None = None) -> bytes:
    """Run the ffmpeg binary of imageio-ffmpeg; returns what it wrote to standard output."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y", *map(str, arguments)]
    if stdin is None:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    else:
        done = subprocess.run(command, input=stdin, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode(errors='replace')}")
    return done.stdout


def ffmpeg_frames(path: str | Path, size: tuple[int, int], *before_input: str) -> np.ndarray:
    """What the ffmpeg program itself shows: uint8 (T, H, W, 3), each decoded frame once. size: (width, height)."""
    raw = ffmpeg(*before_input, "-i", path, "-map", "0:v:0", "-fps_mode", "passthrough", "-f", "rawvideo",
                 "-pix_fmt", "rgb24", "-")  # fmt: skip
    return np.frombuffer(raw, np.uint8).reshape(-1, size[1], size[0], 3)


@dataclass(frozen=True)
class Made:
    """A file and what a right reader finds in it. size: (width, height) as displayed. seconds: None = not fixed."""

    path: Path
    numbers: list[int]
    seconds: list[float] | None
    size: tuple[int, int] = (64, 48)
    rotation_degrees: int = 0
    has_audio: bool = False


def _made(path: Path, count: int, *, first: int = 0, start: float = 0.0, fps: float = 25.0, **more) -> Made:
    return Made(path, list(range(first, first + count)), [start + k / fps for k in range(count)], **more)


def _plain(folder: Path) -> Made:
    return _made(write_counting_video(folder / "plain.mp4", 60), 60)


def _bframes(folder: Path) -> Made:
    path = write_counting_video(folder / "bframes.mp4", 60, gop=24, bframes=3, audio=True)
    return _made(path, 60, has_audio=True)


def _one_gop(folder: Path) -> Made:
    return _made(write_counting_video(folder / "one_gop.mp4", 60, gop=600, bframes=2), 60)


def _ntsc(folder: Path) -> Made:
    path = write_counting_video(folder / "ntsc.mp4", 60, fps=Fraction(30_000, 1001))
    return _made(path, 60, fps=30_000 / 1001)


def _odd_name(folder: Path) -> Made:
    return _made(write_counting_video(folder / "ünï 视频 with'quote $x;.mp4", 30), 30)


def _vfr(folder: Path) -> Made:
    pts, now = [], 0
    for index in range(50):
        pts.append(now)
        now += (1, 2, 1, 5)[index % 4] * 512
    path = write_counting_video(folder / "vfr.mp4", 50, pts=pts, time_base=Fraction(1, 12_800), bframes=2)
    return Made(path, list(range(50)), [p / 12_800 for p in pts])


def _vfr_gaps(folder: Path) -> Made:
    pts = [512 * (k + 20 * (k // 10)) for k in range(50)]
    path = write_counting_video(folder / "vfr_gaps.mp4", 50, pts=pts, time_base=Fraction(1, 12_800))
    return Made(path, list(range(50)), [p / 12_800 for p in pts])


def _rotated(degrees: int) -> Callable[[Path], Made]:
    def make_it(folder: Path) -> Made:
        upright = write_counting_video(folder / "upright.mp4", 30)
        path = folder / f"rotate{degrees}.mp4"
        ffmpeg("-display_rotation", str(degrees), "-i", upright, "-c", "copy", path)
        size = (48, 64) if degrees % 180 else (64, 48)
        return _made(path, 30, size=size, rotation_degrees=degrees)

    return make_it


def _edit_list(folder: Path) -> Made:
    """Cut out of a longer file without coding it again: it starts with frames that an edit list hides."""
    source = write_counting_video(folder / "source.mp4", 100, gop=48, bframes=3)
    path = folder / "edit_list.mp4"
    ffmpeg("-ss", "2.36", "-i", source, "-c", "copy", path)
    return _made(path, 41, first=59)


def _edit_list_inside_gop(folder: Path) -> Made:
    source = write_counting_video(folder / "source.mp4", 100, gop=48, bframes=3, audio=True)
    path = folder / "edit_list_av.mp4"
    ffmpeg("-ss", "0.8", "-i", source, "-c", "copy", path)
    return _made(path, 80, first=20, has_audio=True)


def _start_mp4(folder: Path) -> Made:
    source = write_counting_video(folder / "source.mp4", 50, bframes=2)
    path = folder / "start.mp4"
    ffmpeg("-i", source, "-c", "copy", "-output_ts_offset", "5", path)
    return _made(path, 50, start=5.0)


def _start_ts(folder: Path) -> Made:
    source = write_counting_video(folder / "source.mp4", 50, bframes=2)
    path = folder / "start.ts"
    ffmpeg("-i", source, "-c", "copy", "-output_ts_offset", "5", "-muxdelay", "0", "-muxpreload", "0", path)
    return _made(path, 50, start=5.0)


def _start_ts_one_gop(folder: Path) -> Made:
    """No seek finds its only key frame again."""
    source = write_counting_video(folder / "source.mp4", 100, gop=600, bframes=2, audio=True)
    path = folder / "start_one_gop.ts"
    ffmpeg("-i", source, "-c", "copy", "-output_ts_offset", "5", "-muxdelay", "0", "-muxpreload", "0", path)
    return _made(path, 100, start=5.0, has_audio=True)


def _mpeg4_avi(folder: Path) -> Made:
    path = write_counting_video(folder / "mpeg4.avi", 50, codec="mpeg4", bframes=2)
    return Made(path, list(range(50)), None)


def _mjpeg_avi(folder: Path) -> Made:
    return _made(write_counting_video(folder / "mjpeg.avi", 40, codec="mjpeg", pix_fmt="yuvj420p"), 40)


def _interlaced(folder: Path) -> Made:
    path = write_counting_video(
        folder / "interlaced.mpg", 50, codec="mpeg2video", bframes=2, codec_options={"flags": "+ilme+ildct"}
    )
    return Made(path, list(range(50)), None)


def _size_change(folder: Path) -> Made:
    a = write_counting_video(folder / "a.ts", 30, container="mpegts")
    b = write_counting_video(folder / "b.ts", 30, (96, 72), first_number=30, container="mpegts",
                             pts=list(range(30, 60)), time_base=Fraction(1, 25))  # fmt: skip
    path = folder / "size_change.ts"
    path.write_bytes(a.read_bytes() + b.read_bytes())
    return Made(path, list(range(60)), None)


def _raw_h264(folder: Path) -> Made:
    path = write_counting_video(folder / "raw.h264", 40, container="h264")
    return Made(path, list(range(40)), None)


def _gif(folder: Path) -> Made:
    path = write_counting_video(folder / "animated.gif", 20, fps=10, codec="gif", pix_fmt="rgb8")
    return _made(path, 20, fps=10)


def _open_gop(folder: Path) -> Made:
    path = write_counting_video(folder / "open_gop.mp4", 60, bframes=3,
                                codec_options={"x264-params": "open-gop=1:keyint=12:bframes=3"})  # fmt: skip
    return _made(path, 60)


def _fragmented(folder: Path) -> Made:
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    path = write_counting_video(folder / "fragmented.mp4", 60, bframes=2, container_options=options)
    # No edit list hides the delay of the B-frames, so the stream's own first time stamp is two frames late.
    return _made(path, 60, start=2 / 25)


def _coded(name: str, codec: str = "libx264", count: int = 30, **options) -> Callable[[Path], Made]:
    def make_it(folder: Path) -> Made:
        path = write_counting_video(folder / name, count, codec=codec, **options)
        return _made(path, count, size=options.get("size", (64, 48)))

    return make_it


def _cover_art(folder: Path) -> Made:
    video = write_counting_video(folder / "video.mp4", 30, audio=True)
    ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "100x80", "-i", "-", "-frames:v", "1", folder / "cover.jpg",
           stdin=counting_frame(4000, (100, 80)).tobytes())  # fmt: skip
    path = folder / "cover_art.mp4"
    ffmpeg("-i", folder / "cover.jpg", "-i", video, "-map", "0", "-map", "1", "-c", "copy",
           "-disposition:v:0", "attached_pic", path)  # fmt: skip
    return _made(path, 30, has_audio=True)


def _two_streams(folder: Path) -> Made:
    a = write_counting_video(folder / "a.mp4", 30)
    b = write_counting_video(folder / "b.mp4", 30, (128, 96), first_number=1000)
    path = folder / "two_streams.mkv"
    ffmpeg("-i", a, "-i", b, "-map", "0:v", "-map", "1:v", "-c", "copy", path)
    return _made(path, 30)


def _colour(name: str, matrix: str, full_range: bool, tagged: bool = True) -> Callable[[Path], Made]:
    """Converted by ffmpeg with the matrix and range that the tags then name, so that a right reader gets RGB back."""

    def make_it(folder: Path) -> Made:
        count, size = 12, (64, 48)
        raw = b"".join(counting_frame(k, size).tobytes() for k in range(count))
        span = "full" if full_range else "limited"
        tags = ["-colorspace", matrix, "-color_range", "pc" if full_range else "tv"] if tagged else []
        path = folder / name
        ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", "25", "-i", "-",
               "-vf", f"scale=out_color_matrix={matrix}:out_range={span},format=yuv420p", "-c:v", "libx264",
               "-crf", "4", *tags, path, stdin=raw)  # fmt: skip
        return _made(path, count)

    return make_it


def _damaged_middle(folder: Path) -> Made:
    """Noise over three packets in the middle. Frames around them may be lost or wrong; the others must be right.

    `numbers` lists those that any reader that goes on must show: all before the damage and all from two groups of
    pictures after it.
    """
    path = write_counting_video(folder / "damaged_middle.mp4", 100, container_options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as video:
        spans = [(p.pos, p.size) for p in video.demux(video=0) if p.size]
    first, last = 50, 53
    for start, size in spans[first:last]:
        data[start + 8 : start + size] = random.Random(start).randbytes(max(0, size - 8))
    path.write_bytes(data)
    numbers = [k for k in range(100) if k < 48 or k >= 60]
    return Made(path, numbers, [k / 25 for k in numbers])


def _truncated(folder: Path) -> Made:
    """Index in front, the last 40 % of the bytes missing. `numbers`: the frames whose bytes are all there."""
    path = write_counting_video(folder / "truncated.mp4", 100, container_options={"movflags": "faststart"})
    data = path.read_bytes()
    data = data[: len(data) * 6 // 10]
    with av.open(str(path)) as video:
        whole = sum(p.pos + p.size <= len(data) for p in video.demux(video=0) if p.size)
    path.write_bytes(data)
    return _made(path, whole)


# Files that every reader must read right (or refuse, saying why, where it is not the one that `auto` takes).
GOOD: dict[str, Callable[[Path], Made]] = {
    "plain": _plain,
    "bframes": _bframes,
    "one_gop": _one_gop,
    "ntsc": _ntsc,
    "odd_name": _odd_name,
    "vfr": _vfr,
    "vfr_gaps": _vfr_gaps,
    "rotate90": _rotated(90),
    "rotate180": _rotated(180),
    "rotate270": _rotated(270),
    "edit_list": _edit_list,
    "edit_list_av": _edit_list_inside_gop,
    "start_mp4": _start_mp4,
    "start_ts": _start_ts,
    "start_ts_one_gop": _start_ts_one_gop,
    "mpeg4_avi": _mpeg4_avi,
    "mjpeg_avi": _mjpeg_avi,
    "interlaced": _interlaced,
    "size_change": _size_change,
    "raw_h264": _raw_h264,
    "gif": _gif,
    "open_gop": _open_gop,
    "fragmented": _fragmented,
    "tenbit_h264": _coded("tenbit.mp4", pix_fmt="yuv420p10le"),
    "tenbit_hevc": _coded("tenbit_hevc.mp4", "libx265", pix_fmt="yuv420p10le"),
    "gray": _coded("gray.mp4", pix_fmt="gray"),
    "odd_444": _coded("odd444.mp4", pix_fmt="yuv444p", size=(65, 49)),
    "odd_420": _coded("odd420.webm", "libvpx-vp9", size=(63, 47)),
    "rgb": _coded("rgb.mp4", "libx264rgb", pix_fmt="rgb24"),
    "no_count": _coded("no_count.mkv", bframes=2),
    "one_frame": _coded("one.mp4", count=1),
    "two_frames": _coded("two.mp4", count=2),
    "cover_art": _cover_art,
    "two_streams": _two_streams,
    "bt601": _colour("bt601.mp4", "smpte170m", False),
    "bt709": _colour("bt709.mp4", "bt709", False),
    "full_range": _colour("full.mp4", "bt709", True),
    "full_range_601": _colour("full601.mp4", "smpte170m", True),
    "untagged": _colour("untagged.mp4", "smpte170m", False, tagged=False),
}
# Files with damage that a reader must get past: what is listed in Made.numbers must be shown.
DAMAGED: dict[str, Callable[[Path], Made]] = {"damaged_middle": _damaged_middle, "truncated": _truncated}


def _bytes(name: str, data: bytes) -> Callable[[Path], Path]:
    def make_it(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make_it


def _audio_only(folder: Path) -> Path:
    video = write_counting_video(folder / "with_sound.mp4", 25, audio=True)
    ffmpeg("-i", video, "-vn", "-c", "copy", folder / "audio_only.m4a")
    return folder / "audio_only.m4a"


def _cut_before_index(folder: Path) -> Path:
    path = write_counting_video(folder / "no_index.mp4", 60)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def _broken_moov(folder: Path) -> Path:
    path = write_counting_video(folder / "broken_moov.mp4", 60, container_options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    start = data.find(b"moov")
    data[start + 120 : start + 820] = random.Random(0).randbytes(700)
    path.write_bytes(data)
    return path


# Files with no picture to show at all: opening or reading them must raise VideoError with a reason.
BROKEN: dict[str, Callable[[Path], Path]] = {
    "zero_bytes": _bytes("zero.mp4", b""),
    "text": _bytes("text.mp4", b"this is not a video\n" * 100),
    "noise": _bytes("noise.mp4", random.Random(1).randbytes(5000)),
    "audio_only": _audio_only,
    "no_index": _cut_before_index,
    "broken_moov": _broken_moov,
}


def make(kind: str, folder: Path) -> Made:
    """Write one of GOOD or DAMAGED into a sub-folder of its own."""
    own = folder / kind
    own.mkdir(parents=True, exist_ok=True)
    return {**GOOD, **DAMAGED}[kind](own)


def make_broken(kind: str, folder: Path) -> Path:
    """Write one of BROKEN into a sub-folder of its own."""
    own = folder / kind
    own.mkdir(parents=True, exist_ok=True)
    return BROKEN[kind](own)
