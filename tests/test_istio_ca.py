"""Istio's CA API from the client's side: who lies, dawdles or breaks is named, and the last good credentials stay."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.ca_server import Answer, Asked, issue, serve, server_pair
from tests.certs import twisted
from tproxy.control import store
from tproxy.core.identity import Snapshot
from tproxy.core.pem import certificates
from tproxy.core.settings import IstioCa, KeyType
from tproxy.identity.istio_ca import IstioCaSource, new_request
from tproxy.identity.keeper import Keeper
from tproxy.identity.source import SourceError
from tproxy.wire.ca_pb2 import IstioCertificateResponse

DOMAIN = "test.local"
ID = f"spiffe://{DOMAIN}/ns/shop/sa/web"


def jwt(claims: object) -> str:
    """Looks like a service account's token; nobody here checks its signature."""
    parts = (json.dumps({"alg": "RS256"}), json.dumps(claims), "a signature that is long enough to be secret")
    return ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts)


TOKEN = jwt({"sub": "system:serviceaccount:shop:web", "aud": ["istio-ca"]})


@dataclass
class Place:
    """An authority, and the files that a pod would have mounted."""

    ca: Path
    settings: IstioCa

    def honest(self, life: float = 3600) -> Answer:
        """An answer that gives everyone our id."""
        return lambda request, _: IstioCertificateResponse(cert_chain=issue(self.ca, request, ID, life))

    def source(self, port: int, deadline: float = 5.0, **changes: str) -> IstioCaSource:
        settings = replace(self.settings, address=f"127.0.0.1:{port}", **changes)
        return IstioCaSource(settings, DOMAIN, deadline)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    ca, token = tmp_path / "ca", tmp_path / "token"
    store.create(ca, DOMAIN, "ecdsa")
    token.write_text(TOKEN)
    return Place(ca, IstioCa("", str(token), str(ca / "bundle.pem")))


async def first(source: IstioCaSource) -> Snapshot:
    snapshots = source.snapshots()
    try:
        return await asyncio.wait_for(anext(snapshots), 20)
    finally:
        await snapshots.aclose()


def got(place: Place, answer: Answer) -> tuple[Snapshot, Asked]:
    """The snapshot that this answer makes."""
    with serve(place.ca, answer) as asked:
        return asyncio.run(first(place.source(asked.port))), asked


def refusal(source: IstioCaSource) -> str:
    """Why there is no snapshot. The source is named; neither key nor token is."""
    with pytest.raises(SourceError) as caught:
        asyncio.run(first(source))
    text = str(caught.value)
    assert text.startswith(f"{source.name}: ")
    assert "PRIVATE" not in text and not any(part in text for part in TOKEN.split("."))
    return text.removeprefix(f"{source.name}: ")


def test_a_certificate_is_asked_for_and_proven(place: Place) -> None:
    found, asked = got(place, place.honest())
    assert str(found.svid.id) == ID and list(found.bundles) == [DOMAIN]
    assert len(certificates(found.svid.chain_pem)) == 2 and found.svid.key_pem.startswith(b"-----BEGIN PRIVATE KEY")
    assert found.bundles[DOMAIN] == (place.ca / "bundle.pem").read_bytes()
    assert asked.requests[0].validity_duration == 86400
