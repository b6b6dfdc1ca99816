"""Whose token it is: a hint that is read with care, for anything may stand in the file."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.core.identity import SpiffeId
from tproxy.core.token import service_account, workload_of


def jwt(payload: bytes) -> str:
    return f"e30.{base64.urlsafe_b64encode(payload).decode().rstrip('=')}.sig"


def claims(subject: object) -> str:
    return jwt(json.dumps({"sub": subject, "aud": ["istio-ca"]}).encode())


def test_a_service_account_s_token_names_its_workload() -> None:
    token = claims("system:serviceaccount:shop:web")
    assert service_account(token) == ("shop", "web")
    assert workload_of(token, "test.local") == SpiffeId.parse("spiffe://test.local/ns/shop/sa/web")


@pytest.mark.parametrize(
    "token",
    [
        *("", "..", "a.b", "a.b.c.d", "a-join-token", "e30.!!!.sig", "e30.ä.sig"),
        *(
            claims(subject)
            for subject in (None, 7, "shop:web", "system:serviceaccount:shop", "system:serviceaccount::x")
        ),
        *(jwt(payload) for payload in (b"[]", b"{", b"\xff", b"null", b"[" * 9000)),
    ],
)
def test_any_other_token_names_nobody(token: str) -> None:
    assert service_account(token) is None and workload_of(token, "test.local") is None


@pytest.mark.parametrize("name", ["a/b", "..", "a b", "web:more"])
def test_a_name_that_would_make_another_path_names_nobody(name: str) -> None:
    assert workload_of(claims(f"system:serviceaccount:shop:{name}"), "test.local") is None


@given(st.text(max_size=200) | st.binary(max_size=200).map(jwt))
def test_no_token_makes_it_raise(token: str) -> None:
    assert service_account(token) is None or "." in token
