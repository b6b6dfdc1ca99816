"""The relay between sockets of this process: exact, bounded, and clean at every end."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tproxy.control import authority
from tproxy.core.config import Config
from tproxy.core.identity import Snapshot, SpiffeId, Svid
from tproxy.core.record import Outcome
from tproxy.core.settings import Relay
from tproxy.kernel.sock import TCP_NOTSENT_LOWAT, UNSENT, abort, unacknowledged
from tproxy.proxy.compiled import AnyReactor, reactor
from tproxy.proxy.legs import BOUND_AT, RECEIVE_LIMIT, Leg, PlainLeg
from tproxy.proxy.pump import Moved
from tproxy.proxy.relay import relay
from tproxy.proxy.tls import Contexts, Session, contexts, handshake

ID = SpiffeId.parse("spiffe://test.local/ns/a/sa/b")


RELAY = [Relay.AUTO]


@pytest.fixture(scope="module", params=[Relay.COMPILED, Relay.PYTHON], autouse=True)
def _each(request: pytest.FixtureRequest) -> None:
    """Every test runs on the compiled relay and on its twin."""
    RELAY[0] = request.param


@pytest.fixture(scope="module")
def credentials() -> Contexts:
    """One identity for both ends."""
    now = authority.utc_now()
    root = authority.new_root("test.local", "ecdsa", now)
    key = authority.new_key("ecdsa")
    leaf = authority.Pair(authority.issue(root, ID, key.public_key(), authority.INTERMEDIATE_LIFE, now), key)
    svid = Svid(ID, leaf.certificate_pem(), leaf.key_pem(), leaf.certificate.serial_number, 0, 0)
    return contexts(Snapshot(svid, {"test.local": root.certificate_pem()}), Config.parse({"trustDomain": "test.local"}))


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


class Chain:
    """application - relay - TLS - relay - server, both relays in one loop of another thread."""

    def __init__(self, credentials: Contexts | None) -> None:
        self.app, self._down = pair()
        self._up, self._in = pair()
        self._out, self.server = pair()
        self._credentials = credentials
        self.moved: list[Moved] = []
        self._ready = threading.Event()
        self.thread = threading.Thread(target=lambda: uvloop.run(self._run()))
        self.thread.start()
        self._ready.wait(10)

    async def _run(self) -> None:
        for sock in (self._down, self._up, self._in, self._out):
            sock.setblocking(False)
        shared = reactor(RELAY[0])
        legs = await self._legs(shared)
        self.loop = asyncio.get_running_loop()
        self._ready.set()
        self.moved = list(
            await asyncio.gather(
                relay(PlainLeg(self._down), legs[0], shared), relay(legs[1], PlainLeg(self._out), shared)
            )
        )

    async def _legs(self, shared: AnyReactor) -> tuple[Leg, Leg]:
        if self._credentials is None:
            return PlainLeg(self._up), PlainLeg(self._in)
        near, far = await asyncio.gather(
            handshake(self._up, self._credentials.client, 10, shared),
            handshake(self._in, self._credentials.server, 10, shared),
        )
        assert isinstance(near, Session) and isinstance(far, Session)
        self.tls = [weakref.ref(session.leg.tls.connection) for session in (near, far)]
        return near.leg, far.leg

    def close(self) -> None:
        """End both applications, however they stand."""
        for sock in (self.app, self.server):
            with suppress(OSError):
                abort(sock)
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture(params=["plain", "tls"])
def chain(request: pytest.FixtureRequest, credentials: Contexts) -> Iterator[Chain]:
    """A chain of either kind, ended after the test."""
    made = Chain(credentials if request.param == "tls" else None)
    yield made
    made.close()


def drain(sock: socket.socket, into: list[bytes]) -> None:
    """Read to the end."""
    total = hashlib.sha256()
    while data := sock.recv(1 << 16):
        total.update(data)
    into.append(total.digest())


def push(sock: socket.socket, data: bytes, sizes: list[int]) -> None:
    """Send in pieces of these sizes, again and again, then half-close."""
    at = turn = 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        sock.sendall(data[at : at + size])
        at, turn = at + size, turn + 1
    sock.shutdown(socket.SHUT_WR)


SIZES = st.lists(st.integers(1, 300_000), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(forth=st.integers(0, 2_000_000), back=st.integers(0, 2_000_000), sizes=SIZES, kind=st.booleans())
def test_both_directions_are_exact_whatever_the_pieces(
    credentials: Contexts, forth: int, back: int, sizes: list[int], kind: bool
) -> None:
    chain = Chain(credentials if kind else None)
    there, here = os.urandom(forth), os.urandom(back)
    at_server: list[bytes] = []
    at_app: list[bytes] = []
    jobs = [
        threading.Thread(target=push, args=(chain.app, there, sizes)),
        threading.Thread(target=push, args=(chain.server, here, sizes[::-1])),
        threading.Thread(target=drain, args=(chain.app, at_app)),
        threading.Thread(target=drain, args=(chain.server, at_server)),
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(30)
    chain.thread.join(10)
    chain.close()
    assert at_server == [hashlib.sha256(there).digest()]
    assert at_app == [hashlib.sha256(here).digest()]
    assert [(m.sent, m.received, m.outcome) for m in chain.moved] == [(forth, back, Outcome.CLOSED)] * 2


def test_a_half_closed_direction_leaves_the_other_open(chain: Chain) -> None:
    chain.app.sendall(b"question")
    chain.app.shutdown(socket.SHUT_WR)
    assert b"".join(iter(lambda: chain.server.recv(100), b"")) == b"question"
    for piece in (b"a", b"b" * 100_000, b"c"):
        chain.server.sendall(piece)
        got = b""
        while len(got) < len(piece):
            got += chain.app.recv(1 << 17)
        assert got == piece
    chain.server.close()
    assert chain.app.recv(1) == b""


def test_bytes_that_came_with_the_handshake_are_not_left_behind(chain: Chain) -> None:
    chain.server.sendall(b"banner")
    assert chain.app.recv(100) == b"banner"


def test_a_reset_of_one_side_is_a_reset_of_the_other(chain: Chain) -> None:
    chain.app.sendall(b"x")
    assert chain.server.recv(1) == b"x"
    abort(chain.app)
    with pytest.raises(ConnectionResetError):
        chain.server.recv(1)
    chain.thread.join(10)
    assert [moved.outcome for moved in chain.moved] == [Outcome.RESET] * 2


def test_bytes_before_a_reset_arrive_before_it(chain: Chain) -> None:
    data = os.urandom(200_000)
    job = threading.Thread(target=chain.server.sendall, args=(data,))
    job.start()
    got = chain.app.recv(100)
    job.join()
    while len(got) < 150_000:
        got += chain.app.recv(1 << 16)
    got += _rest_then_reset(chain)
    assert got == data


def test_a_reset_that_comes_right_behind_data_is_noticed(chain: Chain) -> None:
    """Both are there when the relay looks: libuv would say so once, and never again."""
    chain.app.sendall(b"x")
    assert chain.server.recv(1) == b"x"
    asleep = threading.Event()

    def sleep() -> None:
        asleep.set()
        time.sleep(0.2)

    chain.loop.call_soon_threadsafe(sleep)
    asleep.wait(5)
    chain.server.sendall(b"y" * 50_000)
    abort(chain.server)
    chain.app.settimeout(5)
    got = 0
    with pytest.raises(ConnectionResetError):
        while data := chain.app.recv(1 << 16):
            got += len(data)
    assert got == 50_000


def _rest_then_reset(chain: Chain) -> bytes:
    from tproxy.world.pods import wait_for

    wait_for(lambda: unacknowledged(chain.server) == 0, 5, "the relay's kernel has everything")
    abort(chain.server)
    got = b""
    with suppress(ConnectionResetError):
        while data := chain.app.recv(1 << 16):
            got += data
    return got


def test_of_a_connection_that_was_reset_nothing_is_waited_for() -> None:
    """The kernel goes on counting what nobody will acknowledge, and last words were waited for until their deadline."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours, (theirs, _) = socket.create_connection(server.getsockname()), server.accept()
    ours.setblocking(False)
    with ours:
        with suppress(BlockingIOError):
            while ours.send(b"x" * 65536):
                pass
        assert unacknowledged(ours) > 0
        abort(theirs)
        with pytest.raises(ConnectionResetError):
            ours.recv(1)
        assert unacknowledged(ours) == 0


def test_tcp_that_ends_without_close_notify_is_a_reset_and_never_a_clean_end(credentials: Contexts) -> None:
    chain = Chain(credentials)
    chain.app.sendall(b"x")
    assert chain.server.recv(1) == b"x"
    chain._up.shutdown(socket.SHUT_WR)  # what a middlebox that cuts would do
    with pytest.raises(ConnectionResetError):
        chain.server.recv(1)
    chain.close()
    assert Outcome.TRUNCATED in [moved.outcome for moved in chain.moved]


def test_a_stalled_reader_stops_the_sender_and_nothing_is_lost(chain: Chain) -> None:
    block, sent = os.urandom(1 << 20), 0
    chain.app.settimeout(0.5)
    total = hashlib.sha256()
    with suppress(TimeoutError):
        while True:
            count = chain.app.send(block)
            total.update(block[:count])
            sent += count
    assert sent < 64 << 20
    chain.app.shutdown(socket.SHUT_WR)
    found: list[bytes] = []
    drain(chain.server, found)
    assert found == [total.digest()]


def rmem_max() -> int:
    return int(Path("/proc/sys/net/core/rmem_max").read_text())


@pytest.mark.skipif(rmem_max() < RECEIVE_LIMIT // 2, reason="net.core.rmem_max does not allow it here")
def test_bulk_has_a_receive_buffer_that_the_kernel_never_makes_larger(chain: Chain) -> None:
    """Autotuned, one grew to 32 MiB (tcp_rmem); made smaller then, it dropped what was under way for 200 ms."""
    sources = [chain._down, *([chain._in] if chain._credentials else [])]
    for size in (BOUND_AT, 32 << 20):
        found: list[bytes] = []
        data = os.urandom(size)
        reader = threading.Thread(target=lambda found=found, size=size: found.append(exactly(chain.server, size)))
        reader.start()
        chain.app.sendall(data)
        reader.join(30)
        assert found == [data]
        assert {sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) for sock in sources} == {RECEIVE_LIMIT}


def exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes."""
    got = bytearray()
    while len(got) < size and (data := sock.recv(1 << 18)):
        got += data
    return bytes(got)


def test_a_broken_connection_gives_its_memory_back_without_waiting_for_a_collection(credentials: Contexts) -> None:
    gc.disable()
    try:
        chain = Chain(credentials)
        abort(chain.app)
        chain.close()
        assert [moved.outcome for moved in chain.moved] == [Outcome.RESET] * 2
        assert [tls() for tls in chain.tls] == [None, None]
    finally:
        gc.enable()


def test_no_file_is_left_open(credentials: Contexts) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    for _ in range(20):
        chain = Chain(credentials)
        chain.app.close()
        chain.server.close()
        chain.thread.join(10)
    left = [path for path in Path("/proc/self/fd").iterdir() if path not in before and path.exists()]
    assert len(left) <= 1  # the listing itself


def test_bulk_between_plain_legs_is_exact_by_splice_and_leaves_no_pipe(credentials: Contexts) -> None:
    data = os.urandom(1 << 20) * 24
    Chain(None).close()  # what the first loop of a process opens for good
    before = len(list(Path("/proc/self/fd").iterdir()))
    for sizes in ([1 << 20], [700_001, 3, 1 << 19]):
        chain, at_server, at_app = Chain(None), list[bytes](), list[bytes]()
        jobs = [
            threading.Thread(target=push, args=(chain.app, data, sizes)),
            threading.Thread(target=push, args=(chain.server, data[::-1], sizes)),
            threading.Thread(target=drain, args=(chain.server, at_server)),
            threading.Thread(target=drain, args=(chain.app, at_app)),
        ]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
        chain.close()
        assert at_server == [hashlib.sha256(data).digest()] and at_app == [hashlib.sha256(data[::-1]).digest()]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_only_in_bulk_a_socket_may_hold_more_that_is_not_sent() -> None:
    """With little room a pipe is emptied in many turns; with much, everybody who does not read costs as much."""
    if RELAY[0] is Relay.PYTHON:
        pytest.skip("it has no pipes")
    chain, size, seen = Chain(None), 64 << 20, set[int]()
    job = threading.Thread(target=chain.app.sendall, args=(bytes(size),))
    job.start()
    while size:
        size -= len(chain.server.recv(1 << 18))
        seen.add(chain._out.getsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT))
    job.join()
    for _ in range(2):  # the first may still come behind the last of bulk
        chain.app.sendall(b"x")
        assert chain.server.recv(1) == b"x"
    assert 2 << 20 in seen and chain._out.getsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT) == UNSENT
    chain.close()
