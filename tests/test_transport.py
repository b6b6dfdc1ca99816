"""A leg as a transport: what a protocol is told and what its peer sees, on the compiled one and on its twin."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from tests.gateway import certificate
from tests.test_relay import rmem_max
from tproxy.core.settings import Relay
from tproxy.identity import fronts
from tproxy.identity.leaf import KeyPair
from tproxy.identity.openssl import Tls
from tproxy.kernel.sock import front_listener
from tproxy.proxy.compiled import AnyLine, AnyReactor, reactor
from tproxy.proxy.legs import BOUND_AT, RECEIVE_LIMIT, PlainLeg, TlsLeg, TruncatedError

RELAY = [Relay.AUTO]


@pytest.fixture(scope="module", params=[Relay.COMPILED, Relay.PYTHON], autouse=True)
def _each(request: pytest.FixtureRequest) -> None:
    RELAY[0] = request.param


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    crt, key = certificate(tmp_path_factory.mktemp("pair"), "a.example.com")
    return KeyPair(crt.read_bytes(), key.read_bytes())


class Kept(asyncio.Protocol):
    """Writes down what it is told."""

    def __init__(self, keep_open: bool = False) -> None:
        self.said: list[str] = []
        self.got = bytearray()
        self.keep_open = keep_open
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.news = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.said.append("made")

    def data_received(self, data: bytes) -> None:
        self.got += data
        self.news.set()

    def eof_received(self) -> bool:
        self.said.append("eof")
        self.news.set()
        return self.keep_open

    def pause_writing(self) -> None:
        self.said.append("pause")
        self.news.set()

    def resume_writing(self) -> None:
        self.said.append("resume")
        self.news.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.said.append("lost")
        self.lost.set_result(error)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.news.clear()
            await self.news.wait()


class Client:
    """The other end, of the standard library, which loses nothing; each call in a thread."""

    def __init__(self, address: tuple[str, int], secret: bool) -> None:
        self.sock = socket.create_connection(address, 10)
        if secret:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self.sock = context.wrap_socket(self.sock, suppress_ragged_eofs=False)

    async def send(self, data: bytes) -> None:
        await asyncio.to_thread(self.sock.sendall, data)

    async def read(self) -> bytes:
        """Until the end."""
        return await asyncio.to_thread(lambda: b"".join(iter(lambda: self.sock.recv(65536), b"")))

    async def end(self) -> None:
        """close_notify, or FIN."""
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock = await asyncio.to_thread(self.sock.unwrap)
        else:
            self.sock.shutdown(socket.SHUT_WR)


@asynccontextmanager
async def joined(pair: KeyPair | None, protocol: Callable[[], Kept]) -> AsyncIterator[tuple[AnyLine, Kept, Client]]:
    """Our transport, and a client at the other end; over TLS if there is a certificate."""
    shared = reactor(RELAY[0])
    listener = front_listener("127.0.0.1", 0)
    coming = asyncio.create_task(asyncio.to_thread(Client, listener.getsockname()[:2], pair is not None))
    try:
        sock, _ = await asyncio.get_running_loop().sock_accept(listener)
        sock.setblocking(False)
        leg = await served(shared, sock, pair) if pair else PlainLeg(sock)
        client = await coming
        made = protocol()
        line = shared.attach(leg, made, "told")
        yield line, made, client
        line.abort()
        await made.lost
    finally:
        if not coming.cancelled() and coming.done() and not coming.exception():
            coming.result().sock.close()
        listener.close()
        shared.close()


async def served(shared: AnyReactor, sock: socket.socket, pair: KeyPair) -> TlsLeg:
    leg = TlsLeg(sock, Tls(fronts.server([pair], (), fronts.Bounds())))
    await shared.shake(leg, 1 << 18)
    return leg


def run(job: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await job()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


BOTH = pytest.mark.parametrize("secret", [True, False], ids=["tls", "plain"])


@BOTH
def test_bytes_go_both_ways_and_a_clean_close_is_told(pair: KeyPair, secret: bool) -> None:
    async def job() -> None:
        async with joined(pair if secret else None, Kept) as (line, made, client):
            await client.send(b"hello")
            await made.until(lambda: made.got == b"hello")
            line.writelines([b"good", b"bye"])
            ending = asyncio.create_task(client.read())
            assert line.get_extra_info("told") == "told"
            assert line.get_extra_info("peername")[0] == "127.0.0.1"
            line.close()
            assert await ending == b"goodbye"
            assert await made.lost is None
            assert made.said == ["made", "lost"]
            assert line.is_closing()
            line.write(b"nobody reads this")

    run(job)


@pytest.mark.skipif(rmem_max() < RECEIVE_LIMIT // 2, reason="net.core.rmem_max does not allow it here")
@BOTH
def test_what_arrives_and_is_not_read_yet_is_bounded_by_us_and_not_by_autotuning(pair: KeyPair, secret: bool) -> None:
    async def job() -> None:
        async with joined(pair if secret else None, Kept) as (line, made, client):
            await client.send(bytes(BOUND_AT))
            await made.until(lambda: len(made.got) == BOUND_AT)
            sock = line.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == RECEIVE_LIMIT

    run(job)


@BOTH
def test_all_that_was_written_before_close_arrives_however_slow_the_reader(pair: KeyPair, secret: bool) -> None:
    async def job() -> None:
        body = bytes(range(256)) * 40_000  # 10 MB
        async with joined(pair if secret else None, Kept) as (line, made, client):
            line.write(body)
            assert line.get_write_buffer_size() > 0
            line.close()
            assert made.said == ["made", "pause"]
            await asyncio.sleep(0.05)
            assert await client.read() == body
            assert await made.lost is None
            assert made.said == ["made", "pause", "resume", "lost"]

    run(job)


@BOTH
def test_a_peer_that_still_sends_reads_our_last_words(pair: KeyPair, secret: bool) -> None:
    """As when a request is refused before its body is read: closing with unread bytes would reset the answer away."""

    async def job() -> None:
        async with joined(pair if secret else None, Kept) as (line, _, client):
            line.pause_reading()
            await client.send(b"x" * 300_000)
            line.write(b"413")
            line.close()
            await asyncio.sleep(0.1)
            await client.send(b"x" * 300_000)
            assert await client.read() == b"413"

    run(job)


@BOTH
def test_what_is_paused_is_not_read_and_what_is_resumed_is_whole(pair: KeyPair, secret: bool) -> None:
    async def job() -> None:
        body = bytes(range(256)) * 40_000
        async with joined(pair if secret else None, Kept) as (line, made, client):
            line.pause_reading()
            sending = asyncio.create_task(client.send(body))
            await asyncio.sleep(0.1)
            assert len(made.got) == 0
            line.resume_reading()
            await sending
            await made.until(lambda: len(made.got) == len(body))
            assert made.got == body

    run(job)


@BOTH
def test_one_direction_ends_and_the_other_goes_on(pair: KeyPair, secret: bool) -> None:
    async def job() -> None:
        async with joined(pair if secret else None, lambda: Kept(keep_open=True)) as (line, made, client):
            line.write(b"last")
            line.write_eof()
            assert await client.read() == b"last"
            if not secret:  # after close_notify OpenSSL sends, too, but Python's module does not
                await client.send(b"still here")
            await client.end()
            await made.until(lambda: "eof" in made.said)
            assert made.got == (b"" if secret else b"still here")
            assert "lost" not in made.said

    run(job)


def test_an_end_without_close_notify_is_an_error(pair: KeyPair) -> None:
    async def job() -> None:
        async with joined(pair, Kept) as (_, made, client):
            client.sock.shutdown(socket.SHUT_WR)
            assert isinstance(await made.lost, TruncatedError)
            assert "eof" not in made.said

    run(job)


@BOTH
def test_a_protocol_that_raises_loses_its_connection_only(
    pair: KeyPair, secret: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Bad(Kept):
        def data_received(self, data: bytes) -> None:
            raise ZeroDivisionError

    async def job() -> None:
        async with joined(pair if secret else None, Bad) as (_, made, client):
            await client.send(b"x")
            assert isinstance(await made.lost, ZeroDivisionError)
            with pytest.raises((ConnectionError, ssl.SSLEOFError)):
                await client.read()

    run(job)
    assert "a protocol raised" in caplog.text


@BOTH
def test_an_aborted_connection_is_reset(pair: KeyPair, secret: bool) -> None:
    async def job() -> None:
        async with joined(pair if secret else None, Kept) as (line, made, client):
            line.abort()
            assert made.said == ["made"]
            assert await made.lost is None
            with pytest.raises((ConnectionError, ssl.SSLEOFError)):
                await client.read()

    run(job)


def test_limits_are_asyncios(pair: KeyPair) -> None:
    async def job() -> None:
        async with joined(None, Kept) as (line, _, __):
            line.set_write_buffer_limits(high=1000)
            assert line.get_write_buffer_limits() == (250, 1000)
            line.set_write_buffer_limits(low=10)
            assert line.get_write_buffer_limits() == (10, 40)
            with pytest.raises(ValueError, match="low"):
                line.set_write_buffer_limits(high=1, low=2)

    run(job)
