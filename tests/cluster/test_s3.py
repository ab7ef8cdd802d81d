"""Inputs and outputs in an S3 store: moto's server, behind a proxy that injects faults and counts bytes."""

from __future__ import annotations

import json
import re
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from daemons import Daemons, answers, call, free_port
from videos import write_counting_video

MODEL = ("--weights", "random", "--side", "64", "--crop", "64", "--fps", "4", "--clip-frames", "1", "--device", "cpu")
# without trailing checksums, for whose chunked bodies the proxy has no parser
KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
}


DROPPED = ("host", "transfer-encoding", "content-length")


class Proxy(ThreadingHTTPServer):
    """Passes requests on. Every `fault_every`-th gets a 503, half an answer, or none, in turn."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target = f"http://127.0.0.1:{port}"
        self.fault_every = 0
        self.lock = threading.Lock()
        self.requests = self.sent_bytes = self.faults = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: object) -> None:
        return None

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _pass_on(self) -> None:
        proxy = self.server
        body = self._body()
        with proxy.lock:
            proxy.requests += 1
            fault = None
            if proxy.fault_every and proxy.requests % proxy.fault_every == 0:
                fault = ("503", "cut", "silent")[proxy.faults % 3]
                proxy.faults += 1
        if fault == "503":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "silent":  # as a connection that a time-out ends
            self.close_connection = True
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in DROPPED}
        headers.setdefault("Content-Type", "application/octet-stream")  # urllib would say that it is a form
        asked = urllib.request.Request(proxy.target + self.path, body or None, headers, method=self.command)
        try:
            answer = urllib.request.urlopen(asked, timeout=60)
        except urllib.error.HTTPError as refused:
            answer = refused
        with answer:
            data = answer.read()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                self.send_header(name, value)
        length = answer.headers["Content-Length"] if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if fault == "cut" and data:
            data, self.close_connection = data[: len(data) // 2], True
        self.wfile.write(data)
        with proxy.lock:
            proxy.sent_bytes += len(data)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on


@pytest.fixture(scope="module")
def store(daemons: Daemons) -> Iterator[Proxy]:
    port = free_port()
    moto = Path(sys.executable).with_name("moto_server")
    env = {**KEYS, "MOTO_S3_DEFAULT_MAX_KEYS": "7"}  # names in a page of a listing
    daemons.start("moto", [moto, "-H", "127.0.0.1", "-p", str(port)], lambda: answers(port), env=env)
    with Proxy(port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**KEYS, "AWS_ENDPOINT_URL": proxy.url}.items():
                patch.setenv(name, value)
            from actionfuse.pipeline.remote import filesystem

            filesystem("s3://videos")[0].mkdir("videos")
            filesystem("s3://videos")[0].mkdir("features")
            yield proxy
        proxy.shutdown()


@pytest.fixture(scope="module")
def long_video(store: Proxy, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """60 s of noise in 60 MB, with a key frame every 2 s: (file, URL)."""
    import imageio_ffmpeg

    from actionfuse.pipeline.remote import filesystem

    path = tmp_path_factory.mktemp("long") / "long.mp4"
    noise = "color=gray:s=640x360:r=25:d=60,noise=alls=60:allf=t"
    call([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", noise, "-c:v", "libx264",
          "-preset", "ultrafast", "-b:v", "8M", "-maxrate", "8M", "-bufsize", "4M", "-g", "50", "-pix_fmt", "yuv420p",
          "-movflags", "+faststart", path])  # fmt: skip
    fs, place = filesystem("s3://videos/long.mp4")
    fs.put_file(str(path), place)
    return path, "s3://videos/long.mp4"


def test_few_frames_of_a_long_video_cost_few_bytes(store: Proxy, long_video: tuple[Path, str]):
    from actionfuse.pipeline import open_video

    path, url = long_video
    assert path.stat().st_size > 45e6
    before = store.sent_bytes
    with open_video(url, threads=1) as remote, open_video(path, threads=1) as local:
        times = [5.0, 30.0, 55.0]
        assert np.array_equal(remote.frames_at(times).data, local.frames_at(times).data)
    assert store.sent_bytes - before <= 0.10 * path.stat().st_size


def test_a_whole_video_comes_once_in_few_requests(store: Proxy, long_video: tuple[Path, str]):
    from actionfuse.pipeline.remote import RangeFile

    path, url = long_video
    requests, sent = store.requests, store.sent_bytes
    with RangeFile(url) as file:
        assert file.read() == path.read_bytes()
    assert store.requests - requests <= 60 and store.sent_bytes - sent <= 1.01 * path.stat().st_size


def test_extraction_from_and_to_a_store_with_faults(store: Proxy, tmp_path: Path):
    from actionfuse.pipeline.remote import filesystem

    (tmp_path / "v").mkdir()
    for i in range(4):
        write_counting_video(tmp_path / "v" / f"{i}.mp4", 20 + i, (64, 48), 25)
    (tmp_path / "v" / "bad.mp4").write_bytes(b"no video")
    fs, place = filesystem("s3://videos/small")
    for path in (tmp_path / "v").iterdir():
        fs.put_file(str(path), f"{place}/{path.name}")
    program = [sys.executable, "-m", "actionfuse.cli"]
    call([*program, "extract", tmp_path / "v", "--out", tmp_path / "local", *MODEL, "--quiet"], code=1)
    before = store.faults
    store.fault_every = 4
    try:
        words = [*program, "extract", "s3://videos/small", "--out", "s3://features/run", *MODEL, "--quiet"]
        said = call([*words, "--shard-videos", "3"], code=1, within_seconds=200)
        call([*words, "--shard-videos", "3"], code=1, within_seconds=200)  # nothing left to do
    finally:
        store.fault_every = 0
    assert store.faults - before >= 6
    assert re.search(r"4 videos are there exactly once; 1 failed", said)
    output = "tsn-tf_efficientnet_lite0-rgb"
    for i in range(4):
        name = f"{output}/{i}.mp4.npz"
        assert fs.cat_file(f"features/run/{name}") == (tmp_path / "local" / name).read_bytes()
    manifests = [fs.cat_file(path).decode() for path in fs.ls("features/run/shards/done", detail=False)]
    rows = [json.loads(line) for text in manifests for line in text.splitlines()[1:]]
    assert sorted(row["key"] for row in rows) == [*(f"{i}.mp4" for i in range(4)), "bad.mp4"]


def test_the_store_refuses_a_second_writer(store: Proxy, monkeypatch: pytest.MonkeyPatch):
    from actionfuse.extract.objects import RemoteObjects, open_objects

    objects = open_objects("s3://features/race")
    with monkeypatch.context() as patch:  # both looked before either wrote: what is left is If-None-Match
        patch.setattr(RemoteObjects, "size", lambda self, name: None)
        assert objects.put_new("x.bin", b"first")
        assert not objects.put_new("x.bin", b"second")
    assert objects.read("x.bin") == b"first"


def test_a_prefix_is_listed_page_by_page(store: Proxy):
    from actionfuse.extract.objects import open_objects
    from actionfuse.pipeline.inputs import listed_inputs

    objects = open_objects("s3://features/listed")
    names = sorted(f"v/{i % 5}/{i:02d}.mp4" for i in range(40))
    for name in [*names, "v/.hidden/1.mp4"]:
        objects.put_new(name, name.encode())
    before = store.requests
    store.fault_every = 5
    try:
        with listed_inputs("s3://features/listed/v") as listed:
            found = {f"v/{video.key}": tag for video, tag in listed}
    finally:
        store.fault_every = 0
    assert sorted(found) == names
    assert all(re.fullmatch(r"10 [0-9a-f]{32}", tag) for tag in found.values())  # size and etag, of the listing itself
    assert store.requests - before <= 2 + 41 // 7 + 1 + 3  # the folder is looked at, pages, faults
    assert sorted(objects.listing("v")) == [(name, 10) for name in names]


def test_a_large_file_goes_in_parts_and_only_once(store: Proxy, tmp_path: Path):
    from actionfuse.extract.objects import PIECE_BYTES, FolderObjects, RemoteObjects, open_objects

    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        for i in range(5):
            file.write(bytes([i]) * PIECE_BYTES)
    objects = open_objects("s3://features/large")
    before = store.requests
    store.fault_every = 4
    try:
        assert objects.put_new("x.bin", path)
    finally:
        store.fault_every = 0
    assert store.requests - before >= 7  # five parts, their beginning and end
    assert not objects.put_new("x.bin", path)
    with pytest.MonkeyPatch.context() as patch:  # both looked before either wrote
        patch.setattr(RemoteObjects, "size", lambda self, name: None)
        assert not objects.put_new("x.bin", path)
    assert objects.crc32("x.bin") == FolderObjects(tmp_path).crc32("large.bin")
