"""gRPC through both codecs: grpcio's client and server, with a toy gateway between them."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tests.http2 import Joined, in_thread
from tproxy.core.http.filters import Flavour
from tproxy.core.http.head import Head
from tproxy.core.http.local import is_grpc, local
from tproxy.gateway.http.h2_client import H2Client
from tproxy.gateway.http.h2_limits import Limits
from tproxy.gateway.http.h2_server import H2Server
from tproxy.gateway.http.stream import Sink, Stream

Call = grpc.ServicerContext


def unary(request: bytes, call: Call) -> bytes:
    call.set_trailing_metadata((("x-trailer", "t"), ("x-bytes-bin", b"\0\xff")))
    call.send_initial_metadata((("x-initial", "i"),))
    return request[::-1]


def refuse(request: bytes, call: Call) -> bytes:
    call.abort(grpc.StatusCode.FAILED_PRECONDITION, "не сейчас, 100 %")


def count(request: bytes, call: Call) -> Iterator[bytes]:
    yield from (b"%d" % n for n in range(int(request)))


def both(requests: Iterator[bytes], call: Call) -> Iterator[bytes]:
    yield from (request.upper() for request in requests)


def sleep(request: bytes, call: Call) -> bytes:
    gone = threading.Event()
    call.add_callback(gone.set)
    cancelled.put(gone.wait(4))
    return b""


cancelled: queue.Queue[bool] = queue.Queue()


@pytest.fixture(scope="module")
def channel() -> Iterator[grpc.Channel]:
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Both": grpc.stream_stream_rpc_method_handler(both),
        "Sleep": grpc.unary_unary_rpc_method_handler(sleep),
    }
    backend = grpc.server(ThreadPoolExecutor(8))
    backend.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    port = backend.add_insecure_port("127.0.0.1:0")
    backend.start()
    clients: list[H2Client] = []

    def accept(stream: Stream, head: Head, end: bool) -> Sink:
        if not head.target.startswith("/t.T/"):
            assert is_grpc(head)
            status = int(head.target.split("/")[2])
            text = f"no rule for {head.target}".encode()
            stream.head(local(head, Flavour.ISTIO, status, body=text).reply, True)
            return Gone()
        return Joined(clients[0], stream, head, end)

    with in_thread(lambda: H2Server(accept, "http", Limits(), print, lambda _: None)) as (front, loop):

        async def dial() -> None:
            make: Callable[[], H2Client] = lambda: H2Client(Limits(), lambda _: None, lambda _: None)  # noqa: E731
            _, client = await loop.create_connection(make, "127.0.0.1", port)
            clients.append(client)

        async def hang_up() -> None:
            clients[0].close()
            await asyncio.sleep(0.05)

        asyncio.run_coroutine_threadsafe(dial(), loop).result(5)
        with grpc.insecure_channel(f"127.0.0.1:{front}") as made:
            yield made
        asyncio.run_coroutine_threadsafe(hang_up(), loop).result(5)
    backend.stop(0).wait(5)


class Gone:
    """The sink of a request that was answered."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def test_a_call_keeps_its_metadata_both_ways_and_its_bytes(channel: grpc.Channel) -> None:
    found, call = channel.unary_unary("/t.T/Unary").with_call(b"abc" * 100_000, timeout=5)
    assert found == b"cba" * 100_000
    assert ("x-initial", "i") in [tuple(one) for one in call.initial_metadata()]
    assert {("x-trailer", "t"), ("x-bytes-bin", b"\0\xff")} <= {tuple(one) for one in call.trailing_metadata()}


def test_a_status_of_the_backend_arrives_with_its_message(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/t.T/Refuse")(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == "не сейчас, 100 %"


def test_a_stream_of_answers_comes_whole(channel: grpc.Channel) -> None:
    assert list(channel.unary_stream("/t.T/Count")(b"5000", timeout=20)) == [b"%d" % n for n in range(5000)]


def test_both_sides_talk_at_the_same_time(channel: grpc.Channel) -> None:
    """Each request is sent when the answer to the one before has come."""
    answers: list[bytes] = []
    said: queue.Queue[bytes | None] = queue.Queue()
    said.put(b"a")
    for got in channel.stream_stream("/t.T/Both")(iter(said.get, None), timeout=10):
        answers.append(got)
        said.put(bytes([got[0] + 33]) if got != b"E" else None)
    assert answers == [b"A", b"B", b"C", b"D", b"E"]


def test_a_call_that_the_client_cancels_is_cancelled_at_the_backend(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/t.T/Sleep")(b"", timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert cancelled.get(timeout=5)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, grpc.StatusCode.UNIMPLEMENTED),
        (503, grpc.StatusCode.UNAVAILABLE),
        (504, grpc.StatusCode.UNAVAILABLE),
        (403, grpc.StatusCode.PERMISSION_DENIED),
        (500, grpc.StatusCode.UNKNOWN),
    ],
)
def test_an_answer_of_ours_is_a_status_of_grpc(channel: grpc.Channel, status: int, code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/none/{status}")(b"", timeout=5)
    assert caught.value.code() is code
    assert caught.value.details() == f"no rule for /none/{status}"
