"""The certificate authority: what it signs, with openssl as the oracle, and how its files come to be."""

from __future__ import annotations

import subprocess
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from tproxy.control import authority, store
from tproxy.core.config import Files
from tproxy.core.fields import ConfigError
from tproxy.core.identity import SpiffeId
from tproxy.identity.files import load

DOMAIN = "test.local"
WEB = SpiffeId.workload(DOMAIN, "shop", "web")
DAY = timedelta(days=1)


def openssl(*args: str | Path) -> str:
    """What openssl says; it must be content."""
    done = subprocess.run(["openssl", *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def made(tmp_path: Path, kind: str = "ecdsa") -> tuple[Path, Path]:
    """An authority and one workload's directory."""
    ca, out = tmp_path / "ca", tmp_path / "web"
    store.create(ca, DOMAIN, kind)
    store.issue(ca, WEB, out, DAY, kind, False, None)
    return ca, out


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
@pytest.mark.parametrize("purpose", ["sslclient", "sslserver"])
def test_openssl_verifies_a_leaf_for_both_roles(tmp_path: Path, kind: str, purpose: str) -> None:
    ca, out = made(tmp_path, kind)
    trust = ("-CAfile", ca / "bundle.pem", "-untrusted", ca / "intermediate.crt")
    assert openssl("verify", "-x509_strict", "-purpose", purpose, *trust, out / "cert.pem").endswith("OK\n")


def test_a_leaf_has_one_name_which_is_critical_because_the_subject_is_empty(tmp_path: Path) -> None:
    _, out = made(tmp_path)
    text = openssl("x509", "-in", out / "cert.pem", "-noout", "-text")
    assert "Subject: \n" in text or "Subject:\n" in text
    assert f"Subject Alternative Name: critical\n                URI:{WEB}\n" in text


def test_a_leaf_signs_nothing_and_serves_both_roles(tmp_path: Path) -> None:
    _, out = made(tmp_path)
    text = openssl("x509", "-in", out / "cert.pem", "-noout", "-text")
    assert "Basic Constraints: critical\n                CA:FALSE" in text
    assert "X509v3 Key Usage: critical\n                Digital Signature" in text
    assert "TLS Web Server Authentication, TLS Web Client Authentication" in text


@pytest.mark.parametrize(("name", "depth"), [("root.crt", 1), ("intermediate.crt", 0)])
def test_a_signing_certificate_names_the_trust_domain_without_a_path(tmp_path: Path, name: str, depth: int) -> None:
    ca, _ = made(tmp_path)
    text = openssl("x509", "-in", ca / name, "-noout", "-text")
    assert f"URI:spiffe://{DOMAIN}\n" in text
    assert f"Basic Constraints: critical\n                CA:TRUE, pathlen:{depth}" in text
    assert "X509v3 Key Usage: critical\n                Certificate Sign, CRL Sign" in text


def test_a_leaf_never_outlives_its_signer() -> None:
    now = authority.utc_now()
    middle = authority.new_intermediate(authority.new_root(DOMAIN, "ecdsa", now), DOMAIN, "ecdsa", now)
    leaf = authority.issue(middle, WEB, authority.new_key("ecdsa").public_key(), 4000 * DAY, now)
    assert leaf.not_valid_after_utc == middle.certificate.not_valid_after_utc == now + authority.INTERMEDIATE_LIFE


def test_a_leaf_begins_a_minute_early_for_clocks_that_are_behind() -> None:
    now = authority.utc_now()
    root = authority.new_root(DOMAIN, "ecdsa", now - DAY)
    leaf = authority.issue(root, WEB, authority.new_key("ecdsa").public_key(), DAY, now)
    assert leaf.not_valid_before_utc == now - timedelta(seconds=60)


def test_serial_numbers_are_random_and_positive_within_twenty_octets() -> None:
    now = authority.utc_now()
    root = authority.new_root(DOMAIN, "ecdsa", now)
    key = authority.new_key("ecdsa").public_key()
    serials = {authority.issue(root, WEB, key, DAY, now).serial_number for _ in range(20)}
    assert len(serials) == 20 and all(0 < serial < 2**159 for serial in serials)


def test_keys_are_for_their_owner_only_and_the_rest_is_public(tmp_path: Path) -> None:
    ca, out = made(tmp_path)
    assert {mode(path) for path in (ca / "root.key", ca / "intermediate.key", out / "key.pem")} == {0o600}
    assert {mode(path) for path in (ca / "root.crt", ca / "bundle.pem", out / "cert.pem", out / "ca.pem")} == {0o644}


@pytest.mark.parametrize("name", ["root.crt", "root.key", "intermediate.crt", "intermediate.key", "bundle.pem"])
def test_an_authority_is_never_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(ConfigError, match=f"{name}: --dir: exists; an authority is never overwritten"):
        store.create(tmp_path, DOMAIN, "ecdsa")
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "precious"


def test_an_identity_is_replaced_only_when_asked(tmp_path: Path) -> None:
    ca, out = made(tmp_path)
    before = (out / "key.pem").read_bytes()
    with pytest.raises(ConfigError, match="web: --out: exists; --renew replaces it"):
        store.issue(ca, WEB, out, DAY, "ecdsa", False, None)
    assert (out / "key.pem").read_bytes() == before


def test_there_must_be_something_to_renew(tmp_path: Path) -> None:
    ca, _ = made(tmp_path)
    with pytest.raises(ConfigError, match="db: --out: holds no identity yet; leave out --renew"):
        store.issue(ca, WEB, tmp_path / "db", DAY, "ecdsa", True, None)


def test_files_lead_through_one_link_and_a_renewal_leaves_no_old_key(tmp_path: Path) -> None:
    ca, out = made(tmp_path)
    first = (out / "..data").readlink()
    store.issue(ca, WEB, out, DAY, "ecdsa", True, None)
    assert str((out / "key.pem").readlink()) == "..data/key.pem"
    assert (out / "..data").readlink() != first and not (out / first).exists()
    assert len([path for path in out.iterdir() if path.is_dir() and not path.is_symlink()]) == 1


def test_a_reader_never_meets_a_mismatched_pair_while_identities_are_renewed(tmp_path: Path) -> None:
    ca, out = made(tmp_path)
    files = Files(*(str(out / name) for name in ("cert.pem", "key.pem", "ca.pem")))
    stop, renewals, faults = threading.Event(), [0], list[BaseException]()

    def renew() -> None:
        try:
            while not stop.is_set():
                store.issue(ca, WEB, out, DAY, "ecdsa", True, None)
                renewals[0] += 1
        except BaseException as error:
            faults.append(error)

    writer = threading.Thread(target=renew)
    writer.start()
    try:
        serials = {load(files, DOMAIN, time.time()).svid.serial for _ in range(200)}
    finally:
        stop.set()
        writer.join()
    assert not faults and renewals[0] > 5 and len(serials) > 5


def test_the_owner_is_given_the_files(tmp_path: Path) -> None:
    ca, out = made(tmp_path)
    try:
        store.issue(ca, WEB, out, DAY, "ecdsa", True, (1337, 1337))
    except PermissionError:
        pytest.skip("needs CAP_CHOWN")
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in (out / "..data").resolve().iterdir()}
    assert owners == {(1337, 1337)}


def test_a_foreign_trust_domain_is_not_signed_for(tmp_path: Path) -> None:
    ca, _ = made(tmp_path)
    with pytest.raises(
        ConfigError, match=r"--id: 'spiffe://other/ns/a/sa/b': this authority signs for test\.local only"
    ):
        store.issue(ca, SpiffeId.workload("other", "a", "b"), tmp_path / "x", DAY, "ecdsa", False, None)
    assert not (tmp_path / "x").exists()


def test_a_missing_authority_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"intermediate\.crt: --dir: .*; make an authority with tproxy ca init --dir"):
        store.signer(tmp_path)


def test_a_damaged_key_is_named_and_never_repeated(tmp_path: Path) -> None:
    ca, _ = made(tmp_path)
    body = (ca / "intermediate.key").read_text().splitlines()[1]
    (ca / "intermediate.key").write_text(body)
    with pytest.raises(ConfigError, match="is damaged") as caught:
        store.signer(ca)
    assert body not in str(caught.value)


def test_a_key_is_in_no_repr(tmp_path: Path) -> None:
    ca, _ = made(tmp_path)
    pair = store.signer(ca)
    assert "key" not in repr(pair).lower().replace("publickey", "")
    assert isinstance(pair.certificate, x509.Certificate)


def test_a_renewal_keeps_the_owner(tmp_path: Path) -> None:
    ca, out = made(tmp_path)
    try:
        store.issue(ca, WEB, out, DAY, "ecdsa", True, (1337, 1337))
    except PermissionError:
        pytest.skip("needs CAP_CHOWN")
    store.issue(ca, WEB, out, DAY, "ecdsa", True, None)
    assert (out / "key.pem").stat().st_uid == 1337


def test_a_renewal_cannot_change_whom_a_directory_names(tmp_path: Path) -> None:
    ca, out = made(tmp_path)
    with pytest.raises(ConfigError):
        store.issue(ca, SpiffeId.workload(DOMAIN, "shop", "db"), out, DAY, "ecdsa", True, None)


def test_a_foreign_file_in_the_way_is_an_error_that_names_it(tmp_path: Path) -> None:
    ca, _ = made(tmp_path)
    out = tmp_path / "plain"
    out.mkdir()
    (out / "cert.pem").write_text("precious")
    with pytest.raises(ConfigError, match=r"cert\.pem"):
        store.issue(ca, WEB, out, DAY, "ecdsa", False, None)
    assert [path.name for path in out.iterdir()] == ["cert.pem"]


def test_an_intermediate_with_another_key_is_refused(tmp_path: Path) -> None:
    ca, _ = made(tmp_path)
    store.create(tmp_path / "other", DOMAIN, "ecdsa")
    (ca / "intermediate.key").write_bytes((tmp_path / "other" / "intermediate.key").read_bytes())
    with pytest.raises(ConfigError):
        store.signer(ca)


def test_a_missing_bundle_is_named(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    store.create(ca, DOMAIN, "ecdsa")
    (ca / "bundle.pem").unlink()
    with pytest.raises(ConfigError, match=r"bundle\.pem"):
        store.issue(ca, WEB, tmp_path / "x", DAY, "ecdsa", False, None)


def test_directories_are_made_for_their_owner_only(tmp_path: Path) -> None:
    ca, out = made(tmp_path)
    assert {mode(ca), mode(out)} == {0o700}


def test_rsa_authorities_have_3072_bits_and_rsa_leaves_may_encipher(tmp_path: Path) -> None:
    ca, out = made(tmp_path, "rsa")
    assert "3072 bit" in openssl("x509", "-in", ca / "root.crt", "-noout", "-text")
    assert "Key Encipherment" in openssl("x509", "-in", out / "cert.pem", "-noout", "-ext", "keyUsage")


def test_an_expired_intermediate_is_named(tmp_path: Path) -> None:
    ca, _ = made(tmp_path)
    root, long_ago = authority.new_root(DOMAIN, "ecdsa", authority.utc_now() - 400 * DAY), 400 * DAY
    old = authority.new_intermediate(root, DOMAIN, "ecdsa", authority.utc_now() - long_ago)
    (ca / "intermediate.crt").write_bytes(old.certificate_pem())
    (ca / "intermediate.key").write_bytes(old.key_pem())
    with pytest.raises(ConfigError):
        store.issue(ca, WEB, tmp_path / "x", DAY, "ecdsa", False, None)
