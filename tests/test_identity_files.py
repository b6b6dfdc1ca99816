"""Credentials from files: what is loaded is proven, what is refused is named, and a key is never shown."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.certs import twisted, usage
from tproxy.control import store
from tproxy.core.config import Files
from tproxy.core.fields import ConfigError
from tproxy.core.identity import SpiffeId
from tproxy.identity.files import LIMIT, load
from tproxy.identity.watch import Watch

DOMAIN = "test.local"
ID = f"spiffe://{DOMAIN}/ns/shop/sa/web"
HOUR = timedelta(hours=1)


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    store.create(tmp_path / "ca", DOMAIN, "ecdsa")
    return tmp_path / "ca"


def written(ca: Path, chain: bytes, key: bytes) -> Files:
    """A certificate and its key beside the authority, as any tool would put them."""
    files = Files(str(ca / "c.pem"), str(ca / "k.pem"), str(ca / "bundle.pem"))
    Path(files.cert).write_bytes(chain)
    Path(files.key).write_bytes(key)
    Path(files.key).chmod(0o600)
    return files


@pytest.fixture
def files(ca: Path) -> Files:
    return written(ca, *twisted(ca, (ID,)))


def refusal(files: Files, domain: str = DOMAIN, now: float | None = None) -> str:
    """Why load() refuses; no secret may be in it."""
    with pytest.raises(ConfigError) as caught:
        load(files, domain, time.time() if now is None else now)
    return str(caught.value)


def test_a_good_identity_is_loaded_whole(files: Files) -> None:
    found = load(files, DOMAIN, time.time())
    assert found.svid.id == SpiffeId.parse(ID) and list(found.bundles) == [DOMAIN]
    assert found.svid.chain_pem.count(b"BEGIN CERTIFICATE") == 2 and b"PRIVATE" not in found.svid.chain_pem


def test_a_key_is_in_no_repr(files: Files) -> None:
    found = load(files, DOMAIN, time.time())
    assert "PRIVATE" not in repr(found) and "pem" not in repr(found)


def test_key_and_chain_may_share_one_file(files: Files) -> None:
    path = Path(files.cert)
    path.write_bytes(Path(files.key).read_bytes() + path.read_bytes())
    path.chmod(0o600)
    found = load(replace(files, key=files.cert), DOMAIN, time.time())
    assert b"PRIVATE" not in found.svid.chain_pem and b"CERTIFICATE" not in found.svid.key_pem


@pytest.mark.parametrize("field", ["cert", "key", "ca"])
def test_a_missing_file_is_named(files: Files, field: str) -> None:
    path = Path(getattr(files, field))
    path.unlink()
    assert refusal(files) == f"{path}: identity.{field}: cannot be read: No such file or directory"


@pytest.mark.parametrize("field", ["cert", "key", "ca"])
@pytest.mark.parametrize(
    ("content", "why"),
    [(b" \n", "is empty"), (b"hello", "holds no PEM "), (b"x" * (LIMIT + 1), f"is larger than {LIMIT} bytes")],
)
def test_a_file_that_is_no_pem_is_named(files: Files, field: str, content: bytes, why: str) -> None:
    Path(getattr(files, field)).write_bytes(content)
    assert refusal(files).startswith(f"{getattr(files, field)}: identity.{field}: {why}")


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o620, 0o666])
def test_a_key_that_others_can_reach_is_refused(files: Files, mode: int) -> None:
    Path(files.key).chmod(mode)
    assert refusal(files) == f"{files.key}: identity.key: mode {mode:04o} lets others at the key: chmod 600 (or 640)"


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_a_key_may_be_readable_by_its_group_as_fs_group_makes_it(files: Files, mode: int) -> None:
    Path(files.key).chmod(mode)
    assert load(files, DOMAIN, time.time())


def test_an_encrypted_key_is_named_as_such(files: Files) -> None:
    path = Path(files.key)
    command = ["openssl", "pkcs8", "-topk8", "-in", str(path), "-passout", "pass:secret"]
    path.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    assert refusal(files).startswith(f"{files.key}: identity.key: is encrypted")


def test_another_certificate_s_key_is_refused_and_not_shown(ca: Path, files: Files) -> None:
    key = twisted(ca, (ID,))[1]
    Path(files.key).write_bytes(key)
    said = refusal(files)
    assert said == f"{files.key}: identity.key: is not the key of {files.cert}"
    assert key.decode().splitlines()[1] not in said


@pytest.mark.parametrize(
    ("uris", "twists", "why"),
    [
        ((), {}, "has no URI SAN"),
        ((ID, ID + "2"), {}, "has 2 URI SANs"),
        (("https://web",), {}, "does not start with spiffe://"),
        ((f"spiffe://{DOMAIN}",), {}, "names a trust domain, not a workload"),
        ((ID,), {"ca": True}, "is a CA's"),
        ((ID,), {"keys": usage(sign=True)}, "may sign others"),
    ],
)
def test_a_certificate_that_is_no_svid_is_refused_with_the_reason(
    ca: Path, uris: tuple[str, ...], twists: dict[str, object], why: str
) -> None:
    files = written(ca, *twisted(ca, uris, **twists))  # type: ignore[arg-type]
    said = refusal(files)
    assert said.startswith(f"{files.cert}: identity.cert: is not an X.509-SVID: ") and why in said


def test_another_trust_domain_is_refused(files: Files) -> None:
    assert f"is {ID}, of another trust domain than other (trustDomain)" in refusal(files, "other")


def test_time_is_the_caller_s(files: Files) -> None:
    svid = load(files, DOMAIN, time.time()).svid
    assert "identity.cert: expired 5 s ago; renew it" in refusal(files, now=svid.not_after + 5)
    assert "identity.cert: is valid only in 5 s; compare clocks" in refusal(files, now=svid.not_before - 5)


def test_an_expired_certificate_is_refused(ca: Path) -> None:
    files = written(ca, *twisted(ca, (ID,), begin=-2 * HOUR, end=-HOUR))
    assert "identity.cert: expired" in refusal(files)


def test_our_own_certificate_must_verify_against_our_own_bundle(tmp_path: Path, files: Files) -> None:
    store.create(tmp_path / "other", DOMAIN, "ecdsa")
    said = refusal(replace(files, ca=str(tmp_path / "other" / "bundle.pem")))
    assert "does not verify against our own trust bundle" in said and files.cert in said


def test_a_chain_without_its_intermediate_is_refused(files: Files) -> None:
    leaf, end, _ = Path(files.cert).read_text().partition("-----END CERTIFICATE-----\n")
    Path(files.cert).write_text(leaf + end)
    assert "unable to get local issuer certificate" in refusal(files)


def test_a_self_signed_certificate_is_refused(ca: Path) -> None:
    assert "does not verify against our own trust bundle" in refusal(written(ca, *twisted(ca, (ID,), self_signed=True)))


@pytest.mark.parametrize("purpose", [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
def test_a_certificate_for_one_role_only_is_refused(ca: Path, purpose: object) -> None:
    files = written(ca, *twisted(ca, (ID,), eku=(purpose,)))  # type: ignore[arg-type]
    assert "identity.cert: " in refusal(files)


def test_a_bundle_without_a_ca_proves_nobody(files: Files) -> None:
    Path(files.ca).write_bytes(
        Path(files.cert).read_bytes().partition(b"-----END CERTIFICATE-----\n")[0] + b"-----END CERTIFICATE-----\n"
    )
    assert refusal(files)


def test_a_watch_tells_each_change_once(files: Files) -> None:
    watch = Watch([files.cert, files.key, files.ca])
    assert not watch.changed()
    Path(files.cert).write_bytes(b"longer than nothing")
    assert watch.changed() and not watch.changed()


def test_a_watch_sees_a_link_that_was_swapped_and_a_file_that_came_and_went(tmp_path: Path) -> None:
    link, new = tmp_path / "data", tmp_path / "data_tmp"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cert.pem").write_text("same")
    link.symlink_to("one")
    watch = Watch([str(link / "cert.pem"), str(tmp_path / "later")])
    new.symlink_to("two")
    new.rename(link)
    assert watch.changed()
    (tmp_path / "later").write_text("here")
    assert watch.changed()
    (tmp_path / "later").unlink()
    assert watch.changed() and not watch.changed()


def test_a_watch_looks_into_folders(tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    watch = Watch([str(folder)])
    assert not watch.changed()
    (folder / "a.yaml").write_text("one")
    assert watch.changed() and not watch.changed()
    (folder / "a.yaml").write_text("in place")
    assert watch.changed() and not watch.changed()
    (folder / "0-dangling").symlink_to("nowhere")
    assert watch.changed()
    (folder / "a.yaml").write_text("behind one that cannot be looked at")
    assert watch.changed() and not watch.changed()
    (folder / "0-dangling").unlink()
    (folder / "a.yaml").unlink()
    assert watch.changed() and not watch.changed()
    folder.rmdir()
    assert watch.changed() and not watch.changed()


def test_a_log_that_is_written_beside_a_watched_folder_makes_nobody_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "policies").mkdir()
    watch, looks = Watch([str(folder)]), list[float]()
    look = watch._look
    monkeypatch.setattr(watch, "_look", lambda: looks.append(time.monotonic()) or look())

    async def scenario() -> None:
        task = asyncio.create_task(watch.change())
        with (tmp_path / "log").open("w", buffering=1) as log:
            await asyncio.sleep(0.2)
            looks.clear()
            for line in range(10):
                log.write(f"{line}\n")
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        assert not looks
        (folder / "a.yaml").write_text("one")
        await asyncio.wait_for(task, 4)  # before it would have looked anyway
        folder.rename(tmp_path / "old")
        await asyncio.wait_for(watch.change(), 4)

    asyncio.run(scenario())


def test_a_key_of_another_type_is_a_mismatch_too(files: Files) -> None:
    command = ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]
    Path(files.key).write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    assert refusal(files) == f"{files.key}: identity.key: is not the key of {files.cert}"


def test_a_bundle_without_a_ca_is_named_as_such(files: Files) -> None:
    leaf = Path(files.cert).read_bytes().partition(b"-----END")[0] + b"-----END CERTIFICATE-----\n"
    Path(files.ca).write_bytes(leaf)
    assert refusal(files).startswith(f"{files.ca}: identity.ca: ")


def test_a_fifo_is_refused_and_does_not_block(files: Files) -> None:
    Path(files.ca).unlink()
    os.mkfifo(files.ca)
    assert "identity.ca" in refusal(files)
