"""A leg as an asyncio transport: what protocols of requests read from and write to, over TLS or plain TCP.

The compiled reactor has the same in C; the same tests run on both. Unlike the loop's own transports, TLS can be ended
one way, an end of TCP without close_notify is an error (``connection_lost`` with TruncatedError), and what a peer still
sends while we close does not reset what it has not read yet.

    transport = reactor.attach(TlsLeg(sock, tls), protocol, told)
    transport.get_extra_info("told")
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tproxy.kernel.sock import reset_on_close
from tproxy.proxy.legs import Leg, took

if TYPE_CHECKING:
    from tproxy.proxy.reactor import Reactor

log = logging.getLogger("tproxy")
HIGH, LOW = 128 * 1024, 32 * 1024  # bytes held back: from here on the protocol is asked to pause, from there to resume
NOBODY = asyncio.Protocol()  # who is called once the connection is lost
LINGER = 1.0  # seconds in which a peer may read our last bytes although it still sends


class Base:
    """What both twins do in the same words."""

    @staticmethod
    def defect(error: BaseException) -> None:
        """A protocol raised: its connection ends, and nobody else's."""
        log.error("a defect: a protocol raised", exc_info=error)

    @staticmethod
    def limits(high: int | None, low: int | None) -> tuple[int, int]:
        """Both, where one or none is given, as asyncio has it."""
        if high is None:
            high = HIGH if low is None else 4 * low
        low = high // 4 if low is None else low
        if not high >= low >= 0:
            raise ValueError(f"high ({high}) must be at least low ({low}), and that at least 0")
        return high, low

    @staticmethod
    def extra(leg: Leg, told: object, name: str, default: Any) -> Any:
        """asyncio's names as far as they mean something here, and ``told``."""
        match name:
            case "told":
                return default if told is None else told
            case "socket":
                return leg.sock
            case "peername" | "sockname":
                with contextlib.suppress(OSError):
                    return leg.sock.getpeername() if name == "peername" else leg.sock.getsockname()
        return default

    @staticmethod
    def ended(sock: socket.socket) -> None:
        """Our FIN, and no reset when the socket is closed."""
        reset_on_close(sock, False)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)


class Line(asyncio.Transport):
    """The twin of the compiled Line."""

    def __init__(self, reactor: Reactor, leg: Leg, protocol: asyncio.Protocol, told: object) -> None:
        super().__init__()
        self._reactor, self._leg, self._protocol, self._told = reactor, leg, protocol, told
        self._loop = asyncio.get_running_loop()
        self._high, self._low, self._received = HIGH, LOW, 0
        self._reading, self._closing, self._ended, self._lost, self._paused = True, False, False, False, False
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Tell the protocol, and read."""
        self._call(self._protocol.connection_made, self)
        self._again()

    def _call(self, function: Callable[..., object], *arguments: object) -> bool:
        try:
            function(*arguments)
        except Exception as error:
            Base.defect(error)
            self._end(error)
            return False
        return True

    def _again(self) -> None:
        """Wait for what is wanted now."""
        if self._lost:
            return
        wanted = self._reading and not self._closing and not self._leg.eof
        if wanted and self._leg.buffered:
            self._loop.call_soon(self._kick)
        self._reactor.reader(self._leg.sock, self._readable if wanted else None)
        self._reactor.writer(self._leg.sock, self._writable if self._leg.held else None)

    def _kick(self) -> None:
        """Read what came with the handshake."""
        if self._leg.buffered and self._reading and not self._closing and not self._lost:
            self._readable()

    def _readable(self) -> None:
        buffers = self._reactor.buffers
        try:
            count = self._leg.read(buffers)
        except BlockingIOError:
            return
        except OSError as error:
            self._broke(error)
            return
        self._received += count
        took(self._leg.sock, count, self._received)
        if count and not self._call(self._protocol.data_received, bytes(buffers.plain[:count])):
            return
        if self._leg.eof and not self._lost:
            self._again()
            kept: list[object] = []
            if self._call(lambda: kept.append(self._protocol.eof_received())) and not kept[0]:
                self.close()

    def _writable(self) -> None:
        try:
            self._leg.flush()
        except OSError as error:
            self._broke(error)
            return
        self._again()
        if self._paused and self._leg.held <= self._low:
            self._paused = False
            self._call(self._protocol.resume_writing)
        if self._closing and not self._leg.held:
            self._finish()

    def _broke(self, error: OSError) -> None:
        error.__traceback__ = None  # its frames hold us
        self._end(error)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send; what the kernel does not take is held back."""
        if data and not self._lost and not self._ended:
            self._sending(lambda: self._leg.write(memoryview(data)))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """In as few records as they fit in."""
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        """close_notify, or FIN; the other direction goes on."""
        return True

    def write_eof(self) -> None:
        """End our direction behind what is held back."""
        if not self._ended and not self._lost:
            self._ended = True
            self._sending(self._leg.finish)

    def _sending(self, step: Callable[[], bool]) -> None:
        try:
            sent = step()
        except OSError as error:
            self._broke(error)
            return
        if not sent:
            self._again()
            if not self._paused and self._leg.held > self._high:
                self._paused = True
                self._call(self._protocol.pause_writing)

    def pause_reading(self) -> None:
        """What is being delivered is the last."""
        self._reading = False
        self._again()

    def resume_reading(self) -> None:
        """Deliver again."""
        self._reading = True
        self._again()

    def is_reading(self) -> bool:
        """Whether it delivers."""
        return self._reading and not self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """In bytes held back."""
        self._high, self._low = Base.limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Low and high."""
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        """Bytes held back, as they go over the wire."""
        return self._leg.held

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """``told``, ``socket``, ``peername``, ``sockname``."""
        return Base.extra(self._leg, self._told, name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Who is called from now on."""
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who is called."""
        return self._protocol

    def is_closing(self) -> bool:
        """Whether it ends or has ended."""
        return self._closing or self._lost

    def close(self) -> None:
        """Send what is held back, then end cleanly; nothing is delivered any more."""
        if not self._closing and not self._lost:
            self._closing = True
            self._again()
            if not self._leg.held:
                self._finish()

    def abort(self) -> None:
        """RST, at once."""
        self._end(None)

    def _finish(self) -> None:
        """All is sent: our end, and a while in which the peer may read it without a reset from what it still sends."""
        if not self._ended:
            self._ended = True
            try:
                sent = self._leg.finish()
            except OSError as error:
                self._broke(error)
                return
            if not sent:
                self._again()
                return
        self._lost = True
        self._reactor.forget(self._leg.sock)
        Base.ended(self._leg.sock)
        if self._leg.eof:
            self.release()
        else:
            self._reactor.reader(self._leg.sock, self._drop)
            self._timer = self._loop.call_later(LINGER, self.release)
        self._loop.call_soon(self._gone, None)

    def _drop(self) -> None:
        """What comes after our end is nobody's."""
        try:
            if not self._leg.sock.recv_into(self._reactor.buffers.wire):
                self.release()
        except BlockingIOError:
            return
        except OSError:
            self.release()

    def release(self) -> None:
        """The socket goes."""
        if self._timer is not None:
            self._timer.cancel()
        self._reactor.forget(self._leg.sock)
        self._leg.sock.close()
        self._reactor.lines.discard(self)

    def _end(self, error: Exception | None) -> None:
        """At once, with a reset."""
        if not self._lost:
            self._lost = True
            reset_on_close(self._leg.sock, True)
            self.release()
            self._loop.call_soon(self._gone, error)

    def _gone(self, error: Exception | None) -> None:
        protocol, self._protocol = self._protocol, NOBODY  # each holds the other
        protocol.connection_lost(error)
