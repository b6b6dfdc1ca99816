"""Classes of attacks on HTTP/2 servers, a test each: what they cost is bounded, and nobody else pays."""

from __future__ import annotations

import asyncio

import pytest

from tests.http2 import Memory, Raw, ended, frames, in_loop, reset
from tproxy.gateway.http import h2_frames as f
from tproxy.gateway.http.h2_frames import Code, frame
from tproxy.gateway.http.h2_limits import Limits
from tproxy.gateway.http.h2_server import H2Server
from tproxy.gateway.http.stream import Broken, Reset

GREETING = f.PREFACE + f.settings([]) + frame(f.SETTINGS, f.ACK, 0)


@in_loop
async def test_rapid_reset_is_cut_after_as_many_requests_as_the_budget_has() -> None:
    """CVE-2023-44487."""
    client = Raw(Limits(resets=50, resets_per_second=0))
    client.greet()
    for number in range(1, 2001, 2):
        client.say(client.get(number, "/", False))
        seen = client.say(f.rst_stream(number, 8))
        if ended(seen) is not None:
            break
    assert ended(seen) == Code.ENHANCE_YOUR_CALM
    assert len(client.site.sinks) == 51
    assert not client.server.streams
    assert all(sink.resets for sink in client.site.sinks)


@in_loop
async def test_a_request_that_is_reset_in_the_same_breath_is_never_begun() -> None:
    client = Raw()
    client.greet()
    client.say(*(client.get(number, "/", False) + f.rst_stream(number, 8) for number in range(1, 101, 2)))
    assert not client.site.sinks


@in_loop
async def test_many_requests_of_one_client_are_begun_a_few_each_turn() -> None:
    client = Raw()
    client.greet()
    client.say(*(client.get(number) for number in range(1, 101, 2)))
    begun = [len(client.site.sinks)]
    while begun[-1] < 50:
        await asyncio.sleep(0)
        begun.append(len(client.site.sinks))
    assert begun == [16, 32, 48, 50]
    assert [sink.stream.number for sink in client.site.sinks] == list(range(1, 101, 2)), "and in their order"


@in_loop
async def test_a_client_that_cancels_some_of_many_requests_is_left_alone() -> None:
    client = Raw(Limits(resets=10, resets_per_second=0))
    client.greet()
    for number in range(1, 4001, 4):
        seen = client.say(client.get(number), client.get(number + 2, "/", False), f.rst_stream(number + 2, 8))
        assert ended(seen) is None


@pytest.mark.parametrize(
    "what",
    ["malformed", "mismatch", "refused", "trailers"],
)
@in_loop
async def test_resets_that_a_client_makes_us_send_have_the_same_budget(what: str) -> None:
    """CVE-2025-8671, MadeYouReset. What else the RFC would have reset (WINDOW_UPDATE by 0, ...) ends the connection."""
    client = Raw(Limits(resets=50, resets_per_second=0, streams=3))
    client.greet()
    if what == "refused":
        client.say(*(client.get(number, "/", False) for number in (1, 3, 5)))
    count = 0
    for number in range(7, 2000, 2):
        if what == "mismatch":
            said = client.get(number, "/", False, ("content-length", "1")) + frame(f.DATA, 0, number, b"xx")
        elif what == "trailers":
            said = client.get(number, "/", False) + frame(f.HEADERS, 5, number, b"\x82")
        else:
            said = client.get(number, "no path" if what == "malformed" else "/")
        seen = client.say(said)
        if ended(seen) is not None:
            break
        assert reset(seen)
        count += 1
    assert ended(seen) == Code.ENHANCE_YOUR_CALM
    assert count == 50


@in_loop
async def test_a_flood_of_continuation_is_cut_at_the_eighth_frame() -> None:
    """CVE-2024-27316 and its sisters; empty frames as well."""
    for piece in (b"", b"\0\1a\1b" * 3000):
        client = Raw()
        client.greet()
        flood = [frame(f.CONTINUATION, 0, 1, piece)] * 100
        seen = client.say(frame(f.HEADERS, 0, 1, b"\x82"), *flood)
        assert ended(seen) == Code.ENHANCE_YOUR_CALM
        assert not client.site.sinks


@pytest.mark.parametrize(
    "flood",
    [
        f.ping(b"12345678"),
        f.settings([(4, 1000)]),
        frame(f.SETTINGS, f.ACK, 0),
        frame(f.PRIORITY, 0, 1, b"\0\0\0\3\0"),
        frame(f.DATA, 0, 1),
        frame(f.DATA, f.PADDED, 1, b"\3\0\0\0"),
        f.window_update(0, 1),
        f.window_update(1, 1),
        frame(0x77, 0, 0, b"x"),
        frame(f.GOAWAY, 0, 0, b"\0" * 8),
    ],
    ids=lambda flood: f"type {flood[3]} flags {flood[4]}",
)
@in_loop
async def test_frames_that_carry_nothing_have_a_budget(flood: bytes) -> None:
    """CVE-2019-9512, 9513, 9515, 9518 and others."""
    client = Raw(Limits(frames=100, frames_per_second=0))
    client.greet()
    client.say(client.get(1, "/", False))
    seen = client.say(*[flood] * 90)
    assert ended(seen) is None
    assert ended(client.say(*[flood] * 30)) == Code.ENHANCE_YOUR_CALM


@in_loop
async def test_window_updates_of_a_download_are_no_flood() -> None:
    client = Raw(Limits(frames=100, frames_per_second=0))
    client.greet()
    client.say(client.get(1, "/big/1000000"))
    sent = f.WINDOW
    while sent < 1_000_000:
        seen = client.say(f.window_update(0, 5000), f.window_update(1, 5000))
        assert ended(seen) is None
        sent += sum(len(payload) for kind, _, _, payload in seen if kind == f.DATA)
    assert sent == 1_000_000


@in_loop
async def test_answers_to_pings_are_not_kept_for_a_client_that_does_not_read() -> None:
    client = Raw(Limits(unsent=1000, frames=10_000))
    client.greet()
    client.server.pause_writing()
    assert ended(client.say(*[f.ping(b"12345678")] * 100)) == Code.ENHANCE_YOUR_CALM


@in_loop
async def test_a_header_list_above_the_limit_is_answered_with_431() -> None:
    client = Raw()
    client.greet()
    seen = client.say(client.get(1, "/", True, *((f"x-{n}", "v" * 3000) for n in range(21))))
    assert reset(seen) == {1: Code.NO_ERROR}
    [block] = [payload for kind, _, _, payload in seen if kind == f.HEADERS]
    assert b"431" in block
    assert not client.site.sinks
    assert "61440 bytes" in client.site.refused[0]
    seen = client.say(client.get(3, "/", True, *((f"x-{n}", "v") for n in range(300))))
    assert reset(seen) == {3: Code.NO_ERROR}, "as many fields as that are too many, too"


@in_loop
async def test_an_hpack_bomb_ends_the_connection() -> None:
    client = Raw()
    client.greet()
    bomb = b"\x40\x01a\x7f\xb1\x1e" + b"x" * 4016 + b"\xbe" * 12_000
    assert ended(client.say(frame(f.HEADERS, f.END_HEADERS, 1, bomb))) == Code.ENHANCE_YOUR_CALM


@in_loop
async def test_more_data_than_a_window_ends_the_connection() -> None:
    client = Raw(Limits(stream_window=30_000))
    client.greet()
    client.say(client.get(1, "/held", False))
    chunk = frame(f.DATA, 0, 1, b"x" * 15_000)
    assert ended(client.say(chunk, chunk)) is None
    assert ended(client.say(frame(f.DATA, 0, 1, b"x"))) == Code.FLOW_CONTROL_ERROR


@in_loop
async def test_a_held_stream_gets_no_more_window_and_others_do() -> None:
    client = Raw(Limits(stream_window=100_000))
    client.greet()
    client.say(client.get(1, "/held", False), client.get(3, "/", False))
    chunks = [frame(f.DATA, 0, number, b"x" * 16_000) for number in (1, 3) for _ in range(6)]
    seen = client.say(*chunks)
    assert {number for kind, _, number, _ in seen if kind == f.WINDOW_UPDATE} == {3}
    client.site.sinks[0].stream.hold(False)
    await asyncio.sleep(0)
    granted = {number: payload for kind, _, number, payload in frames(client.transport.take())}
    assert int.from_bytes(granted[1]) == 96_000


@in_loop
async def test_padding_counts_for_the_windows_and_is_given_back() -> None:
    """6.9.1; a stream would stall otherwise."""
    client = Raw(Limits(stream_window=1000))
    client.greet()
    client.say(client.get(1, "/", False))
    for _ in range(20):
        seen = client.say(frame(f.DATA, f.PADDED, 1, b"\xc8a" + bytes(200)))
        assert ended(seen) is None
    assert client.site.sinks[0].got == b"a" * 20


@in_loop
async def test_a_slow_reader_is_congested_then_reset_and_holds_no_memory() -> None:
    """CVE-2019-9511, 9517: bytes are asked for and never taken."""
    client = Raw(Limits(stall=0.2))
    client.greet()
    client.say(f.settings([(f.INITIAL_WINDOW_SIZE, 0)]))
    client.say(client.get(1, "/big/500000"))
    [sink] = client.site.sinks
    assert sink.brakes == [True]
    client.server._tick()
    await asyncio.sleep(0.3)
    client.server._tick()
    client.server.flush()
    assert reset(frames(client.transport.take())) == {1: Code.INTERNAL_ERROR}
    assert not client.server.streams
    assert sink.resets[0].why == "the peer took nothing for 0.2 s"


async def _later(client: Raw, seconds: float) -> list[tuple[int, int, int, bytes]]:
    """What comes when so much time has passed and was looked at."""
    await asyncio.sleep(seconds)
    client.server._tick()
    client.server.flush()
    return frames(client.transport.take())


@pytest.mark.parametrize("what", ["trickles", "quick", "grpc", "held", "answered"])
@in_loop
async def test_a_body_that_trickles_is_408_but_for_streams_of_grpc_and_what_we_hold(what: str) -> None:
    """Slow POST."""
    client = Raw(Limits(upload=0.3, rate=100))
    client.greet()
    kind = [("content-type", "application/grpc")] if what == "grpc" else []
    client.say(client.get(1, {"held": "/held", "answered": "/early"}.get(what, "/"), False, *kind))
    await asyncio.sleep(0)
    client.say(frame(f.DATA, 0, 1, b"x" * (100 if what == "quick" else 1)))
    seen = await _later(client, 0.32)
    refused = what == "trickles"
    assert [payload for kind, _, _, payload in seen if kind == f.RST_STREAM] == [bytes(4)] * refused  # NO_ERROR
    told = [reset.kind for reset in client.site.sinks[0].resets]
    assert told == {"trickles": [Broken.TIMEOUT], "answered": [Broken.CLOSED]}.get(what, [])
    assert any("1 bytes in 0.3 s" in why for why in client.site.refused) is refused
    assert ended(seen) is None
    if what == "quick":
        client.say(frame(f.DATA, 0, 1, b"x"))
        assert reset(await _later(client, 0.32)) == {1: Code.NO_ERROR}  # it was quick before


@in_loop
async def test_a_silent_client_with_a_stream_is_asked_whether_it_is_there_and_given_up_if_not() -> None:
    client = Raw(Limits(ping=0.1, pong=0.1))
    client.greet()
    client.say(client.get(1, "/", False))
    await asyncio.sleep(0)
    assert not any(kind == f.PING for kind, *_ in await _later(client, 0))
    asked = [frame_ for frame_ in await _later(client, 0.12) if frame_[0] == f.PING]
    assert len(asked) == 1
    client.say(f.ping(asked[0][3], ack=True))
    assert not await _later(client, 0.05)
    assert [kind for kind, *_ in await _later(client, 0.12)] == [f.PING]
    await _later(client, 0.12)
    assert client.transport.aborted
    assert client.site.sinks[0].resets[0] == Reset(Broken.RESET, "the peer answered no PING within 0.1 s")


@in_loop
async def test_nobody_without_a_stream_is_asked_and_nobody_at_all_if_so_configured() -> None:
    for limits, begin in ((Limits(ping=0.05, pong=0.05), False), (Limits(ping=0, pong=0.05), True)):
        client = Raw(limits)
        client.greet()
        if begin:
            client.say(client.get(1, "/", False))
        for _ in range(3):
            assert not any(kind == f.PING for kind, *_ in await _later(client, 0.06))
        assert not client.transport.aborted


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"", Code.SETTINGS_TIMEOUT),
        (f.PREFACE[:10], Code.SETTINGS_TIMEOUT),
        (f.PREFACE + f.settings([]), Code.SETTINGS_TIMEOUT),
        (f.PREFACE + f.settings([]) + frame(f.SETTINGS, 1, 0) + b"\0\0", Code.ENHANCE_YOUR_CALM),
        (
            f.PREFACE + f.settings([]) + frame(f.SETTINGS, 1, 0) + frame(f.HEADERS, 0, 1, b"\x82"),
            Code.ENHANCE_YOUR_CALM,
        ),
    ],
    ids=["nothing", "half a preface", "no acknowledgement", "half a frame", "half a header block"],
)
@in_loop
async def test_what_has_begun_has_a_deadline(said: bytes, code: Code) -> None:
    """Slowloris."""
    client = Raw(Limits(hello=0.1, block=0.1))
    client.transport.take()
    client.say(said)
    await asyncio.wait_for(client.transport.over.wait(), 3)
    assert ended(frames(client.transport.take())) == code
    assert client.site.refused


@in_loop
async def test_a_connection_without_requests_ends_in_time() -> None:
    client = Raw(Limits(idle=0.05, hello=0.05))
    client.greet()
    await asyncio.wait_for(client.transport.over.wait(), 3)
    assert ended(frames(client.transport.take())) == Code.NO_ERROR


@in_loop
async def test_a_client_that_never_reads_its_goaway_is_cut() -> None:
    client = Raw(Limits(farewell=0.05))
    client.greet()
    client.say(f.ping(b"12345678")[:-1], b"x", f.window_update(0, 0))
    client.transport.over.clear()
    await asyncio.wait_for(client.transport.over.wait(), 3)
    assert client.transport.aborted


@in_loop
async def test_many_streams_of_one_client_take_no_more_than_one_connection_may() -> None:
    """Each below its own limit, all of them beyond that of the connection."""
    client = Raw()
    client.greet()
    client.say(f.settings([(f.INITIAL_WINDOW_SIZE, 0)]))
    for number in range(1, 201, 2):
        client.say(client.get(number, "/big/60000"))
    assert len(client.site.sinks) == 100
    assert [True] in [sink.brakes for sink in client.site.sinks]


@in_loop
async def test_upgrade_to_h2c_is_not_http2() -> None:
    """RFC 9113, 3.1: the upgrade is history; only prior knowledge and ALPN lead here."""
    client = Raw()
    client.transport.take()
    seen = client.say(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n\r\n")
    assert ended(seen) == Code.PROTOCOL_ERROR


@in_loop
async def test_the_application_may_reset_within_any_call_it_gets() -> None:
    """Whatever it does inside a callback, the connection goes on."""

    class Rude:
        def __init__(self, stream: object) -> None:
            self.stream = stream

        def __getattr__(self, name: str) -> object:
            return lambda *_: self.stream.reset(Reset(Broken.OVERLOAD))  # type: ignore[attr-defined]

    client = Raw()
    server = H2Server(lambda stream, head, end: Rude(stream), "https", Limits(), client.site.said, lambda _: None)  # type: ignore[arg-type, return-value]
    client.server, client.transport = server, Memory(server)
    client.greet()
    data = frame(f.DATA, 0, 1, b"x")
    assert reset(client.say(client.get(1, "/", False), data, data)) == {1: Code.ENHANCE_YOUR_CALM}
    seen = client.say(client.get(3, "/", False), frame(f.DATA, f.END_STREAM, 3))
    assert reset(seen) == {3: Code.ENHANCE_YOUR_CALM}
    assert ended(seen) is None
