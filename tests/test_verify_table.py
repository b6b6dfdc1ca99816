"""Good and bad chains, judged three times: by our Verifier, by a handshake of two real ends, by ``openssl verify``.

All three agree, or the row says why they do not. Every leaf is a proper SVID; the SPIFFE rules have their own table.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from tests import forge
from tests.forge import ANY, CLIENT, CODE, ID, SERVER, SHA1, Signed, broken, ca, crl, edited, first_version, leaf, usage
from tests.handshakes import OWN_ROOT, met, ours, snapshot
from tproxy.core.identity import SpiffeId
from tproxy.core.reason import Deny, Reason
from tproxy.core.settings import Trust
from tproxy.identity.trust import Verifier

BOTH, AS_CLIENT, AS_SERVER = (False, True), (False,), (True,)
OK = None
UNTRUSTED, EXPIRED, EARLY = Reason.PEER_UNTRUSTED, Reason.PEER_EXPIRED, Reason.PEER_NOT_YET_VALID
LEAF_ONLY, ALL = "-crl_check", "-crl_check_all"
USAGE, REVOKED = Reason.PEER_WRONG_USAGE, Reason.PEER_REVOKED

ROOT = ca("root")
MIDDLE = ca("middle", ROOT)
LOWER = ca("lower", MIDDLE)
STRANGER = ca("stranger")
TWIN = ca("root", key_name="p256-twin")  # ROOT's name, another key


@dataclass(frozen=True)
class Row:
    """A chain, leaf first, against a bundle, and what comes of it in each of the peer's roles."""

    name: str
    chain: tuple[Signed, ...]
    bundle: tuple[Signed, ...] = (ROOT,)
    answer: Reason | None = OK
    roles: tuple[bool, ...] = BOTH
    crls: tuple[bytes, ...] = ()
    check: str = ""  # of openssl: -crl_check or -crl_check_all
    openssl: str = ""  # why openssl verify says the opposite
    handshake: Reason | None = None  # what the handshake says instead, and why is in the name


def under(depth: int) -> tuple[Signed, ...]:
    """A chain with so many intermediates."""
    found = [ROOT]
    for number in range(depth):
        found.append(ca(f"step{number}", found[-1]))
    return (leaf(found[-1]), *found[:0:-1])


def limited(
    permitted: list[x509.GeneralName] | None = None, excluded: list[x509.GeneralName] | None = None, root: bool = False
) -> Signed:
    """An authority with name constraints."""
    constraint = ((x509.NameConstraints(permitted, excluded), True),)
    return ca("limited", None if root else ROOT, extra=constraint)


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def dns(text: str) -> x509.GeneralName:
    return x509.DNSName(text)


def bare(name: str, issuer: Signed | None = None, key_name: str = "") -> Signed:
    """An authority without key identifiers."""
    return ca(name, issuer, key_name, ids=False)


NO_USAGE_ROOT = ca("plain root", keys=None)
NOT_CA = ca("not a ca", ROOT, basic=x509.BasicConstraints(False, None))
NO_BASIC = ca("no basic", ROOT, basic=None)
NO_SIGN = ca("no sign", ROOT, keys=usage("crl_sign"))
ONLY_CLIENT = ca("for clients", ROOT, eku=(CLIENT,))
OLD, NEW, FUTURE = (
    ca(name, ROOT, begin=begin, end=end) for name, begin, end in (("old", -3, -1), ("renewed", -1, 2), ("future", 1, 2))
)
OLD_ROOT, FUTURE_ROOT = ca("old root", begin=-3, end=-1), ca("future root", begin=1, end=2)
SMALL, SMALL_ROOT = ca("small", ROOT, "rsa1024-ca"), ca("small root", key_name="rsa1024-ca")
BARE, BARE_TWIN = bare("bare"), bare("bare", key_name="p256-bare-twin")
CROSS = ca("stranger", ROOT, "p256-stranger")  # STRANGER's key, vouched for by ROOT
OLD_CROSS = ca("stranger", ROOT, "p256-stranger", begin=-3, end=-1)
SHORT = ca("short", ROOT, depth=0)
SHORT_ROOT = ca("short root", depth=0)
LONE = leaf(None)
LEAF_AS_CA = leaf(MIDDLE, name="a leaf", key_name="p256-sub")
STRANGE = ca("strange", ROOT, extra=((forge.UNKNOWN, True),))
STRANGE_ROOT = ca("strange root", extra=((forge.UNKNOWN, True),))
NO_CRL_SIGN = ca("no crl sign", ROOT, keys=usage("key_cert_sign"))
WRONG_AKID = x509.AuthorityKeyIdentifier(b"x" * 20, None, None)
WRONG_SERIAL = x509.AuthorityKeyIdentifier(None, [x509.DirectoryName(forge.named("root"))], 4711)
SAME_ROOT = ca("same")
SAME = ca("same", SAME_ROOT, "p256-same-middle")
LEAF = leaf(MIDDLE)
SERIAL = LEAF.parsed.serial_number
OWN, OTHER = uri("test.local"), uri("other.example")

ROWS = [
    # good ones
    Row("a leaf under a root", (leaf(ROOT),)),
    Row("a leaf under an intermediate", (LEAF, MIDDLE)),
    Row("a leaf under two intermediates", (leaf(LOWER), LOWER, MIDDLE)),
    Row("a leaf under ten intermediates", under(10)),
    Row("a P-384 leaf", (leaf(MIDDLE, key_name="p384-leaf"), MIDDLE)),
    Row("a P-521 leaf", (leaf(MIDDLE, key_name="p521-leaf"), MIDDLE)),
    Row("an Ed25519 leaf", (leaf(MIDDLE, key_name="ed25519-leaf"), MIDDLE)),
    Row("an RSA 2048 leaf", (leaf(MIDDLE, key_name="rsa2048-leaf"), MIDDLE)),
    Row("an RSA 2048 root", (leaf(ca("rsa", key_name="rsa2048-ca")),), (ca("rsa", key_name="rsa2048-ca"),)),
    Row("a P-384 root", (leaf(ca("p384", key_name="p384-ca")),), (ca("p384", key_name="p384-ca"),)),
    Row("an Ed25519 root", (leaf(ca("ed", key_name="ed25519-ca")),), (ca("ed", key_name="ed25519-ca"),)),
    Row("the root comes along", (LEAF, MIDDLE, ROOT)),
    Row("unrelated certificates come along", (LEAF, STRANGER, MIDDLE, TWIN)),
    Row("intermediates in the wrong order", (leaf(LOWER), MIDDLE, LOWER)),
    Row("the leaf comes twice", (LEAF, LEAF, MIDDLE)),
    Row("no key identifiers anywhere", (leaf(BARE, ids=False),), (BARE,)),
    Row("a root without a key usage", (leaf(NO_USAGE_ROOT),), (NO_USAGE_ROOT,)),
    Row("an unknown extension that is not critical", (leaf(MIDDLE, extra=((forge.UNKNOWN, False),)), MIDDLE)),
    Row("a serial of twenty octets", (leaf(MIDDLE, serial=2**159 - 1), MIDDLE)),
    Row("a subject and a SAN that is not critical", (leaf(MIDDLE, name="web", critical_san=False), MIDDLE)),
    Row("it ends in the year 9999", (leaf(ROOT, end=69_000_000),)),
    # time
    Row("the leaf has expired", (leaf(MIDDLE, begin=-2, end=-1), MIDDLE), answer=EXPIRED),
    Row("the intermediate has expired", (leaf(OLD), OLD), answer=EXPIRED),
    Row("the root has expired", (leaf(OLD_ROOT),), (OLD_ROOT,), EXPIRED),
    Row("the leaf is not valid yet", (leaf(MIDDLE, begin=0.5), MIDDLE), answer=EARLY),
    Row("the intermediate is not valid yet", (leaf(FUTURE), FUTURE), answer=EARLY),
    Row("the root is not valid yet", (leaf(FUTURE_ROOT),), (FUTURE_ROOT,), EARLY),
    Row("an expired intermediate beside a renewed one of the same key",
        (leaf(ca("again", ROOT)), ca("again", ROOT, begin=-3, end=-1), ca("again", ROOT))),
    # signatures and keys
    Row("the leaf's signature is wrong", (broken(LEAF), MIDDLE), answer=UNTRUSTED),
    Row("the intermediate's signature is wrong", (LEAF, broken(MIDDLE)), answer=UNTRUSTED),
    Row("the root's own signature is wrong, which proves nothing anyway", (LEAF, MIDDLE), (broken(ROOT),)),
    Row("the right issuer's name, another's key", (leaf(TWIN),), answer=UNTRUSTED),
    Row("the same without key identifiers", (leaf(BARE_TWIN, ids=False),), (BARE,), UNTRUSTED),
    Row("a SHA-1 leaf", (edited(LEAF, MIDDLE, inner=SHA1), MIDDLE), answer=UNTRUSTED),
    Row("a SHA-1 intermediate", (LEAF, edited(MIDDLE, ROOT, inner=SHA1)), answer=UNTRUSTED),
    Row("a SHA-1 root, whose signature proves nothing", (LEAF, MIDDLE), (edited(ROOT, ROOT, inner=SHA1),)),
    Row("two signature algorithms that differ", (edited(LEAF, MIDDLE, outer=SHA1), MIDDLE), answer=UNTRUSTED),
    Row("an RSA 1024 leaf", (leaf(MIDDLE, key_name="rsa1024-leaf"), MIDDLE), answer=UNTRUSTED),
    Row("an RSA 1024 intermediate", (leaf(SMALL), SMALL), answer=UNTRUSTED),
    Row("an RSA 1024 root", (leaf(SMALL_ROOT),), (SMALL_ROOT,), UNTRUSTED),
    # paths
    Row("the intermediate is missing", (LEAF,), answer=UNTRUSTED),
    Row("the upper intermediate is missing", (leaf(LOWER), LOWER), answer=UNTRUSTED),
    Row("another root", (leaf(STRANGER),), answer=UNTRUSTED),
    Row("another root that comes along", (leaf(STRANGER), STRANGER), answer=UNTRUSTED),
    Row("a self-signed leaf", (LONE,), answer=UNTRUSTED),
    Row("a self-signed leaf that stands in the bundle", (LONE,), (LONE, ROOT)),
    Row("a leaf in the bundle, without its issuer", (LEAF,), (LEAF, STRANGER)),
    Row("a bundle of an intermediate only", (LEAF, MIDDLE), (MIDDLE,)),
    Row("a bundle of a root and its intermediate", (LEAF,), (ROOT, MIDDLE)),
    Row("a root of the same name before the right one", (LEAF, MIDDLE), (TWIN, ROOT)),
    Row("a root of the same name behind the right one", (LEAF, MIDDLE), (ROOT, TWIN)),
    Row("roots of the same name without key identifiers, the right one first", (leaf(BARE, ids=False),),
        (BARE, BARE_TWIN)),
    Row("cross-signed, by the new root", (leaf(STRANGER), CROSS), (STRANGER,)),
    Row("cross-signed, by the old root", (leaf(STRANGER), CROSS)),
    Row("cross-signed, by both", (leaf(STRANGER), CROSS), (STRANGER, ROOT)),
    Row("an expired cross-signature beside the new root", (leaf(STRANGER), OLD_CROSS), (ROOT, STRANGER)),
    Row("an expired cross-signature and only the old root", (leaf(STRANGER), OLD_CROSS), answer=EXPIRED),
    Row("path length as allowed", (leaf(SHORT), SHORT)),
    Row("path length exceeded below an intermediate", (leaf(ca("x", SHORT)), ca("x", SHORT), SHORT), answer=UNTRUSTED),
    Row("path length exceeded below the root", (leaf(ca("y", SHORT_ROOT)), ca("y", SHORT_ROOT)),
        (SHORT_ROOT,), UNTRUSTED),
    Row("an intermediate with CA:false", (leaf(NOT_CA), NOT_CA), answer=UNTRUSTED),
    Row("an intermediate without basic constraints", (leaf(NO_BASIC), NO_BASIC), answer=UNTRUSTED),
    Row("an intermediate without keyCertSign", (leaf(NO_SIGN), NO_SIGN), answer=UNTRUSTED),
    Row("a leaf that signed a leaf", (leaf(LEAF_AS_CA), LEAF_AS_CA, MIDDLE), answer=UNTRUSTED),
    Row("an authority key identifier of another key", (leaf(ROOT, akid=WRONG_AKID),), answer=UNTRUSTED),
    Row("an authority key identifier with another serial", (leaf(ROOT, akid=WRONG_SERIAL),), answer=UNTRUSTED),
    Row("seventeen certificates", (LEAF, MIDDLE, *(STRANGER,) * 15), answer=UNTRUSTED,
        openssl="it has no limit below a hundred; ours is sixteen"),
    Row("three hundred, which a handshake does not even read", (LEAF, MIDDLE, *(STRANGER,) * 300),
        answer=UNTRUSTED, openssl="it reads files of any size", handshake=Reason.HANDSHAKE_FAILED),
    # extended key usage
    Row("no extended key usage", (leaf(MIDDLE, eku=None), MIDDLE)),
    Row("for clients only, a client", (leaf(MIDDLE, eku=(CLIENT,)), MIDDLE), roles=AS_CLIENT),
    Row("for clients only, a server", (leaf(MIDDLE, eku=(CLIENT,)), MIDDLE), answer=USAGE, roles=AS_SERVER),
    Row("for servers only, a server", (leaf(MIDDLE, eku=(SERVER,)), MIDDLE), roles=AS_SERVER),
    Row("for servers only, a client", (leaf(MIDDLE, eku=(SERVER,)), MIDDLE), answer=USAGE, roles=AS_CLIENT),
    Row("for anything, which names no role", (leaf(MIDDLE, eku=(ANY,)), MIDDLE), answer=USAGE),
    Row("for anything, and both roles", (leaf(MIDDLE, eku=(ANY, CLIENT, SERVER)), MIDDLE)),
    Row("for signing code", (leaf(MIDDLE, eku=(CODE,)), MIDDLE), answer=USAGE),
    Row("an intermediate for clients, a client", (leaf(ONLY_CLIENT), ONLY_CLIENT), roles=AS_CLIENT),
    Row("an intermediate for clients, a server", (leaf(ONLY_CLIENT), ONLY_CLIENT), answer=USAGE, roles=AS_SERVER),
    # extensions
    Row("an unknown critical extension in the leaf", (leaf(MIDDLE, extra=((forge.UNKNOWN, True),)), MIDDLE),
        answer=UNTRUSTED),
    Row("an unknown critical extension in the intermediate", (leaf(STRANGE), STRANGE), answer=UNTRUSTED),
    Row("an unknown critical extension in the root", (leaf(STRANGE_ROOT),), (STRANGE_ROOT,), UNTRUSTED),
    Row("a version 1 leaf, which can name no id", (edited(LEAF, MIDDLE, first_version), MIDDLE),
        answer=Reason.PEER_NO_ID,
        openssl="it knows nothing of ids"),
    Row("a version 1 intermediate", (LEAF, edited(MIDDLE, ROOT, first_version)), answer=UNTRUSTED),
    Row("a version 1 root", (LEAF, MIDDLE), (edited(ROOT, ROOT, first_version),)),
    Row("a negative serial", (edited(LEAF, MIDDLE, lambda it: [it[0], b"\2\1\x80", *it[2:]]), MIDDLE)),
    Row("a serial of zero", (edited(LEAF, MIDDLE, lambda it: [it[0], b"\2\1\0", *it[2:]]), MIDDLE)),
    # names
    Row("a permitted trust domain", (leaf(limited([OWN])), limited([OWN]))),
    Row("a trust domain that is not permitted", (leaf(limited([OTHER])), limited([OTHER])), answer=UNTRUSTED),
    Row("an excluded trust domain", (leaf(limited(None, [OWN])), limited(None, [OWN])), answer=UNTRUSTED),
    Row("another trust domain is excluded", (leaf(limited(None, [OTHER])), limited(None, [OTHER]))),
    Row("only names below the trust domain are permitted",
        (leaf(limited([uri(".test.local")])), limited([uri(".test.local")])), answer=UNTRUSTED),
    Row("a permitted trust domain, in the root", (leaf(limited([OWN], root=True)),), (limited([OWN], root=True),)),
    Row("a trust domain that is not permitted, in the root", (leaf(limited([OTHER], root=True)),),
        (limited([OTHER], root=True),), UNTRUSTED),
    Row("a permitted DNS name", (leaf(limited([dns("a.test")]), dns=["x.a.test"]), limited([dns("a.test")]))),
    Row("a DNS name that is not permitted", (leaf(limited([dns("a.test")]), dns=["b.test"]), limited([dns("a.test")])),
        answer=UNTRUSTED),
    Row("an excluded DNS name", (leaf(limited(None, [dns("a.test")]), dns=["x.a.test"]), limited(None,
        [dns("a.test")])),
        answer=UNTRUSTED),
    # revocation
    Row("a list that does not name it", (LEAF, MIDDLE), crls=(crl(MIDDLE, 4711),), check=LEAF_ONLY),
    Row("a revoked leaf", (LEAF, MIDDLE), answer=REVOKED, crls=(crl(MIDDLE, 1, SERIAL),), check=LEAF_ONLY),
    Row("a revoked leaf under a root", (leaf(ROOT, serial=77),), answer=REVOKED, crls=(crl(ROOT, 77),),
        check=LEAF_ONLY),
    Row("a revoked leaf under a root with serial zero, as old ones have", (leaf(ROOT, serial=77),),
        (edited(ROOT, ROOT, lambda it: [it[0], b"\2\1\0", *it[2:]]),), REVOKED, crls=(crl(ROOT, 77),), check=LEAF_ONLY),
    Row("a revoked intermediate", (LEAF, MIDDLE), answer=REVOKED, check=ALL,
        crls=(crl(MIDDLE), crl(ROOT, MIDDLE.parsed.serial_number))),
    Row("lists of both issuers, neither names them", (LEAF, MIDDLE), crls=(crl(MIDDLE), crl(ROOT)), check=ALL),
    Row("a revoked intermediate that stands in the bundle beside its root", (LEAF, MIDDLE), (ROOT, MIDDLE), REVOKED,
        crls=(crl(MIDDLE), crl(ROOT, MIDDLE.parsed.serial_number)), check=ALL),
    Row("an expired list that names it", (LEAF, MIDDLE), answer=REVOKED, crls=(crl(MIDDLE, SERIAL, begin=-2, end=-1),),
        check=LEAF_ONLY),
    Row("an expired list that does not name it", (LEAF, MIDDLE), crls=(crl(MIDDLE, begin=-2, end=-1),), check=LEAF_ONLY,
        openssl="it refuses everyone when a list is late; we warn and keep serving"),
    Row("a list of the future that names it", (LEAF, MIDDLE), answer=REVOKED, crls=(crl(MIDDLE, SERIAL, begin=0.5),),
        check=LEAF_ONLY),
    Row("a list of another issuer with its serial", (LEAF, MIDDLE), crls=(crl(STRANGER, SERIAL),), check=LEAF_ONLY,
        openssl="it demands a list of every issuer; without one we know of no revocation"),
    Row("a list with the issuer's name by another's key", (LEAF, MIDDLE), crls=(crl(MIDDLE, SERIAL, signer=STRANGER),),
        check=LEAF_ONLY, openssl="it refuses everyone when a list is forged; for us it is nobody's"),
    Row("a list of the root, whose name the intermediate has, too", (leaf(SAME, serial=79), SAME), (SAME_ROOT,),
        crls=(crl(SAME_ROOT, 79),), check=LEAF_ONLY, openssl="it goes by the name; we go by name and key"),
    Row("a list whose issuer lacks cRLSign", (leaf(NO_CRL_SIGN, serial=78), NO_CRL_SIGN), crls=(crl(NO_CRL_SIGN, 78),),
        check=LEAF_ONLY, openssl="it refuses everyone then; we warn that the list does not count"),
    Row("two lists, and the older one names it", (LEAF, MIDDLE), answer=REVOKED, check=LEAF_ONLY,
        crls=(crl(MIDDLE, SERIAL, begin=-3), crl(MIDDLE)),
        openssl="it takes the newest; our lists may be parts of one"),
]  # fmt: skip
NAMES = ("client", "server")
CASES = [pytest.param(row, role, id=f"{row.name}, as {NAMES[role]}") for row in ROWS for role in row.roles]


def test_the_table_has_at_least_sixty_chains_and_each_once() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) >= 60


def bundles(row: Row) -> dict[str, bytes]:
    return {forge.DOMAIN: b"".join(one.pem for one in row.bundle)}


@pytest.mark.parametrize(("row", "server"), CASES)
def test_our_verifier_says_what_the_row_says(row: Row, server: bool) -> None:
    verifier = Verifier(snapshot(bundles(row), row.crls), Trust(), forge.DOMAIN)
    answer = verifier.check(tuple(one.der for one in row.chain), server, time.time())
    if row.answer is OK:
        assert answer == SpiffeId.parse(ID)
    else:
        assert isinstance(answer, Deny) and answer.reason is row.answer, answer


@pytest.mark.parametrize(("row", "server"), CASES)
def test_a_handshake_says_what_the_row_says(row: Row, server: bool) -> None:
    """With our own root in the bundle, so that without CRLs OpenSSL's verification in the handshake is the decision."""
    end = ours({forge.DOMAIN: bundles(row)[forge.DOMAIN] + OWN_ROOT.pem}, row.crls)
    assert end.verifier.handshake_suffices(time.time()) is not bool(row.crls)
    answer = asyncio.run(met(end, row.chain, server))
    if row.answer is OK:
        assert not isinstance(answer, Deny) and str(answer.peer) == ID
        assert answer.chain == tuple(one.der for one in row.chain)
    else:
        assert isinstance(answer, Deny) and answer.reason is (row.handshake or row.answer), answer


@pytest.mark.parametrize(("row", "server"), CASES)
def test_openssl_verify_agrees_or_the_row_says_why_not(row: Row, server: bool, tmp_path: Path) -> None:
    """The system's own openssl, another version than ours, with the security level that TLS has in ours."""
    first, rest = tmp_path / "leaf.pem", tmp_path / "rest.pem"
    roots, lists = tmp_path / "roots.pem", tmp_path / "lists.pem"
    first.write_bytes(row.chain[0].pem)
    rest.write_bytes(b"".join(one.pem for one in row.chain[1:]))
    roots.write_bytes(b"".join(one.pem for one in row.bundle))
    lists.write_bytes(b"".join(forge.crl_pem(one) for one in row.crls))
    command = ["openssl", "verify", "-partial_chain", "-auth_level", "2", "-no-CApath", "-no-CAstore"]
    command += ["-purpose", "sslserver" if server else "sslclient", "-CAfile", str(roots)]
    command += ["-untrusted", str(rest)] if row.chain[1:] else []
    command += [row.check, "-CRLfile", str(lists)] if row.check else []
    done = subprocess.run([*command, str(first)], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is ((row.answer is OK) is not bool(row.openssl)), done.stdout + done.stderr
