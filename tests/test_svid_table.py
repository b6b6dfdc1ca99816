"""The rules for a leaf and its SPIFFE id (X509-SVID 2-5, SPIFFE-ID 2), by our Verifier and in a handshake.

Every chain here is flawless; only what the leaf says of itself differs.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from cryptography import x509

from tests.forge import DOMAIN, ID, Signed, ca, leaf, usage
from tests.handshakes import OWN_ROOT, met, ours, snapshot
from tproxy.core.reason import Deny, Reason
from tproxy.core.settings import Trust
from tproxy.identity.trust import Verifier

OK = None
BAD, MANY, NONE, IS_CA = Reason.PEER_BAD_ID, Reason.PEER_MANY_IDS, Reason.PEER_NO_ID, Reason.PEER_IS_CA
USAGE, FOREIGN = Reason.PEER_WRONG_USAGE, Reason.PEER_FOREIGN
ROOT = ca("root")
BUNDLES = {DOMAIN: ROOT.pem + OWN_ROOT.pem}
BASE = f"spiffe://{DOMAIN}"
LONG = BASE + "/" + "a" * (2048 - len(BASE) - 1)


@dataclass(frozen=True)
class Row:
    """A leaf with these URIs, or with these twists, and what comes of it."""

    name: str
    uris: Sequence[str] = (ID,)
    answer: Reason | None = OK
    others: Sequence[x509.GeneralName] = ()
    twists: dict[str, Any] = field(default_factory=dict)

    def leaf(self) -> Signed:
        san = [*map(x509.UniformResourceIdentifier, self.uris), *self.others]
        return leaf(ROOT, san=san, **self.twists)


ROWS = [
    Row("one URI"),
    Row("a DNS name beside it", others=[x509.DNSName("web.shop.svc")]),
    Row("an address and a mailbox beside it", others=[
        x509.IPAddress(ipaddress.ip_address("10.0.0.7")), x509.RFC822Name("web@test.local")]),
    Row("a subject and a SAN that is not critical", twists={"name": "web", "critical_san": False}),
    Row("an empty subject and a SAN that is not critical", twists={"critical_san": False}),
    Row("another path than Istio's", [f"{BASE}/billing"]),
    Row("a path with capitals, which are kept", [f"{BASE}/ns/Shop/sa/WEB"]),
    Row("a path with every sign that is allowed", [f"{BASE}/a.b-c_d/..x/0"]),
    Row("an id of 2048 bytes", [LONG]),
    Row("an id of 2049 bytes", [LONG + "a"], BAD),
    Row("no names at all", [], NONE, twists={"name": "web"}),
    Row("a DNS name only", [], NONE, others=[x509.DNSName("web.shop.svc")]),
    Row("an id in the common name only", [], NONE, twists={"name": ID}),
    Row("two ids", [ID, ID + "2"], MANY),
    Row("the same id twice", [ID, ID], MANY),
    Row("an id and a web address", [ID, "https://web.example/"], MANY),
    Row("a web address", ["https://test.local/ns/shop/sa/web"], BAD),
    Row("another scheme that begins alike", ["spiffes://test.local/ns/shop/sa/web"], BAD),
    Row("a scheme in capitals", ["SPIFFE://test.local/ns/shop/sa/web"], BAD),
    Row("no slashes", ["spiffe:test.local/ns/shop/sa/web"], BAD),
    Row("no trust domain", ["spiffe:///ns/shop/sa/web"], BAD),
    Row("a trust domain in capitals", ["spiffe://Test.local/ns/shop/sa/web"], BAD),
    Row("a trust domain with a port", ["spiffe://test.local:443/ns/shop/sa/web"], BAD),
    Row("a trust domain with a user", ["spiffe://me@test.local/ns/shop/sa/web"], BAD),
    Row("a trust domain with a percent sign", ["spiffe://test%2elocal/ns/shop/sa/web"], BAD),
    Row("a trust domain that is a dot", ["spiffe://./ns/shop/sa/web"], BAD),
    Row("a trust domain with a dot behind, which is another one", ["spiffe://test.local./ns/shop/sa/web"], FOREIGN),
    Row("a trust domain of 255 bytes", [f"spiffe://{'a' * 255}/web"], FOREIGN),
    Row("a trust domain of 256 bytes", [f"spiffe://{'a' * 256}/web"], BAD),
    Row("a trust domain below ours", ["spiffe://a.test.local/ns/shop/sa/web"], FOREIGN),
    Row("a trust domain above ours", ["spiffe://local/ns/shop/sa/web"], FOREIGN),
    Row("no path", [BASE], BAD),
    Row("a path that is a slash", [f"{BASE}/"], BAD),
    Row("a slash at the end", [f"{ID}/"], BAD),
    Row("two slashes", [f"{BASE}//ns/shop"], BAD),
    Row("a dot as a segment", [f"{BASE}/ns/./web"], BAD),
    Row("two dots as a segment", [f"{BASE}/ns/shop/../bank/sa/web"], BAD),
    Row("percent encoding", [f"{BASE}/ns/shop%2Fsa/web"], BAD),
    Row("a query", [f"{ID}?a=b"], BAD),
    Row("a fragment", [f"{ID}#a"], BAD),
    Row("a blank", [f"{BASE}/ns/shop/sa/web "], BAD),
    Row("a line feed", [f"{ID}\n"], BAD),
    Row("a NUL", [f"{ID}\0.evil"], BAD),
    Row("a star", [f"{BASE}/ns/shop/sa/*"], BAD),
    Row("an at sign", [f"{BASE}/ns/shop/sa/web@x"], BAD),
    Row("CA:true", answer=IS_CA, twists={"basic": x509.BasicConstraints(True, None)}),
    Row("no basic constraints", twists={"basic": None}),
    Row("keyCertSign", answer=IS_CA, twists={"keys": usage("digital_signature", "key_cert_sign")}),
    Row("cRLSign", answer=IS_CA, twists={"keys": usage("digital_signature", "crl_sign")}),
    Row("CA:true and the usages of a CA", answer=IS_CA, twists={
        "basic": x509.BasicConstraints(True, None), "keys": usage("digital_signature", "key_cert_sign", "crl_sign")}),
    Row("no key usage", answer=USAGE, twists={"keys": None}),
    Row("a key usage without digitalSignature", answer=USAGE, twists={"keys": usage("key_agreement")}),
    Row("keyEncipherment only", answer=USAGE, twists={"keys": usage("key_encipherment")}),
    Row("digitalSignature among others", twists={
        "keys": usage("digital_signature", "key_encipherment", "key_agreement")}),
    Row("a key usage that is not critical, as the specification wants it, but it binds us all the same", twists={
        "keys": None, "extra": ((usage("digital_signature"), False),)}),
]  # fmt: skip
CASES = [pytest.param(row, id=row.name) for row in ROWS]
ROLES = pytest.mark.parametrize("server", [False, True], ids=["client", "server"])


def judged(row: Row, answer: object, peer: object) -> None:
    """The answer is the row's; of an accepted peer the id is exactly what stands in the certificate."""
    if row.answer is OK:
        assert not isinstance(answer, Deny), answer
        assert str(peer) == row.uris[0]
    else:
        assert isinstance(answer, Deny) and answer.reason is row.answer, answer


@ROLES
@pytest.mark.parametrize("row", CASES)
def test_our_verifier_applies_the_rules(row: Row, server: bool) -> None:
    answer = Verifier(snapshot(BUNDLES), Trust(), DOMAIN).check((row.leaf().der,), server, time.time())
    judged(row, answer, answer)


@ROLES
@pytest.mark.parametrize("row", CASES)
def test_a_handshake_applies_the_rules(row: Row, server: bool) -> None:
    answer = asyncio.run(met(ours(BUNDLES, trust={"aliases": ["unused.example"]}), [row.leaf()], server))
    judged(row, answer, getattr(answer, "peer", None))
