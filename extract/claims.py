"""Claims: no two processes work on one video at a time, whenever they are started or killed.

A claim is an advisory lock (flock) on a small file under the output folder. The kernel lets go of it when its process
dies, however it dies, so a claim can never be stale. Where a file system has no such locks, work may be done twice;
since outputs are renamed into place whole, they are still never doubled or torn.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path


class Claim:
    """A held claim; `release` lets go of it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def release(self) -> None:
        if self._descriptor >= 0:
            # Unlink while the lock is held: who waits for the old file finds it gone and looks again (see `claim`).
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1


def claim(folder: Path, key: str) -> Claim | None:
    """Take the claim on `key` among all processes that write to `folder`; None if another process holds it."""
    path = folder / ".claims" / hashlib.sha256(os.fsencode(key)).hexdigest()[:32]
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:  # no locks on this file system: go on without
            return Claim(path, descriptor)
        try:
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return Claim(path, descriptor)
        except FileNotFoundError:
            pass
        os.close(descriptor)  # locked a file that was unlinked in between
