"""What stands behind /app-health and /app-lifecycle: the declared check and nothing else, and its outcome."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Awaitable, Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.certs import twisted
from tproxy.admin.http import serve
from tproxy.admin.probes import Probes
from tproxy.cli import main
from tproxy.core.fields import ConfigError
from tproxy.core.inject import checks

PATH = "/app-health/web/readyz"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def declared(port: int, **check: Any) -> Probes:
    """One path, whose action is asked at this port."""
    action = {kind: {**value, "port": port} if isinstance(value, dict) else value for kind, value in check.items()}
    return Probes(checks.parse(json.dumps({PATH: action}), "here"))


def answering(head: str, seen: list[bytes] | None = None) -> Handler:
    """An application that says this, whatever it is asked."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.read(65536)
        if seen is not None:
            seen.append(asked)
        writer.write(head.encode())
        await writer.drain()
        writer.close()

    return handle


async def ask(probes: Probes, path: str = PATH, host: str = "127.0.0.1", headers: str = "") -> tuple[int, str]:
    """What the kubelet gets."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = await serve(socket.create_server((host, 0), family=family), {}, probes)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
    answer = await asyncio.wait_for(reader.read(-1), 20)
    writer.close()
    server.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode().strip()


def probe(
    handler: Handler, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, path: str = PATH, **check: Any
) -> tuple[int, str]:
    """Start an application, declare the check, ask."""

    async def both() -> tuple[int, str]:
        app = await asyncio.start_server(handler, host, 0, ssl=tls)
        async with app:
            return await ask(declared(app.sockets[0].getsockname()[1], **check), path, host)

    return asyncio.run(both())


@pytest.mark.parametrize(
    ("status", "wanted"), [(200, 200), (204, 200), (302, 200), (399, 200), (400, 503), (404, 503), (500, 503)]
)
def test_from_200_to_399_the_application_is_well(status: int, wanted: int) -> None:
    assert probe(answering(f"HTTP/1.1 {status} x\r\n\r\n"), httpGet={})[0] == wanted


def test_the_outcome_says_which_port_and_what_it_answered() -> None:
    status, said = probe(answering("HTTP/1.1 500 x\r\n\r\nsecret"), httpGet={})
    assert status == 503
    assert said.endswith("the application answered 500")


def test_the_application_is_asked_as_declared_and_never_as_the_caller_says() -> None:
    seen: list[bytes] = []
    headers = [{"name": "Host", "value": "app.example"}, {"name": "X-Probe", "value": "yes"}]
    probe(
        answering("HTTP/1.1 200 x\r\n\r\n", seen),
        path=f"{PATH}?a=b",
        httpGet={"path": "/h?x=1", "httpHeaders": headers},
    )
    lines = seen[0].decode().lower().split("\r\n")
    assert lines[0] == "get /h?x=1 http/1.1"
    assert {"host: app.example", "x-probe: yes"} <= set(lines)
    assert "host: x" not in lines
    assert sum(line.startswith("host:") for line in lines) == 1


def test_https_is_not_verified_as_with_the_kubelet(tmp_path: Path) -> None:
    main(["ca", "init", "--dir", str(tmp_path), "--trust-domain", "stranger"])
    chain, key = tmp_path / "c.pem", tmp_path / "k.pem"
    chain_pem, key_pem = twisted(tmp_path, ("spiffe://stranger/a",), self_signed=True)
    chain.write_bytes(chain_pem)
    key.write_bytes(key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    assert probe(answering("HTTP/1.1 200 x\r\n\r\n"), tls=context, httpGet={"scheme": "HTTPS"}) == (200, "ok")


def test_tcp_is_well_when_it_is_accepted() -> None:
    assert probe(answering(""), tcpSocket={}) == (200, "ok")


def test_what_nobody_listens_on_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for kind in ("httpGet", "tcpSocket", "grpc"):
        status, said = asyncio.run(ask(declared(port, **{kind: {}})))
        assert status == 503
        assert said.startswith(f"port {port}: ")


def test_the_application_is_asked_at_the_address_at_which_the_kubelet_asked() -> None:
    assert probe(answering("HTTP/1.1 200 x\r\n\r\n"), host="::1", httpGet={}) == (200, "ok")

    async def elsewhere() -> tuple[int, str]:
        app = await asyncio.start_server(answering("HTTP/1.1 200 x\r\n\r\n"), "127.0.0.2", 0)
        async with app:
            return await ask(declared(app.sockets[0].getsockname()[1], httpGet={}), host="127.0.0.1")

    assert asyncio.run(elsewhere())[0] == 503


def test_silence_is_not_well_and_does_not_last() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.close()

    assert probe(silent, httpGet={}, timeoutSeconds=0.2)[1].endswith("no answer within 0.2 s")


@pytest.mark.parametrize("head", ["", "SSH-2.0-x\r\n", "HTTP/1.1 200 x\r\nA: " + "y" * 70_000])
def test_what_is_no_http_is_not_well(head: str) -> None:
    assert probe(answering(head), httpGet={})[0] == 503


def test_what_was_not_declared_is_not_there() -> None:
    assert probe(answering("HTTP/1.1 200 x\r\n\r\n"), path="/app-health/web/livez", httpGet={})[0] == 404


@pytest.mark.parametrize(("shown", "wanted"), [("", 403), ("tproxy-key: wrong\r\n", 403), ("Tproxy-Key: k\r\n", 200)])
def test_a_hook_asks_for_its_key(shown: str, wanted: int) -> None:
    async def both() -> tuple[int, str]:
        app = await asyncio.start_server(answering("HTTP/1.1 200 x\r\n\r\n"), "127.0.0.1", 0)
        async with app:
            return await ask(declared(app.sockets[0].getsockname()[1], httpGet={}, key="k"), headers=shown)

    assert asyncio.run(both())[0] == wanted


@pytest.mark.parametrize(
    ("service", "answer", "wanted"),
    [("", b"\x08\x01", 200), ("a.B", b"\x08\x01", 200), ("a.B", b"\x08\x02", 503), ("x" * 200, b"", 503)],
)
def test_grpc_is_well_when_it_is_serving(service: str, answer: bytes, wanted: int) -> None:
    asked: list[bytes] = []

    class Health(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            def check(request: bytes, context: Any) -> bytes:
                asked.append(request)
                return answer

            return grpc.unary_unary_rpc_method_handler(check) if details.method.endswith("/Check") else None  # type: ignore[attr-defined]

    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[Health()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert asyncio.run(ask(declared(port, grpc={"service": service}, timeoutSeconds=5)))[0] == wanted
    finally:
        server.stop(None).wait()
    name = service.encode()
    size = bytes((len(name),)) if len(name) < 128 else bytes((len(name) & 127 | 128, len(name) >> 7))
    assert asked == [b"\x0a" + size + name if name else b""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "here: is not JSON"),
        ("[]", "expected a mapping"),
        ('{"/a": {}}', "/a.httpGet: expected exactly one of httpGet, tcpSocket, grpc"),
        ('{"/a": {"httpGet": {}, "grpc": {}}}', "/a.httpGet/grpc: expected exactly one of"),
        ('{"/a": {"tcpSocket": {"port": 0}}}', "/a.tcpSocket.port: 0: expected a port"),
        ('{"/a": {"httpGet": {"port": 1, "scheme": "http"}}}', "did you mean 'HTTP'?"),
        ('{"/a": {"httpGet": {"port": 1}, "retries": 1}}', "unknown field"),
    ],
)
def test_a_wrong_declaration_keeps_the_sidecar_from_starting(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        checks.parse(text, "here")
    assert message in str(raised.value)
