"""Which files an input means, and by which key each is known."""

import os

import pytest

from actionfuse.pipeline.inputs import VideoInput, find_videos, listed_inputs, scan_inputs


@pytest.fixture
def tree(tmp_path):
    for name in (
        "a/x.mp4",
        "a/x.avi",
        "a/deep/er/Y.MKV",
        "b/x.mp4",
        "b/frames_1/frame_0000000001.jpg",
        "b/frames_1/frame_0000000002.jpg",
        "b/cover.jpg",
        "b/notes.json",
        "b/.hidden.mp4",
        ".git/z.mp4",
        "c.tar",
        "README",
    ):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "in"


def keys(*paths, **options) -> list[str]:
    return [video.key for video in find_videos(list(paths), **options)]


def test_a_folder_keeps_its_sub_folders(tree):
    scan = scan_inputs(tree)
    assert [video.key for video in scan.videos] == [
        "a/deep/er/Y.MKV",
        "a/x.avi",
        "a/x.mp4",
        "b/frames_1",
        "b/x.mp4",
        "c.tar",
    ]
    assert scan.skipped == {".jpg": 1, ".json": 1, "": 1}
    assert all(video.path == str(tree / video.key) for video in scan.videos)
    assert all((video.start_seconds, video.stop_seconds, video.id) == (None, None, None) for video in scan.videos)


def test_the_root(tree):
    assert keys(tree / "a" / "x.mp4") == ["x.mp4"]
    assert keys(tree / "a" / "x.mp4", tree / "b" / "x.mp4") == ["a/x.mp4", "b/x.mp4"]
    assert keys(tree / "a", tree / "b" / "x.mp4") == ["a/deep/er/Y.MKV", "a/x.avi", "a/x.mp4", "b/x.mp4"]
    assert keys(tree / "b" / "frames_1") == ["frames_1"]
    assert keys(tree / "a", root=tree.parent) == ["in/a/deep/er/Y.MKV", "in/a/x.avi", "in/a/x.mp4"]
    assert keys(tree / "b" / "frames_1" / "frame_%010d.jpg") == ["frame_%010d.jpg"]
    with pytest.raises(ValueError, match="not inside of the root"):
        keys(tree / "a" / "x.mp4", root=tree / "b")
    (tree.parent / "inside.mp4").touch()  # begins with the root's name and is not in it
    with pytest.raises(ValueError, match="not inside of the root"):
        keys(tree.parent / "inside.mp4", root=tree)


def test_relative_paths_are_the_same_files(tree, monkeypatch):
    monkeypatch.chdir(tree / "a")
    assert (
        find_videos(["x.mp4", tree / "a" / "x.mp4", "../a/x.mp4", "."]) == find_videos(".") == find_videos(tree / "a")
    )
    assert find_videos("../b/x.mp4") == [VideoInput(str(tree / "b" / "x.mp4"), "x.mp4")]


def test_named_files_are_taken_whatever_they_are_called(tree):
    assert keys(tree / "README", tree / "b" / ".hidden.mp4") == ["README", "b/.hidden.mp4"]


def test_links(tree):
    (tree / "a" / "again").symlink_to(tree / "b")  # sorts before b, yet the real folder names the files
    (tree / "b" / "up").symlink_to(tree)
    (tree / "b" / "lost.mp4").symlink_to(tree / "nowhere.mp4")
    (tree / "b" / "circle.mp4").symlink_to("circle.mp4")
    outside = tree.parent / "outside"
    outside.mkdir()
    (outside / "o.mp4").touch()
    (tree / "out1").symlink_to(outside)
    (tree / "out2").symlink_to(outside)
    found = keys(tree)
    assert [key for key in found if key.startswith("b/")] == ["b/circle.mp4", "b/frames_1", "b/lost.mp4", "b/x.mp4"]
    assert [key for key in found if key.endswith("o.mp4")] in (["out1/o.mp4"], ["out2/o.mp4"])
    assert not any(key.startswith(("a/again", "b/up")) for key in found)
    assert found == keys(tree)


def test_a_folder_that_may_not_be_read_is_told_when_it_is_opened(tree, monkeypatch):
    real = os.scandir

    def scandir(path):  # permissions do not bind every user who may run this
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert keys(tree / "a") == ["deep", "x.avi", "x.mp4"]
    with pytest.raises(PermissionError):
        keys(tree / "a" / "deep")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_no_video(tree):
    os.mkfifo(tree / "pipe.mp4")
    assert "pipe.mp4" not in keys(tree)


def test_a_list(tree):
    listed = tree / "list.txt"
    listed.write_bytes("\ufeff# a comment\n\na/x.mp4\r\n./b\n  a/x.mp4  \nmissing.mp4\n".encode())
    assert keys(listed) == ["a/x.mp4", "b/frames_1", "b/x.mp4", "missing.mp4"]
    assert keys(listed, tree / "a" / "x.avi") == ["a/x.avi", "a/x.mp4", "b/frames_1", "b/x.mp4", "missing.mp4"]
    listed.write_text("# nothing\n")
    assert keys(listed) == []


def test_segments(tree):
    table = tree / "segments.csv"
    table.write_text(
        "verb,path,start_seconds,stop_seconds,id\n"
        "cut,a/x.mp4,1.5,2.25,\n"
        "cut,a/x.mp4,1.5,2.25,\n"
        "mix,a/x.mp4,0,2,P01_1\n"
        "mix,a/x.mp4,,2.5,\n"
        "mix,b/x.mp4,,,\n"
        '"stir, fast","b/frames_1",0.5,,tail\n'
    )
    x, y = str(tree / "a" / "x.mp4"), str(tree / "b" / "x.mp4")
    assert find_videos(table) == [
        VideoInput(x, "a/x.mp4#1.500-2.250", 1.5, 2.25, "1.500-2.250"),
        VideoInput(x, "a/x.mp4#P01_1", 0.0, 2.0, "P01_1"),
        VideoInput(x, "a/x.mp4#start-2.500", None, 2.5, "start-2.500"),
        VideoInput(str(tree / "b" / "frames_1"), "b/frames_1#tail", 0.5, None, "tail"),
        VideoInput(y, "b/x.mp4"),
    ]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("path,start,stop\nx.mp4,1,2\n", "lacks start_seconds, stop_seconds"),
        ("", "lacks path"),
        ("path,start_seconds,stop_seconds\nx.mp4,2,2\n", "line 2: the segment .* is empty"),
        ("path,start_seconds,stop_seconds\nx.mp4,one,2\n", "line 2: start_seconds is 'one'"),
        ("path,start_seconds,stop_seconds\nx.mp4,0,inf\n", "stop_seconds is 'inf'"),
        ("path,start_seconds,stop_seconds\n,0,1\n", "the path is empty"),
        ("path,start_seconds,stop_seconds,id\nx.mp4,0,1,../../up\n", "cannot be part of a file's name"),
        ("path,start_seconds,stop_seconds,id\nx.mp4,0,1,a\nx.mp4,0,2,a\n", "two inputs have the key 'x.mp4#a'"),
        ("path,start_seconds,stop_seconds\nx.mp4,0,1.0001\nx.mp4,0,1.0002\n", "give the segments different ids"),
    ],
)
def test_tables_that_say_nothing_clear(tmp_path, text, match):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=match):
        find_videos(tmp_path / "t.csv")


def test_wrong_calls(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        find_videos(tmp_path / "nowhere.mp4")
    with pytest.raises(ValueError, match="no input was given"):
        find_videos([])
    assert find_videos(tmp_path) == []


@pytest.mark.parametrize("root", [None, ".."])
def test_a_listing_in_a_file_has_the_same_videos(tree, root):
    odd = os.fsdecode(b"caf\xe9 \t.mp4")  # no UTF-8
    (tree / odd).touch()
    (tree / "list.txt").write_bytes(b"a/x.mp4\n" + os.fsencode(odd) + b"\n")
    (tree / "cut.csv").write_text("path,start_seconds,stop_seconds,id\nb/x.mp4,0.5,1,one\n")
    given = [tree, tree / "list.txt", tree / "cut.csv"]
    root = None if root is None else tree / root
    with listed_inputs(given, root) as listed:
        videos = [video for video, _ in listed]
        assert len(videos) == listed.count == 10
        assert [video for video, _ in listed] == videos  # as often as one likes
    assert sorted(set(videos), key=lambda video: video.key) == find_videos(given, root)
    with pytest.raises(ValueError, match="does not exist"), listed_inputs(tree / "none.mp4"):
        pass
