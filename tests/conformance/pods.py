"""The pods of the suite's Deployments, each at an address of its own: echo servers of HTTP, gRPC, TCP and UDP, a DNS.

They say who they are in JSON, as the suite's images do. All of them live in one thread with a loop.
"""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import grpc

from tests.conformance.certificates import INFRA, Document, Pair, pairs
from tests.conformance.world import World
from tests.echo_backend import EchoBackend, Pairs, Seen, server_context

ECHO = "gateway_api_conformance.echo_basic.grpcecho.GrpcEcho"


@dataclass
class Http(EchoBackend):
    """Also fails so often as ``?responseCode=503&succeedAfter=2&uuid=x`` asks for."""

    tries: Counter[str] = field(default_factory=Counter)

    def answer(self, seen: Seen, tls: dict[str, Any] | None) -> tuple[int, Pairs, bytes, float]:
        status, headers, body, wait = super().answer(seen, tls)
        query = {key: values[0] for key, values in parse_qs(urlsplit(seen.path).query).items()}
        if "responseCode" in query:
            self.tries[query["uuid"]] += 1
            if self.tries[query["uuid"]] <= int(query["succeedAfter"]):
                status = int(query["responseCode"])
        return status, headers, body, wait


class Datagrams(asyncio.DatagramProtocol):
    """Answers each datagram with who it is; a question to a DNS with an answer that holds no record."""

    def __init__(self, said: Document, dns: bool) -> None:
        self.said, self.dns = said, dns

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self.dns:
            self.transport.sendto(data[:2] + b"\x81\x80" + data[4:], addr)  # RFC 1035, 4.1.1
        else:
            self.transport.sendto(json.dumps({**self.said, "request": data.decode()}).encode(), addr)


class Pods:
    """Started as they appear, and never stopped before the end."""

    def __init__(self) -> None:
        self.http: list[Http] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._there: set[str] = set()
        self._servers: list[Any] = []
        self._folder = tempfile.TemporaryDirectory()

    def stop(self) -> None:
        for server in self._servers:
            server.stop(None)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._folder.cleanup()

    def sync(self, world: World) -> None:
        """Every pod of this world runs."""
        for (namespace, name), found in world.pods.items():
            document = world.objects.get(("Deployment", namespace, name))
            for pod, address in found:
                if document and address not in self._there:
                    self._there.add(address)
                    self._start(document, pod, address)

    def seen(self, prefix: str, path: str) -> list[Seen]:
        """What pods of this name were sent at a path."""
        return [
            one
            for pod in self.http
            if pod.pod.startswith(f"{prefix}-")
            for one in pod.seen
            if urlsplit(one.path).path == path
        ]

    def _start(self, document: Document, pod: str, address: str) -> None:
        about, spec = document["metadata"], document["spec"]["template"]["spec"]
        container = spec["containers"][0]
        asked = {each["name"]: each.get("value", "") for each in container.get("env", ())}
        said = {"namespace": about["namespace"], "pod": pod, "service": about["name"]}
        if "coredns" in container["image"]:
            self._datagrams(said, address, 53, dns=True)
        elif "UDP_ECHO_SERVER" in asked:
            self._datagrams(said, address, 8080)
        elif "TCP_ECHO_SERVER" in asked:
            self._stream(said, address, 3000, None)
            if tls := self._context(document):
                self._stream(said, address, 8443, tls)
        elif "GRPC_ECHO_SERVER" in asked:
            self._grpc(said, address, self._pair(document))
        else:
            for port, tls in ((3000, None), (3001, None), (8443, self._context(document))):
                if port != 8443 or tls:
                    http = Http(pod, about["name"], about["namespace"], address, port, tls)
                    self._run(http.listen())
                    self.http.append(http)

    def _pair(self, document: Document) -> Pair | None:
        volumes = document["spec"]["template"]["spec"].get("volumes", ())
        secret = next((each["secret"]["secretName"] for each in volumes if "secret" in each), "")
        return pairs().get((document["metadata"]["namespace"], secret))

    def _context(self, document: Document) -> Any:
        volumes = document["spec"]["template"]["spec"].get("volumes", ())
        client = next((each["configMap"]["name"] for each in volumes if "configMap" in each), "")
        pair = self._pair(document)
        if pair is None:
            return None
        folder = Path(self._folder.name)
        paths = [folder / f"{document['metadata']['name']}.{end}" for end in ("crt", "key", "ca")]
        paths[0].write_text(pair.certificate)
        paths[1].write_text(pair.key)
        if client:
            paths[2].write_text(pairs()[INFRA, client].certificate)
        return server_context(str(paths[0]), str(paths[1]), str(paths[2]) if client else "")

    def _stream(self, said: Document, address: str, port: int, tls: Any) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                request = await reader.readline()
                writer.write(json.dumps({**said, "request": request.decode().strip()}).encode() + b"\n")
                await writer.drain()
            except OSError:
                pass
            writer.close()

        self._run(asyncio.start_server(serve, address, port, ssl=tls))

    def _datagrams(self, said: Document, address: str, port: int, dns: bool = False) -> None:
        async def begin() -> None:
            loop = asyncio.get_running_loop()
            await loop.create_datagram_endpoint(lambda: Datagrams(said, dns), (address, port), family=socket.AF_INET)

        self._run(begin())

    def _grpc(self, said: Document, address: str, pair: Pair | None) -> None:
        server = grpc.server(ThreadPoolExecutor(2))
        server.add_generic_rpc_handlers((Handler(said),))
        assert server.add_insecure_port(f"{address}:3000")
        if pair is not None:
            tls = grpc.ssl_server_credentials([(pair.key.encode(), pair.certificate.encode())])
            assert server.add_secure_port(f"{address}:8443", tls)
        server.start()
        self._servers.append(server)

    def _run(self, task: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(task, self._loop).result(10)


class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Every method answers who it is; no protobuf, as nobody between us may read what is in a message."""

    def __init__(self, said: Document) -> None:
        self.said = said

    def service(self, details: Any) -> Any:
        headers: dict[str, str] = {}
        for key, value in details.invocation_metadata:
            headers[key] = f"{headers[key]},{value}" if key in headers else str(value)
        answer = json.dumps({**self.said, "method": details.method, "headers": headers}).encode()
        reply: Callable[[bytes, Any], bytes] = lambda _, __: answer  # noqa: E731
        return grpc.unary_unary_rpc_method_handler(reply)
