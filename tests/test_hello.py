"""The ClientHello parser: real hellos, cut and re-cut anywhere, and hostile bytes that may never raise."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tproxy.core.hello import Hello, NeedMore, NotTls, ServerHello, group_name, parse, server_hello


def client_hello(sni: str | None = "Web.Example.org", alpn: tuple[str, ...] = ("istio", "h2")) -> bytes:
    """What Python's own TLS client sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=sni).do_handshake()
    return outgoing.read()


REAL = client_hello()
BODY = REAL[5:]


def records(pieces: list[int]) -> bytes:
    """The same hello in records of these sizes, the rest in the last."""
    out, at = b"", 0
    for size in pieces:
        if at + size < len(BODY):
            out += b"\x16\x03\x01" + size.to_bytes(2, "big") + BODY[at : at + size]
            at += size
    return out + b"\x16\x03\x01" + (len(BODY) - at).to_bytes(2, "big") + BODY[at:]


def test_a_real_hello_is_read() -> None:
    found = parse(REAL)
    assert isinstance(found, Hello)
    assert (found.sni, found.alpn) == ("web.example.org", ("istio", "h2"))
    assert 0x0304 in found.versions
    assert 0x0017 in found.groups  # secp256r1


def test_a_hello_without_sni_or_alpn_is_read() -> None:
    found = parse(client_hello(None, ()))
    assert isinstance(found, Hello)
    assert (found.sni, found.alpn) == (None, ())


def test_every_prefix_needs_more_and_nothing_else() -> None:
    for cut in range(len(REAL)):
        found = parse(REAL[:cut])
        assert isinstance(found, NeedMore), (cut, found)
        assert found.have == cut
        assert found.at_least > cut


def test_what_follows_the_hello_is_ignored() -> None:
    assert parse(REAL + b"early data") == parse(REAL)


@given(st.lists(st.integers(1, 300), max_size=12))
def test_fragmentation_into_records_changes_nothing(pieces: list[int]) -> None:
    assert parse(records(pieces)) == parse(REAL)


def test_the_hello_may_be_split_at_every_byte() -> None:
    for cut in range(1, len(BODY)):
        assert parse(records([cut])) == parse(REAL)


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n", b"SSH-2.0-OpenSSH\r\n", b"EHLO x\r\n", b"\x00\x00\x00\x08\x04\xd2\x16\x2f", b"*1\r\n"],
)
def test_other_protocols_are_told_by_their_first_byte(data: bytes) -> None:
    for cut in range(1, len(data)):
        found = parse(data[:cut])
        assert isinstance(found, NotTls)
        assert found.why.startswith("first byte 0x")


@given(st.binary(max_size=600))
def test_random_bytes_never_raise(data: bytes) -> None:
    parse(data)
    parse(b"\x16\x03\x01" + data)
    server_hello(data)
    server_hello(b"\x16\x03\x03" + data)


@settings(max_examples=500)
@given(st.lists(st.tuples(st.integers(0, len(REAL) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_mutations_never_raise(changes: list[tuple[int, int]]) -> None:
    data = bytearray(REAL)
    for at, value in changes:
        data[at] = value
    assert isinstance(parse(bytes(data)), Hello | NeedMore | NotTls)


def test_a_hello_that_claims_more_than_the_limit_is_refused_at_once() -> None:
    found = parse(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff\x03\x03")
    assert isinstance(found, NotTls)


def test_a_hello_larger_than_the_limit_is_refused_and_one_within_it_is_not() -> None:
    assert isinstance(parse(REAL, len(REAL)), Hello)
    assert isinstance(parse(REAL, len(REAL) - 1), NotTls)


def test_an_empty_record_is_refused() -> None:
    assert isinstance(parse(b"\x16\x03\x01\x00\x00" + REAL), NotTls)


def test_a_post_quantum_sized_key_share_is_read() -> None:
    share = b"\x11\xec" + (1216).to_bytes(2, "big") + bytes(1216)
    extensions = b"\x00\x33" + (len(share) + 2).to_bytes(2, "big") + len(share).to_bytes(2, "big") + share
    extensions += b"\x00\x0a\x00\x04\x00\x02\x11\xec" + b"\x00\x2b\x00\x03\x02\x03\x04"
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    body += len(extensions).to_bytes(2, "big") + extensions
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    found = parse(b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message)
    assert isinstance(found, Hello)
    assert found.groups == (0x11EC,)
    assert group_name(0x11EC) == "X25519MLKEM768"


def test_an_extension_given_twice_is_refused() -> None:
    extensions = b"\x00\x2b\x00\x03\x02\x03\x04" * 2
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    body += len(extensions).to_bytes(2, "big") + extensions
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    assert isinstance(parse(b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message), NotTls)


def test_a_servers_choice_is_read_from_a_real_answer(tmp_path_factory: pytest.TempPathFactory) -> None:
    from tproxy.control import authority

    now = authority.utc_now()
    pair = authority.new_root("test.local", "ecdsa", now)
    path = tmp_path_factory.mktemp("pair") / "pair.pem"
    path.write_bytes(pair.certificate_pem() + pair.key_pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    incoming.write(REAL)
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_side=True).do_handshake()
    answer = outgoing.read()
    found = server_hello(answer)
    assert isinstance(found, ServerHello)
    assert found.version == 0x0304
    assert found.cipher in (0x1301, 0x1302, 0x1303)
    assert found.group is not None
    assert group_name(found.group) in ("x25519", "secp256r1", "X25519MLKEM768")
    for cut in range(60):
        server_hello(answer[:cut])
