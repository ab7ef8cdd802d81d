"""A daemon that cannot be had is a failure, and none outlives the tests that started it."""

import os
import subprocess
import sys

import pytest
from daemons import Daemons, answers, call, free_port, wait_until

LISTEN = """
import http.server, sys
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
DEAF = """
import signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["sleep", "600"])
print("up", flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_daemon_is_awaited_and_stopped_after_a_failure(tmp_path):
    port = free_port()
    with pytest.raises(ZeroDivisionError), Daemons(tmp_path) as daemons:
        process = daemons.start("web", [sys.executable, "-c", LISTEN, str(port)], lambda: answers(port))
        assert answers(port)
        raise ZeroDivisionError
    assert process.returncode is not None and not answers(port)


def test_one_that_does_not_start_is_an_error_with_its_log(tmp_path):
    with Daemons(tmp_path) as daemons:
        with pytest.raises(RuntimeError, match="broken ended with code 3:\nno licence"):
            daemons.start("broken", [sys.executable, "-c", "print('no licence'); raise SystemExit(3)"], lambda: False)
        with pytest.raises(RuntimeError, match="does not answer after 0.3 s"):
            daemons.start("mute", ["sleep", "60"], lambda: False, within_seconds=0.3)


def test_children_of_one_that_ignores_sigterm_are_ended_too(tmp_path):
    log = tmp_path / "deaf.log"
    with Daemons(tmp_path) as daemons:
        process = daemons.start(
            "deaf", [sys.executable, "-c", DEAF], lambda: "up" in log.read_text(), grace_seconds=0.2
        )
        group = os.getpgid(process.pid)
        children = subprocess.run(["ps", "-o", "pid=", "-g", str(group)], capture_output=True, text=True).stdout.split()
        assert len(children) == 2
    wait_until(lambda: not any(alive(int(pid)) for pid in children), "its group ends", within_seconds=5)


def test_a_command_with_another_code_fails_with_its_output():
    with pytest.raises(AssertionError, match="ended with 3:\nwhy"):
        call([sys.executable, "-c", "print('why'); raise SystemExit(3)"])
    assert call([sys.executable, "-c", "raise SystemExit(75)"], code=75) == ""
