"""Addresses: one text for each endpoint, one family for each address, no typo that widens a rule."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.core.address import Endpoint, contains, parse_address, parse_network

ports = st.integers(0, 65535)
endpoints = st.builds(Endpoint, st.ip_addresses().map(lambda ip: parse_address(str(ip))), ports)


@given(endpoints)
def test_an_endpoint_is_read_back_from_its_text(endpoint: Endpoint) -> None:
    assert Endpoint.parse(str(endpoint)) == endpoint


@given(st.text(alphabet="0123456789abcdef.:[]%/ x٣", max_size=30))
def test_what_is_no_endpoint_raises_value_error_and_nothing_else(text: str) -> None:
    try:
        endpoint = Endpoint.parse(text)
    except ValueError:
        return
    assert 0 <= endpoint.port <= 65535 and Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.7",
        "10.0.0.7:",
        ":80",
        "10.0.0.7:65536",
        "10.0.0.7:-1",
        "10.0.0.7:+1",
        "10.0.0.7: 80",
        "10.0.0.7:80\n",
        "10.0.0.7:٣",  # a digit of another script
        "10.0.0.7:" + "1" * 5000,
        "fd00::7:80",
        "[fd00::7]",
        "[fd00::7:80",
        "fd00::7]:80",
        "[[fd00::7]]:80",
        "]10.0.0.7[:80",
        "[10.0.0.7]:80",
        "010.0.0.7:80",
        "web:80",
    ],
)
def test_an_endpoint_that_is_written_in_another_way_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Endpoint.parse(text)


@given(st.ip_addresses(v=4), ports)
def test_an_ipv4_mapped_address_is_the_ipv4_address(ip: IPv4Address, port: int) -> None:
    mapped = f"::ffff:{ip}"
    plain = Endpoint(ip, port)
    assert parse_address(mapped) == ip
    assert Endpoint.parse(f"[{mapped}]:{port}") == plain
    assert Endpoint.of_socket((mapped, port, 0, 0)) == plain == Endpoint.of_socket((str(ip), port))


def test_a_scope_is_not_part_of_an_address() -> None:
    assert parse_address("fe80::1%eth0") == IPv6Address("fe80::1")


def test_only_an_ipv6_endpoint_is_written_in_brackets() -> None:
    assert str(Endpoint(IPv4Address("10.0.0.7"), 80)) == "10.0.0.7:80"
    assert str(Endpoint(IPv6Address("fd00::7"), 80)) == "[fd00::7]:80"


def test_a_network_with_host_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="host bits"):
        parse_network("10.0.0.1/8")


@given(st.ip_addresses(v=4))
def test_a_single_address_is_a_network_of_one(ip: IPv4Address) -> None:
    assert parse_network(str(ip)) == IPv4Network((ip, 32))
    assert contains([parse_network(str(ip))], ip)


def test_an_ipv4_mapped_network_is_the_ipv4_network_because_its_addresses_are() -> None:
    assert parse_network("::ffff:10.0.0.0/104") == IPv4Network("10.0.0.0/8")
    assert contains([parse_network("::ffff:10.0.0.0/104")], parse_address("::ffff:10.1.2.3"))
    assert parse_network("::ffff:0:0/95".replace("ffff", "fffe")) == IPv6Network("::fffe:0:0/95")


@given(st.ip_addresses())
def test_everywhere_holds_every_address_and_no_networks_hold_none(ip: IPv4Address | IPv6Address) -> None:
    assert contains((parse_network("0.0.0.0/0"), parse_network("::/0")), ip) and not contains((), ip)


@given(st.ip_addresses(), st.ip_addresses(), st.integers(0, 128))
def test_a_network_holds_an_address_of_its_family_with_the_same_first_bits(
    one: IPv4Address | IPv6Address, other: IPv4Address | IPv6Address, prefix: int
) -> None:
    rest = max(0, one.max_prefixlen - prefix)
    base = ip_address(int(one) >> rest << rest) if one.version == 4 else IPv6Address(int(one) >> rest << rest)
    network = (IPv4Network if one.version == 4 else IPv6Network)((int(base), one.max_prefixlen - rest))
    same = one.version == other.version and int(one) >> rest == int(other) >> rest
    assert contains([network], other) is same
