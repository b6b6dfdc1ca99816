"""HTTP/1.1 to backends: what their bytes mean, and when a connection may be used again."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.h1 import Client, Heard
from tproxy.core.http.head import Head
from tproxy.gateway.http.stream import Broken

GET = Head("GET", "http", "a.example.com", "/")
OK = b"HTTP/1.1 200 OK\r\n"


def asked(*pieces: bytes, head: Head = GET, eof: bool = False) -> tuple[Client, Heard]:
    client = Client()
    heard, _ = client.ask(head)
    for piece in pieces:
        if not client.wire.closed:
            client.conn.data_received(piece)
    if eof and not client.wire.closed:
        client.conn.eof_received()
        client.conn.connection_lost(None)
    return client, heard


def test_a_request_is_one_head_with_its_host_first() -> None:
    client = Client()
    client.ask(Head("GET", "http", "a.example.com", "/x?y", [("accept", "*/*"), ("te", "trailers")]))
    assert client.wire.sent == b"GET /x?y HTTP/1.1\r\nhost: a.example.com\r\naccept: */*\r\n\r\n"


def test_a_body_has_the_length_it_says_or_chunks() -> None:
    client = Client()
    _, stream = client.ask(Head("POST", "http", "a", "/", [("content-length", "3")]), end=False)
    stream.data(b"abc")
    stream.end()
    assert client.wire.sent.endswith(b"content-length: 3\r\n\r\nabc")
    client = Client()
    _, stream = client.ask(Head("POST", "http", "a", "/"), end=False)
    stream.data(b"abc")
    stream.end([("x-sum", "1")])
    assert client.wire.sent.endswith(b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n")


@pytest.mark.parametrize("data", [b"abcd", b"ab"])
def test_a_body_that_is_not_as_long_as_it_says_ends_the_connection(data: bytes) -> None:
    client = Client()
    heard, stream = client.ask(Head("POST", "http", "a", "/", [("content-length", "3")]), end=False)
    stream.data(data)
    stream.end()
    assert client.wire.aborted
    assert heard.broken is not None


@pytest.mark.parametrize("target", ["/ HTTP/1.1\r\nx: y", "/a b", "/\n"])
def test_a_target_that_would_be_more_than_that_is_never_sent(target: str) -> None:
    client = Client()
    heard, _ = client.ask(Head("GET", "http", "a", target))
    assert not client.wire.sent
    assert heard.broken is not None


def test_the_connection_is_free_after_a_whole_answer() -> None:
    client, heard = asked(OK + b"Content-Length: 2\r\n\r\nok")
    assert (heard.replies[0].status, heard.body, heard.ended) == (200, b"ok", True)
    assert (client.freed, client.conn.room) == (1, 1)


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"Content-Length: 2\r\n\r\nokmore",
    ],
)
def test_it_is_not_free_after_these(answer: bytes) -> None:
    client, heard = asked(answer)
    assert (heard.body, heard.ended) == (b"ok", True)
    assert (client.freed, client.conn.room, client.wire.closed) == (0, 0, True)


def test_bytes_that_nobody_asked_for_end_it() -> None:
    client, _ = asked(OK + b"Content-Length: 0\r\n\r\n")
    client.conn.data_received(OK + b"Content-Length: 6\r\n\r\nforged")
    assert client.wire.aborted
    assert client.conn.room == 0


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    client, heard = asked(OK + b"\r\n", b"abc", eof=True)
    assert (heard.body, heard.ended, heard.broken) == (b"abc", True, None)
    assert client.freed == 0


@pytest.mark.parametrize("answer", [b"Content-Length: 3\r\n\r\nab", b"Transfer-Encoding: chunked\r\n\r\n3\r\nab"])
def test_a_body_that_breaks_off_is_a_reset(answer: bytes) -> None:
    _, heard = asked(OK + answer, eof=True)
    assert not heard.ended
    assert heard.broken is not None
    assert heard.broken.kind is Broken.CLOSED


def test_a_kept_connection_that_closes_before_a_byte_has_not_looked_at_the_request() -> None:
    client, _ = asked(OK + b"Content-Length: 0\r\n\r\n")
    heard, _ = client.ask(GET)
    client.conn.connection_lost(None)
    assert heard.broken is not None
    assert heard.broken.kind is Broken.UNPROCESSED


def test_a_new_connection_that_closes_before_a_byte_may_have_looked_at_it() -> None:
    client = Client()
    heard, _ = client.ask(GET)
    client.conn.connection_lost(None)
    assert heard.broken is not None
    assert heard.broken.kind is Broken.CLOSED


def test_head_204_and_304_have_no_body() -> None:
    for head, answer in (
        (Head("HEAD", "http", "a", "/"), OK + b"Content-Length: 100\r\n\r\n"),
        (GET, b"HTTP/1.1 204 No Content\r\n\r\n"),
        (GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n"),
    ):
        client, heard = asked(answer, head=head)
        assert heard.ended
        assert client.freed == 1


def test_interim_answers_are_passed_on_but_for_100_and_not_for_ever() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    _, heard = asked(b"HTTP/1.1 100 Continue\r\n\r\n" + hints + OK + b"Content-Length: 0\r\n\r\n")
    assert [reply.status for reply in heard.replies] == [103, 200]
    client, heard = asked(hints * 100)
    assert client.wire.aborted
    assert heard.broken is not None


def test_the_brake_pauses_reading_until_the_exchange_is_over() -> None:
    client = Client()
    _, stream = client.ask(GET)
    stream.hold(True)
    assert not client.wire.reading
    client.conn.data_received(OK + b"Content-Length: 0\r\n\r\n")
    assert client.wire.reading
    stream.hold(True)  # it is not this exchange's any more
    assert client.wire.reading


FIELDS = b"Content-Length: 3|Content-Length: 5|Transfer-Encoding: chunked|Connection: close|A: b|A : b".split(b"|")
FIRST = b"HTTP/1.0 200 OK|HTTP/1.1 204 No|HTTP/1.1 200|HTTP/2.0 200 OK|HTTP/0.9 200 OK".split(b"|")
ANSWER = st.builds(
    lambda first, lines, body: b"".join(line + b"\r\n" for line in (first, *lines)) + b"\r\n" + body,
    st.sampled_from([OK[:-2]] * 5 + FIRST),
    st.lists(st.sampled_from(FIELDS), max_size=3),
    st.one_of(st.sampled_from([b"", b"abc", b"abcde", b"3\r\nabc\r\n0\r\n\r\n"]), st.binary(max_size=20)),
)


def by_h11(data: bytes) -> tuple[int, bytes] | None:
    conn = h11.Connection(h11.CLIENT)
    conn.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    conn.send(h11.EndOfMessage())
    conn.receive_data(data)
    conn.receive_data(b"")
    status, body = 0, b""
    try:
        while not isinstance(event := conn.next_event(), h11.EndOfMessage):
            match event:
                case h11.Response():
                    status = event.status_code
                case h11.Data():
                    body += bytes(event.data)
                case h11.NEED_DATA | h11.PAUSED | h11.ConnectionClosed():
                    return None
    except h11.ProtocolError:
        return None
    return status, body


@settings(max_examples=500, deadline=None)
@given(data=ANSWER, cut=st.integers(0, 60))
def test_whatever_is_taken_for_an_answer_means_the_same_to_h11_wherever_it_is_cut(data: bytes, cut: int) -> None:
    _, whole = asked(data, eof=True)
    _, parts = asked(data[:cut], data[cut:], eof=True)
    assert (whole.ended, whole.body) == (parts.ended, parts.body)
    if whole.ended:
        assert by_h11(data) == (whole.replies[-1].status, bytes(whole.body))


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    asked(data, eof=True)
    asked(OK + data, eof=True)
    asked(OK + b"Transfer-Encoding: chunked\r\n\r\n" + data, eof=True)
