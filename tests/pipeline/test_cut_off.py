"""Files that end before they say they do."""

import pytest
from videos import ffmpeg, make, write_counting_video

from actionfuse.pipeline.decoders._cut_off import missing_bytes

FORMATS = {
    "plain.mp4": (),
    "fast.mp4": ("-movflags", "+faststart"),
    "fragments.mp4": ("-movflags", "frag_keyframe+empty_moov"),
    "quicktime.mov": (),
    "a.mkv": (),
    "a.avi": (),
}


@pytest.mark.parametrize("name", FORMATS)
def test_missing_bytes_are_counted(tmp_path, name):
    source = write_counting_video(tmp_path / "source.mp4", 20)
    path = tmp_path / name
    ffmpeg("-i", source, "-c", "copy", *FORMATS[name], path)
    data = path.read_bytes()
    assert missing_bytes(str(path)) == 0
    path.write_bytes(data[:-1])
    assert missing_bytes(str(path)) == 1
    for missing in (len(data) // 20, len(data) // 2):  # of a whole box that is gone nothing tells
        path.write_bytes(data[:-missing])
        assert 0 < missing_bytes(str(path)) <= missing
    path.write_bytes(data + bytes(1000))  # padding behind the end is no damage
    assert missing_bytes(str(path)) == 0


def test_sizes_that_are_not_told(tmp_path):
    source = write_counting_video(tmp_path / "source.mp4", 20)
    live = tmp_path / "live.mkv"  # a recording that cannot go back to its start: the size stays unknown
    live.write_bytes(ffmpeg("-i", source, "-c", "copy", "-f", "matroska", "-"))
    assert missing_bytes(str(live)) == 0
    for kind in ("start_ts", "gif", "raw_h264", "interlaced"):
        assert missing_bytes(str(make(kind, tmp_path).path)) == 0
    for number, data in enumerate(
        (b"", b"\x1a\x45\xdf\xa3", b"\0\0\0\x01ftyp", b"RIFF\xff\xff\xff\xffWAVE", b"text" * 9)
    ):
        path = tmp_path / str(number)
        path.write_bytes(data)
        assert missing_bytes(str(path)) == 0
