"""HTTP/2 through both codecs, with the library ``h2`` as client and as backend: what goes in comes out."""

from __future__ import annotations

import asyncio
import gc
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.http2 import Joined, Memory, Site, in_loop
from tproxy.gateway.http.h2_client import H2Client
from tproxy.gateway.http.h2_frames import PREFACE, SETTINGS, frame, rst_stream
from tproxy.gateway.http.h2_limits import Limits
from tproxy.gateway.http.h2_server import H2Server
from tproxy.gateway.http.h2_stream import H2Stream

Fields = list[tuple[str, str]]


@dataclass
class Message:
    """One direction of an exchange, as a peer saw or shall say it."""

    head: Fields = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    trailers: Fields = field(default_factory=list)
    ended: bool = False
    reset: int | None = None

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)


def raw(fields: Fields) -> list[tuple[bytes, bytes]]:
    """As bytes: of text the library would send UTF-8."""
    return [(name.encode(), value.encode("latin-1")) for name, value in fields]


class Peer:
    """One end that speaks by the library: says messages as far as windows go, takes what comes."""

    def __init__(self, client: bool) -> None:
        self.conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=client, header_encoding="latin-1"))
        self.conn.initiate_connection()
        self.seen: dict[int, Message] = defaultdict(Message)
        self.said: dict[int, tuple[list[bytes], Fields]] = {}
        self.answers: Callable[[int], Message] | None = None

    def say(self, number: int, message: Message) -> None:
        alone = not message.body and not message.trailers
        self.conn.send_headers(number, raw(message.head), end_stream=alone)
        if not alone:
            self.said[number] = [chunk for chunk in message.chunks if chunk], message.trailers

    def move(self) -> None:
        """Send what the windows allow."""
        for number, (chunks, trailers) in list(self.said.items()):
            while chunks:
                room = min(self.conn.local_flow_control_window(number), self.conn.max_outbound_frame_size)
                if room <= 0:
                    break
                chunk, rest = chunks[0][:room], chunks[0][room:]
                chunks[:1] = [rest] if rest else []
                self.conn.send_data(number, chunk, end_stream=not chunks and not trailers)
            if not chunks:
                if trailers:
                    self.conn.send_headers(number, raw(trailers), end_stream=True)
                del self.said[number]

    def receive(self, data: bytes) -> None:
        for event in self.conn.receive_data(data):
            if isinstance(event, h2.events.RequestReceived | h2.events.ResponseReceived):
                self.seen[event.stream_id].head = list(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                self.seen[event.stream_id].chunks.append(event.data)
                if event.flow_controlled_length:
                    self.conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.TrailersReceived):
                self.seen[event.stream_id].trailers = list(event.headers)
            elif isinstance(event, h2.events.StreamReset):
                self.seen[event.stream_id].reset = event.error_code
            elif isinstance(event, h2.events.StreamEnded):
                self.seen[event.stream_id].ended = True
                if self.answers is not None:
                    self.say(event.stream_id, self.answers(event.stream_id))


class Path:
    """client (h2) - H2Server - toy gateway - H2Client - backend (h2), in memory."""

    def __init__(self, limits: Limits, cut: int = 1 << 20) -> None:
        self.cut = cut  # bytes that are delivered at once
        self.client, self.backend = Peer(True), Peer(False)
        self.up = H2Client(limits, lambda _: None, lambda _: None)
        self.up_wire = Memory(self.up)
        server = H2Server(lambda *asked: Joined(self.up, *asked), "https", limits, print, lambda _: None)
        self.down_wire = Memory(server)

    async def run(self) -> None:
        """Until nothing moves."""
        quiet = 0
        while quiet < 3:
            self.client.move()
            self.backend.move()
            moved = self._deliver(self.client, self.down_wire) + self._deliver(self.backend, self.up_wire)
            await asyncio.sleep(0)
            quiet = 0 if moved else quiet + 1

    def _deliver(self, peer: Peer, wire: Memory) -> int:
        there, back = peer.conn.data_to_send(), wire.take()
        for data, to in ((there, wire.protocol.data_received), (back, peer.receive)):
            for at in range(0, len(data), self.cut):
                to(data[at : at + self.cut])
        return len(there) + len(back)


NAMES = st.from_regex(r"x-[a-z0-9_\-]{1,12}", fullmatch=True)
VALUES = st.from_regex(r"([!-~\x80-\xff]([ -~\x80-\xff]{0,40}[!-~\x80-\xff])?)?", fullmatch=True)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=5)
CHUNKS = st.lists(st.one_of(st.binary(max_size=50), st.integers(1, 90_000).map(lambda n: b"y" * n)), max_size=4)


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[Message, Message]:
    path = draw(st.from_regex(r"/[!\"$-~]{0,30}", fullmatch=True))
    authority = draw(st.sampled_from(["a.test", "a.test:8443", "[::1]:80"]))
    asked = [(":method", "POST"), (":scheme", "https"), (":authority", authority), (":path", path), *draw(FIELDS)]
    answered = [(":status", str(draw(st.sampled_from([200, 204, 404, 500])))), *draw(FIELDS)]
    chunks = [] if answered[0][1] == "204" else draw(CHUNKS)
    return Message(asked, draw(CHUNKS), draw(FIELDS)), Message(answered, chunks, draw(FIELDS))


def place_of(message: Message) -> int:
    return int(dict(message.head)["x-place"])


@settings(max_examples=60, deadline=None)
@given(st.lists(exchanges(), min_size=1, max_size=5), st.sampled_from([1 << 20, 1000, 7]))
@in_loop
async def test_what_the_library_says_on_one_side_it_hears_on_the_other(
    said: list[tuple[Message, Message]], cut: int
) -> None:
    if cut == 7 and sum(len(one.body) for pair in said for one in pair) > 50_000:
        cut = 100
    path = Path(Limits(), cut)
    path.backend.answers = lambda number: said[place_of(path.backend.seen[number])][1]
    for place, (asked, _) in enumerate(said):
        asked.head.append(("x-place", str(place)))
        path.client.say(2 * place + 1, asked)
    await path.run()
    arrived = {place_of(seen): seen for seen in path.backend.seen.values()}
    for place, (asked, answered) in enumerate(said):
        back = path.client.seen[2 * place + 1]
        for sent, got in ((asked, arrived[place]), (answered, back)):
            assert got.head == sent.head
            assert got.body == sent.body
            assert got.trailers == sent.trailers
            assert got.ended
            assert got.reset in {None, 0}


@pytest.mark.parametrize("window", [0, 1, 1000])
@in_loop
async def test_a_client_that_takes_nothing_holds_its_backend_and_nobody_else(window: int) -> None:
    """What waits is bounded by our limit and the backend's window, however much there is."""
    limits = Limits()
    path = Path(limits)
    big = Message([(":status", "200")], [b"z" * 10_000_000])
    path.backend.answers = lambda number: big if number == 1 else Message([(":status", "200")], [b"small"])
    path.client.conn.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
    asked = Message([(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/")])
    path.client.conn.acknowledge_received_data = lambda *_: None  # type: ignore[method-assign]
    path.client.say(1, asked)
    await path.run()
    [stream] = path.down_wire.protocol.streams.values()  # type: ignore[attr-defined]
    assert limits.waiting < stream.waiting <= limits.waiting + limits.stream_window
    path.client.conn.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 60_000})
    path.client.say(3, asked)
    await path.run()
    assert path.client.seen[3].body == b"small"
    assert path.client.seen[3].ended
    path.client.conn.reset_stream(1, 8)
    await path.run()
    assert not path.down_wire.protocol.streams  # type: ignore[attr-defined]
    assert not path.up.streams, "and the backend is told"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=200), st.sampled_from([frame(SETTINGS, 0, 0), rst_stream(1, 8)]))))
@in_loop
async def test_random_bytes_never_raise_and_never_make_much(chunks: list[bytes]) -> None:
    site = Site()
    for first in (b"", PREFACE + frame(SETTINGS, 0, 0)):
        wire = Memory(H2Server(site.accept, "https", Limits(), site.said, lambda _: None))
        wire.protocol.data_received(first)
        for chunk in chunks:
            wire.protocol.data_received(chunk)
        assert len(wire.written) < 4096 + 40 * sum(map(len, chunks))
    client = H2Client(Limits(), lambda _: None, lambda _: None)
    wire = Memory(client)
    for chunk in chunks:
        client.data_received(chunk)


@in_loop
async def test_an_exchange_that_is_over_is_freed_without_the_collector() -> None:
    path = Path(Limits())
    path.backend.answers = lambda _: Message([(":status", "200")], [b"x"])
    gc.disable()
    try:
        before = sum(isinstance(thing, H2Stream | Joined) for thing in gc.get_objects())
        for number in range(1, 41, 2):
            asked = [(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/")]
            path.client.say(number, Message(asked))
            await path.run()
        assert len(path.backend.seen) == 20
        assert sum(isinstance(thing, H2Stream | Joined) for thing in gc.get_objects()) == before
    finally:
        gc.enable()


FRAME = st.tuples(st.integers(0, 10), st.integers(0, 255), st.sampled_from([0, 1, 1, 3, 5]), st.binary(max_size=40))


@settings(max_examples=500, deadline=None)
@given(st.lists(FRAME, max_size=20))
@in_loop
async def test_random_frames_never_raise_on_either_side(said: list[tuple[int, int, int, bytes]]) -> None:
    data = b"".join(
        len(payload).to_bytes(3) + bytes((kind, flags)) + number.to_bytes(4) + payload
        for kind, flags, number, payload in said
    )
    path = Path(Limits())
    path.client.say(1, Message([(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/")]))
    await path.run()
    path.up.data_received(data)
    path.down_wire.protocol.data_received(data)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
