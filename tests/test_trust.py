"""Whose root vouches for whom, what a revocation does, and what is asked again of connections that live."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import forge
from tests.forge import DOMAIN, ID, NOW, Signed, ca, crl, leaf
from tests.handshakes import OWN_ROOT, both, met, ours, snapshot, svid
from tproxy.core.config import Config
from tproxy.core.identity import Snapshot, SpiffeId
from tproxy.core.reason import Deny, Reason
from tproxy.core.settings import Federated, Trust
from tproxy.identity.crl import CrlError, parse
from tproxy.identity.proof import Part, UnusableError, proven
from tproxy.identity.trust import Recent, Verifier
from tproxy.proxy.tls import Contexts, Session, contexts

PARTNER, ALIAS = "partner.example", "old.local"
PARTNER_ID, ALIAS_ID = (f"spiffe://{domain}/ns/shop/sa/web" for domain in (PARTNER, ALIAS))
MIDDLE = ca("our middle", OWN_ROOT)
PARTNER_ROOT = ca("partner root")
BUNDLES = {DOMAIN: OWN_ROOT.pem, PARTNER: PARTNER_ROOT.pem}
KNOWN = {"federated": [{"trustDomain": PARTNER}], "aliases": [ALIAS]}
LEAF = leaf(MIDDLE)
CHAIN = (LEAF.der, MIDDLE.der)
SERIAL = LEAF.parsed.serial_number
ROLES = pytest.mark.parametrize("server", [False, True], ids=["client", "server"])


def verifier(
    bundles: dict[str, bytes] = BUNDLES, crls: tuple[bytes, ...] = (), federated: tuple[Federated, ...] = ()
) -> Verifier:
    return Verifier(snapshot(bundles, crls), Trust(federated=federated), DOMAIN)


def reason_of(answer: object) -> Reason | None:
    return answer.reason if isinstance(answer, Deny) else None


# federation and aliases


@ROLES
@pytest.mark.parametrize(
    ("who", "root", "answer"),
    [
        (ID, OWN_ROOT, None),
        (PARTNER_ID, PARTNER_ROOT, None),
        (ALIAS_ID, OWN_ROOT, None),
        (PARTNER_ID, OWN_ROOT, Reason.PEER_UNTRUSTED),
        (ID, PARTNER_ROOT, Reason.PEER_UNTRUSTED),
        (ALIAS_ID, PARTNER_ROOT, Reason.PEER_UNTRUSTED),
        ("spiffe://evil.example/a", OWN_ROOT, Reason.PEER_FOREIGN),
        ("spiffe://evil.example/a", PARTNER_ROOT, Reason.PEER_FOREIGN),
    ],
)
def test_a_root_vouches_for_its_own_trust_domain_and_for_no_other(
    who: str, root: Signed, answer: Reason | None, server: bool
) -> None:
    found = asyncio.run(met(ours(BUNDLES, trust=KNOWN), [leaf(root, who)], server))
    assert reason_of(found) is answer, found
    if isinstance(found, Session):
        assert str(found.peer) == who  # an alias's too: records say what the certificate says


def test_a_bundle_that_is_not_listed_is_not_used_though_a_source_brought_it() -> None:
    peer = leaf(PARTNER_ROOT, PARTNER_ID)
    assert reason_of(asyncio.run(met(ours(BUNDLES), [peer], True))) is Reason.PEER_UNTRUSTED
    answer = verifier().check((peer.der,), True, time.time())
    assert reason_of(answer) is Reason.PEER_FOREIGN and DOMAIN in str(answer)


def test_a_listed_trust_domain_without_a_bundle_says_what_is_missing() -> None:
    known = verifier({DOMAIN: OWN_ROOT.pem}, federated=(Federated(PARTNER),))
    answer = known.check((leaf(PARTNER_ROOT, PARTNER_ID).der,), True, time.time())
    assert reason_of(answer) is Reason.PEER_FOREIGN and "trust.federated[].bundle" in str(answer)


def test_federation_ends_when_it_is_taken_from_the_list() -> None:
    peer = leaf(PARTNER_ROOT, PARTNER_ID)
    found = asyncio.run(met(ours(BUNDLES, trust=KNOWN), [peer], True))
    assert isinstance(found, Session)
    cut = ours(BUNDLES).recheck(found.chain, True, time.time())
    assert reason_of(cut) is Reason.PEER_FOREIGN


# revocation


def test_a_new_snapshot_brings_a_revocation_and_a_later_one_takes_it_back() -> None:
    before, during, after = ours(BUNDLES), ours(BUNDLES, (crl(MIDDLE, SERIAL),)), ours(BUNDLES, (crl(MIDDLE),))
    for generation, answer in ((before, None), (during, Reason.PEER_REVOKED), (after, None)):
        for server in (False, True):
            assert reason_of(asyncio.run(met(generation, [LEAF, MIDDLE], server))) is answer


def test_a_revocation_names_the_peer_the_serial_and_since_when() -> None:
    answer = verifier(crls=(crl(MIDDLE, SERIAL),)).check(CHAIN, True, time.time())
    assert isinstance(answer, Deny)
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(NOW.timestamp() - 1800))
    assert answer.why == f"{ID}: the peer's certificate, serial {SERIAL:x}, is revoked since {since}"


@pytest.mark.parametrize("form", ["PEM", "DER", "two in one text"])
def test_lists_come_as_pem_or_der(form: str) -> None:
    one, other = crl(MIDDLE, SERIAL), crl(OWN_ROOT)
    forms = {"PEM": forge.crl_pem(one), "DER": one, "two in one text": forge.crl_pem(other) + forge.crl_pem(one)}
    assert reason_of(verifier(crls=(forms[form],)).check(CHAIN, True, time.time())) is Reason.PEER_REVOKED


def idp(**given: Any) -> x509.IssuingDistributionPoint:
    every: dict[str, Any] = {"full_name": None, "relative_name": None, "only_some_reasons": None}
    every |= dict.fromkeys(("only_contains_user_certs", "only_contains_ca_certs", "indirect_crl"), False)
    return x509.IssuingDistributionPoint(**{**every, "only_contains_attribute_certs": False, **given})


REFUSED = {
    "is a delta of another": crl(MIDDLE, SERIAL, extra=((x509.DeltaCRLIndicator(1), True),)),
    "is indirect": crl(MIDDLE, SERIAL, extra=((idp(indirect_crl=True), True),)),
    "has the critical extension 1.3.6.1.4.1.99999.1": crl(MIDDLE, SERIAL, extra=((forge.UNKNOWN, True),)),
    f"says something critical of serial {SERIAL:x}": crl(MIDDLE, SERIAL, entry=((forge.UNKNOWN, True),)),
    "cannot be read": b"neither PEM nor DER",
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_list_that_we_do_not_understand_is_refused_when_it_comes(why: str) -> None:
    own = svid([leaf(OWN_ROOT)], ID)
    with pytest.raises(UnusableError) as caught:
        proven(own.chain_pem, own.key_pem, BUNDLES, DOMAIN, time.time(), (REFUSED[why],))
    assert caught.value.part is Part.CRL and why in caught.value.why
    with pytest.raises(ValueError, match="CRL"):
        verifier(crls=(REFUSED[why],))


@pytest.mark.parametrize(
    "extra",
    [
        (idp(only_contains_user_certs=True), True),
        (idp(full_name=[x509.UniformResourceIdentifier("http://ca/1.crl")]), True),
        (x509.CRLNumber(7), False),
        (forge.UNKNOWN, False),
    ],
)
def test_a_part_of_a_list_and_what_is_not_critical_are_understood(extra: tuple[x509.ExtensionType, bool]) -> None:
    answer = verifier(crls=(crl(MIDDLE, SERIAL, extra=(extra,)),)).check(CHAIN, True, time.time())
    assert reason_of(answer) is Reason.PEER_REVOKED


def test_a_late_list_counts_and_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    late = verifier(crls=(crl(MIDDLE, SERIAL, begin=-2, end=-1),))
    with caplog.at_level(logging.WARNING, "tproxy"):
        for _ in range(3):
            assert reason_of(late.check(CHAIN, True, time.time())) is Reason.PEER_REVOKED
    said = [line for line in caplog.messages if "past its nextUpdate" in line]
    assert len(said) == 1 and "our middle" in said[0]


def test_a_list_that_nobody_we_know_has_signed_says_so_and_counts_once_its_signer_appears(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "tproxy"):
        found = verifier(crls=(crl(MIDDLE, SERIAL),))
    assert any("our middle" in line and "signed by nobody we know" in line for line in caplog.messages)
    assert reason_of(found.check(CHAIN, True, time.time())) is Reason.PEER_REVOKED


def test_a_list_whose_issuer_may_not_sign_lists_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    root = ca("no lists", keys=forge.usage("key_cert_sign"))
    with caplog.at_level(logging.WARNING, "tproxy"):
        verifier({DOMAIN: root.pem}, (crl(root, 1),))
    assert any("no lists" in line and "lacks cRLSign" in line for line in caplog.messages)


# hostile bytes

changes = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3)


def changed(data: bytes, at: list[tuple[float, int]]) -> bytes:
    """With these bytes at these places, as shares of the length."""
    made = bytearray(data)
    for place, value in at:
        made[int(place * len(made))] = value
    return bytes(made)


FUZZED = verifier(crls=(crl(MIDDLE, 1), crl(OWN_ROOT, 1)))


@settings(max_examples=300, deadline=None)
@given(changes, st.booleans())
def test_a_damaged_chain_is_denied_and_never_raises(at: list[tuple[float, int]], is_leaf: bool) -> None:
    chain = (changed(LEAF.der, at), MIDDLE.der) if is_leaf else (LEAF.der, changed(MIDDLE.der, at))
    answer = FUZZED.check(chain, True, time.time())
    assert isinstance(answer, Deny) or chain == CHAIN


@settings(max_examples=300, deadline=None)
@given(changes)
def test_what_an_authority_signed_though_it_is_damaged_never_raises(at: list[tuple[float, int]]) -> None:
    odd = forge.edited(LEAF, MIDDLE, lambda parts: [changed(b"".join(parts), at)])
    assert isinstance(FUZZED.check((odd.der, MIDDLE.der), True, time.time()), Deny | SpiffeId)


@settings(max_examples=300, deadline=None)
@given(changes)
def test_a_damaged_list_is_refused_or_counts_for_nobody(at: list[tuple[float, int]]) -> None:
    genuine = crl(MIDDLE, SERIAL, extra=((x509.CRLNumber(7), False),))
    damaged = changed(genuine, at)
    try:
        (found,) = parse([damaged])
    except CrlError:
        return
    assert not found.is_signed_by(MIDDLE.parsed) or damaged == genuine


# connections that live, and sessions that are resumed


def test_a_live_connection_outlives_its_leaf_but_not_a_revocation_and_not_its_root() -> None:
    later = time.time() + 5400  # the leaf has ended, its issuers have not
    assert reason_of(verifier().check(CHAIN, True, later)) is Reason.PEER_EXPIRED
    assert ours(BUNDLES).recheck(CHAIN, True, later) is None
    assert reason_of(ours(BUNDLES, (crl(MIDDLE, SERIAL),)).recheck(CHAIN, True, later)) is Reason.PEER_REVOKED
    other = {DOMAIN: ca("a new root").pem}
    assert reason_of(ours(other).recheck(CHAIN, True, time.time())) is Reason.PEER_UNTRUSTED


def test_a_root_that_is_added_does_not_cut_and_one_that_is_dropped_does() -> None:
    new = ca("a new root")
    rolling = ours({DOMAIN: new.pem + OWN_ROOT.pem})
    assert rolling.recheck(CHAIN, False, time.time()) is None
    assert reason_of(ours({DOMAIN: new.pem}).recheck(CHAIN, False, time.time())) is Reason.PEER_UNTRUSTED


def test_time_is_asked_anew_of_an_answer_that_is_remembered() -> None:
    known, now = verifier(), time.time()
    for moment, answer in ((now, None), (now + 5400, Reason.PEER_EXPIRED), (now - 86400, Reason.PEER_NOT_YET_VALID)):
        for _ in range(2):
            assert reason_of(known.check(CHAIN, True, now)) is None
            assert reason_of(known.check(CHAIN, True, moment)) is answer


def test_an_intermediate_that_ends_before_its_leaf_ends_the_chain() -> None:
    short = ca("short-lived", OWN_ROOT, end=0.5)
    chain, known = (leaf(short).der, short.der), verifier()
    assert reason_of(known.check(chain, True, time.time())) is None
    assert reason_of(known.check(chain, True, time.time() + 2400)) is Reason.PEER_EXPIRED
    assert reason_of(known.recheck(chain, True, time.time() + 2400)) is Reason.PEER_EXPIRED


def test_what_is_remembered_is_bounded_and_the_least_used_goes_first() -> None:
    kept = Recent[int, int]()
    for number in range(5000):
        kept.keep(number, number)
        assert kept.get(0) == 0
    assert sum(kept.get(number) is not None for number in range(5000)) == 1024


def peer_of(end: Signed) -> Contexts:
    """A sidecar with this leaf below MIDDLE."""
    made = Snapshot(svid([end, MIDDLE], ID), {DOMAIN: OWN_ROOT.pem})
    return contexts(made, Config.parse({"trustDomain": DOMAIN}))


def test_connections_of_one_peer_share_its_chain_also_when_they_resume() -> None:
    server, client = peer_of(leaf(MIDDLE)), peer_of(leaf(MIDDLE))
    seen, ticket = [], None
    for resumed in (False, False, True, True):
        one, other, fresh = asyncio.run(both(server, client, ticket if resumed else None))
        assert isinstance(one, Session) and isinstance(other, Session)
        assert one.leg.tls.resumed is other.leg.tls.resumed is resumed
        seen.append((one.chain, other.chain))
        ticket = fresh
    assert all(len(chain) == 2 for pair in seen for chain in pair)
    assert len({id(of_client) for of_client, _ in seen}) == len({id(of_server) for _, of_server in seen}) == 1


def test_a_session_is_not_resumed_once_the_certificate_that_it_stands_on_has_ended() -> None:
    end = (time.time() + 3 - NOW.timestamp()) / 3600
    brief = leaf(MIDDLE, end=end)
    server, client = peer_of(leaf(MIDDLE)), peer_of(brief)
    first, _, ticket = asyncio.run(both(server, client))
    assert isinstance(first, Session)
    while time.time() < first.not_after + 1:  # the last second counts (RFC 5280, 4.1.2.5)
        time.sleep(0.05)
    answer, other, _ = asyncio.run(both(server, client, ticket))
    assert reason_of(answer) is Reason.PEER_EXPIRED and isinstance(other, Session) and other.leg.tls.resumed


def test_a_resumed_session_whose_chain_was_forgotten_is_judged_with_our_own_intermediates() -> None:
    server = peer_of(leaf(MIDDLE))
    found = server.verifier.meet((LEAF.der,))
    assert not isinstance(found, Deny) and found.chain == CHAIN
    assert server.verifier.check(found.chain, False, time.time()) == SpiffeId.parse(ID)


def test_a_peer_that_sends_its_leaf_alone_keeps_its_connections_when_our_own_intermediate_is_renewed() -> None:
    found = asyncio.run(met(peer_of(leaf(MIDDLE)), [LEAF], True))
    assert isinstance(found, Session) and found.chain == CHAIN
    assert ours(BUNDLES).recheck(found.chain, True, time.time()) is None


def test_our_own_root_s_end_ends_the_short_way_of_the_handshake() -> None:
    """OpenSSL takes our intermediates for anchors there, and would not look at the root above them."""
    mine = Snapshot(svid([LEAF, MIDDLE], ID), {DOMAIN: OWN_ROOT.pem})
    found = Verifier(mine, Trust(), DOMAIN)
    assert found.handshake_suffices(time.time())
    assert not found.handshake_suffices(time.time() + 5400)
    assert not Verifier(replace(mine, crls=(crl(OWN_ROOT),)), Trust(), DOMAIN).handshake_suffices(time.time())
    other = Trust(federated=(Federated(PARTNER),))
    assert not Verifier(replace(mine, bundles=BUNDLES), other, DOMAIN).handshake_suffices(time.time())
