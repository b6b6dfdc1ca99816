"""What is done with a request: the table of semantics, as Istio's gateway and Gateway API have it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

import pytest

from tproxy.core.address import Endpoint, parse_address
from tproxy.core.hostnames import HostTable
from tproxy.core.http.filters import (
    Cors,
    DerivedPort,
    Direct,
    Fault,
    Filters,
    Flavour,
    FullPath,
    HeaderChange,
    Mirror,
    PrefixPath,
    Redirect,
    Retry,
    Rewrite,
    Timeouts,
)
from tproxy.core.http.forwarded import Client
from tproxy.core.http.head import Head, Reply
from tproxy.core.http.plan import Answer, Forward, plan
from tproxy.core.http.routes import Entry, HttpTable, Kind, Match, Rule, Text
from tproxy.core.routes import Backend

HERE = Endpoint(parse_address("127.0.0.1"), 8080)
ISTIO, API = Flavour.ISTIO, Flavour.GATEWAY_API
CLIENT = Client("192.0.2.7")
ID = "4f1f2b0e-2f6c-4f57-9d5b-6a3c6a0d0c11"


def backend(name: str = "web", **more: Any) -> Backend:
    return Backend(name, (HERE,), **more)


def rule(**more: Any) -> Rule:
    return Rule("r", more.pop("backends", (backend(),)), "f.yaml:1", **more)


def table(*entries: Entry, flavour: Flavour = API, host: str = "*", **more: Any) -> HttpTable:
    return HttpTable(HostTable([(host, entries)]), flavour, **more)


def one(match: Match | None = None, flavour: Flavour = API, **more: Any) -> HttpTable:
    return table(Entry(match or Match(), rule(**more)), flavour=flavour)


def head(target: str = "/", *headers: tuple[str, str], method: str = "GET", host: str = "a.example") -> Head:
    return Head(method, "http", host, target, list(headers))


def ask(made: HttpTable, request: Head, client: Client = CLIENT, draws: Iterable[float] = ()) -> Answer | Forward:
    given = itertools.chain(draws, itertools.repeat(0.0))
    return plan(made, request, client, lambda: next(given), lambda: ID)


def sent(made: HttpTable, request: Head, client: Client = CLIENT, draws: Iterable[float] = ()) -> Forward:
    found = ask(made, request, client, draws)
    assert isinstance(found, Forward), found
    return found


def told(made: HttpTable, request: Head, client: Client = CLIENT, draws: Iterable[float] = ()) -> Answer:
    found = ask(made, request, client, draws)
    assert isinstance(found, Answer), found
    return found


# who is asked, and what he is told of the client


def test_a_backend_of_gateway_api_is_told_of_the_client_in_four_headers_and_no_more() -> None:
    made = sent(one(), head("/get", ("accept", "*/*"), ("user-agent", "curl/8")))
    assert dict(made.head.headers) == {
        "accept": "*/*",
        "user-agent": "curl/8",
        "x-envoy-external-address": "192.0.2.7",
        "x-forwarded-for": "192.0.2.7",
        "x-forwarded-proto": "http",
        "x-request-id": ID,
    }


def test_what_a_client_says_of_itself_is_replaced_and_only_its_forwarded_for_is_appended_to() -> None:
    lies = [
        *[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-for", "5.6.7.8"), ("x-forwarded-proto", "https")],
        *[("x-request-id", "mine"), ("x-envoy-external-address", "9.9.9.9"), ("x-envoy-upstream-rq-timeout-ms", "1")],
        *[("x-forwarded-client-cert", "URI=spiffe://x"), ("x-envoy-internal", "true")],
    ]
    made = sent(one(), head("/", *lies))
    assert sorted(made.head.headers) == [
        ("x-envoy-external-address", "192.0.2.7"),
        ("x-forwarded-for", "1.2.3.4,5.6.7.8,192.0.2.7"),
        ("x-forwarded-proto", "http"),
        ("x-request-id", ID),
    ]


def test_a_client_with_a_certificate_is_told_of_and_only_as_we_know_it() -> None:
    client = Client("192.0.2.7", "https", 443, "a.example", "Hash=ab;URI=spiffe://td/ns/a/sa/b")
    made = sent(one(flavour=ISTIO), head("/", ("x-forwarded-client-cert", "URI=spiffe://td/ns/admin")), client)
    assert dict(made.head.headers)["x-forwarded-client-cert"] == "Hash=ab;URI=spiffe://td/ns/a/sa/b"
    assert dict(made.head.headers)["x-forwarded-proto"] == "https"


def test_replies_of_gateway_api_are_the_backends_own() -> None:
    reply = Reply(200, [("content-type", "text/plain"), ("server", "nginx")])
    assert sent(one(), head()).respond(reply, 7) == reply


def test_replies_of_istio_name_its_server_and_the_time_of_the_backend() -> None:
    reply = Reply(200, [("server", "nginx"), ("x-envoy-upstream-service-time", "99")])
    got = sent(one(flavour=ISTIO), head()).respond(reply, 7)
    assert got.headers == [("x-envoy-upstream-service-time", "7"), ("server", "istio-envoy")]


def test_rules_compare_what_we_know_of_a_client_not_what_it_says() -> None:
    lies = [
        ("x-forwarded-proto", "https"),
        ("x-envoy-external-address", "10.0.0.1"),
        ("x-forwarded-client-cert", "By=x"),
    ]
    for name, value in lies:
        narrow = Match(headers=((name, Text(Kind.EXACT, value)),))
        assert told(one(narrow), head("/", (name, value))).reply.status == 404
    secure = Client("10.0.0.1", "https", 443, "a.example", "By=x")
    for name, value in lies:
        sent(one(Match(headers=((name, Text(Kind.EXACT, value)),))), head(), secure)
    only_tls = one(Match(scheme=Text(Kind.EXACT, "https")))
    asked = Head("GET", "https", "a.example", "/")  # HTTP/2's :scheme is the client's word
    assert told(only_tls, asked).reply.status == 404
    assert sent(only_tls, head(), secure).head.scheme == "https"


# nobody to send to


def test_no_rule_is_404_without_a_body_and_with_istios_server_header() -> None:
    made = told(table(Entry(Match(), rule()), flavour=ISTIO, host="other.example"), head())
    assert (made.reply.status, made.body, made.flags) == (404, b"", "NR")
    assert dict(made.reply.headers) == {"content-length": "0", "server": "istio-envoy"}


def test_no_rule_is_unimplemented_for_grpc() -> None:
    made = told(table(), head("/a.B/C", ("content-type", "application/grpc"), method="POST"))
    assert (made.reply.status, dict(made.reply.headers)["grpc-status"]) == (200, "12")


@pytest.mark.parametrize(("flavour", "status", "flags"), [(API, 500, ""), (ISTIO, 503, "NC")])
def test_a_backend_that_cannot_be_costs_its_share(flavour: Flavour, status: int, flags: str) -> None:
    backends = (backend("good", weight=3), backend("bad", weight=1, fault="there is no such Service"))
    made = one(flavour=flavour, backends=backends)
    assert sent(made, head(), draws=[0.74]).backend.name == "good"
    refused = told(made, head(), draws=[0.75])
    assert (refused.reply.status, refused.flags, refused.why) == (status, flags, "bad: there is no such Service")


def test_a_backend_without_endpoints_is_503_as_envoy_says_it() -> None:
    made = told(one(backends=(Backend("empty", ()),)), head())
    assert (made.reply.status, made.body, made.flags) == (503, b"no healthy upstream", "UH")


def test_no_backend_at_all_is_500() -> None:
    assert told(one(backends=()), head()).reply.status == 500


def test_shares_follow_weights() -> None:
    made = one(backends=(backend("a", weight=70), backend("b", weight=30), backend("c", weight=0)))
    draw = random.Random(5).random
    found = [plan(made, head(), CLIENT, draw, lambda: ID) for _ in range(5000)]
    names = [each.backend.name for each in found if isinstance(each, Forward)]
    assert abs(names.count("a") / 5000 - 0.7) < 0.03
    assert "c" not in names


# redirects and rewrites


@pytest.mark.parametrize(
    ("redirect", "asked", "client", "to"),
    [
        (Redirect(host="example.org"), ("a.example", "/x?q=1"), CLIENT, "http://example.org/x?q=1"),
        (Redirect(scheme="https"), ("a.example:8080", "/x"), CLIENT, "https://a.example:8080/x"),
        (Redirect(scheme="https", port=443), ("a.example:8080", "/x"), CLIENT, "https://a.example/x"),
        (Redirect(path=FullPath("/y")), ("a.example", "/x/z?q"), CLIENT, "http://a.example/y?q"),
        (Redirect(path=PrefixPath("/y")), ("a.example", "/x/z?q"), CLIENT, "http://a.example/y/z?q"),
        (Redirect(port=8083), ("a.example", "/"), CLIENT, "http://a.example:8083/"),
        (
            Redirect(host="b.example", derived=DerivedPort.SCHEME),
            ("a.example", "/"),
            Client("::1", "https", 8443),
            "https://b.example:8443/",
        ),
        (
            Redirect(scheme="https", derived=DerivedPort.SCHEME),
            ("a.example:8080", "/"),
            Client("::1", "http", 8080),
            "https://a.example/",
        ),
    ],
)
def test_a_redirect_changes_what_it_names(redirect: Redirect, asked: tuple[str, str], client: Client, to: str) -> None:
    made = one(Match(Text(Kind.SEGMENTS, "/x")), filters=Filters(redirect=redirect))
    made = made if asked[1].startswith("/x") else one(filters=Filters(redirect=redirect))
    answer = told(made, head(asked[1], host=asked[0]), client)
    assert (answer.reply.status, dict(answer.reply.headers)["location"], answer.body) == (redirect.status, to, b"")


@pytest.mark.parametrize(
    ("path", "prefix", "value", "becomes"),
    [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo?a=/foo", "/foo", "/", "/?a=/foo"),
    ],
)
def test_a_prefix_is_replaced_as_gateway_apis_table_says(path: str, prefix: str, value: str, becomes: str) -> None:
    filters = Filters(rewrite=Rewrite(path=PrefixPath(value)))
    assert sent(one(Match(Text(Kind.SEGMENTS, prefix)), filters=filters), head(path)).head.target == becomes


def test_a_rewrite_of_istio_keeps_the_path_that_was_asked_for_in_a_header() -> None:
    filters = Filters(rewrite=Rewrite("b.example", PrefixPath("/")))
    made = sent(one(Match(Text(Kind.PREFIX, "/v1")), ISTIO, filters=filters), head("/v1/x?q"))
    assert (made.head.authority, made.head.target) == ("b.example", "/x?q")
    assert dict(made.head.headers)["x-envoy-original-path"] == "/v1/x?q"


# headers


def test_headers_are_taken_off_then_set_then_added() -> None:
    change = HeaderChange(set=(("b", "new"),), add=(("a", "2"),), remove=("c",))
    made = sent(one(filters=Filters(request=change)), head("/", ("a", "1"), ("b", "old"), ("b", "older"), ("c", "x")))
    assert [pair for pair in made.head.headers if len(pair[0]) == 1] == [("a", "1"), ("b", "new"), ("a", "2")]


def test_headers_of_a_reply_change_too() -> None:
    own = Filters(response=HeaderChange(set=(("a", "backend"),)))
    outer = Filters(response=HeaderChange(add=(("a", "rule"),), remove=("x",)))
    made = sent(one(filters=outer, backends=(backend(filters=own),)), head())
    assert made.respond(Reply(200, [("a", "1"), ("x", "1")]), 0).headers == [("a", "backend"), ("a", "rule")]


# answers of our own, faults, mirrors, limits


def test_a_direct_response_is_said_at_once() -> None:
    made = told(one(backends=(), direct=Direct(418, b"tea")), head())
    assert (made.reply.status, made.body, dict(made.reply.headers)["content-length"]) == (418, b"tea", "3")


def test_a_share_of_the_requests_is_aborted_and_another_is_held_up() -> None:
    made = one(fault=Fault(2.5, 0.5, 555, None, 0.5), timeouts=Timeouts(1.0), retry=Retry(2), flavour=ISTIO)
    answer = told(made, head(), draws=[0.4, 0.4])
    assert (answer.reply.status, answer.body, answer.flags, answer.delay) == (555, b"fault filter abort", "FI", 2.5)
    late = sent(made, head(), draws=[0.4, 0.6])
    assert (late.delay, late.timeouts, late.retry) == (2.5, Timeouts(), None)
    plain = sent(made, head(), draws=[0.6, 0.6])
    assert (plain.delay, plain.timeouts, plain.retry) == (0.0, Timeouts(1.0), Retry(2))


def test_mirrors_get_their_share_and_a_copy_of_their_own() -> None:
    mirrors = (Mirror(backend("all")), Mirror(backend("some"), 0.2))
    made = one(filters=Filters(mirrors=mirrors))
    assert [each.name for each, _ in sent(made, head(), draws=[0.1]).mirrors] == ["all", "some"]
    found = sent(made, head(), draws=[0.2])
    assert [each.name for each, _ in found.mirrors] == ["all"]
    assert found.mirrors[0][1].headers is not found.head.headers


def test_istio_marks_the_host_of_a_mirrored_request() -> None:
    made = one(flavour=ISTIO, filters=Filters(mirrors=(Mirror(backend("all")),)))
    assert sent(made, head(host="a.example:80")).mirrors[0][1].authority == "a.example-shadow:80"


def test_headers_of_a_rule_stand_in_its_own_answers_too() -> None:
    filters = Filters(response=HeaderChange(set=(("x-a", "1"),)))
    assert ("x-a", "1") in told(one(backends=(), direct=Direct(200), filters=filters), head()).reply.headers


@pytest.mark.parametrize("flavour", [API, ISTIO])
def test_an_asterisk_is_no_path_and_not_found(flavour: Flavour) -> None:
    assert told(one(flavour=flavour), head("*", method="OPTIONS")).reply.status == 404


# origins

CORS = Cors((Text(Kind.EXACT, "https://a.example"),), ("GET", "PUT"), ("x-a",), ("x-b",), 60, credentials=True)


def test_a_preflight_is_answered_for_origins_that_are_allowed() -> None:
    asked = [("origin", "https://a.example"), ("access-control-request-method", "PUT")]
    made = told(one(filters=Filters(cors=CORS)), head("/", *asked, method="OPTIONS"))
    assert made.reply.status == 200
    assert made.reply.headers == [
        ("access-control-allow-origin", "https://a.example"),
        ("access-control-allow-credentials", "true"),
        ("access-control-expose-headers", "x-b"),
        ("access-control-allow-methods", "GET,PUT"),
        ("access-control-allow-headers", "x-a"),
        ("access-control-max-age", "60"),
        ("content-length", "0"),
    ]


def test_an_answer_says_which_origin_may_read_it_and_nothing_to_others() -> None:
    made = one(filters=Filters(cors=CORS))
    ours = sent(made, head("/", ("origin", "https://a.example"))).respond(Reply(200, []), 0)
    assert dict(ours.headers)["access-control-allow-origin"] == "https://a.example"
    assert sent(made, head("/", ("origin", "https://evil.example"))).respond(Reply(200, []), 0).headers == []
    nobody = told(
        one(filters=Filters(cors=CORS), backends=(Backend("empty", ()),)), head("/", ("origin", "https://a.example"))
    )
    assert dict(nobody.reply.headers)["access-control-allow-origin"] == "https://a.example"


# paths


@pytest.mark.parametrize(
    ("flavour", "asked", "seen"),
    [
        (API, "/a/../admin", "/admin"),
        (API, "/a/%2e%2E/admin?q=/../", "/admin?q=/../"),
        (API, "//admin", "/admin"),
        (API, "/a/..", "/"),
        (API, "/../../x", "/x"),
        (ISTIO, "//a/./b", "//a/b"),
        (ISTIO, "/a\\..\\b", "/b"),
        (ISTIO, "/a%2Fb", "/a%2Fb"),
        (ISTIO, "/%61", "/a"),
    ],
)
def test_what_rules_compare_is_what_the_backend_sees(flavour: Flavour, asked: str, seen: str) -> None:
    exact = Entry(Match(Text(Kind.EXACT, seen.partition("?")[0])), rule())
    assert sent(table(exact, flavour=flavour), head(asked)).head.target == seen


def test_escaped_slashes_are_sent_back_to_be_said_plainly() -> None:
    made = told(one(), head("/a%2f..%2Fadmin?q"))
    assert (made.reply.status, dict(made.reply.headers)["location"]) == (307, "/admin?q")


@pytest.mark.parametrize("target", ["/a%00", "/a#b", "/a b", "/\xe9", "a", "/a?\n"])
def test_a_path_that_nobody_can_read_is_400(target: str) -> None:
    assert told(one(), head(target)).reply.status == 400


# connections that are shared


@pytest.mark.parametrize(
    ("sni", "host", "status"),
    [
        ("example.org", "example.org", 200),
        ("example.org", "second-example.org", 421),
        ("example.org", "unknown.org", 404),
        ("second-example.org", "unknown.org", 421),
        ("third.wildcard.org", "fourth.wildcard.org", 200),
    ],
)
def test_a_request_for_another_server_than_its_connections_is_misdirected(sni: str, host: str, status: int) -> None:
    owners = HostTable([("*", "any"), ("second-example.org", "second"), ("*.wildcard.org", "wild")])
    own = owners.find(sni)
    assert own is not None
    hosts = {"any": "example.org", "second": "second-example.org", "wild": "*.wildcard.org"}[own[1]]
    made = table(Entry(Match(), rule()), host=hosts, server=own[1], owners=owners)
    found = ask(made, head(host=host))
    assert (found.reply.status if isinstance(found, Answer) else 200) == status
