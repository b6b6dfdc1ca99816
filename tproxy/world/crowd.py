"""Many idle connections: a program that opens them on demand, proves that each carries bytes, and keeps them.

python -m tproxy.world.crowd 10.77.0.2:80

Each line of its input is a number: so many connections shall be open; each new one asks for ``/one`` and reads the
answer. ``ask`` asks over every connection again. The answer to each line is one of JSON: how many are open, and failed.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time

TOGETHER = 64  # asked at once
REQUEST = b"GET /one HTTP/1.1\r\nHost: crowd\r\n\r\n"
END = b"\r\n\r\n1"  # /one is this one byte
SECONDS = 20.0


class Crowd:
    """The connections to one server."""

    def __init__(self, host: str, port: int) -> None:
        self.where, self.open, self.failed = (host, port), list[socket.socket](), 0

    def grow(self, count: int) -> None:
        """Open connections until there are ``count``."""
        while len(self.open) < count:
            batch = [self._connect() for _ in range(min(TOGETHER, count - len(self.open)))]
            answered = self._ask([sock for sock in batch if sock is not None])
            self.open += answered
            if not answered:  # all refused: more of the same would not end
                return

    def ask(self) -> None:
        """A request over each; those that do not answer are closed."""
        self.open = [
            sock for at in range(0, len(self.open), TOGETHER) for sock in self._ask(self.open[at : at + TOGETHER])
        ]

    def _connect(self) -> socket.socket | None:
        sock = socket.socket()
        sock.setblocking(False)
        if sock.connect_ex(self.where) in (0, 115):  # EINPROGRESS, asm-generic/errno.h
            return sock
        self.failed += 1
        sock.close()
        return None

    def _ask(self, batch: list[socket.socket]) -> list[socket.socket]:
        """Those of the batch that answered in time."""
        answered: list[socket.socket] = []
        deadline = time.monotonic() + SECONDS
        with selectors.DefaultSelector() as selector:
            for sock in batch:
                selector.register(sock, selectors.EVENT_WRITE, b"")
            while selector.get_map() and time.monotonic() < deadline:
                for key, events in selector.select(1):
                    self._step(selector, key, events, answered)
            late = {key.fd for key in selector.get_map().values()}
        for sock in batch:
            if sock.fileno() in late:
                sock.close()
        self.failed += len(late)
        return answered

    def _step(
        self,
        selector: selectors.BaseSelector,
        key: selectors.SelectorKey,
        events: int,
        answered: list[socket.socket],
    ) -> None:
        sock, heard = key.fileobj, key.data
        assert isinstance(sock, socket.socket)
        try:
            if events & selectors.EVENT_WRITE:
                sock.sendall(REQUEST)
                selector.modify(sock, selectors.EVENT_READ, b"")
                return
            data = sock.recv(4096)
        except OSError:
            data = b""
        if data and not (heard + data).endswith(END):
            selector.modify(sock, selectors.EVENT_READ, heard + data)
            return
        selector.unregister(sock)
        if data:
            answered.append(sock)
        else:
            self.failed += 1
            sock.close()


def main(where: str) -> None:
    """Obey the lines of standard input until it ends."""
    host, _, port = where.rpartition(":")
    crowd = Crowd(host, int(port))
    for line in sys.stdin:
        began = time.monotonic()
        if line.strip() == "ask":
            crowd.ask()
        else:
            crowd.grow(int(line))
        seconds = round(time.monotonic() - began, 3)
        print(json.dumps({"open": len(crowd.open), "failed": crowd.failed, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
