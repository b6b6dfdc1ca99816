"""Sending what a line of ``traffic.txt`` says, and saying what is not as it should be."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shlex
import socket
import ssl
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc

from tests.conformance.certificates import INFRA, Document, pairs
from tests.conformance.pods import ECHO, Pods

SECONDS = 5.0
_METHODS = ("GET", "OPTIONS", "PUT", "POST", "HEAD", "DELETE")
_PORTS = {"http": 80, "https": 443}
_TOLERANCE = 0.05  # of shares, as in the suite
_TRIES = 3
_BURST = 40  # requests of one connection


@dataclass(frozen=True)
class To:
    """Whom to ask, and as whom."""

    address: str
    port: int = 80
    sni: str = ""
    certificate: str = ""


@dataclass
class Answer:
    """Of an HTTP request; ``said`` is what the backend told of it."""

    status: int
    headers: dict[str, str]
    said: Document = field(default_factory=dict)


def faults(line: str, to: To, pods: Pods) -> list[str]:
    """Do it; what is wrong."""
    asked, _, wanted = line.partition(" -> ")
    words, checks = shlex.split(asked), shlex.split(wanted)
    kind = words[0]
    try:
        found = _SPECIAL[kind](words[1:], checks, to, pods) if kind in _SPECIAL else _http(words, checks, to)
    except (OSError, ValueError, http.client.HTTPException, StopIteration) as error:
        found = [f"{type(error).__name__}: {error}"]
    return [f"{line.split(' -> ', maxsplit=1)[0][:100]}: {each}" for each in found]


# HTTP


@contextmanager
def _connection(to: To) -> Iterator[http.client.HTTPConnection]:
    made = http.client.HTTPConnection(to.address, to.port, timeout=SECONDS)
    made.connect()
    if to.sni:
        made.sock = _wrapped(made.sock, to)
    try:
        yield made
    finally:
        made.close()


def _wrapped(sock: socket.socket, to: To) -> ssl.SSLSocket:
    context = ssl.create_default_context(cadata="".join(pair.certificate for pair in _roots()))
    context.check_hostname = False  # the suite's own certificate is for *, which nobody takes for a name
    if to.certificate:
        pair = pairs()[INFRA, to.certificate]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pair.pem"
            path.write_text(pair.certificate + pair.key)
            context.load_cert_chain(path)
    return context.wrap_socket(sock, server_hostname=to.sni)


def _roots() -> Iterator[Any]:
    yield from (pair for (_, name), pair in pairs().items() if name.endswith("ca-certificate"))


def _send(connection: http.client.HTTPConnection, words: list[str], to: To) -> Answer:
    method = words.pop(0) if words[0] in _METHODS else "GET"
    host, slash, path = words[0].partition("/")
    path = f"{slash}{path}"
    if "responseCode" in path:
        path += f"&uuid={uuid.uuid4()}"
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    connection.putheader("host", host or to.address)
    for word in words[1:]:
        name, _, value = word.partition("=")
        connection.putheader(name, value)
    connection.endheaders()
    reply = connection.getresponse()
    body = reply.read()
    headers: dict[str, str] = {}
    for name, value in ((key.lower(), value) for key, value in reply.getheaders()):
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    try:
        said = json.loads(body) if body else {}
    except ValueError:
        said = {}
    return Answer(reply.status, headers, said if isinstance(said, dict) else {})


def _http(words: list[str], checks: list[str], to: To) -> list[str]:
    if checks[0] == "refused":
        try:
            with _connection(to) as connection:
                return [f"is answered with {_send(connection, list(words), to).status}"]
        except (OSError, http.client.HTTPException):
            return []
    found: list[str] = []
    for _ in range(2):  # and again
        with _connection(to) as connection:
            found += list(_compare(checks, _send(connection, list(words), to)))
    return found[:3]


def _compare(checks: list[str], answer: Answer) -> Iterator[str]:
    """What an answer lacks."""
    statuses = [int(each) for each in checks[0].split(",")] if checks[0][0].isdigit() else [200]
    if answer.status not in statuses:
        yield f"status {answer.status}, not {checks[0]}"
        return
    backends = checks[0].split(",")
    if not checks[0][0].isdigit() and not any(_is(answer.said.get("pod", ""), each) for each in backends):
        yield f"answered by {answer.said.get('pod')}, not {checks[0]}"
    seen = {key.lower(): ",".join(value) for key, value in answer.said.get("headers", {}).items()}
    for check in checks[1:]:
        name, _, value = check.partition("=")
        if check.startswith(">"):
            yield from _header(check[1:], seen, "the backend")
        elif check.startswith("<"):
            yield from _header(check[1:], answer.headers, "the client")
        elif name == "to":
            yield from _redirect(value, answer.headers.get("location", ""))
        else:
            have = answer.said.get("tls", {}).get("serverName") if name == "sni" else answer.said.get(name)
            if have != value:
                yield f"{name} is {have!r}, not {value!r}"


def _header(check: str, have: dict[str, str], who: str) -> Iterator[str]:
    name, _, value = check.partition("=")
    if name.startswith("-"):
        if name[1:].lower() in have:
            yield f"{who} sees {name[1:]}"
    elif have.get(name.lower(), "").replace(" ", "") not in value.split("|"):
        yield f"{who} sees {name}: {have.get(name.lower())!r}, not {value!r}"


def _redirect(wanted: str, location: str) -> Iterator[str]:
    want, have = urlsplit(wanted), urlsplit(location)
    for part in ("scheme", "hostname", "path"):
        expected, found = getattr(want, part), getattr(have, part)
        if expected and found != expected:
            yield f"location {location!r}: {part} is {found!r}, not {expected!r}"
    if want.scheme and want.hostname and (want.port or _PORTS[want.scheme]) != (have.port or _PORTS.get(have.scheme)):
        yield f"location {location!r}: port is not that of {wanted!r}"


def _is(pod: object, backend: str) -> bool:
    """Whether a pod is one of a Deployment: its own name has two parts more."""
    return isinstance(pod, str) and pod.rsplit("-", 2)[0] == backend


def _share(words: list[str], checks: list[str], to: To, pods: Pods) -> list[str]:
    def ask(count: int) -> Iterator[str]:
        left = count
        while left:
            with _connection(to) as connection:
                for _ in range(min(left, _BURST)):
                    yield str(_send(connection, ["/"], to).said.get("pod"))
            left -= min(left, _BURST)

    return _shares(words, ask)


def _shares(words: list[str], ask: Callable[[int], Iterator[str]]) -> list[str]:
    """Chance is given several tries, as in the suite: one of 500 fails in 1.5 % of runs, three in 3 of a million."""
    found: list[str] = []
    for _ in range(_TRIES):
        if not (found := _drawn(words, ask)):
            break
    return found


def _drawn(words: list[str], ask: Callable[[int], Iterator[str]]) -> list[str]:
    count = int(words[0])
    wanted = {name: float(share) for name, _, share in (word.partition("=") for word in words[1:])}
    have = Counter(pod.rsplit("-", 2)[0] for pod in ask(count))
    found = [f"{have[name]} of {count} went to {name}, which is not there" for name in have if name not in wanted]
    for name, share in wanted.items():
        if abs(have[name] / count - share) > (_TOLERANCE if 0 < share < 1 else 0):
            found.append(f"{have[name]} of {count} went to {name}, not {share:.0%}")
    return found


def _each(words: list[str], checks: list[str], to: To, pods: Pods) -> list[str]:
    """Of so many requests each backend sees a header of its own, and every one of them is asked."""
    count, header, *rest = words
    wanted = dict(word.split("=") for word in rest)
    have: dict[str, set[str]] = {}
    with _connection(to) as connection:
        for _ in range(int(count)):
            said = _send(connection, ["/"], to).said
            have.setdefault(said["pod"].rsplit("-", 2)[0], set()).update(said["headers"].get(header, ["nothing"]))
    return [] if have == {name: {value} for name, value in wanted.items()} else [f"backends saw {have}"]


def _mirror(words: list[str], checks: list[str], to: To, pods: Pods) -> list[str]:
    backend, mirrors, *more = checks
    share = float(more.pop(0)) if more and more[0][0] == "0" else 1.0
    path, count = words[0], 3 if share == 1.0 else 300
    for pod in pods.http:
        pod.seen.clear()
    found: list[str] = []
    with _connection(to) as connection:
        for _ in range(count):
            found += list(_compare([backend], _send(connection, list(words), to)))
    if found:
        return found[:1]
    deadline = time.monotonic() + SECONDS
    for name in mirrors.split(","):
        while share == 1.0 and len(pods.seen(name, path)) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)  # for copies too many
        seen = pods.seen(name, path)
        if abs(len(seen) / count - share) > (0.12 if share < 1.0 else 0):  # five standard deviations
            found.append(f"{len(seen)} of {count} were mirrored to {name}")
        for one in seen:
            headers: dict[str, list[str]] = {}
            for key, value in one.headers:
                headers.setdefault(key, []).append(value)
            found += list(_compare(["200", *more], Answer(200, {}, {"headers": headers})))
    return found[:3]


def _websocket(words: list[str], checks: list[str], to: To, pods: Pods) -> list[str]:
    """RFC 6455: one text message there and back."""
    key = base64.b64encode(os.urandom(16)).decode()
    with socket.create_connection((to.address, to.port), SECONDS) as sock:
        lines = [f"GET {words[0]} HTTP/1.1", f"host: {to.address}", "connection: Upgrade", "upgrade: websocket"]
        lines += ["sec-websocket-version: 13", f"sec-websocket-key: {key}", "", ""]
        sock.sendall("\r\n".join(lines).encode())
        reader = sock.makefile("rb")
        status = reader.readline().decode()
        while reader.readline().strip():
            pass
        if " 101 " not in status:
            return [f"the answer is {status.strip()!r}"]
        mask, message = b"\x01\x02\x03\x04", b"Websocket Support!"
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(message))
        sock.sendall(b"\x81" + bytes([0x80 | len(message)]) + mask + masked)
        head = reader.read(2)
        echoed = reader.read(head[1] & 0x7F)
    found = [] if echoed == message else [f"{echoed!r} came back"]
    who = {pod.pod for pod in pods.http for one in pod.seen if one.path == words[0]}
    return found + [f"it went to {pod}" for pod in who if not _is(pod, checks[0])]


# gRPC


@contextmanager
def _calling(to: To, words: list[str]) -> Iterator[Callable[[], Document]]:
    """A method and its metadata, to be called; ``:authority=x`` is whom it is for."""
    service, _, method = words[0].rpartition("/")
    pairs_ = [(name, value) for name, _, value in (word.partition("=") for word in words[1:])]
    options = [("grpc.enable_retries", 0), *(("grpc.default_authority", v) for n, v in pairs_ if n == ":authority")]
    metadata = [(name, value) for name, value in pairs_ if name[0] != ":"]
    with grpc.insecure_channel(f"{to.address}:{to.port}", options) as channel:
        call = channel.unary_unary(f"/{service or ECHO}/{method}")
        yield lambda: json.loads(call(b"", metadata=metadata, timeout=SECONDS))


def _grpc(words: list[str], checks: list[str], to: To, pods: Pods) -> list[str]:
    with _calling(to, words) as call:
        try:
            said = call()
        except grpc.RpcError as error:
            name = error.code().name
            return [] if name == checks[0] else [f"code {name} ({error.details()}), not {checks[0]}"]
    if not _is(said["pod"], checks[0]):
        return [f"answered by {said['pod']}, not {checks[0]}"]
    return [fault for check in checks[1:] for fault in _header(check[1:], said["headers"], "the backend")]


def _grpc_share(words: list[str], checks: list[str], to: To, pods: Pods) -> list[str]:
    with _calling(to, ["Echo"]) as call:
        return _shares(words, lambda count: (call()["pod"] for _ in range(count)))


# TCP, TLS, UDP


def _tcp_once(to: To) -> Document:
    sock = socket.create_connection((to.address, to.port), SECONDS)
    with _wrapped(sock, to) if to.sni else sock as stream:
        stream.sendall(b"hello\n")
        line = stream.makefile("rb").readline()
    if not line:
        raise ConnectionResetError("closed without a word")
    found: Document = json.loads(line)
    return found


def _refusable(once: Callable[[], Document], wanted: str) -> list[str]:
    try:
        pod = once().get("pod")
    except (OSError, ValueError) as error:
        return [] if wanted == "refused" else [f"{type(error).__name__}: {error}"]
    return [] if _is(pod, wanted) else [f"answered by {pod}, not {wanted}"]


def _tcp(words: list[str], checks: list[str], to: To, pods: Pods) -> list[str]:
    return _refusable(lambda: _tcp_once(to), checks[0])


def _tls(words: list[str], checks: list[str], to: To, pods: Pods) -> list[str]:
    """Backends that speak HTTP behind TLS are asked so, others in lines."""
    to = replace(to, sni=words[0])

    def by_http() -> Document:
        with _connection(to) as connection:
            return _send(connection, [f"{words[0]}/"], to).said

    return _refusable(by_http if checks[0].startswith("tls-") else lambda: _tcp_once(to), checks[0])


def _udp_once(to: To, data: bytes = b"hello") -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1.0)
        sock.connect((to.address, to.port))
        sock.send(data)
        return sock.recv(65536)


def _udp(words: list[str], checks: list[str], to: To, pods: Pods) -> list[str]:
    return _refusable(lambda: json.loads(_udp_once(to)), checks[0])


def _dns(words: list[str], checks: list[str], to: To, pods: Pods) -> list[str]:
    """``foo.bar.com IN A?`` (RFC 1035, 4.1)."""
    question = b"\x13\x37\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03foo\x03bar\x03com\x00\x00\x01\x00\x01"
    found = _udp_once(to, question)
    good = found[:2] == question[:2] and found[2] & 0x80 and not found[3] & 0x0F
    return [] if good else [f"the answer is {found[:12]!r}"]


def _tcp_share(words: list[str], checks: list[str], to: To, pods: Pods) -> list[str]:
    return _shares(words, lambda count: (_tcp_once(to)["pod"] for _ in range(count)))


def _udp_share(words: list[str], checks: list[str], to: To, pods: Pods) -> list[str]:
    return _shares(words, lambda count: (json.loads(_udp_once(to))["pod"] for _ in range(count)))


_SPECIAL: dict[str, Callable[[list[str], list[str], To, Pods], list[str]]] = {
    "share": _share,
    "each": _each,
    "mirror": _mirror,
    "ws": _websocket,
    "grpc": _grpc,
    "grpc-share": _grpc_share,
    "tcp": _tcp,
    "tls": _tls,
    "udp": _udp,
    "dns": _dns,
    "tcp-share": _tcp_share,
    "udp-share": _udp_share,
}
