"""Is the short cut exact on the running kernel? Two sockets of our own, a stall, a demotion, a half-close."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tproxy.core.address import Endpoint
from tproxy.core.config import Config, Sockmap
from tproxy.kernel.errors import KernelError
from tproxy.kernel.sock import SO_MARK
from tproxy.kernel.sockmap import WINDOW, Off, Shortcut

MANY = 3 * WINDOW
PATIENCE = 2.0  # seconds for a step that takes milliseconds


def open_shortcut(config: Config) -> Shortcut | Off:
    """The short cut, proven here and now, or why there is none."""
    if config.fast.sockmap is Sockmap.OFF:
        return Off("fast.sockmap is off")
    try:
        shortcut = Shortcut(config.marks)
    except (KernelError, OSError) as error:
        return Off(str(error))
    try:
        why = prove(shortcut, config.marks.own)
    except OSError as error:
        why = f"{type(error).__name__}: {error}"
    if why:
        shortcut.close()
        return Off(f"the self-test failed: {why}")
    return shortcut


def prove(shortcut: Shortcut, mark: int) -> str:
    """What is wrong, or nothing. Both directions, with a receiver that does not read at first."""
    with _pair(mark) as (app, own):
        for sender, receiver in ((app, own), (own, app)):
            if why := _direction(shortcut, sender, receiver):
                return why
    return ""


def _direction(shortcut: Shortcut, sender: socket.socket, receiver: socket.socket) -> str:
    names = Endpoint.of_socket(sender.getsockname()), Endpoint.of_socket(receiver.getsockname())
    key = shortcut.key(*names)
    content = hashlib.shake_128(key).digest(MANY)
    sent = sender.send(content[: WINDOW // 2])
    state = shortcut.state(key)
    if state is None:
        return "the sockets of a new connection were not seen: is the cgroup ours?"
    if state != (sent, False):
        return f"of {sent} bytes {state[0]} took the short cut"
    shortcut.accounted = (shortcut.diag.unread(names[1], names[0]) or 0) >= sent
    sender.settimeout(0)
    while sent < MANY:  # the receiver sleeps: the flow must go back to TCP, which blocks in its turn
        try:
            sent += sender.send(content[sent:])
        except BlockingIOError:
            break
    redirected, off = shortcut.state(key) or (0, False)
    if redirected > WINDOW or (sent > WINDOW and not off):
        return f"{redirected} bytes were redirected to a receiver that read nothing"
    return _arrives(sender, receiver, content, sent)


def _arrives(sender: socket.socket, receiver: socket.socket, content: bytes, sent: int) -> str:
    seen = bytearray()
    while len(seen) < len(content):
        if sent < len(content):
            with suppress(BlockingIOError):
                sent += sender.send(content[sent:])
        if not (piece := receiver.recv(1 << 20)):
            return f"the end came after {len(seen)} of {len(content)} bytes"
        seen += piece
    sender.settimeout(PATIENCE)
    sender.shutdown(socket.SHUT_WR)
    if seen != content:
        return "bytes were lost, doubled or moved"
    return "" if receiver.recv(1) == b"" else "more bytes came than were sent"


@contextmanager
def _pair(mark: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """What the application opened and what we accepted, on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        with socket.create_connection(listener.getsockname()[:2], timeout=PATIENCE) as app:
            own, _ = listener.accept()
            with own:
                own.settimeout(PATIENCE)
                yield app, own
