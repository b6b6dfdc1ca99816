"""What a client holds of its session: opaque, sealed, and worth nothing against endpoints that are not there."""

from __future__ import annotations

import base64
from ipaddress import IPv4Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tproxy.core.address import Endpoint
from tproxy.core.balance.session import Session, Tie
from tproxy.core.routes import Backend

NOW = 1_800_000_000
PODS = tuple(Endpoint(IPv4Address(f"10.0.0.{number}"), 8080) for number in range(1, 4))
BACKENDS = (Backend("shop/web:80", PODS[:2]), Backend("shop/new:80", PODS[2:], weight=0))


def session(*backends: Backend, key: bytes = b"k" * 32, scope: str = "rule", **more: object) -> Session:
    from dataclasses import replace

    made = Session("s", scope=scope, key=key, **more)  # type: ignore[arg-type]
    return replace(made, places=made.over(backends or BACKENDS))


def cookie(token: str, name: str = "s") -> list[tuple[str, str]]:
    return [("cookie", f"a=b; {name}={token}")]


def test_a_session_leads_to_its_endpoint_whatever_the_weight_is() -> None:
    made = session()
    found = made.known(cookie(made.token("shop/new:80", PODS[2], NOW - 5, NOW)), NOW)
    assert found is not None
    assert (found.backend, found.endpoint, found.began) == (1, PODS[2], NOW - 5)


@given(st.text(max_size=80) | st.binary(max_size=48).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
@example("A" * 43)
@example("=" * 43)
@example("\u0661" * 43)
def test_a_forged_token_is_no_session(text: str) -> None:
    assert session().known(cookie(text), NOW) is None
    assert session(header=True).known([("s", text)], NOW) is None


@given(st.integers(0, 31), st.integers(1, 255))
def test_a_token_of_which_a_bit_was_changed_is_no_session(position: int, mask: int) -> None:
    made = session()
    raw = bytearray(base64.urlsafe_b64decode(made.token("shop/web:80", PODS[0], NOW, NOW) + "="))
    raw[position] ^= mask
    assert made.known(cookie(base64.urlsafe_b64encode(raw).decode().rstrip("=")), NOW) is None


def test_a_token_leads_nowhere_once_its_endpoint_is_gone() -> None:
    token = session().token("shop/web:80", PODS[0], NOW, NOW)
    assert session().known(cookie(token), NOW) is not None
    assert session(Backend("shop/web:80", PODS[1:2]), BACKENDS[1]).known(cookie(token), NOW) is None


@pytest.mark.parametrize("other", [{"scope": "another rule"}, {"key": b"q" * 32}])
def test_other_rules_and_other_keys_do_not_know_it(other: dict[str, object]) -> None:
    token = session().token("shop/web:80", PODS[0], NOW, NOW)
    assert session(**other).known(cookie(token), NOW) is None  # type: ignore[arg-type]


def test_no_address_stands_in_a_token() -> None:
    """Nor what could be computed from one without the key: the same endpoint has another tag under another."""
    raw = [
        base64.urlsafe_b64decode(session(key=bytes([number]) * 32).token("shop/web:80", PODS[0], NOW, NOW) + "=")
        for number in range(20)
    ]
    assert len({token[:12] for token in raw}) == 20
    assert not any(PODS[0].ip.packed in token[:12] or PODS[0].ip.packed in token[20:] for token in raw)


@pytest.mark.parametrize(
    ("limits", "began", "seen", "goes_on"),
    [
        ({}, 10**6, 10**6, True),
        ({"absolute": 60.0}, 59, 0, True),
        ({"absolute": 60.0}, 60, 0, False),
        ({"idle": 60.0}, 1000, 59, True),
        ({"idle": 60.0}, 60, 60, False),
    ],
)
def test_sessions_end(limits: dict[str, object], began: int, seen: int, goes_on: bool) -> None:
    made = session(**limits)  # type: ignore[arg-type]
    token = made.token("shop/web:80", PODS[0], NOW - began, NOW - seen)
    assert (made.known(cookie(token), NOW) is not None) is goes_on


def test_of_several_cookies_of_its_name_the_one_that_holds_counts() -> None:
    made = session()
    token = made.token("shop/web:80", PODS[1], NOW, NOW)
    lines = [("cookie", "s=JSESSION"), ("cookie", f"x=1; s={token}")]
    found = made.known(lines, NOW)
    assert found is not None
    assert found.endpoint == PODS[1]
    assert made.known([("cookie", "; ".join(["s=no"] * 4)), *lines], NOW) is None  # who sends that many is not served


def told(made: Session, answered: Endpoint, token: str = "", **more: object) -> str:
    known = made.known(cookie(token), NOW)
    tie = Tie(made, "shop/web:80", known, str(more.get("path", "/a")), bool(more.get("secure")), NOW)
    return dict(tie.told(answered)).get("s" if made.header else "set-cookie", "")


def test_a_cookie_is_set_when_a_session_begins_or_its_endpoint_has_changed_and_not_else() -> None:
    made = session()
    first = told(made, PODS[0])
    token = made.token("shop/web:80", PODS[0], NOW, NOW)
    assert first == f"s={token}; Path=/a; HttpOnly; SameSite=Strict"
    assert told(made, PODS[0], token) == ""
    assert told(made, PODS[1], token).startswith(f"s={made.token('shop/web:80', PODS[1], NOW, NOW)}; ")
    assert told(made, PODS[0], secure=True).endswith("; Secure")


def test_an_idle_timeout_begins_anew_with_each_answer_and_an_absolute_one_does_not() -> None:
    made = session(idle=60.0, absolute=100.0, permanent=True)
    said = told(made, PODS[0], made.token("shop/web:80", PODS[0], NOW - 30, NOW - 20))
    token = made.token("shop/web:80", PODS[0], NOW - 30, NOW)
    assert said.startswith(f"s={token}; Max-Age=70; Expires=Fri, 15 Jan 2027 08:01:10 GMT; Path=/a; ")


def test_a_header_is_told_as_it_is() -> None:
    assert told(session(header=True), PODS[0]) == session().token("shop/web:80", PODS[0], NOW, NOW)
