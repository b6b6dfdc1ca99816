"""What a gateway keeps of connections that are over: nothing, and without waiting for the collector."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from tests import gateway as gw
from tests.web import rule, service, to
from tproxy.core.record import Record
from tproxy.core.settings import Relay
from tproxy.gateway.carry import carry
from tproxy.gateway.compile import compile_table
from tproxy.gateway.directory import Directory
from tproxy.gateway.gate import Gate
from tproxy.gateway.settings import Settings
from tproxy.proxy.compiled import reactor

TIMES = 4
ASK = "curl -sk -o /dev/null -m 8 --connect-to ::127.0.0.1:"
OPENSSL = "openssl s_client -connect 127.0.0.1:{port} -servername"
CLIENTS = [
    f"{ASK} http://a.example.com:{{http}}/",
    f"{ASK} -H Connection:close http://a.example.com:{{http}}/",
    f"{ASK} --http1.1 https://a.example.com:{{port}}/",
    f"{ASK} --http1.1 -H Connection:close https://a.example.com:{{port}}/",
    f"{ASK} --http2 https://a.example.com:{{port}}/",
    f"{ASK} --http2-prior-knowledge http://a.example.com:{{http}}/",
    f"{ASK} https://a.example.com:{{http}}/",
    f"{OPENSSL} nobody.example.com </dev/null",
    f"{OPENSSL} a.example.com -tls1_1 -cipher DEFAULT:@SECLEVEL=0 </dev/null",
    f"{OPENSSL} b.example.com </dev/null",
    f"echo hello | {OPENSSL} c.example.com -quiet -no_ign_eof",
]
IMPATIENT = [
    f"{ASK} -m 0.1 http://a.example.com:{{http}}/silent",
    f"{ASK} -m 0.1 --http2 https://a.example.com:{{port}}/endless",
]


@asynccontextmanager
async def gateway(
    folder: Path, relay: Relay, backends: tuple[int, int, int]
) -> AsyncIterator[tuple[asyncio.Queue[Record], int, int]]:
    """A gateway in this process and loop, its records, its TLS port, its plaintext port."""
    port, http = gw.free_port(), gw.free_port()
    web, tls, echo = backends
    gw.write(
        folder / "all.yaml",
        gw.gateway_yaml(
            gw.server(http, "HTTP", "a.example.com"),
            gw.server(port, "HTTPS", "a.example.com", mode="SIMPLE", credentialName="cert"),
            gw.server(port, "TLS", "b.example.com", mode="PASSTHROUGH"),
            gw.server(port, "TLS", "c.example.com", mode="SIMPLE", credentialName="cert"),
        ),
        gw.virtual("a", ["a.example.com"], http=[rule(to("web"))]),
        gw.virtual("b", ["b.example.com"], tls=[gw.sni(["b.example.com"], "tls.local")]),
        gw.virtual("c", ["c.example.com"], tcp=[gw.tcp(port, "echo.local")]),
        gw.entry("tls.local", tls),
        gw.entry("echo.local", echo),
        gw.secret("cert", "istio-system", *gw.self_signed("example.com")),
        *service("web", {"http": 80}, web),
    )
    loaded = compile_table(*Directory(folder).read(), {})
    records: asyncio.Queue[Record] = asyncio.Queue()
    made = Gate(carry, records.put_nowait, Settings(host="127.0.0.1", drain=0), reactor=reactor(relay))
    made.take(loaded.table, loaded.material)
    try:
        yield records, port, http
    finally:
        await made.stop()


async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A backend that answers once and closes, so that our connections to it come and go, too; or never ends."""
    head = await reader.readuntil(b"\r\n\r\n")
    if b" /silent " in head:
        await reader.read()
    elif b" /endless " in head:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1000))
        await reader.read()
    else:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
    writer.close()


def ours() -> Counter[str]:
    """Objects of this project and of OpenSSL that are alive."""
    kinds = (type(thing) for thing in gc.get_objects())
    return Counter(kind.__qualname__ for kind in kinds if str(kind.__module__).startswith(("tproxy.", "OpenSSL.")))


RELAYS = pytest.mark.parametrize("relay", [Relay.AUTO, Relay.PYTHON])


@RELAYS
def test_a_connection_that_is_over_is_freed_without_the_collector(tmp_path: Path, relay: Relay) -> None:
    """Else some 30 KiB of OpenSSL's wait for it, of each connection."""
    assert left_by(CLIENTS, tmp_path, relay, collect=False) == {}


@RELAYS
def test_of_a_request_that_its_client_gave_up_the_collector_leaves_nothing(tmp_path: Path, relay: Relay) -> None:
    assert left_by(IMPATIENT, tmp_path, relay, collect=True) == {}


def left_by(clients: list[str], tmp_path: Path, relay: Relay, collect: bool) -> dict[str, int]:
    """What there is of each kind for every client that came and went."""
    nginx, echo = gw.Nginx(tmp_path).start(b=""), gw.Raw(echo=True)

    async def left() -> dict[str, int]:
        server = await asyncio.start_server(web, "127.0.0.1", 0, family=socket.AF_INET)
        backends = server.sockets[0].getsockname()[1], nginx.ports["b"], echo.port
        async with server, gateway(tmp_path / "config", relay, backends) as (records, port, http):

            async def come() -> None:
                for command in clients * TIMES:
                    shell = f"timeout 8 sh -c '{command.format(port=port, http=http)}'"
                    await (await asyncio.create_subprocess_shell(f"({shell}) >/dev/null 2>&1")).wait()
                async with asyncio.timeout(10):
                    for _ in clients * TIMES:
                        await records.get()
                await asyncio.sleep(1.2)  # a transport lingers for a second

            await come()
            gc.collect()
            before = ours()
            await come()
            if collect:
                gc.collect()
            return {kind: count for kind, count in (ours() - before).items() if count >= TIMES}

    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(left())
    finally:
        gc.enable()
        nginx.stop()
