"""Envoy's RBAC filter, told what Istio tells it, decides as we do; where we refuse more is said here alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import cache
from http.server import ThreadingHTTPServer
from typing import Any

import pytest

from tests.test_gateway_policies import load, one, status
from tests.test_http_oracle import TYPE, Echo, asked_of_envoy, envoy
from tproxy.core.http.head import Head
from tproxy.gateway.compile import Loaded

Json = dict[str, Any]
ANY = {"any": True}
OPERATIONS: dict[str, Json] = {
    "exact": {"paths": ["/a"]},
    "prefix": {"paths": ["/a/*", "/b*"]},
    "suffix": {"paths": ["*.html"]},
    "present": {"paths": ["*"]},
    "not": {"notPaths": ["/a*"]},
    "both": {"paths": ["/a*"], "notPaths": ["/a/b*"]},
    "method": {"methods": ["GET"], "notMethods": ["PUT"]},
    "some": {"methods": ["P*"]},
    "host": {"hosts": ["a.test"]},
    "hosts": {"hosts": ["*.TEST", "b*"]},
    "elsewhere": {"notHosts": ["a.test"]},
}
WHEN: dict[str, Json] = {
    "header": {"key": "request.headers[x-token]", "values": ["abc"]},
    "begin": {"key": "request.headers[X-Token]", "values": ["ab*"]},
    "there": {"key": "request.headers[x-token]", "values": ["*"]},
    "away": {"key": "request.headers[x-token]", "notValues": ["abc"]},
}
SOURCES: dict[str, Json] = {
    "ip": {"ipBlocks": ["127.0.0.0/8"]},
    "other-ip": {"ipBlocks": ["10.0.0.0/8"]},
    "not-ip": {"notRemoteIpBlocks": ["127.0.0.1"]},
}
PATHS = [
    "/",
    "/a",
    "/a?x=/b",
    "/a/",
    "/a/b",
    "/ab",
    "/b",
    "/A",
    "/x.html",
    "/x.html?y",
    "/a/../b",
    "/%61",
    "/x/./a",
    "/c",
]
REQUESTS = [
    *(Head("GET", "http", "a.test", path, []) for path in PATHS),
    *(Head(method, "http", "a.test", "/a", []) for method in ("PUT", "POST", "PATCH", "OPTIONS")),
    *(Head("GET", "http", host, "/a", []) for host in ("A.TEST", "b.test", "b", "test", "x.a.test", "c")),
    *(Head("GET", "http", "a.test", "/a", [("x-token", value)]) for value in ("abc", "abcd", "ABC", "x")),
    Head("GET", "http", "a.test", "/a", [("x-token", "abc"), ("x-token", "abc")]),
    Head("GET", "http", "a.test", "/a", [("x-token", "xyz"), ("x-token", "zzz")]),
]
TWICE = Head("GET", "http", "a.test", "/a", [("x-token", "abc"), ("x-token", "zzz")])
STRICTER = {  # what Envoy lets in, and a backend may read as what is denied, or not as what is allowed
    "merged slashes": ("DENY", "exact", Head("GET", "http", "a.test", "//a", [])),
    "an escaped slash": ("DENY", "exact", Head("GET", "http", "a.test", "/%2fa", [])),
    "a port": ("DENY", "host", Head("GET", "http", "a.test:80", "/a", [])),
    "one line of two is allowed": ("ALLOW", "header", TWICE),
    "one line of two is excepted": ("DENY", "away", TWICE),
}


def matched(text: str) -> Json:
    """A StringMatcher."""
    if text.endswith("*"):
        return {"prefix": text[:-1]}
    return {"suffix": text[1:]} if text.startswith("*") else {"exact": text}


def header(name: str, text: str, **more: Any) -> Json:
    if text == "*":
        return {"header": {"name": name, "present_match": True}}
    return {"header": {"name": name, "string_match": {**matched(text), **more}}}


def path(text: str) -> Json:
    return {"url_path": {"path": {"safe_regex": {"regex": ".+"}} if text == "*" else matched(text)}}


def block(kind: str, text: str) -> Json:
    address, _, length = text.partition("/")
    return {kind: {"address_prefix": address, "prefix_len": int(length or 32)}}


MADE = {
    "paths": path,
    "methods": lambda text: header(":method", text),
    "hosts": lambda text: header(":authority", text, ignore_case=True),
    "ipBlocks": lambda text: block("direct_remote_ip", text),
    "remoteIpBlocks": lambda text: block("remote_ip", text),
}


def conditions(fields: Json, rules: str, ids: str) -> Json:
    """As pilot/pkg/security/authz/model makes them: a list is an OR, a ``not`` list its negation, all are ANDed."""
    found = []
    for name, values in fields.items():
        bare = name.removeprefix("not")
        made = {rules: {ids: [MADE[bare[0].lower() + bare[1:]](value) for value in values]}}
        found.append({f"not_{'rule' if rules == 'or_rules' else 'id'}": made} if name != bare else made)
    return {rules.replace("or", "and"): {ids: found}}


def rbac(action: str, name: str) -> Json:
    permission, principal = ANY, ANY
    if name in OPERATIONS:
        permission = conditions(OPERATIONS[name], "or_rules", "rules")
    elif name in SOURCES:
        principal = conditions(SOURCES[name], "or_ids", "ids")
    else:
        (key, values) = next(pair for pair in WHEN[name].items() if pair[0] != "key")
        made = {"or_ids": {"ids": [header("x-token", value) for value in values]}}
        principal = {"not_id": made} if key == "notValues" else made
    rules = {"action": action, "policies": {name: {"permissions": [permission], "principals": [principal]}}}
    return {"@type": f"{TYPE}.extensions.filters.http.rbac.v3.RBACPerRoute", "rbac": {"rules": rules}}


@cache
def loaded(action: str, name: str) -> Loaded:
    more: Json = {"operation": OPERATIONS[name]} if name in OPERATIONS else {}
    more |= {"source": SOURCES[name]} if name in SOURCES else {}
    more |= {"when": [WHEN[name]]} if name in WHEN else {}
    return load(one(action, **more))


def ours(action: str, name: str, request: Head) -> int:
    return status(
        loaded(action, name),
        request.target,
        method=request.method,
        host=request.authority,
        headers=list(request.headers),
        source="127.0.0.1:5",
    )


NAMES = [(action, name) for action in ("ALLOW", "DENY") for name in (*OPERATIONS, *WHEN, *SOURCES)]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    backend = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=backend.serve_forever, daemon=True).start()
    routes = [
        {
            "match": {"prefix": "/", "headers": [{"name": "x-policy", "string_match": {"exact": f"{action} {name}"}}]},
            "route": {"cluster": "web"},
            "typed_per_filter_config": {"envoy.filters.http.rbac": rbac(action, name)},
        }
        for action, name in NAMES
    ]
    with envoy(tmp_path_factory.mktemp("envoy"), backend.server_address[1], ISTIO=routes) as ports:
        yield ports["ISTIO"]
    backend.shutdown()
    backend.server_close()


def theirs(port: int, action: str, name: str, request: Head) -> int:
    marked = Head(
        request.method, "http", request.authority, request.target, [*request.headers, ("x-policy", f"{action} {name}")]
    )
    found, _, body = asked_of_envoy(port, marked)
    assert found != 404
    assert (found == 403) == (body == b"RBAC: access denied")
    return 403 if found == 403 else 0


@pytest.mark.parametrize(("action", "name"), NAMES)
def test_envoy_lets_in_and_refuses_the_same_requests(action: str, name: str, port: int) -> None:
    for request in REQUESTS:
        assert ours(action, name, request) == theirs(port, action, name, request), request


@pytest.mark.parametrize("what", STRICTER)
def test_where_readings_differ_we_refuse_though_envoy_lets_it_through(what: str, port: int) -> None:
    assert (theirs(port, *STRICTER[what]), ours(*STRICTER[what])) == (0, 403)
