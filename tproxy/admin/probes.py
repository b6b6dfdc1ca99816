"""The kubelet's probes, carried on to the application: only what the injector declared, and only its outcome back.

The application is asked at the address at which the kubelet asked us, as the kubelet would have done: what listens on
127.0.0.1 only is not ready for anyone. Differences from the kubelet: a redirect counts as well and is not followed.
"""

from __future__ import annotations

import asyncio
import hmac
import ssl
from collections.abc import Mapping
from typing import assert_never
from urllib.parse import quote

import h11

from tproxy.admin.http import Answer, Asked
from tproxy.core.address import parse_address
from tproxy.core.inject.checks import Check, GrpcCheck, HttpCheck, TcpCheck
from tproxy.core.inject.probes import KEY_HEADER

_AGENT = "kube-probe/tproxy"  # applications leave kube-probe out of their logs
_SERVING = 1  # grpc.health.v1.HealthCheckResponse
_LIMIT = 65536  # bytes of an answer's head


class Probes:
    """The declared checks, by path."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self.checks = checks
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.tls.check_hostname = False  # as the kubelet: a probe asks for health, not for identity
        self.tls.verify_mode = ssl.CERT_NONE
        if any(isinstance(check, GrpcCheck) for check in checks.values()):
            import grpc  # noqa: F401 -- while we may still read where Python lives; without such a probe not at all

    def seconds(self, path: str) -> float | None:
        """How long an answer may take; None if nothing is declared here."""
        check = self.checks.get(path)
        return check.timeout if check else None

    async def answer(self, asked: Asked) -> Answer:
        """200 or 503, with a line that says why."""
        check = self.checks[asked.path]
        shown = asked.headers.get(KEY_HEADER.encode(), b"")
        if check.key and not hmac.compare_digest(shown, check.key.encode()):
            return Answer.text("this hook needs the pod's key", 403)
        try:
            async with asyncio.timeout(check.timeout):
                why = await self._ask(check, str(parse_address(asked.address)))
        except TimeoutError:
            why = f"no answer within {check.timeout:g} s"
        except (OSError, h11.ProtocolError) as error:
            why = str(error) or type(error).__name__
        return Answer.text(f"port {check.port}: {why}", 503) if why else Answer.text("ok")

    async def _ask(self, check: Check, host: str) -> str:
        """What is wrong, or nothing."""
        match check:
            case HttpCheck():
                return await _http(check, host, self.tls if check.tls else None)
            case TcpCheck(port=port):
                _, writer = await asyncio.open_connection(host, port)
                writer.close()
                return ""
            case GrpcCheck():
                return await asyncio.to_thread(_grpc, check, host)
            case never:
                assert_never(never)


async def _http(check: HttpCheck, host: str, tls: ssl.SSLContext | None) -> str:
    reader, writer = await asyncio.open_connection(host, check.port, ssl=tls, limit=_LIMIT)
    try:
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LIMIT)
        own = {name.lower() for name, _ in check.headers}
        name = f"[{host}]" if ":" in host else host
        base = [("Host", f"{name}:{check.port}"), ("User-Agent", _AGENT), ("Accept", "*/*"), ("Connection", "close")]
        headers = [*((key, value) for key, value in base if key.lower() not in own), *check.headers]
        target = quote(check.path, safe="/?&=%:;,+@!$'()*[]~#")
        writer.write(http.send(h11.Request(method="GET", target=target, headers=headers)) or b"")
        writer.write(http.send(h11.EndOfMessage()) or b"")
        await writer.drain()
        while not isinstance(event := http.next_event(), h11.Response):
            if event is h11.NEED_DATA:
                http.receive_data(await reader.read(_LIMIT))
            elif not isinstance(event, h11.InformationalResponse):
                return "no HTTP answer"
        return "" if 200 <= event.status_code < 400 else f"the application answered {event.status_code}"
    finally:
        writer.close()


def _grpc(check: GrpcCheck, host: str) -> str:
    """One call of grpc.health.v1.Health/Check; both messages have one field, so their bytes are written by hand."""
    import grpc

    name = check.service.encode()
    target = f"[{host}]:{check.port}" if ":" in host else f"{host}:{check.port}"
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary("/grpc.health.v1.Health/Check", _request, _status)
        try:
            status = call(name, timeout=check.timeout, wait_for_ready=False)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}" if isinstance(error, grpc.Call) else str(error)
    return "" if status == _SERVING else f"the application is not SERVING (status {status})"


def _request(name: bytes) -> bytes:
    """Field 1, a string of at most 127 bytes or more in a varint."""
    if not name:
        return b""
    size, head = len(name), b"\x0a"
    while size > 127:
        head, size = head + bytes((size & 127 | 128,)), size >> 7
    return head + bytes((size,)) + name


def _status(data: bytes) -> int:
    """Field 1, an enum; left out it is 0, UNKNOWN."""
    return data[1] if len(data) >= 2 and data[0] == 0x08 else 0
