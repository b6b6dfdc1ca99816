"""Is the short cut exact on the running kernel? Two sockets of our own, a stall, a demotion, a half-close."""

from __future__ import annotations

import errno
import hashlib
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tproxy.core.address import Endpoint
from tproxy.core.config import Config, Sockmap
from tproxy.kernel.errors import KernelError
from tproxy.kernel.sock import SO_MARK, unread
from tproxy.kernel.sockmap import WINDOW, Off, Shortcut

MANY = 3 * WINDOW
PROBE = bytes(1000)
CRAMPED = 64 * 1024  # a send buffer that makes the sender wait
PATIENCE = 2.0  # seconds for a step that takes milliseconds
ROUNDS, LUCK = 8, 0.08  # of a race, and seconds after which none begins


def open_shortcut(config: Config) -> Shortcut | Off:
    """The short cut, proven here and now, or why there is none."""
    if config.fast.sockmap is Sockmap.OFF:
        return Off("fast.sockmap is off")
    try:
        shortcut = Shortcut(config.marks, config.fast.sockmap is Sockmap.BOTH)
    except (KernelError, OSError) as error:
        return Off(str(error))
    try:
        why = prove(shortcut) or ("" if shortcut.both else visible(shortcut))
    except OSError as error:
        why = f"{type(error).__name__}: {error}"
    if why:
        shortcut.close()
        return Off(f"the self-test failed: {why}")
    shortcut.admit(0)
    return shortcut


def prove(shortcut: Shortcut) -> str:
    """What is wrong, or nothing. Both directions, with a receiver that does not read at first."""
    with _pair(shortcut) as (app, own):
        for sender, receiver, cut in ((app, own, True), (own, app, shortcut.both)):
            if why := _direction(shortcut, sender, receiver, cut):
                return why
    return ""


def visible(shortcut: Shortcut) -> str:
    """What an application could notice of its socket being in a sockhash, or nothing."""
    return miscounted(shortcut) or interrupted(shortcut)


def miscounted(shortcut: Shortcut) -> str:
    """Some kernels (seen on 6.12 and 6.18) count for FIONREAD only what was redirected to a socket, not TCP's bytes.

    nginx, which believes it, then waits for ever.
    """
    with _pair(shortcut) as (app, own):
        return _unnoticed(app, own)


def interrupted(shortcut: Shortcut) -> str:
    """Some kernels (seen on 6.1, 6.12 and 6.18) end a blocking recv(2) with EAGAIN while another thread sends.

    tcp_bpf_recvmsg waits once: a wake-up that was meant for the sender, who now has room, finds nothing to read.
    That is a race, so there are several rounds.
    """
    until = time.monotonic() + LUCK
    for _ in range(ROUNDS):
        with _pair(shortcut) as (app, own):
            if why := duplex(app, own):
                return why
        if time.monotonic() > until:
            break
    return ""


def duplex(app: socket.socket, own: socket.socket) -> str:
    """One thread of the application waits for an answer while another sends; how that recv(2) ended, if not well."""
    app.settimeout(None)
    app.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CRAMPED)
    ends: list[str] = []
    reader = threading.Thread(target=_answer, args=(app, ends), daemon=True)
    sender = threading.Thread(target=_question, args=(app,), daemon=True)
    reader.start()
    sender.start()
    while own.recv(1 << 16):
        pass
    own.sendall(PROBE)
    for thread in (reader, sender):
        thread.join(PATIENCE)
    return "".join(ends) if ends else "a blocking recv(2) of the application does not end"


def _answer(app: socket.socket, ends: list[str]) -> None:
    try:
        app.recv(1)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error))
        ends.append(f"a blocking recv(2) of the application ends with {name} while another thread sends")
    else:
        ends.append("")


def _question(app: socket.socket) -> None:
    with suppress(OSError):
        app.sendall(bytes(MANY))
        app.shutdown(socket.SHUT_WR)


def _unnoticed(app: socket.socket, own: socket.socket) -> str:
    app.send(b"question")
    own.recv(len(PROBE))
    own.send(PROBE)
    select.select([app], [], [], PATIENCE)
    if (seen := unread(app)) != len(PROBE):
        return f"FIONREAD tells the application {seen} when {len(PROBE)} bytes wait for it"
    reading, writing = os.pipe()
    try:
        moved = os.splice(app.fileno(), writing, len(PROBE), flags=os.SPLICE_F_NONBLOCK)
    except BlockingIOError:
        return "splice(2) shows the application nothing"
    finally:
        os.close(reading)
        os.close(writing)
    return "" if moved == len(PROBE) else f"splice(2) shows the application {moved} bytes of {len(PROBE)}"


def _direction(shortcut: Shortcut, sender: socket.socket, receiver: socket.socket, cut: bool) -> str:
    names = Endpoint.of_socket(sender.getsockname()), Endpoint.of_socket(receiver.getsockname())
    key = shortcut.key(*names)
    content = hashlib.shake_128(key).digest(MANY)
    sent = sender.send(content[: WINDOW // 2])
    state = shortcut.state(key)
    if state is None:
        return "the sockets of a new connection were not seen: is the cgroup ours?"
    if state != (sent if cut else 0, False):
        return f"of {sent} bytes {state[0]} took the short cut"
    shortcut.accounted = (shortcut.diag.unread(names[1], names[0]) or 0) >= sent
    sender.settimeout(0)
    while sent < MANY:  # the receiver sleeps: the flow must go back to TCP, which blocks in its turn
        try:
            sent += sender.send(content[sent:])
        except BlockingIOError:
            break
    redirected, off = shortcut.state(key) or (0, False)
    if redirected > WINDOW or (cut and sent > WINDOW and not off):
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
def _pair(shortcut: Shortcut) -> Iterator[tuple[socket.socket, socket.socket]]:
    """What the application opened and what we accepted, on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, SO_MARK, shortcut.marks.own)
        shortcut.admit(listener.getsockname()[1])
        with socket.create_connection(listener.getsockname()[:2], timeout=PATIENCE) as app:
            own, _ = listener.accept()
            with own:
                own.settimeout(PATIENCE)
                yield app, own
