"""RFC 9113, section by section, as a hostile client would try it: frames by hand to the server codec."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.http2 import Raw, ended, frames, in_loop, reset
from tproxy.gateway.http import h2_frames as f
from tproxy.gateway.http.h2_frames import Code, frame
from tproxy.gateway.http.h2_limits import Limits

BIG = b"\0" * (f.FRAME + 1)
CUT = frame(f.HEADERS, f.END_STREAM, 1, b"\x82")  # without END_HEADERS


def half_closed(client: Raw) -> bytes:
    """Stream 1: the client has ended it, the server has not answered."""
    return client.get(1, "/never", False) + frame(f.DATA, f.END_STREAM, 1, b"x")


# section, what is wrong, the frames after the greeting, how the connection ends
CONNECTION: list[tuple[str, str, Callable[[Raw], bytes], Code]] = [
    ("4.2", "a frame larger than SETTINGS_MAX_FRAME_SIZE", lambda c: frame(f.DATA, 0, 1, BIG), Code.FRAME_SIZE_ERROR),
    ("4.3", "another frame within a header block", lambda c: CUT + f.ping(b"12345678"), Code.PROTOCOL_ERROR),
    ("4.3", "the same with a frame of no known type", lambda c: CUT + frame(99, 0, 1), Code.PROTOCOL_ERROR),
    ("4.3", "a header block that is none", lambda c: frame(f.HEADERS, 5, 1, b"\xc8"), Code.COMPRESSION_ERROR),
    ("4.3", "a header block that is cut", lambda c: frame(f.HEADERS, 5, 1, b"\x00\x05ab"), Code.COMPRESSION_ERROR),
    ("5.1", "DATA on an idle stream", lambda c: frame(f.DATA, 1, 1, b"x"), Code.PROTOCOL_ERROR),
    ("5.1", "RST_STREAM on an idle stream", lambda c: f.rst_stream(1, 8), Code.PROTOCOL_ERROR),
    ("5.1", "WINDOW_UPDATE on an idle stream", lambda c: f.window_update(1, 9), Code.PROTOCOL_ERROR),
    ("5.1", "CONTINUATION on an idle stream", lambda c: frame(f.CONTINUATION, 4, 1, b"\x82"), Code.PROTOCOL_ERROR),
    ("5.1", "DATA after the end", lambda c: half_closed(c) + frame(f.DATA, 0, 1, b"x"), Code.STREAM_CLOSED),
    ("5.1", "HEADERS after the end", lambda c: half_closed(c) + c.get(1), Code.STREAM_CLOSED),
    ("5.1", "DATA on a closed stream", lambda c: c.get(1) + frame(f.DATA, 0, 1, b"x"), Code.STREAM_CLOSED),
    ("5.1", "HEADERS on a closed stream", lambda c: c.get(1) + c.get(1), Code.STREAM_CLOSED),
    ("5.1.1", "a stream with an even number", lambda c: c.get(2), Code.PROTOCOL_ERROR),
    ("5.1.1", "a stream with a number below the last", lambda c: c.get(5) + c.get(3), Code.STREAM_CLOSED),
    ("5.3.1", "HEADERS that depend on themselves", lambda c: frame(f.HEADERS, 0x25, 1, b"\0\0\0\1\0\x82"),
     Code.PROTOCOL_ERROR),
    ("5.3.1", "PRIORITY that depends on itself", lambda c: frame(f.PRIORITY, 0, 1, b"\0\0\0\1\0"), Code.PROTOCOL_ERROR),
    ("6.1", "DATA on stream 0", lambda c: frame(f.DATA, 0, 0, b"x"), Code.PROTOCOL_ERROR),
    ("6.1", "padding as long as its frame", lambda c: c.get(1, "/", False) + frame(f.DATA, 8, 1, b"\5abcd"),
     Code.PROTOCOL_ERROR),
    ("6.1", "padding without its length", lambda c: c.get(1, "/", False) + frame(f.DATA, 8, 1), Code.PROTOCOL_ERROR),
    ("6.2", "HEADERS on stream 0", lambda c: frame(f.HEADERS, 5, 0, b"\x82"), Code.PROTOCOL_ERROR),
    ("6.2", "HEADERS with too much padding", lambda c: frame(f.HEADERS, 13, 1, b"\x09\x82"), Code.PROTOCOL_ERROR),
    ("6.2", "HEADERS with half a priority", lambda c: frame(f.HEADERS, 0x25, 1, b"\0\0\0"), Code.FRAME_SIZE_ERROR),
    ("6.3", "PRIORITY on stream 0", lambda c: frame(f.PRIORITY, 0, 0, b"\0\0\0\1\0"), Code.PROTOCOL_ERROR),
    ("6.3", "PRIORITY of four bytes", lambda c: frame(f.PRIORITY, 0, 1, b"\0\0\0\0"), Code.FRAME_SIZE_ERROR),
    ("6.4", "RST_STREAM on stream 0", lambda c: f.rst_stream(0, 8), Code.PROTOCOL_ERROR),
    ("6.4", "RST_STREAM of three bytes", lambda c: c.get(1) + frame(f.RST_STREAM, 0, 1, b"\0\0\0"),
     Code.FRAME_SIZE_ERROR),
    ("6.5", "an acknowledgement with a payload", lambda c: frame(f.SETTINGS, 1, 0, b"\0" * 6), Code.FRAME_SIZE_ERROR),
    ("6.5", "SETTINGS on a stream", lambda c: frame(f.SETTINGS, 0, 1), Code.PROTOCOL_ERROR),
    ("6.5", "SETTINGS of five bytes", lambda c: frame(f.SETTINGS, 0, 0, b"\0" * 5), Code.FRAME_SIZE_ERROR),
    ("6.5.2", "SETTINGS_ENABLE_PUSH of 2", lambda c: f.settings([(2, 2)]), Code.PROTOCOL_ERROR),
    ("6.5.2", "SETTINGS_INITIAL_WINDOW_SIZE above 2^31-1", lambda c: f.settings([(4, 2**31)]),
     Code.FLOW_CONTROL_ERROR),
    ("6.5.2", "SETTINGS_MAX_FRAME_SIZE below 16384", lambda c: f.settings([(5, 16_383)]), Code.PROTOCOL_ERROR),
    ("6.5.2", "SETTINGS_MAX_FRAME_SIZE above 2^24-1", lambda c: f.settings([(5, 2**24)]), Code.PROTOCOL_ERROR),
    ("6.6", "PUSH_PROMISE of a client", lambda c: frame(f.PUSH_PROMISE, 4, 1, b"\0\0\0\2\x82"), Code.PROTOCOL_ERROR),
    ("6.7", "PING of six bytes", lambda c: frame(f.PING, 0, 0, b"\0" * 6), Code.FRAME_SIZE_ERROR),
    ("6.7", "PING on a stream", lambda c: frame(f.PING, 0, 1, b"\0" * 8), Code.PROTOCOL_ERROR),
    ("6.8", "GOAWAY on a stream", lambda c: frame(f.GOAWAY, 0, 1, b"\0" * 8), Code.PROTOCOL_ERROR),
    ("6.8", "GOAWAY of seven bytes", lambda c: frame(f.GOAWAY, 0, 0, b"\0" * 7), Code.FRAME_SIZE_ERROR),
    ("6.9", "WINDOW_UPDATE by 0", lambda c: f.window_update(0, 0), Code.PROTOCOL_ERROR),
    ("6.9", "WINDOW_UPDATE by 0 on a stream", lambda c: c.get(1, "/", False) + f.window_update(1, 0),
     Code.PROTOCOL_ERROR),
    ("6.9", "WINDOW_UPDATE of three bytes", lambda c: frame(f.WINDOW_UPDATE, 0, 0, b"\0\0\1"), Code.FRAME_SIZE_ERROR),
    ("6.9.1", "a connection's window above 2^31-1", lambda c: f.window_update(0, 2**31 - 1), Code.FLOW_CONTROL_ERROR),
    ("6.9.1", "a stream's window above 2^31-1", lambda c: c.get(1, "/", False) + f.window_update(1, 2**31 - 1),
     Code.FLOW_CONTROL_ERROR),
    ("6.9.2", "an initial window that makes a stream's too large",
     lambda c: c.get(1, "/", False) + f.window_update(1, 2**31 - 1 - f.WINDOW) + f.settings([(4, f.WINDOW + 1)]),
     Code.FLOW_CONTROL_ERROR),
    ("6.10", "CONTINUATION behind a complete block", lambda c: c.get(1) + frame(f.CONTINUATION, 4, 1, b"\x82"),
     Code.PROTOCOL_ERROR),
    ("6.10", "CONTINUATION on another stream", lambda c: CUT + frame(f.CONTINUATION, 4, 3, b"\x82"),
     Code.PROTOCOL_ERROR),
    ("8.1", "trailers that do not end the stream",
     lambda c: c.get(1, "/", False) + frame(f.HEADERS, 4, 1, c.encoder.encode([("a", "b")])), Code.PROTOCOL_ERROR),
]  # fmt: skip


@pytest.mark.parametrize(
    ("section", "what", "said", "code"), CONNECTION, ids=[f"{row[0]}: {row[1]}" for row in CONNECTION]
)
@in_loop
async def test_what_no_honest_client_does_ends_the_connection(
    section: str, what: str, said: Callable[[Raw], bytes], code: Code
) -> None:
    client = Raw()
    client.greet()
    assert ended(client.say(said(client))) == code, (section, what)
    assert client.transport.closed
    assert client.site.refused, "and there is a record"


PLAIN = [(":method", "GET"), (":scheme", "https"), (":authority", "a.test"), (":path", "/")]


def without(name: str) -> list[tuple[str, str]]:
    return [field for field in PLAIN if field[0] != name]


def but(name: str, value: str) -> list[tuple[str, str]]:
    return [(name, value) if field[0] == name else field for field in PLAIN]


MALFORMED = [
    ("8.1", "trailers with a pseudo-header", None),
    ("8.2.1", "an upper case name", [*PLAIN, ("X-Upper", "a")]),
    ("8.2.1", "a name with a blank", [*PLAIN, ("a b", "c")]),
    ("8.2.1", "a name with a colon", [*PLAIN, ("a:b", "c")]),
    ("8.2.1", "an empty name", [*PLAIN, ("", "c")]),
    ("8.2.1", "a name beyond ASCII", [*PLAIN, ("nam\xe9", "c")]),
    ("8.2.1", "a value with CR and LF", [*PLAIN, ("a", "b\r\nx-injected: 1")]),
    ("8.2.1", "a value with LF", [*PLAIN, ("a", "b\nc")]),
    ("8.2.1", "a value with NUL", [*PLAIN, ("a", "b\0c")]),
    ("8.2.1", "a value that begins with a blank", [*PLAIN, ("a", " b")]),
    ("8.2.1", "a value that ends with a tab", [*PLAIN, ("a", "b\t")]),
    *(("8.2.2", name, [*PLAIN, (name, "a")])
      for name in ("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade")),
    ("8.2.2", "te of anything but trailers", [*PLAIN, ("te", "trailers, gzip")]),
    ("8.3", "a pseudo-header behind a header", [("a", "b"), *PLAIN]),
    ("8.3", "a pseudo-header that does not exist", [*PLAIN, (":proto", "a")]),
    ("8.3", "a pseudo-header of responses", [*PLAIN, (":status", "200")]),
    *(("8.3.1", f"no {name}", without(name)) for name in (":method", ":scheme", ":path", ":authority")),
    *(("8.3.1", f"{name} twice", [*PLAIN, (name, value)]) for name, value in PLAIN),
    ("8.3.1", "an empty :path", but(":path", "")),
    ("8.3.1", "a :path that is none", but(":path", "a/b")),
    ("8.3.1", "a :path with a second request line", but(":path", "/ HTTP/1.1\r\nhost: b\r\n\r\nGET /")),
    ("8.3.1", "a :path with a blank", but(":path", "/a b")),
    ("8.3.1", "a :path with a fragment", but(":path", "/a#b")),
    ("8.3.1", "an asterisk but no OPTIONS", but(":path", "*")),
    ("8.3.1", "a method with a blank", but(":method", "GET /")),
    ("8.3.1", "an authority with a user", but(":authority", "user@a.test")),
    ("8.3.1", "an authority with a path", but(":authority", "a.test/b")),
    ("8.3.1", "an authority and another host", [*PLAIN, ("host", "b.test")]),
    ("8.3.1", "hosts that differ", [*without(":authority"), ("host", "a.test"), ("host", "b.test")]),
    ("8.3.1", "an unknown scheme", but(":scheme", "ftp")),
    ("8.5", "CONNECT with a path", but(":method", "CONNECT")),
    ("8.1.1", "content-length and no body", [*PLAIN, ("content-length", "5")]),
    ("8.1.1", "two lengths", [*PLAIN, ("content-length", "0"), ("content-length", "1")]),
    ("8.1.1", "a length that is a list", [*PLAIN, ("content-length", "0, 0")]),
    ("8.1.1", "a length with a sign", [*PLAIN, ("content-length", "+0")]),
    ("RFC 8441, 4", ":protocol without CONNECT", [*PLAIN, (":protocol", "websocket")]),
]  # fmt: skip


@pytest.mark.parametrize(("section", "what", "fields"), MALFORMED, ids=[f"{row[0]}: {row[1]}" for row in MALFORMED])
@in_loop
async def test_a_malformed_request_is_reset_and_never_reaches_a_backend(
    section: str, what: str, fields: list[tuple[str, str]] | None
) -> None:
    client = Raw()
    client.greet()
    if fields is None:
        seen = client.say(
            client.get(1, "/", False), f.header_block(1, client.encoder.encode([(":path", "/")]), True, f.FRAME)
        )
    else:
        seen = client.say(f.header_block(1, client.encoder.encode(fields), True, f.FRAME))
    assert not client.site.sinks
    assert client.site.refused
    assert reset(seen) == {1: Code.PROTOCOL_ERROR}, (section, what)
    assert not client.transport.closed
    assert any(kind == f.HEADERS for kind, *_ in client.say(client.get(3))), "and the connection goes on"


@pytest.mark.parametrize("body", [b"", b"1234", b"123456"])
@in_loop
async def test_a_body_that_is_not_as_long_as_it_says_is_reset(body: bytes) -> None:
    """8.1.1."""
    client = Raw()
    client.greet()
    client.say(client.get(1, "/", False, ("content-length", "5")))
    seen = client.say(frame(f.DATA, f.END_STREAM, 1, body))
    assert reset(seen) == {1: Code.PROTOCOL_ERROR}
    assert client.site.sinks[0].resets
    assert not client.site.sinks[0].got or body == b"1234"


@in_loop
async def test_anything_but_the_preface_ends_the_connection() -> None:
    """3.4."""
    for first in (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", f.PREFACE[:-1] + b"x", b"\x16\x03\x01"):
        client = Raw()
        client.transport.take()
        assert ended(client.say(first)) == Code.PROTOCOL_ERROR


@in_loop
async def test_the_first_frame_is_settings() -> None:
    """3.4."""
    for first in (f.ping(b"12345678"), frame(f.SETTINGS, f.ACK, 0), Raw().get(1)):
        client = Raw()
        client.transport.take()
        assert ended(client.say(f.PREFACE, first)) == Code.PROTOCOL_ERROR


@in_loop
async def test_everything_may_come_a_byte_at_a_time() -> None:
    client = Raw()
    client.transport.take()
    said = f.PREFACE + f.settings([]) + client.get(1, "/slow", False, ("content-length", "3"))
    said += frame(f.DATA, f.END_STREAM | f.PADDED, 1, b"\2abc\0\0")
    seen = [found for byte in said for found in client.say(bytes([byte]))]
    assert client.site.sinks[0].got == b"abc"
    assert [kind for kind, _, number, _ in seen if number == 1] == [f.HEADERS, f.DATA]


@in_loop
async def test_ping_is_answered_with_its_bytes() -> None:
    """6.7."""
    client = Raw()
    client.greet()
    assert client.say(f.ping(b"12345678")) == [(f.PING, f.ACK, 0, b"12345678")]


@in_loop
async def test_unknown_frames_flags_settings_and_priorities_are_ignored() -> None:
    """4.1, 5.3.2, 5.5, 6.5.2."""
    client = Raw()
    client.greet()
    client.say(frame(0xBE, 0xFF, 0x7F, b"x"), f.settings([(0x4A4A, 7)]), frame(f.PRIORITY, 0, 7, b"\0\0\0\3\x10"))
    seen = client.say(frame(f.HEADERS, 0xC5, 1, client.encoder.encode(PLAIN)))
    assert [number for kind, _, number, _ in seen if kind == f.HEADERS] == [1]


@in_loop
async def test_frames_of_a_stream_that_we_have_reset_are_ignored() -> None:
    """5.1: they were under way."""
    client = Raw()
    client.greet()
    assert reset(client.say(client.get(1, "/early", False))) == {1: Code.NO_ERROR}
    late = f.header_block(1, client.encoder.encode([("late", "x")]), True, f.FRAME)
    seen = client.say(frame(f.DATA, 0, 1, b"x"), late, f.rst_stream(1, 8), f.window_update(1, 9), client.get(3))
    assert ended(seen) is None
    assert [number for kind, _, number, _ in seen if kind == f.HEADERS] == [3], "and the tables are still the same"


@in_loop
async def test_no_more_is_sent_than_the_windows_allow() -> None:
    """6.9: first the stream's, then a smaller initial window that makes it negative, then the connection's."""
    client = Raw()
    client.greet()
    seen = client.say(client.get(1, "/big/200000"))
    sent = sum(len(payload) for kind, _, _, payload in seen if kind == f.DATA)
    assert sent == f.WINDOW
    client.say(f.settings([(f.INITIAL_WINDOW_SIZE, 0)]), f.window_update(0, 1_000_000))
    assert not [1 for kind, *_ in client.say(f.window_update(1, f.WINDOW)) if kind == f.DATA]
    seen = client.say(f.window_update(1, 10))
    assert [payload for kind, _, _, payload in seen if kind == f.DATA] == [b"x" * 10]
    seen = client.say(f.settings([(f.INITIAL_WINDOW_SIZE, 200_000)]))
    sent += 10 + sum(len(payload) for kind, _, _, payload in seen if kind == f.DATA)
    assert sent == 200_000


@in_loop
async def test_streams_share_the_connections_window_in_turns() -> None:
    client = Raw()
    client.greet()
    client.say(f.settings([(f.INITIAL_WINDOW_SIZE, 1_000_000)]))
    client.say(client.get(1, "/big/100000"), client.get(3, "/big/100000"))
    seen = client.say(f.window_update(0, 4 * f.FRAME))
    numbers = [number for kind, _, number, _ in seen if kind == f.DATA]
    assert sorted(numbers[:2]) == sorted(numbers[2:]) == [1, 3]


@in_loop
async def test_more_streams_than_announced_are_refused() -> None:
    """5.1.2."""
    client = Raw(Limits(streams=3))
    client.greet()
    seen = client.say(*(client.get(number, "/", False) for number in (1, 3, 5, 7)))
    assert reset(seen) == {7: Code.REFUSED_STREAM}
    client.say(frame(f.DATA, f.END_STREAM, 1))
    assert [number for kind, _, number, _ in client.say(client.get(9)) if kind == f.HEADERS] == [9]


@in_loop
async def test_a_client_that_goes_away_gets_its_answers_first() -> None:
    """6.8."""
    client = Raw()
    client.greet()
    client.say(client.get(1, "/", False), f.goaway(0, 0))
    assert not client.transport.closed
    assert any(kind == f.HEADERS for kind, *_ in client.say(frame(f.DATA, f.END_STREAM, 1)))
    assert client.transport.closed


@in_loop
async def test_a_drain_is_said_in_two_steps_and_loses_no_request() -> None:
    """6.8: first the highest number there is, and after a round trip the last stream that was taken."""
    client = Raw()
    client.greet()
    client.say(client.get(1, "/", False))
    client.server.drain()
    client.server.flush()
    [(kind, _, _, payload), (_, _, _, opaque)] = frames(client.transport.take())
    assert (kind, payload) == (f.GOAWAY, b"\x7f\xff\xff\xff\0\0\0\0")
    seen = client.say(client.get(3), f.ping(opaque, ack=True))
    assert [number for kind, _, number, _ in seen if kind == f.HEADERS] == [3], "it was under way"
    assert [payload for kind, _, _, payload in seen if kind == f.GOAWAY] == [b"\0\0\0\3\0\0\0\0"]
    seen = client.say(client.get(5), frame(f.DATA, f.END_STREAM, 1))
    assert [number for kind, _, number, _ in seen if kind == f.HEADERS] == [1], "5 came too late"
    assert client.transport.closed
