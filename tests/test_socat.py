"""socat's two addresses are read as socat reads them, or refused with the nearest valid word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.core.fields import ConfigError
from tproxy.core.socat import Listen, Target


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("TCP-LISTEN:443,fork,reuseaddr", Listen("", 443, True)),
        ("TCP-LISTEN:443,reuseaddr,fork", Listen("", 443, True)),
        ("tcp-listen:8443,fork", Listen("", 8443, True)),
        ("TCP-LISTEN:443", Listen("", 443, False)),
        ("TCP-L:443,fork,bind=10.0.0.1", Listen("10.0.0.1", 443, True)),
        ("TCP4-LISTEN:443,fork", Listen("0.0.0.0", 443, True)),
        ("TCP6-LISTEN:443,fork,bind=[fd00::1]", Listen("fd00::1", 443, True)),
    ],
)
def test_000_02_a_listening_address_of_socat_is_read(text: str, listen: Listen) -> None:
    assert Listen.parse(text) == listen


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("TCP:10.211.55.14:32653", Target("10.211.55.14", 32653)),
        ("tcp:localhost:32653", Target("localhost", 32653)),
        ("TCP4:node-1.example_.com:1", Target("node-1.example_.com", 1)),
        ("TCP-CONNECT:[fd00::7]:65535", Target("fd00::7", 65535)),
    ],
)
def test_000_02_a_target_of_socat_is_read(text: str, target: Target) -> None:
    assert Target.parse(text) == target
    assert Target.parse(f"TCP:{target}") == target


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("TCP-LISTN:443", "did you mean 'TCP-LISTEN'"),
        ("UDP-LISTEN:443", "expected TCP-LISTEN:port"),
        ("443", "expected TCP-LISTEN:port"),
        ("TCP-LISTEN:", "expected a port, 1 to 65535"),
        ("TCP-LISTEN:0", "expected a port"),
        ("TCP-LISTEN:65536", "expected a port"),
        ("TCP-LISTEN:443,forkk", "did you mean 'fork'"),
        ("TCP-LISTEN:443,su=nobody", "fork, reuseaddr, bind"),
        ("TCP-LISTEN:443,fork=0", "unknown option"),
        ("TCP-LISTEN:443,bind=eth0", "'eth0': expected an IP address"),
        ("TCP-LISTEN:443,", "unknown option"),
    ],
)
def test_what_is_not_a_listening_address_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Listen.parse(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["TCP:10.0.0.1", "TCP:10.0.0.1:", "TCP::80", "TCP:fd00::7:80", "TCP:[x]:80", "TCP:a b:80", "TCP:-a:80", "EXEC:sh"],
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Target.parse(text)


@given(st.text(max_size=60) | st.from_regex(r"TCP[A-Z0-9-]{0,8}:[\[\]0-9a-f:.,=]{0,40}", fullmatch=True))
def test_any_text_is_read_or_refused_and_what_is_read_says_itself_again(text: str) -> None:
    for kind in (Listen, Target):
        try:
            found = kind.parse(text)
        except ConfigError:
            continue
        assert 1 <= found.port <= 65535
        assert not isinstance(found, Target) or Target.parse(f"TCP:{found}") == found
