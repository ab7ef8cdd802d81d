"""Malformed videos made on the spot: cut, flipped, lying, empty, misnamed.

`make_malformed(folder)` writes all of them and returns name -> path. `UNREADABLE` names those with nothing to show,
which must be refused with a reason; of the others a reader may show what it can, or refuse. None may crash it or keep
it for ever.
"""

from __future__ import annotations

import io
import os
import random
import struct
import tarfile
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
from videos import counting_frame, ffmpeg, write_counting_video

NUM_FRAMES = 40


@dataclass(frozen=True)
class Good:
    """The bytes of sound files that are then harmed. fast: index in front."""

    mp4: bytes
    fast: bytes
    fragments: bytes
    mkv: bytes
    webm: bytes
    avi: bytes
    ts: bytes
    png: bytes
    jpg: bytes


def _good(folder: Path) -> Good:
    folder.mkdir(parents=True, exist_ok=True)
    write_counting_video(folder / "a.mp4", NUM_FRAMES, bframes=2, audio=True)
    ffmpeg("-i", folder / "a.mp4", "-c", "copy", "-movflags", "+faststart", folder / "fast.mp4")
    ffmpeg("-i", folder / "a.mp4", "-c", "copy", "-movflags", "frag_keyframe+empty_moov", folder / "fragments.mp4")
    ffmpeg("-i", folder / "a.mp4", "-c", "copy", folder / "a.mkv")
    ffmpeg("-i", folder / "a.mp4", "-c", "copy", folder / "a.ts")
    write_counting_video(folder / "a.webm", NUM_FRAMES, codec="libvpx-vp9")
    write_counting_video(folder / "a.avi", NUM_FRAMES, codec="mpeg4")
    names = ("a.mp4", "fast.mp4", "fragments.mp4", "a.mkv", "a.webm", "a.avi", "a.ts")
    pictures = [cv2.imencode(ext, counting_frame(7))[1].tobytes() for ext in (".png", ".jpg")]
    return Good(*((folder / name).read_bytes() for name in names), *pictures)


Maker = Callable[[Good, Path], Path]
MALFORMED: dict[str, Maker] = {}
UNREADABLE: set[str] = set()


def _add(name: str, make: Maker, *, readable: bool) -> None:
    assert name not in MALFORMED
    MALFORMED[name] = make
    if not readable:
        UNREADABLE.add(name)


def _bytes(name: str, harm: Callable[[Good], bytes], *, readable: bool = True) -> None:
    """A file `name` with the bytes that `harm` makes of the good ones."""

    def make(good: Good, folder: Path) -> Path:
        (folder / name).write_bytes(harm(good))
        return folder / name

    _add(name, make, readable=readable)


def _maker(*, readable: bool) -> Callable[[Maker], Maker]:
    def remember(make: Maker) -> Maker:
        _add(make.__name__.strip("_"), make, readable=readable)
        return make

    return remember


# --- cut off

for _kind in ("mp4", "fast", "fragments", "mkv", "webm", "avi", "ts"):
    _ending = _kind if _kind not in ("fast", "fragments") else "mp4"
    for _percent in (1, 10, 50, 90, 99):
        _bytes(
            f"{_kind}_cut_at_{_percent}.{_ending}",
            lambda good, kind=_kind, percent=_percent: getattr(good, kind)[: len(getattr(good, kind)) * percent // 100],
            readable=_percent >= (90 if _kind == "mp4" else 10),  # a plain mp4 has its index at its end
        )


# --- flipped bits, at the same places every time


def _flip(data: bytes, start: int, stop: int, flips: int, seed: int) -> bytes:
    harmed, draw = bytearray(data), random.Random(seed)
    for _ in range(flips):
        harmed[draw.randrange(start, min(stop, len(data)))] ^= 1 << draw.randrange(8)
    return bytes(harmed)


def _part(kind: str, data: bytes, part: str) -> tuple[int, int]:
    """(start, stop) of the header, the index or the pictures of a file."""
    middle = (len(data) * 3 // 10, len(data) * 7 // 10)
    if kind == "fast":
        moov, mdat = data.find(b"moov"), data.find(b"mdat")
        return {"header": (0, moov + 200), "index": (data.find(b"stts"), mdat), "data": (mdat + 8, len(data))}[part]
    if kind == "mkv" or kind == "webm":
        cues = data.rfind(b"\x1c\x53\xbb\x6b")
        return {"header": (0, 600), "index": (cues if cues > 0 else len(data) - 100, len(data)), "data": middle}[part]
    if kind == "avi":
        return {"header": (0, 400), "index": (data.rfind(b"idx1"), len(data)), "data": middle}[part]
    return {"header": (0, 188 * 4), "index": (len(data) - 188 * 8, len(data)), "data": middle}[part]


for _kind in ("fast", "mkv", "webm", "avi", "ts"):
    _ending = "mp4" if _kind == "fast" else _kind
    for _where, _flips in (("header", 4), ("header", 40), ("index", 10), ("index", 100), ("data", 10), ("data", 1000)):
        for _seed in range(2):
            _bytes(
                f"{_kind}_{_where}_{_flips}_flips_{_seed}.{_ending}",
                lambda good, kind=_kind, where=_where, flips=_flips, seed=_seed: _flip(
                    getattr(good, kind), *_part(kind, getattr(good, kind), where), flips, seed
                ),
            )


# --- headers that lie


def _poke(data: bytes, tag: bytes, offset: int, value: bytes, *, which: int = 0) -> bytes:
    """Write `value` at `offset` bytes behind occurrence `which` of `tag`."""
    at = -1
    for _ in range(which + 1):
        at = data.find(tag, at + 1)
        assert at >= 0, tag
    at += len(tag) + offset
    return data[:at] + value + data[at + len(value) :]


_HUGE = b"\xff\xff\xff\xff"
for _name, _tag, _offset, _value in (
    # offsets count from behind the four letters of a version 0 box
    ("movie_duration", b"mvhd", 16, _HUGE),
    ("movie_timescale_0", b"mvhd", 12, bytes(4)),
    ("media_duration", b"mdhd", 16, _HUGE),
    ("media_timescale_0", b"mdhd", 12, bytes(4)),
    ("media_timescale", b"mdhd", 12, b"\x7f\xff\xff\xff"),
    ("edit_duration", b"elst", 8, _HUGE),
    ("edit_start", b"elst", 12, b"\x7f\xff\xff\xff"),
    ("edit_count", b"elst", 4, _HUGE),
    ("sample_count", b"stsz", 8, _HUGE),
    ("sample_size", b"stsz", 4, b"\x7f\xff\xff\xff"),
    ("first_sample_size", b"stsz", 12, b"\x7f\xff\xff\xff"),
    ("time_entries", b"stts", 4, _HUGE),
    ("time_count", b"stts", 8, _HUGE),
    ("time_step", b"stts", 12, b"\x7f\xff\xff\xff"),
    ("time_step_0", b"stts", 12, bytes(4)),
    ("offset_entries", b"ctts", 4, _HUGE),
    ("offset_huge", b"ctts", 12, b"\x7f\xff\xff\xff"),
    ("chunk_entries", b"stsc", 4, _HUGE),
    ("chunk_samples", b"stsc", 12, _HUGE),
    ("chunk_position", b"stco", 8, _HUGE),
    ("chunk_count", b"stco", 4, _HUGE),
    ("coded_size", b"avc1", 24, _HUGE),
    ("coded_size_0", b"avc1", 24, bytes(4)),
    ("shown_size", b"tkhd", 76, _HUGE + _HUGE),
    ("rotation", b"tkhd", 40, random.Random(5).randbytes(36)),
    ("codec_unknown", b"avc1", -4, b"zzzz"),
    ("moov_size", b"moov", -8, _HUGE),
    ("moov_size_1", b"moov", -8, struct.pack(">I", 1)),
    ("trak_size_0", b"trak", -8, bytes(4)),
):
    _bytes(
        f"lies_{_name}.mp4",
        lambda good, tag=_tag, offset=_offset, value=_value: _poke(good.fast, tag, offset, value),
    )

_bytes("moov_missing.mp4", lambda good: good.fast[good.fast.find(b"mdat") - 4 :], readable=False)
_bytes("moov_noise.mp4", lambda good: _noise_at(good.fast, b"moov", 700), readable=False)
_bytes("moov_twice.mp4", lambda good: good.fast + good.fast)
_bytes("nested.mp4", lambda good: good.fast[:32] + _nested(5000), readable=False)
_bytes("fragment_run.mp4", lambda good: _poke(good.fragments, b"trun", 4, _HUGE))
_bytes("fragment_time.mp4", lambda good: _poke(good.fragments, b"tfdt", 4, b"\x7f" + b"\xff" * 7, which=1))
_bytes("mkv_time_unit.mkv", lambda good: _poke(good.mkv, b"\x2a\xd7\xb1\x83", 0, b"\xff\xff\xff"))
_bytes("mkv_duration.mkv", lambda good: _poke(good.mkv, b"\x44\x89\x88", 0, struct.pack(">d", 1e300)))
_bytes("mkv_duration_nan.mkv", lambda good: _poke(good.mkv, b"\x44\x89\x88", 0, struct.pack(">d", float("nan"))))
_bytes("mkv_wide.mkv", lambda good: _poke(good.mkv, b"\xb0\x81", 0, b"\xff"))
_bytes("mkv_cluster_size.mkv", lambda good: _poke(good.mkv, b"\x1f\x43\xb6\x75", 0, b"\x01" + b"\xfe" * 7))
_bytes("avi_frame_count.avi", lambda good: _poke(good.avi, b"avih", 20, _HUGE))
_bytes("avi_size.avi", lambda good: _poke(good.avi, b"avih", 36, b"\xff\xff\xff\x7f" * 2))
_bytes("avi_picture_size.avi", lambda good: _poke(good.avi, b"strf", 8, b"\xff\xff\xff\x7f" * 2))
_bytes("avi_rate_0.avi", lambda good: _poke(good.avi, b"strh", 24, bytes(8)))
_bytes("avi_rate.avi", lambda good: _poke(good.avi, b"strh", 24, b"\xff\xff\xff\x7f\x01\0\0\0"))
_bytes("avi_length.avi", lambda good: _poke(good.avi, b"strh", 36, _HUGE))
_bytes("avi_riff_size.avi", lambda good: _poke(good.avi, b"RIFF", 0, _HUGE))
_bytes("ts_one_packet_lost.ts", lambda good: good.ts[: 188 * 20] + good.ts[188 * 21 :])
_bytes("ts_out_of_step.ts", lambda good: good.ts[: 188 * 20] + b"\0" * 101 + good.ts[188 * 20 :])
_bytes("ts_time_leap.ts", lambda good: good.ts + good.ts)
_bytes("gif_huge.gif", lambda good: b"GIF89a" + b"\xff\xff\xff\xff\x80\0\0" + bytes(6) + b";", readable=False)
_bytes("y4m_huge.y4m", lambda good: b"YUV4MPEG2 W2000000000 H2000000000 F25:1\nFRAME\n" + bytes(500), readable=False)
_bytes("ivf_lies.ivf", lambda good: b"DKIF\0\0\x20\0VP90\xff\xff\xff\xff" + _HUGE * 4 + bytes(200), readable=False)


def _noise_at(data: bytes, tag: bytes, length: int) -> bytes:
    return _poke(data, tag, 120, random.Random(0).randbytes(length))


def _nested(depth: int) -> bytes:
    size = 8 * depth
    return b"".join(struct.pack(">I4s", size - 8 * level, b"moov" if level == 0 else b"trak") for level in range(depth))


# --- no video at all

_bytes("zero_bytes.mp4", lambda good: b"", readable=False)
_bytes("zero_bytes.mkv", lambda good: b"", readable=False)
_bytes("one_byte.mp4", lambda good: b"\0", readable=False)
_bytes("zeros.mp4", lambda good: bytes(100_000), readable=False)
_bytes("zeros.ts", lambda good: bytes(188 * 500), readable=False)
_bytes("text.mp4", lambda good: b"this is not a video\n" * 100, readable=False)
_bytes("text.h264", lambda good: b"this is not a video\n" * 100, readable=False)
_bytes("page.webm", lambda good: b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n", readable=False)
_bytes(
    "pointer.mp4", lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", readable=False
)
_bytes("playlist.mp4", lambda good: b"#EXTM3U\n#EXTINF:10,\n/dev/zero\n#EXT-X-ENDLIST\n", readable=False)
_bytes("concat.mp4", lambda good: b"ffconcat version 1.0\nfile /dev/zero\n", readable=False)
for _seed in range(3):
    for _ending in ("mp4", "avi", "ts"):
        _bytes(
            f"noise_{_seed}.{_ending}", lambda good, seed=_seed: random.Random(seed).randbytes(20_000), readable=False
        )
_bytes("head_then_noise.mp4", lambda good: good.fast[:64] + random.Random(9).randbytes(20_000), readable=False)
_bytes("noise_then_video.mp4", lambda good: random.Random(9).randbytes(5000) + good.fast)
_bytes("first_half_zeros.mp4", lambda good: bytes(len(good.mp4) // 2) + good.mp4[len(good.mp4) // 2 :], readable=False)
_bytes("png_named.mp4", lambda good: good.png)
_bytes("jpg_named.mkv", lambda good: good.jpg)
_bytes("avi_named.mp4", lambda good: good.avi)
_bytes("mp4_named.avi", lambda good: good.mp4)
_bytes("picture_cut.png", lambda good: good.png[: len(good.png) // 2])
_bytes("picture.jpg", lambda good: good.jpg)


def _silence() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(bytes(8000))
    return buffer.getvalue()


_bytes("sound.wav", lambda good: _silence(), readable=False)
_bytes("sound_named.mp4", lambda good: _silence(), readable=False)


@_maker(readable=False)
def _audio_only(good: Good, folder: Path) -> Path:
    (folder / "with_sound.tmp").write_bytes(good.mp4)
    ffmpeg("-i", folder / "with_sound.tmp", "-vn", "-c", "copy", folder / "audio_only.mp4")
    (folder / "with_sound.tmp").unlink()
    return folder / "audio_only.mp4"


@_maker(readable=False)
def _audio_with_cover(good: Good, folder: Path) -> Path:
    (folder / "sound.tmp").write_bytes(_silence())
    (folder / "cover.tmp").write_bytes(good.jpg)
    out = folder / "audio_with_cover.m4a"
    ffmpeg("-i", folder / "sound.tmp", "-f", "image2", "-i", folder / "cover.tmp", "-map", "0", "-map", "1",
           "-c:a", "aac", "-c:v", "copy", "-disposition:v:0", "attached_pic", out)  # fmt: skip
    (folder / "sound.tmp").unlink()
    (folder / "cover.tmp").unlink()
    return out


# --- things that are no files


@_maker(readable=False)
def _folder_named(good: Good, folder: Path) -> Path:
    (folder / "folder_named.mp4").mkdir()
    return folder / "folder_named.mp4"


@_maker(readable=False)
def _link_to_nowhere(good: Good, folder: Path) -> Path:
    (folder / "link_to_nowhere.mp4").symlink_to(folder / "nowhere.mp4")
    return folder / "link_to_nowhere.mp4"


@_maker(readable=False)
def _link_to_itself(good: Good, folder: Path) -> Path:
    (folder / "link_to_itself.mp4").symlink_to("link_to_itself.mp4")
    return folder / "link_to_itself.mp4"


@_maker(readable=False)
def _link_to_endless_zeros(good: Good, folder: Path) -> Path:
    (folder / "link_to_endless_zeros.mp4").symlink_to("/dev/zero")
    return folder / "link_to_endless_zeros.mp4"


@_maker(readable=False)
def _pipe(good: Good, folder: Path) -> Path:
    os.mkfifo(folder / "pipe.mp4")
    return folder / "pipe.mp4"


@_maker(readable=False)
def _no_permission(good: Good, folder: Path) -> Path:
    """Readable all the same for a user who may read everything (root)."""
    (folder / "no_permission.mp4").write_bytes(good.mp4)
    (folder / "no_permission.mp4").chmod(0)
    return folder / "no_permission.mp4"


@_maker(readable=False)
def _sparse(good: Good, folder: Path) -> Path:
    with open(folder / "sparse.mpg", "wb") as file:
        file.truncate(1 << 28)
    return folder / "sparse.mpg"


# --- frames


def _frames(folder: Path, good: Good, pictures: dict[int, bytes], count: int = 6) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:05d}.jpg").write_bytes(pictures.get(number, good.jpg))
    return folder


def _huge_png() -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", 1 << 30, 1 << 30, 8, 2, 0, 0, 0, 0)


_add("frames_one_cut", lambda good, f: _frames(f / "frames_one_cut", good, {3: good.jpg[:300]}), readable=True)
_add("frames_first_text", lambda good, f: _frames(f / "frames_first_text", good, {0: b"text"}), readable=True)
_add("frames_one_empty", lambda good, f: _frames(f / "frames_one_empty", good, {5: b""}), readable=True)
_add("frames_one_huge", lambda good, f: _frames(f / "frames_one_huge", good, {2: _huge_png()}), readable=True)
_add("frames_first_huge", lambda good, f: _frames(f / "frames_first_huge", good, {0: _huge_png()}), readable=True)
_add(
    "frames_all_text",
    lambda good, f: _frames(f / "frames_all_text", good, dict.fromkeys(range(6), b"text")),
    readable=False,
)
_add(
    "frames_all_huge",
    lambda good, f: _frames(f / "frames_all_huge", good, dict.fromkeys(range(6), _huge_png())),
    readable=False,
)


def _tar(path: Path, files: dict[str, bytes]) -> bytes:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path.read_bytes()


def _tar_file(name: str, files: Callable[[Good], dict[str, bytes]], harm=lambda data: data, *, readable: bool) -> None:
    def make(good: Good, folder: Path) -> Path:
        path = folder / name
        path.write_bytes(harm(_tar(path, files(good))))
        return path

    _add(name, make, readable=readable)


def _second_member_says(data: bytes, size: int) -> bytes:
    start = data.find(b"00001.jpg")
    header = bytearray(data[start : start + 512])
    header[124:136] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:start] + bytes(header) + data[start + 512 :]


def _numbered(good: Good, pictures: dict[int, bytes] | None = None) -> dict[str, bytes]:
    return {f"{number:05d}.jpg": (pictures or {}).get(number, good.jpg) for number in range(6)}


_tar_file("empty.tar", lambda good: {}, readable=False)
_tar_file("text.tar", lambda good: {"a.txt": b"text"}, readable=False)
_tar_file("one_broken.tar", lambda good: _numbered(good, {2: b"text"}), readable=True)
_tar_file("all_broken.tar", lambda good: _numbered(good, dict.fromkeys(range(6), b"text")), readable=False)
_tar_file("cut.tar", _numbered, lambda data: data[:4000], readable=True)
_tar_file("cut_header.tar", _numbered, lambda data: data[:300], readable=False)
_tar_file("member_size.tar", _numbered, lambda data: _second_member_says(data, 8**11 - 1), readable=True)
_tar_file("flipped.tar", _numbered, lambda data: _flip(data, 0, len(data), 200, 0), readable=True)
_bytes("zero_bytes.tar", lambda good: b"", readable=False)
_bytes("noise.tar", lambda good: random.Random(4).randbytes(20_000), readable=False)


def make_malformed(folder: Path) -> dict[str, Path]:
    """Write every malformed input into `folder`; returns name -> path (file, folder of frames or something else)."""
    good = _good(folder / "good")
    inputs = folder / "malformed"
    inputs.mkdir()
    return {name: make(good, inputs) for name, make in MALFORMED.items()}
