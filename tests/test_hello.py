"""The ClientHello reader, against real hellos of Python's ssl, hand-made hellos, and everything hostile."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from tproxy.core.hello import (
    GROUP_NAMES,
    Hello,
    Malformed,
    NeedMore,
    NotTls,
    ServerHello,
    group_name,
    parse,
    server_hello,
)


def v(width: int, data: bytes) -> bytes:
    """A TLS vector: a length of so many bytes, then the data."""
    return len(data).to_bytes(width) + data


def ext(kind: int, data: bytes) -> bytes:
    """One extension."""
    return kind.to_bytes(2) + v(2, data)


def u16(*numbers: int) -> bytes:
    """Numbers of two bytes."""
    return b"".join(number.to_bytes(2) for number in numbers)


def sni(*names: bytes, kind: int = 0) -> bytes:
    """A server_name extension."""
    return ext(0, v(2, b"".join(bytes([kind]) + v(2, name) for name in names)))


def body(extensions: bytes | None = b"", version: int = 0x0303, session: bytes = b"") -> bytes:
    """A ClientHello without its handshake header; ``None`` for the form that has no extensions at all."""
    start = u16(version) + bytes(32) + v(1, session) + v(2, u16(0x1301, 0xC02B)) + v(1, b"\0")
    return start if extensions is None else start + v(2, extensions)


def handshake(data: bytes, kind: int = 1) -> bytes:
    """A handshake message."""
    return bytes([kind]) + v(3, data)


def record(data: bytes, kind: int = 0x16) -> bytes:
    """One record."""
    return bytes([kind, 3, 1]) + v(2, data)


def records(message: bytes, sizes: Iterable[int]) -> bytes:
    """The message in records of these sizes; what is left goes into the last ones."""
    out, at = b"", 0
    for size in sizes:
        out, at = out + (record(message[at : at + size]) if message[at : at + size] else b""), at + size
    rest = message[at:]
    return out + b"".join(record(rest[i : i + 16384]) for i in range(0, len(rest), 16384))


def hello(extensions: bytes | None = b"", **more: int) -> bytes:
    """A whole ClientHello in one record."""
    return record(handshake(body(extensions, **more)))


def client_context(alpn: Iterable[str] = ()) -> ssl.SSLContext:
    """A client that checks nobody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def real(name: str | None = None, alpn: Iterable[str] = (), low: ssl.TLSVersion | None = None) -> bytes:
    """What Python's ssl sends first."""
    context = client_context(alpn)
    if low:
        context.maximum_version = low
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


REAL = real("Web.Shop.svc.Cluster.Local", ["h2", "http/1.1", "istio"])
# What a browser sends: GREASE everywhere, and a post-quantum key share of 1184 + 32 bytes.
POST_QUANTUM = hello(
    ext(0x2A2A, b"")
    + sni(b"shop.example")
    + ext(10, v(2, u16(0xAAAA, 0x11EC, 0x001D, 0x0017)))
    + ext(16, v(2, v(1, b"h2") + v(1, b"\x0a\x0a")))
    + ext(43, v(1, u16(0x1A1A, 0x0304, 0x0303)))
    + ext(51, v(2, u16(0x11EC) + v(2, bytes(1216)) + u16(0x001D) + v(2, bytes(32))))
    + ext(0xFE0D, bytes(200))  # ECH, or its GREASE
    + ext(0x3A3A, b"\0")
)
SAMPLES = {
    "real": REAL,
    "without a name": real(),
    "TLS 1.2": real("web", low=ssl.TLSVersion.TLSv1_2),
    "post-quantum": POST_QUANTUM,
    "without extensions": hello(None),
    "in many records": records(REAL[5:], [1] * 60 + [100, 2, 3]),
    "one byte a record": records(handshake(body(sni(b"web"))), [1] * 80),
}
each_sample = pytest.mark.parametrize("whole", SAMPLES.values(), ids=SAMPLES.keys())


def not_tls(data: bytes, why: str, limit: int = 16384) -> None:
    """It is refused for this reason."""
    match parse(data, limit):
        case NotTls(said) | Malformed(said):
            assert why in said
        case other:
            pytest.fail(f"{other!r}, expected {why!r}")


# What a hello says


def test_a_real_hello_gives_its_name_protocols_versions_and_groups() -> None:
    found = parse(REAL)
    assert isinstance(found, Hello)
    assert found.sni == "web.shop.svc.cluster.local"
    assert found.alpn == ("h2", "http/1.1", "istio")
    assert found.versions == (0x0304, 0x0303)
    assert 0x001D in found.groups


def test_a_hello_without_name_and_protocols_has_none() -> None:
    found = parse(real())
    assert isinstance(found, Hello)
    assert (found.sni, found.alpn) == (None, ())


def test_without_supported_versions_the_legacy_version_is_the_offer() -> None:
    found = parse(SAMPLES["TLS 1.2"])
    assert isinstance(found, Hello)
    assert found.versions == (0x0303,)


def test_a_hello_may_have_no_extensions_at_all() -> None:
    assert parse(hello(None, version=0x0302)) == parse(hello(b"", version=0x0302)) == Hello(None, (), (0x0302,), ())


def test_a_tls_1_3_only_hello_is_understood() -> None:
    assert parse(hello(ext(43, v(1, u16(0x0304))))) == Hello(None, (), (0x0304,), ())


def test_a_post_quantum_hello_with_grease_is_ordinary() -> None:
    """GREASE offers mean nothing and are left out; protocol names are passed on as they are."""
    assert len(POST_QUANTUM) > 1500
    groups = (0x11EC, 0x001D, 0x0017)
    assert parse(POST_QUANTUM) == Hello("shop.example", ("h2", "\n\n"), (0x0304, 0x0303), groups)


def test_a_memoryview_is_read_like_bytes() -> None:
    assert parse(memoryview(REAL)) == parse(REAL)


@each_sample
def test_what_follows_the_hello_is_ignored(whole: bytes) -> None:
    """Early data, and whatever else a client sends without waiting."""
    for tail in (record(b"early", kind=0x17), b"\0", b"GET / HTTP/1.1", bytes(20000)):
        assert parse(whole + tail) == parse(whole)


# Cut anywhere, split anywhere


@each_sample
def test_a_hello_cut_at_any_byte_needs_more_and_never_more_than_there_is(whole: bytes) -> None:
    assert isinstance(parse(whole), Hello)
    for have in range(len(whole)):
        found = parse(whole[:have])
        assert isinstance(found, NeedMore), (have, found)
        assert found.have == have < found.at_least <= len(whole)


def test_once_the_length_is_known_need_more_is_exact() -> None:
    assert parse(REAL[:9]) == NeedMore(9, len(REAL))
    assert parse(REAL[:-1]) == NeedMore(len(REAL) - 1, len(REAL))


@given(st.sampled_from(["real", "post-quantum", "TLS 1.2"]), st.lists(st.integers(1, 400), max_size=80))
def test_a_hello_in_records_of_any_size_is_the_same_hello(name: str, sizes: list[int]) -> None:
    whole = SAMPLES[name]
    assert parse(records(whole[5:], sizes)) == parse(whole)


def test_a_hello_in_records_of_one_byte_is_the_same_hello() -> None:
    assert parse(records(REAL[5:], [1] * len(REAL))) == parse(REAL)


# What is not a hello


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"EHLO example.org\r\n",
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",  # PostgreSQL's SSLRequest
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10",  # an SSLv2 hello
        b"*1\r\n$4\r\nPING\r\n",
        record(b"\x02\x28", kind=0x15),  # an alert
        record(b"\x01", kind=0x14),
        record(b"data", kind=0x17),
    ],
)
def test_other_protocols_are_refused_by_their_first_byte(data: bytes) -> None:
    why = f"first byte 0x{data[0]:02x} is not a TLS handshake record"
    assert parse(data) == parse(data[:1]) == NotTls(why)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x16\x02", "record version 0x02"),
        (b"\x16\x03\x01\x00\x00", "record of 0 bytes"),
        (b"\x16\x03\x01\x40\x01", "record of 16385 bytes"),
        (b"\x16\x03\x01\xff\xff", "record of 65535 bytes"),
        (b"\x16\x03\x01\x00\x05\x02", "type 2 is not a ClientHello"),
        (b"\x16\x03\x01\x00\x05\x01\xff\xff\xff", "larger than 16384"),  # Netty's CVE-2026-45416
        (b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc", "larger than 16384"),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x28", "40 bytes is too short"),
    ],
)
def test_a_bad_header_is_refused_with_its_last_byte(data: bytes, why: str) -> None:
    assert isinstance(parse(data[:-1]), NeedMore)
    not_tls(data, why)


@pytest.mark.parametrize("kind", [0x14, 0x15, 0x17, 0x18, 0x00])
def test_no_other_record_may_interrupt_a_hello(kind: int) -> None:
    start = records(REAL[5:105], [100])
    assert isinstance(parse(start), NeedMore)
    not_tls(start + bytes([kind]), f"record of type 0x{kind:02x} interrupts")


def test_an_empty_record_between_fragments_is_refused() -> None:
    not_tls(records(REAL[5:105], [100]) + record(b""), "record of 0 bytes")


@pytest.mark.parametrize("slack", [0, 1])
def test_a_hello_may_take_up_the_limit_and_not_a_byte_more(slack: int) -> None:
    """The records' headers count, wherever the hello is cut."""
    data = hello(ext(21, bytes(16384 - len(hello(ext(21, b""))) + slack)))
    assert len(data) == 16384 + slack
    assert isinstance(parse(data), Malformed if slack else Hello)
    assert isinstance(parse(data[:9]), Malformed if slack else NeedMore)
    assert isinstance(parse(records(data[5:], [100])), Malformed)
    assert isinstance(parse(data + bytes(100), limit=len(data)), Hello)


def test_the_limit_is_an_argument_and_is_named() -> None:
    not_tls(REAL, "larger than 200 bytes", limit=200)
    not_tls(records(REAL[5:], [1] * len(REAL)), "larger than 1000 bytes", limit=1000)
    not_tls(b"", "larger than 0 bytes", limit=0)


@pytest.mark.parametrize(
    ("extensions", "why"),
    [
        (ext(43, v(1, u16(0x0304))) * 2, "extension 43 appears twice"),
        (ext(0x2A2A, b"") * 2, "extension 10794 appears twice"),
        (sni(b"a") + sni(b"b"), "extension 0 appears twice"),
        (b"\x00\x00\x00\x09abc", "longer than what holds it"),
        (ext(21, b"") + b"\0\0\0", "longer than what holds it"),
        (sni(b"a", b"b"), "two host names"),
        (sni(b""), "server name of 0 bytes"),
        (sni(b"a" * 256), "server name of 256 bytes"),
        (sni("wéb".encode()), "not printable ASCII"),
        (sni(b"web\0.evil"), "not printable ASCII"),
        (sni(b"web evil"), "not printable ASCII"),
        (sni(b"web\r\n"), "not printable ASCII"),
        (sni(), "server names are empty"),
        (ext(0, b""), "server names are longer"),
        (ext(0, b"\0"), "server names are longer"),
        (ext(0, v(2, b"\0" + v(2, b"web")) + b"x"), "do not fill"),
        (ext(0, b"\0\x20\0\0\x03web"), "server names are longer"),
        (ext(0, v(2, b"\0\0\x09web")), "server names are longer"),
        (ext(0, v(2, b"\0")), "server names are longer"),
        (ext(16, b""), "ALPN protocols are longer"),
        (ext(16, v(2, b"")), "ALPN protocols are empty"),
        (ext(16, v(2, v(1, b"h2") + b"\0")), "empty ALPN protocol name"),
        (ext(16, v(2, b"\x09h2")), "ALPN protocols are longer"),
        (ext(43, b""), "supported versions are longer"),
        (ext(43, b"\0"), "supported versions are empty"),
        (ext(43, v(1, b"\x03\x04\x03")), "supported versions are cut"),
        (ext(10, v(2, b"\x00")), "supported groups are cut"),
        (ext(10, u16(0x20, 0x1D)), "supported groups are longer"),
    ],
)
def test_a_malformed_extension_is_refused(extensions: bytes, why: str) -> None:
    not_tls(hello(extensions), why)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (body(version=0x0200), "version 0x0200"),
        (body(session=bytes(33)), "session id of 33 bytes"),
        (body() + b"\0", "bytes follow the extensions"),
        (body(None) + b"\0", "extensions are longer"),
        (body(None) + b"\0\x01", "extensions are longer"),
        (u16(0x0303) + bytes(33) + v(2, b"") + v(1, bytes(4)), "cipher suites"),
        (u16(0x0303) + bytes(33) + v(2, b"\x13\x01\x13") + v(1, b"\0"), "cipher suites"),
        (u16(0x0303) + bytes(33) + v(2, u16(0x1301, 0x1302)) + v(1, b""), "compression methods"),
        (u16(0x0303) + bytes(33) + b"\xff\xfe" + bytes(9), "cipher suites are longer"),
        (u16(0x0303) + bytes(33) + v(2, u16(0x1301)) + b"\xff" + bytes(9), "compression methods are longer"),
        (u16(0x0303) + bytes(32) + b"\x20" + bytes(6), "cipher suites"),
    ],
)
def test_a_malformed_hello_is_refused(data: bytes, why: str) -> None:
    not_tls(record(handshake(data)), why)


def test_names_of_other_types_are_passed_over() -> None:
    assert parse(hello(sni(b"\xff\0", kind=7))) == Hello(None, (), (0x0303,), ())


@pytest.mark.parametrize("name", ["web.", "10.0.0.7", "_srv.shop", "*", "a" * 255])
def test_an_odd_name_is_passed_on_as_it_is(name: str) -> None:
    """Whether it matches a route is not decided here."""
    found = parse(hello(sni(name.encode())))
    assert isinstance(found, Hello)
    assert found.sni == name


# Nothing raises

EDITS = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6)


def edited(whole: bytes, edits: list[tuple[int, int]]) -> bytes:
    """The bytes with a few of them replaced."""
    data = bytearray(whole)
    for at, value in edits:
        data[at % len(data)] = value
    return bytes(data)


@settings(max_examples=400)
@given(st.sampled_from(sorted(SAMPLES)), EDITS, st.integers(0, 2000))
def test_a_mutated_hello_never_raises(name: str, edits: list[tuple[int, int]], cut: int) -> None:
    """And a verdict once given stands, whatever arrives later: only NeedMore may change."""
    data = edited(SAMPLES[name], edits)
    early, late = parse(data[:cut]), parse(data)
    assert isinstance(early, NeedMore) or early == late or {type(early), type(late)} == {Malformed}
    if isinstance(early, NeedMore) and isinstance(late, Hello):
        assert early.at_least <= len(data)


@given(st.binary(max_size=300))
def test_any_bytes_at_all_never_raise(data: bytes) -> None:
    for given_bytes in (data, b"\x16\x03\x01" + data, record(handshake(data)), record(handshake(body(data)))):
        assert isinstance(parse(given_bytes), Hello | NeedMore | NotTls | Malformed)
        assert isinstance(server_hello(given_bytes), ServerHello | None)


@pytest.mark.parametrize("value", [0x00, 0x01, 0x7F, 0x80, 0xFF])
def test_every_single_byte_may_be_hostile(value: int) -> None:
    for at in range(len(REAL)):
        assert isinstance(parse(edited(REAL, [(at, value)])), Hello | NeedMore | NotTls | Malformed)


# What the server chose


@pytest.fixture(scope="module")
def server_context(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], ssl.SSLContext]:
    """Makes servers of one self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "web")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7)
    builder = builder.not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
    made = builder.not_valid_after(datetime(2049, 1, 1, tzinfo=UTC)).sign(key, hashes.SHA256())
    path: Path = tmp_path_factory.mktemp("tls") / "web.pem"
    none = serialization.NoEncryption()
    pkcs8 = serialization.PrivateFormat.PKCS8
    pem = serialization.Encoding.PEM
    path.write_bytes(key.private_bytes(pem, pkcs8, none) + made.public_bytes(pem))

    def make() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    return make


def shake(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[bytes, ssl.SSLObject]:
    """A whole handshake in memory: what the server sent, and the client's end."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    here, there = client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)
    sent, pending = b"", [here, there]
    while pending:
        for end in list(pending):
            try:
                end.do_handshake()
                pending.remove(end)
            except ssl.SSLWantReadError:
                pass
            if end is there:
                answer = down.read()
                sent += answer
                down.write(answer)
    return sent, here


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2])
def test_the_choice_of_a_real_server_is_what_was_negotiated(
    version: ssl.TLSVersion, server_context: Callable[[], ssl.SSLContext]
) -> None:
    client = client_context()
    client.maximum_version = version
    sent, end = shake(client, server_context())
    found, cipher = server_hello(sent), end.cipher()
    assert found is not None
    assert cipher is not None
    (code,) = (suite["id"] & 0xFFFF for suite in client.get_ciphers() if suite["name"] == cipher[0])
    assert (found.version, found.cipher) == (version, code)
    assert (found.group is not None) == (version == ssl.TLSVersion.TLSv1_3)
    assert server_hello(memoryview(sent)) == found


def test_after_a_real_retry_request_the_true_hello_counts(
    server_context: Callable[[], ssl.SSLContext],
) -> None:
    """A server that wants another group than the client guessed; change_cipher_spec stands between the two."""
    server = server_context()
    server.set_ecdh_curve("secp384r1")
    sent, _ = shake(client_context(), server)
    retry = 5 + int.from_bytes(sent[3:5])
    assert sent[retry] == 0x14
    both, first = server_hello(sent), server_hello(sent[:retry])
    assert both is not None
    assert both == first  # what a retry request asks for, the hello then does
    assert group_name(both.group or 0) == "secp384r1"


def chosen(share: bytes, random: bytes = bytes(32), cipher: int = 0x1301) -> bytes:
    """A server's hello, or its retry request."""
    extensions = ext(43, u16(0x0304)) + ext(51, share)
    return record(handshake(u16(0x0303) + random + v(1, b"") + u16(cipher) + b"\0" + v(2, extensions), kind=2))


RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")


def test_a_retry_request_is_skipped_only_for_a_hello_that_follows() -> None:
    retry, true = chosen(u16(0x18), RETRY, 0x1302), chosen(u16(0x11EC) + v(2, bytes(1120)))
    assert server_hello(retry) == ServerHello(0x0304, 0x1302, 0x18)
    for between in (b"", record(b"\x01", kind=0x14)):
        assert server_hello(retry + between + true) == ServerHello(0x0304, 0x1301, 0x11EC)
        assert server_hello(retry + between + true[:-1]) == ServerHello(0x0304, 0x1302, 0x18)


def test_a_hello_in_any_records_and_cut_anywhere_is_whole_or_nothing() -> None:
    whole = chosen(u16(0x1D) + v(2, bytes(32)))
    assert server_hello(records(whole[5:], [1] * 50)) == server_hello(whole) == ServerHello(0x0304, 0x1301, 0x1D)
    assert {server_hello(whole[:cut]) for cut in range(len(whole))} == {None}


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 400", record(b"\x02\x28", kind=0x15), REAL])
def test_what_is_no_server_hello_gives_nothing(data: bytes) -> None:
    assert server_hello(data) is None


@given(EDITS)
def test_a_mutated_server_hello_never_raises(edits: list[tuple[int, int]]) -> None:
    retry, true = chosen(u16(0x18), RETRY), chosen(u16(0x1D) + v(2, bytes(32)))
    assert isinstance(server_hello(edited(retry + true, edits)), ServerHello | None)


def test_groups_have_their_iana_names_and_unknown_ones_a_number() -> None:
    assert group_name(0x11EC) == "X25519MLKEM768"
    assert group_name(0x001D) == "x25519"
    assert group_name(0x0100) == "0x0100"
    assert all(group_name(group) == name for group, name in GROUP_NAMES.items())
