"""HTTP/1.1 from clients: what is a request, what is refused, and that splitting bytes changes neither."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.h1 import Heard, Server, answer
from tproxy.core.http.head import Reply
from tproxy.gateway.http.limits import Limits
from tproxy.gateway.http.stream import Broken, Reset

GET = b"GET /a?b=c HTTP/1.1\r\nHost: a.example.com\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: a.example.com\r\n"


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def talk(loop: asyncio.AbstractEventLoop, *pieces: bytes, **options: Any) -> Server:
    async def run() -> Server:
        return await Server(**options).feed(pieces)

    return loop.run_until_complete(run())


def one(loop: asyncio.AbstractEventLoop, data: bytes) -> Heard:
    found = talk(loop, data)
    assert not found.refused
    assert len(found.requests) == 1
    return found.requests[0]


def status(server: Server) -> int:
    return int(bytes(server.wire.sent).rpartition(b"HTTP/1.1 ")[2][:3])


REFUSED = {
    "TE beside CL": (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "CL beside TE": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
    "CL twice": (POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
    "two different CL": (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
    "a list of CL": (POST + b"Content-Length: 3, 3\r\n\r\nabc", 400),
    "CL with a sign": (POST + b"Content-Length: +3\r\n\r\nabc", 400),
    "CL in hexadecimal": (POST + b"Content-Length: 0x3\r\n\r\nabc", 400),
    "CL of no digits": (POST + b"Content-Length: \r\n\r\nabc", 400),
    "CL beyond any number": (POST + b"Content-Length: 99999999999999999999\r\n\r\nabc", 400),
    "TE of something else": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "TE with more codings": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    "TE identity": (POST + b"Transfer-Encoding: identity\r\n\r\n", 400),
    "TE twice": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "TE with a vertical tab": (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "a folded line": (GET + b"A: b\r\n c\r\n\r\n", 400),
    "a folded line by tab": (GET + b"A: b\r\n\tc\r\n\r\n", 400),
    "a blank before the colon": (GET + b"A : b\r\n\r\n", 400),
    "a blank in a name": (GET + b"A b: c\r\n\r\n", 400),
    "no name": (GET + b": c\r\n\r\n", 400),
    "no colon": (GET + b"abc\r\n\r\n", 400),
    "bare CR in a value": (GET + b"A: b\rc\r\n\r\n", 400),
    "bare LF after a value": (GET + b"A: b\nB: c\r\n\r\n", 400),
    "NUL in a value": (GET + b"A: b\x00c\r\n\r\n", 400),
    "DEL in a value": (GET + b"A: b\x7fc\r\n\r\n", 400),
    "a control character in a value": (GET + b"A: \x01\r\n\r\n", 400),
    "NUL in a name": (GET + b"A\x00: b\r\n\r\n", 400),
    "no Host": (b"GET / HTTP/1.1\r\nA: b\r\n\r\n", 400),
    "Host twice": (GET + b"Host: a.example.com\r\n\r\n", 400),
    "an empty Host": (b"GET / HTTP/1.1\r\nHost: \r\n\r\n", 400),
    "a Host with a path": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "a Host with a user": (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    "a Host with a list": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    "a target of another host": (b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a target of another scheme": (b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a target with a fragment": (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "an asterisk for GET": (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "two blanks in the first line": (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "bytes above ASCII in the target": (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a method in lower case": (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", 426),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "CONNECT": (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405),
    "another expectation": (POST + b"Content-Length: 1\r\nExpect: 200-ok\r\n\r\na", 417),
    "101 headers": (GET + b"".join(b"A%d: b\r\n" % number for number in range(100)) + b"\r\n", 431),
    "a head of 61 KiB": (GET + b"".join(b"A%d: %s\r\n" % (n, b"b" * 1000) for n in range(61)) + b"\r\n", 431),
    "a header that never ends": (GET + b"A: " + b"b" * 70_000, 431),
    "a line of 17 KiB": (b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "a line that never ends": (b"GET /" + b"a" * 17_000, 414),
    "a bare CR before the first line": (b"\r" + GET + b"\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    "a body before an upgrade": (
        GET + b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc",
        400,
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(loop: asyncio.AbstractEventLoop, what: str) -> None:
    data, expected = REFUSED[what]
    found = talk(loop, data)
    assert not found.requests
    assert [refusal.status for refusal in found.refused] == [expected]
    assert status(found) == expected
    assert b"connection: close\r\n" in found.wire.sent
    assert found.wire.eof or found.wire.closed


@pytest.mark.parametrize("what", REFUSED)
def test_refused_also_one_byte_after_the_other(loop: asyncio.AbstractEventLoop, what: str) -> None:
    data, expected = REFUSED[what]
    if len(data) < 1000:
        found = talk(loop, *(data[at : at + 1] for at in range(len(data))))
        assert [refusal.status for refusal in found.refused] == [expected]
        assert not found.requests


BROKEN = {
    "a size that is no number": b"g\r\nabc\r\n0\r\n\r\n",
    "a size with a sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "a size with a blank before it": b" 3\r\nabc\r\n0\r\n\r\n",
    "a size of 17 digits": b"00000000000000003\r\nabc\r\n0\r\n\r\n",
    "a size's line that ends in LF": b"3\nabc\r\n0\r\n\r\n",
    "a size's line with a bare CR": b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "a chunk longer than its size": b"3\r\nabcd\r\n0\r\n\r\n",
    "a chunk that ends in LF": b"3\r\nabc\n0\r\n\r\n",
    "a chunk that ends in CR CR": b"3\r\nabc\r\r0\r\n\r\n",
    "an extension that never ends": b"3;" + b"a" * 5000,
    "extensions without end": b"".join(b"1;" + b"a" * 1000 + b"\r\nb\r\n" for _ in range(17)),
    "a trailer without a colon": b"0\r\nabc\r\n\r\n",
    "a trailer with a blank before the colon": b"0\r\na : b\r\n\r\n",
    "a trailer with NUL": b"0\r\na: \x00\r\n\r\n",
    "a folded trailer": b"0\r\na: b\r\n c\r\n\r\n",
    "trailers without end": b"0\r\n" + b"a: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\r\n" * 300,
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("split", [False, True])
def test_a_body_that_is_not_chunked_as_it_says_is_400_and_the_backend_hears_a_reset(
    loop: asyncio.AbstractEventLoop, what: str, split: bool
) -> None:
    data = POST + b"Transfer-Encoding: chunked\r\n\r\n" + BROKEN[what]
    found = talk(loop, *([data[at : at + 1] for at in range(len(data))] if split else [data]))
    assert status(found) == 400
    assert not found.requests[0].ended
    assert found.requests[0].broken == Reset(Broken.MALFORMED, found.refused[0].why)


def test_a_request_is_its_method_target_authority_and_headers_in_lower_case(loop: asyncio.AbstractEventLoop) -> None:
    heard = one(loop, b"GET /a%20b?c=d HTTP/1.1\r\nHost: A.example.com:8080\r\nX-One: 1 \r\nx-two:\t2\r\n\r\n")
    head = heard.head_
    assert head is not None
    assert (head.method, head.target, head.authority, head.scheme) == (
        "GET",
        "/a%20b?c=d",
        "A.example.com:8080",
        "http",
    )
    assert head.headers == [("x-one", "1"), ("x-two", "2")]


def test_empty_lines_before_a_request_are_passed_over(loop: asyncio.AbstractEventLoop) -> None:
    assert one(loop, b"\r\n" + GET + b"\r\n")
    assert len(talk(loop, *(bytes([byte]) for byte in b"\r\n" + GET + b"\r\n")).requests) == 1


def test_a_url_as_target_is_its_path_if_it_names_the_host_of_the_host_header(loop: asyncio.AbstractEventLoop) -> None:
    head = one(loop, b"GET http://A.example.com/x?y HTTP/1.1\r\nHost: a.example.com\r\n\r\n").head_
    assert head is not None
    assert (head.target, head.authority) == ("/x?y", "a.example.com")
    bare = one(loop, b"GET http://a.example.com HTTP/1.1\r\nHost: a.example.com\r\n\r\n").head_
    assert bare is not None
    assert bare.target == "/"


def test_what_belongs_to_one_connection_is_not_passed_on(loop: asyncio.AbstractEventLoop) -> None:
    lines = (
        b"Connection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\nTE: gzip\r\n"
    )
    head = one(loop, GET + lines + b"Upgrade: h2c\r\nHTTP2-Settings: abc\r\nX-Other: 2\r\n\r\n").head_
    assert head is not None
    assert head.headers == [("x-other", "2")]
    assert head.upgrade == ""


def test_te_trailers_is_kept_because_grpc_asks_for_it(loop: asyncio.AbstractEventLoop) -> None:
    head = one(loop, GET + b"TE: trailers\r\nConnection: TE\r\n\r\n").head_
    assert head is not None
    assert head.headers == [("te", "trailers")]


def test_a_connection_header_cannot_take_the_length_away(loop: asyncio.AbstractEventLoop) -> None:
    heard = one(loop, POST + b"Connection: content-length, host\r\nContent-Length: 3\r\n\r\nabc")
    assert heard.head_ is not None
    assert heard.head_.headers == [("content-length", "3")]
    assert heard.body == b"abc"


def test_chunks_extensions_and_trailers(loop: asyncio.AbstractEventLoop) -> None:
    data = (
        POST
        + b"Transfer-Encoding: Chunked\r\n\r\n3;a=b\r\nabc\r\n02 ; c\r\nde\r\n"
        + b"0\r\nX-Sum: 5\r\nContent-Length: 9\r\n\r\n"
    )
    heard = one(loop, data)
    assert (heard.body, heard.trailers) == (b"abcde", [("x-sum", "5")])
    split = talk(loop, *(data[at : at + 1] for at in range(len(data)))).requests[0]
    assert (split.body, split.trailers) == (heard.body, heard.trailers)


def test_pipelined_requests_are_answered_one_after_the_other(loop: asyncio.AbstractEventLoop) -> None:
    found = talk(loop, (GET + b"\r\n") * 3 + POST + b"Content-Length: 2\r\n\r\nab")
    assert len(found.requests) == 4
    assert found.requests[3].body == b"ab"
    assert bytes(found.wire.sent).count(b"HTTP/1.1 200 OK") == 4


def test_the_next_request_is_not_looked_at_while_one_is_not_answered(loop: asyncio.AbstractEventLoop) -> None:
    found = talk(loop, GET + b"\r\n" + GET + b"\r\n", then=lambda _: None)
    assert len(found.requests) == 1
    assert not found.wire.reading
    answer(found.requests[0])
    loop.run_until_complete(asyncio.sleep(0))
    assert len(found.requests) == 2


def test_connection_close_is_kept_and_said(loop: asyncio.AbstractEventLoop) -> None:
    found = talk(loop, GET + b"Connection: close\r\n\r\n" + GET + b"\r\n")
    assert len(found.requests) == 1
    assert b"connection: close" in found.wire.sent
    assert found.wire.closed


def test_draining_says_connection_close_and_closes_idle_connections(loop: asyncio.AbstractEventLoop) -> None:
    async def run() -> None:
        busy = await Server(then=lambda _: None).feed([GET + b"\r\n"])
        busy.conn.drain()
        assert not busy.wire.closed
        answer(busy.requests[0])
        assert b"connection: close" in busy.wire.sent
        assert busy.wire.closed
        idle = await Server().feed([GET + b"\r\n"])
        idle.conn.drain()
        assert idle.wire.closed

    loop.run_until_complete(run())


def test_100_continue_is_said_when_the_request_is_taken_and_not_when_it_is_answered(
    loop: asyncio.AbstractEventLoop,
) -> None:
    head = POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    taken = talk(loop, head)
    assert taken.wire.sent == b"HTTP/1.1 100 Continue\r\n\r\n"

    async def run() -> Server:
        server = Server()
        server.conn.accept = early
        return await server.feed([head])

    def early(stream: Any, head_: Any, end: bool) -> Heard:
        stream.head(Reply(413), True)
        return Heard(stream, head_)

    found = loop.run_until_complete(run())
    assert found.wire.sent.startswith(b"HTTP/1.1 413")
    assert found.wire.eof


def test_head_and_204_and_304_have_no_body_whatever_is_said(loop: asyncio.AbstractEventLoop) -> None:
    def length(heard: Heard) -> None:
        assert heard.stream is not None
        heard.stream.head(Reply(200, [("content-length", "5")]), True)

    found = talk(loop, b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", then=length)
    assert found.wire.sent == b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"


def test_a_body_without_a_length_goes_out_in_chunks_with_its_trailers(loop: asyncio.AbstractEventLoop) -> None:
    def stream(heard: Heard) -> None:
        assert heard.stream is not None
        heard.stream.head(Reply(200), False)
        heard.stream.data(b"abc")
        heard.stream.end([("x-sum", "3")])

    found = talk(loop, GET + b"\r\n", then=stream)
    assert found.wire.sent == (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 3\r\n\r\n"
    )


@pytest.mark.parametrize("body", [b"abcd", b"ab"])
def test_a_response_that_is_not_as_long_as_it_says_ends_the_connection(
    loop: asyncio.AbstractEventLoop, body: bytes
) -> None:
    def wrong(heard: Heard) -> None:
        assert heard.stream is not None
        heard.stream.head(Reply(200, [("content-length", "3")]), False)
        heard.stream.data(body)
        heard.stream.end()

    found = talk(loop, GET + b"\r\n", then=wrong)
    assert found.wire.closed
    assert len(found.wire.sent.partition(b"\r\n\r\n")[2]) <= 3


@pytest.mark.parametrize("pair", [("a", "b\r\nc: d"), ("a\nb", "c"), ("a", "b\x00")])
def test_a_header_that_would_be_two_is_never_sent(loop: asyncio.AbstractEventLoop, pair: tuple[str, str]) -> None:
    def wrong(heard: Heard) -> None:
        assert heard.stream is not None
        heard.stream.head(Reply(200, [pair]), True)

    found = talk(loop, GET + b"\r\n", then=wrong)
    assert not found.wire.sent
    assert found.wire.closed


def test_a_websocket_is_raw_bytes_both_ways_and_ends_one_way_at_a_time(loop: asyncio.AbstractEventLoop) -> None:
    def switch(heard: Heard) -> None:
        raise AssertionError("a request that becomes raw bytes has no end")

    async def run() -> None:
        server = await Server(then=switch).feed([GET + b"Connection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n"])
        heard = server.requests[0]
        assert heard.head_ is not None
        assert heard.stream is not None
        assert heard.head_.upgrade == "websocket"
        heard.then = lambda _: None
        heard.stream.head(Reply(101, [("sec-websocket-accept", "x")]), False)
        lines = bytes(server.wire.sent).split(b"\r\n")
        assert {b"connection: Upgrade", b"upgrade: websocket", b"sec-websocket-accept: x"} <= set(lines)
        server.conn.data_received(b"GET / HTTP/1.1\r\n\r\n")
        assert heard.body == b"GET / HTTP/1.1\r\n\r\n"
        heard.stream.data(b"raw")
        assert server.wire.sent.endswith(b"\r\n\r\nraw")
        assert server.conn.eof_received()
        assert heard.ended
        assert not server.wire.closed
        heard.stream.data(b"more")
        heard.stream.end()
        assert server.wire.sent.endswith(b"rawmore")
        assert server.wire.closed

    loop.run_until_complete(run())


def test_a_websocket_that_the_backend_refuses_leaves_an_ordinary_connection(loop: asyncio.AbstractEventLoop) -> None:
    async def run() -> Server:
        server = await Server(then=lambda _: None).feed([GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"])
        answer(server.requests[0])
        return await server.feed([GET + b"\r\n"])

    assert len(loop.run_until_complete(run()).requests) == 2


def test_a_head_that_does_not_come_in_time_is_408_however_it_trickles(loop: asyncio.AbstractEventLoop) -> None:
    async def run() -> Server:
        server = Server(limits=Limits(head=0.3))
        for byte in GET:
            if server.refused:
                break
            server.conn.data_received(bytes([byte]))
            await asyncio.sleep(0.02)
        return server

    found = loop.run_until_complete(run())
    assert [refusal.status for refusal in found.refused] == [408]


def test_a_silent_connection_is_closed_and_one_that_waits_for_its_answer_is_not(
    loop: asyncio.AbstractEventLoop,
) -> None:
    async def run() -> None:
        silent = Server(limits=Limits(head=0.1))
        waiting = await Server(limits=Limits(head=0.1), then=lambda _: None).feed([GET + b"\r\n"])
        idle = await Server(limits=Limits(head=0.1, idle=0.1)).feed([GET + b"\r\n"])
        await asyncio.sleep(0.4)
        assert silent.wire.closed
        assert not waiting.wire.closed
        assert idle.wire.closed

    loop.run_until_complete(run())


def test_a_body_that_stalls_is_408_and_resets_the_exchange(loop: asyncio.AbstractEventLoop) -> None:
    async def run() -> Server:
        server = await Server(limits=Limits(stall=0.1)).feed([POST + b"Content-Length: 3\r\n\r\na"])
        await asyncio.sleep(0.4)
        return server

    found = loop.run_until_complete(run())
    broken = found.requests[0].broken
    assert broken is not None
    assert broken.kind is Broken.TIMEOUT
    assert found.wire.sent.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert [refusal.status for refusal in found.refused] == [408]


@pytest.mark.parametrize("framing", [b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
@pytest.mark.parametrize("rate", [0, 100, 1000])
def test_a_body_that_trickles_is_408_when_too_little_of_it_has_come(
    loop: asyncio.AbstractEventLoop, framing: bytes, rate: int
) -> None:
    """Slow POST: no byte that comes moves this deadline. A client of 200 to 500 bytes a second is served."""

    async def run() -> Server:
        stall = 0.2 if rate == 1000 else 1  # on a busy machine a pause is soon as long
        server = await Server(limits=Limits(stall=stall, rate=rate), then=lambda _: None).feed([POST + framing])
        piece = b"1\r\nx\r\n" if b"chunked" in framing else b"x"
        for _ in range(130):
            if server.refused:
                break
            server.conn.data_received(piece * (1 if b"chunked" in framing else 3))
            await asyncio.sleep(0.01)
        return server

    found = loop.run_until_complete(run())
    assert [refusal.status for refusal in found.refused] == ([408] if rate == 1000 else [])
    broken = found.requests[0].broken
    assert (broken is not None and broken.kind is Broken.TIMEOUT) is (rate == 1000)


def test_a_body_that_we_hold_does_not_trickle(loop: asyncio.AbstractEventLoop) -> None:
    async def run() -> Server:
        server = Server(limits=Limits(stall=0.2, rate=1000), then=lambda _: None)
        await server.feed([POST + b"Content-Length: 1000\r\n\r\na"])
        server.requests[0].stream.hold(True)
        await asyncio.sleep(0.15)
        server.requests[0].stream.hold(False)
        await asyncio.sleep(0.1)
        return await server.feed([b"b"])

    assert not loop.run_until_complete(run()).refused


# the oracle

NAMES = st.sampled_from(
    b"Host|Content-Length|Transfer-Encoding|Connection|X-A|x-b|Expect|TE|X A||A:".split(b"|"),
)
TEXTS = st.sampled_from(b"a.example.com|3|5|chunked|chunked, chunked|close|keep-alive|| x |0".split(b"|"))
COLON = st.sampled_from([b": "] * 8 + [b":", b" : ", b""])
ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\n ", b"\r\n\t"])
LINE = st.tuples(NAMES, COLON, st.one_of(TEXTS, st.binary(max_size=4)), ENDS).map(b"".join)
FIRST = st.sampled_from(
    [b"GET / HTTP/1.1\r\n"] * 6
    + [b"POST /a?b HTTP/1.1\r\n"] * 6
    + [b"GET http://a.example.com/x HTTP/1.1\r\n", b"GET / HTTP/1.1\n", b"GET /a b HTTP/1.1\r\n"]
)
CHUNKS = [b"3\r\nabc\r\n0\r\n\r\n", b"3;x\r\nabc\r\n0\r\nA: b\r\n\r\n", b"3\nabc\r\n0\r\n\r\n"]
BODY = st.one_of(st.sampled_from([b"", b"abc", b"abcde", *CHUNKS]), st.binary(max_size=30))
MESSAGE = st.builds(
    lambda first, host, lines, body: first + host + b"".join(lines) + b"\r\n" + body,
    FIRST,
    st.sampled_from([b"Host: a.example.com\r\n"] * 5 + [b""]),
    st.lists(LINE, max_size=4),
    BODY,
)


def by_h11(data: bytes) -> list[tuple[bytes, bytes, dict[bytes, bytes], bytes]]:
    """Complete requests as h11 reads them; up to the first fault. Empty lines before one, which RFC 9112, 2.2, lets a
    server ignore, h11 does not."""
    made: list[tuple[bytes, bytes, dict[bytes, bytes], bytes]] = []
    conn = begun(data)
    head, body = None, b""
    try:
        while True:
            event = conn.next_event()
            match event:
                case h11.Request():
                    head, body = event, b""
                case h11.Data():
                    body += bytes(event.data)
                case h11.EndOfMessage():
                    assert head is not None
                    made.append((head.method, head.target, dict(head.headers), body))
                    conn.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                    conn.send(h11.EndOfMessage())
                    if conn.our_state is not h11.DONE or conn.their_state is not h11.DONE:
                        return made
                    conn = begun(conn.trailing_data[0])
                case h11.NEED_DATA | h11.PAUSED | h11.ConnectionClosed():
                    return made
    except h11.ProtocolError:
        return made


def begun(data: bytes) -> h11.Connection:
    conn = h11.Connection(h11.SERVER)
    conn.receive_data(data.removeprefix(b"\r\n").removeprefix(b"\r\n"))
    return conn


@settings(max_examples=800, deadline=None)
@example(messages=[b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"])
@given(messages=st.lists(MESSAGE, min_size=1, max_size=3))
def test_whatever_is_taken_for_a_request_means_the_same_to_h11(messages: list[bytes]) -> None:
    data = b"".join(messages)
    loop = asyncio.new_event_loop()
    try:
        found = [heard for heard in talk(loop, data).requests if heard.ended]
    finally:
        loop.close()
    theirs = by_h11(data)
    assert len(found) <= len(theirs)
    for heard, (method, target, headers, body) in zip(found, theirs, strict=False):
        head = heard.head_
        assert head is not None
        assert (head.method.encode(), bytes(heard.body)) == (method, body)
        assert target.decode().endswith(head.target)
        for name, value in head.headers:
            if name not in {"te", "content-length"}:
                assert headers[name.encode()].decode("latin-1") == value or [n for n, _ in head.headers].count(name) > 1


@settings(max_examples=300, deadline=None)
@given(messages=st.lists(MESSAGE, min_size=1, max_size=2), cuts=st.lists(st.integers(1, 8), min_size=1, max_size=20))
def test_where_bytes_are_cut_changes_nothing(messages: list[bytes], cuts: list[int]) -> None:
    data = b"".join(messages)
    pieces, at, index = [], 0, 0
    while at < len(data):
        size = cuts[index % len(cuts)]
        pieces.append(data[at : at + size])
        at, index = at + size, index + 1
    loop = asyncio.new_event_loop()
    try:
        whole, cut = talk(loop, data), talk(loop, *pieces)
    finally:
        loop.close()

    def told(server: Server) -> list[tuple[Any, bytes, bool, Any]]:
        return [(heard.head_, bytes(heard.body), heard.ended, heard.trailers) for heard in server.requests]

    assert told(whole) == told(cut)
    assert bool(whole.refused) == bool(cut.refused)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    loop = asyncio.new_event_loop()
    try:
        talk(loop, data)
        talk(loop, GET + data)
        talk(loop, POST + b"Transfer-Encoding: chunked\r\n\r\n" + data)
    finally:
        loop.close()
