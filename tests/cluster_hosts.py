"""Two hosts on one machine: network namespaces joined by a pair of virtual cards."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from types import TracebackType


class TwoHosts:
    """Namespaces with the addresses 10.77.0.1 and 10.77.0.2, gone when left. Needs root."""

    addresses = ("10.77.0.1", "10.77.0.2")

    def __init__(self) -> None:
        self.names = tuple(f"af{os.getpid()}n{number}" for number in range(2))
        self.cards = tuple(f"af{os.getpid() % 100000}c{number}" for number in range(2))

    def __enter__(self) -> TwoHosts:
        try:
            for name in self.names:
                _ip("netns", "add", name)
            _ip("link", "add", self.cards[0], "type", "veth", "peer", "name", self.cards[1])
            for name, card, address in zip(self.names, self.cards, self.addresses, strict=True):
                _ip("link", "set", card, "netns", name)
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", card)
                _ip("-n", name, "link", "set", card, "up")
                _ip("-n", name, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def on(self, host: int, command: Sequence[str]) -> list[str]:
        """The command that runs `command` on a host, with gloo bound to its card."""
        name, card = self.names[host], self.cards[host]
        return ["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={card}", *command]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
