"""The next State while connections are carried: what takes long to read does not hold the loop up."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from tests.control import DOMAIN, WEB
from tproxy.control import authority, store
from tproxy.core.config import Config
from tproxy.core.settings import Trust
from tproxy.identity.trust import Verifier
from tproxy.proxy.generations import Generations
from tproxy.proxy.side import State

ENTRIES = 20_000


def revoking(folder: Path, first: int) -> bytes:
    """A long list of the authority's intermediate."""
    middle, now = store.signer(folder), authority.utc_now()
    builder = x509.CertificateRevocationListBuilder().issuer_name(middle.certificate.subject).last_update(now)
    builder = builder.next_update(now + timedelta(hours=1))
    one = x509.RevokedCertificateBuilder().revocation_date(now)
    builder._revoked_certificates = [one.serial_number(first + n).build() for n in range(ENTRIES)]  # add_: minutes
    return builder.sign(middle.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


async def longest_pause(busy: asyncio.Future[State]) -> float:
    """Seconds for which the loop gave nobody a turn, until that is done."""
    most, last = 0.0, time.monotonic()
    while not busy.done():
        await asyncio.sleep(0.001)
        now = time.monotonic()
        most, last = max(most, now - last), now
    return most


def test_a_list_of_20000_revoked_certificates_is_read_beside_the_connections(tmp_path: Path) -> None:
    store.create(tmp_path / "ca", DOMAIN, "ecdsa")
    store.issue(tmp_path / "ca", WEB, tmp_path / "svid", timedelta(hours=1), "ecdsa", False, None)
    files = {name: str(tmp_path / "svid" / f"{name}.pem") for name in ("cert", "key", "ca")}
    crl = tmp_path / "crl.pem"
    crl.write_bytes(revoking(tmp_path / "ca", 1))
    config = Config.parse({"trustDomain": DOMAIN, "identity": files, "trust": {"crl": str(crl)}})

    async def reload() -> tuple[State, State, float, float]:
        news = asyncio.get_running_loop().create_future()
        made = Generations(config, lambda: config, "", news.set_result, lambda: None)
        first = await made.first()
        following = asyncio.create_task(made.run())
        try:
            began = time.monotonic()
            Verifier(first.contexts.snapshot, Trust(), DOMAIN)
            alone = time.monotonic() - began
            (tmp_path / "next").write_bytes(revoking(tmp_path / "ca", 10**9))
            (tmp_path / "next").rename(crl)
            async with asyncio.timeout(20):
                pause = await longest_pause(news)
            return first, news.result(), alone, pause
        finally:
            following.cancel()

    first, second, alone, pause = asyncio.run(reload())
    assert first.contexts.snapshot.crls != second.contexts.snapshot.crls
    assert pause < alone, f"the loop stood still for {pause * 1000:.0f} ms, reading takes {alone * 1000:.0f} ms"
