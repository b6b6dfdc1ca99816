"""An API server's side of the webhook: HTTPS to the Service's name, verified with a bundle, connections kept."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

from tests.control import Ca
from tproxy.core.inject.workload import places
from tproxy.world.ports import free_port

NAME = "tproxy-control.tproxy-system.svc"
GOLDEN = Path(__file__).parent / "golden" / "inject"
UID = "705ab4f5-6393-11e8-b7cc-42010a800002"


class Caller:
    """One connection."""

    def __init__(self, port: int, bundle: str, name: str = NAME, **versions: ssl.TLSVersion) -> None:
        context = ssl.create_default_context(cadata=bundle)
        for key, version in versions.items():
            setattr(context, key, version)
        plain = socket.create_connection(("127.0.0.1", port), timeout=15)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as Go's clients have it
        try:
            self.sock = context.wrap_socket(plain, server_hostname=name)
        except ssl.SSLError:
            plain.close()
            raise
        self.http = http.client.HTTPConnection(name)
        self.http.sock = self.sock

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.sock.close()

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> tuple[int, str]:
        """Status and text."""
        self.http.request(method, path, body, {"content-type": kind} if body is not None else {})
        answer = self.http.getresponse()
        return answer.status, answer.read().decode()

    def review(self, body: bytes) -> dict[str, Any]:
        """The response in the answer to a review."""
        status, said = self.ask("POST", "/inject?timeout=10s", body)
        assert status == 200, said
        found: dict[str, Any] = json.loads(said)["response"]
        return found

    def raw(self, data: bytes) -> bytes:
        """All that comes back for these bytes until the server hangs up."""
        self.sock.sendall(data)
        found = b""
        while part := self.sock.recv(65536):
            found += part
        return found


def injecting(folder: Path, **config: Any) -> Ca:
    """A control that is not started yet, with its webhook."""
    injection = {"image": "registry.example/tproxy:1", **config.pop("injection", {})}
    return Ca(folder, injection=injection, webhook={"port": free_port()}, **config)


def port(ca: Ca) -> int:
    """Of the webhook."""
    found: int = ca.config["webhook"]["port"]
    return found


def caller(ca: Ca, **more: Any) -> Caller:
    """Who believes the authority's present bundle."""
    return Caller(port(ca), (ca.dir / "bundle.pem").read_text(), **more)


def golden() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod of the golden files, as JSON has it."""
    for path in sorted(GOLDEN.glob("*.yaml")):
        if not path.stem.endswith(".out"):
            for document in yaml.safe_load_all(path.read_text()):
                for place in places(document):
                    pod = json.loads(json.dumps(place.look(document), default=str))
                    yield path.stem, pod


def patched(pod: Any, patch: list[dict[str, Any]]) -> Any:
    """The pod as the API server then has it."""
    return jsonpatch.apply_patch(json.loads(json.dumps(pod)), patch)


def percentile(seconds: list[float], share: float) -> float:
    """Milliseconds."""
    return sorted(seconds)[int(share * (len(seconds) - 1))] * 1000


def timed(one: Caller, body: bytes) -> float:
    """Seconds of a review."""
    began = time.perf_counter()
    one.review(body)
    return time.perf_counter() - began
