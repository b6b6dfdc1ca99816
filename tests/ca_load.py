"""What the authority can carry: python -m tests.ca_load [seconds]. Numbers for ARCHITECTURE.md; nothing is asserted.

The server runs on CPU 0 alone, callers on the others. First as many certificates as it can give on connections that
stay; then each certificate on a connection of its own, as sidecars that come once an hour do, by join token and by
TokenReview.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import grpc
import grpc.aio

from tests.control import Ca, csr
from tests.kubernetes import ApiServer
from tproxy.wire import CREATE_CERTIFICATE
from tproxy.wire.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse

AT_ONCE, CHANNELS = 64, 4
SIDECARS = 10_000  # each renews once an hour
TICK = os.sysconf("SC_CLK_TCK")


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used; proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def start_alone(ca: Ca) -> None:
    """The server gets CPU 0, we the others."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})  # the child inherits it
    ca.start()
    os.sched_setaffinity(0, everywhere - {0} or everywhere)


async def ask(ca: Ca, token: str, seconds: float, keep: bool) -> int:
    """Certificates that so many callers got."""
    credentials = grpc.ssl_channel_credentials((ca.dir / "bundle.pem").read_bytes())
    message, metadata = IstioCertificateRequest(csr=csr()), (("authorization", f"Bearer {token}"),)
    until, count = time.monotonic() + seconds, 0

    def channel(number: int) -> grpc.aio.Channel:
        options = (("grpc.use_local_subchannel_pool", 1), ("tests.number", number))
        return grpc.aio.secure_channel(f"127.0.0.1:{ca.port}", credentials, options)

    async def one(over: grpc.aio.Channel) -> None:
        nonlocal count
        method = over.unary_unary(
            CREATE_CERTIFICATE,
            request_serializer=IstioCertificateRequest.SerializeToString,
            response_deserializer=IstioCertificateResponse.FromString,
        )
        await method(message, metadata=metadata, timeout=20)
        count += 1

    async def caller(number: int, shared: grpc.aio.Channel) -> None:
        while time.monotonic() < until:
            if keep:
                await one(shared)
            else:
                async with channel(number) as own:
                    await one(own)

    channels = [channel(number) for number in range(CHANNELS)]
    await asyncio.gather(*(caller(number, channels[number % CHANNELS]) for number in range(AT_ONCE if keep else 8)))
    for each in channels:
        await each.close()
    return count


def measure(ca: Ca, name: str, token: str, seconds: float, keep: bool) -> None:
    """One line of figures."""
    pid = ca.running().pid
    asyncio.run(ask(ca, token, 1, keep))  # warm
    begun, used = time.monotonic(), cpu(pid)
    count = asyncio.run(ask(ca, token, seconds, keep))
    span, used = time.monotonic() - begun, cpu(pid) - used
    share = used / count * SIDECARS / 3600
    print(
        f"{name:<30} {count / span:5.0f} certificates/s at {used / span:4.0%} of one CPU, {used / count * 1000:.2f} ms "
        f"each; {SIDECARS} sidecars: {share:.2%} of one CPU, PSS {ca.running().pss() / 2**20:.0f} MiB"
    )


def main(seconds: float) -> None:
    """All figures."""
    with tempfile.TemporaryDirectory() as name:
        api = ApiServer(Path(name))
        ca = Ca(Path(name), kubernetes=api.config)
        try:
            start_alone(ca)
            api.pod("web-1", "web")
            print(f"{'idle':<30} PSS {ca.running().pss() / 2**20:.0f} MiB")
            measure(ca, "join token, connections stay", ca.token(), seconds, True)
            measure(ca, "join token, a connection each", ca.token(), seconds, False)
            measure(ca, "TokenReview, a connection each", api.token("web-1"), seconds, False)
        finally:
            ca.kill()
            api.stop()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)
