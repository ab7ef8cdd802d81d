"""Videos behind URLs (s3://, gs://, https://: whatever fsspec opens), read in ranges, never downloaded whole.

`RangeFile` reads blocks of 128 KiB. Where reading goes on in order, it asks for more at a time, up to a quarter of
what was read in one go, and at most 8 MiB: a few frames of a long video cost a few blocks more than they lie in, and
a whole one of 60 MB about 30 requests of rising size. So what is fetched follows what is wanted, whoever asks for it.

Faults of stores (5xx, time-outs, answers that break off) are tried again with growing pauses. Needs the extra `remote`.
"""

from __future__ import annotations

import io
import os
import random
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

BLOCK_BYTES = 128 << 10
MOST_BYTES = 8 << 20  # of one request
KEPT_BYTES = 32 << 20  # of blocks that an open file keeps
ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 0.1  # doubled from attempt to attempt

# What another attempt cannot change.
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError)
_Answer = TypeVar("_Answer")


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether this names something that fsspec opens; `C:/x` and names with a colon do not."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+(::[A-Za-z][A-Za-z0-9+.-]*)*://", os.fspath(path)) is not None


def filesystem(url: str) -> tuple[Any, str]:
    """(fsspec file system, path on it). Credentials and endpoints are those of the environment (AWS_*, FSSPEC_*)."""
    try:
        import fsspec
    except ImportError as error:
        raise ValueError(f"{url}: URLs need fsspec and s3fs: pip install 'actionfuse[remote]'") from error
    options: dict[str, Any] = {}
    if url.startswith(("s3://", "s3a://")):
        # a store that hangs is a fault like another; s3fs would wait for a minute, and this module tries again itself
        options["config_kwargs"] = {"connect_timeout": 10, "read_timeout": 20, "retries": {"max_attempts": 1}}
        if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
            options["endpoint_url"] = endpoint
    try:
        return fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url}: {error}; pip install 'actionfuse[remote]' brings s3://") from error


def retried(ask: Callable[[], _Answer], what: str) -> _Answer:
    """`ask()`, again after a pause where it fails with a fault that may pass. Raises: OSError after ATTEMPTS."""
    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except _FINAL:
            raise
        except Exception as error:
            if not _may_pass(error):
                raise
            if attempt == ATTEMPTS - 1:
                raise OSError(f"{what}: failed {ATTEMPTS} times, last with {type(error).__name__}: {error}") from error
        # spread, or a thousand readers that met one fault would all come back at once
        time.sleep(FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def _may_pass(error: Exception) -> bool:
    if isinstance(error, (OSError, TimeoutError)):
        return True
    # botocore, aiohttp and google-cloud have families of their own, and are not imported for this
    return type(error).__module__.split(".")[0] in ("botocore", "aiobotocore", "aiohttp", "gcsfs", "adlfs", "urllib3")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What a listing tells: size in bytes, and the store's own tag of the content ('' where it has none)."""

    url: str
    bytes: int
    etag: str = ""

    @property
    def tag(self) -> str:
        """Size and etag: changes where the content does."""
        return f"{self.bytes} {self.etag}".rstrip()


def _etag(info: dict[str, Any]) -> str:
    return str(info.get("ETag") or info.get("etag") or info.get("md5Hash") or "").strip('"')


def remote_file(url: str) -> RemoteFile:
    """Size and tag of one file. Raises: FileNotFoundError, IsADirectoryError, OSError."""
    fs, path = filesystem(url)
    info = retried(lambda: fs.info(path), url)
    if info.get("type") == "directory":
        raise IsADirectoryError(f"{url} is a folder")
    return RemoteFile(url, int(info.get("size") or 0), _etag(info))


def is_remote_folder(url: str) -> bool:
    fs, path = filesystem(url)
    # not `fs.isdir`, which takes every fault of the store for a no
    return retried(lambda: fs.info(path), url).get("type") == "directory"


def list_remote(url: str) -> Iterator[RemoteFile]:
    """All visible files under a folder or prefix, as they are listed: memory holds a page of S3, else one folder."""
    fs, path = filesystem(url)
    top = path.rstrip("/")
    for name, info in (_objects if hasattr(fs, "call_s3") else _files)(fs, top, url):
        inside = name[len(top) :].strip("/")
        if not any(part.startswith(".") for part in inside.split("/")):
            yield RemoteFile(f"{url.rstrip('/')}/{inside}", int(info.get("size") or info.get("Size") or 0), _etag(info))


def _files(fs: Any, top: str, url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Folder by folder; those with hidden names are left out."""
    folders = [top]
    while folders:
        folder = folders.pop()
        found = retried(lambda folder=folder: fs.ls(folder, detail=True), url)
        fs.invalidate_cache(folder)  # it would keep them all
        for info in sorted(found, key=lambda info: info["name"]):
            name = info["name"].rstrip("/")
            if name == folder:
                continue
            if info["type"] != "directory":
                yield name, info
            elif not name.rsplit("/", 1)[-1].startswith("."):
                folders.append(name)


def _objects(fs: Any, top: str, url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A thousand a request, whatever their folders; s3fs itself would make one list of them, and keep it."""
    bucket, prefix, _ = fs.split_path(top)
    asked = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else "", **fs.req_kw}
    while True:
        page = retried(lambda: fs.call_s3("list_objects_v2", **asked), url)
        for info in page.get("Contents", ()):
            if not info["Key"].endswith("/"):
                yield f"{bucket}/{info['Key']}", info
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


class RangeFile(io.RawIOBase):
    """A file behind a URL, read-only, seekable; see the module for what it fetches.

    fetched_bytes, requests: what it cost until now.
    Raises: OSError where the store keeps failing.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self.name = url
        self._fs, self._path = filesystem(url)
        self.size = remote_file(url).bytes
        self._at = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._next_block = 0  # where reading would go on in order
        self._run_bytes = 0  # fetched in order since the last jump
        self.fetched_bytes = self.requests = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError(f"{self.name}: cannot seek to {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self.size - self._at)
        if wanted <= 0:
            return 0
        number, inside = divmod(self._at, BLOCK_BYTES)
        block = self._block(number)
        piece = block[inside : inside + wanted]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        """Up to `size` bytes; fewer only at the end of the file."""
        left = self.size - self._at if size is None or size < 0 else min(size, self.size - self._at)
        pieces = []
        while left > 0:
            number, inside = divmod(self._at, BLOCK_BYTES)
            pieces.append(self._block(number)[inside : inside + left])
            self._at += len(pieces[-1])
            left -= len(pieces[-1])
        return b"".join(pieces)

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)
        if block is not None:
            self._blocks.move_to_end(number)
            return block
        if number != self._next_block:
            self._run_bytes = 0
        count = max(1, min(MOST_BYTES, self._run_bytes // 4) // BLOCK_BYTES)
        # what is already here at the end of the window need not come again
        while count > 1 and number + count - 1 in self._blocks:
            count -= 1
        start, stop = number * BLOCK_BYTES, min((number + count) * BLOCK_BYTES, self.size)
        data = retried(lambda: self._range(start, stop), self.name)
        self.fetched_bytes += len(data)
        self.requests += 1
        self._run_bytes += len(data)
        self._next_block = number + count
        for i in reversed(range(count)):  # the first one last, as the most recently used
            self._blocks[number + i] = data[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES]
            self._blocks.move_to_end(number + i)
        while len(self._blocks) > KEPT_BYTES // BLOCK_BYTES:
            self._blocks.popitem(last=False)
        return self._blocks[number]

    def _range(self, start: int, stop: int) -> bytes:
        data = self._fs.cat_file(self._path, start=start, end=stop)
        if len(data) != stop - start:
            raise OSError(f"the answer broke off: {len(data)} of {stop - start} bytes")
        return data
