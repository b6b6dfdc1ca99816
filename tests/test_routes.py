"""The gateway decides: a hello to a chain, a route to a backend, a request to a rule, and the sentences about it."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.core.address import Endpoint
from tproxy.core.decide import First, Gone, Silence
from tproxy.core.hello import Hello, Malformed, NeedMore, NotTls
from tproxy.core.hostnames import HostTable
from tproxy.core.http.routes import (
    Entry,
    HttpTable,
    Kind,
    Match,
    Request,
    Rule,
    Text,
    gateway_api_order,
    istio_order,
)
from tproxy.core.reason import Deny, Reason
from tproxy.core.routes import (
    Backend,
    Chain,
    Closed,
    Passthrough,
    Route,
    ServerTls,
    TcpListener,
    Terminate,
    TlsListener,
    TlsMode,
    by_hello,
    by_port,
    by_sni,
    choose,
    nearest,
)

HERE = (Endpoint.parse("10.0.0.1:443"),)


def passthrough(name: str) -> Passthrough:
    return Passthrough("gw", Route(name, (Backend(name, HERE),)))


TERMINATE = Terminate("gw", ServerTls(TlsMode.TERMINATE), HttpTable(HostTable(())))
NAMES: list[tuple[str, Chain]] = [
    ("a.example.com", passthrough("exact")),
    ("*.example.com", passthrough("wild")),
    ("*.deep.example.com", passthrough("deep")),
    ("t.example.com", TERMINATE),
    ("*.closed.example.com", Closed("gw", "nothing is routed here")),
]
TLS = TlsListener(443, HostTable(NAMES))
ALL = TlsListener(443, HostTable([*NAMES, ("*", passthrough("rest"))]))


def hello(name: str | None) -> Hello:
    return Hello(name, (), (0x304,), ())


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("a.example.com", "exact"),
        ("b.example.com", "wild"),
        ("x.y.example.com", "wild"),
        ("x.deep.example.com", "deep"),
    ],
)
def test_the_most_specific_name_on_a_port_gets_the_connection(name: str, route: str) -> None:
    found = by_hello(TLS, hello(name))
    assert isinstance(found, Passthrough) and found.route.name == route


def test_terminated_and_passed_names_stand_on_one_port() -> None:
    assert by_hello(TLS, hello("t.example.com")) is TERMINATE


def test_a_challenge_for_a_name_that_ends_here_goes_to_its_solver_and_nothing_else_does() -> None:
    """RFC 8737: for a name without its certificate, too; a passed name's challenge goes to its own backend."""
    solver = Route("solver", ())
    ended = Terminate("gw", TERMINATE.tls, TERMINATE.inside, solver)
    made = TlsListener(443, HostTable([("a.b", ended), ("c.b", Closed("gw", "", solver)), ("p.b", passthrough("p"))]))

    def ask(name: str, *alpn: str) -> str:
        found = by_hello(made, Hello(name, alpn, (0x304,), ()))
        return found.route.name if isinstance(found, Passthrough) else type(found).__name__

    assert [ask(name, "acme-tls/1") for name in ("a.b", "c.b", "p.b", "x.b")] == ["solver", "solver", "p", "Deny"]
    assert [ask(name, "acme-tls/1", "h2") for name in ("a.b", "c.b")] == ["Terminate", "Deny"]
    assert ask("a.b") == "Terminate"


def test_a_listener_without_a_route_keeps_its_names_from_wider_listeners() -> None:
    assert by_sni(ALL, "x.closed.example.com") == Deny(Reason.NO_ROUTE, "nothing is routed here", "gw")


@pytest.mark.parametrize("name", [None, "example.com", "localhost", "a.example.com.", "10.0.0.1"])
def test_other_names_and_none_at_all_meet_the_catch_all_or_are_refused_with_what_is_configured(
    name: str | None,
) -> None:
    refused = by_hello(TLS, hello(name))
    assert isinstance(refused, Deny) and refused.reason is Reason.NO_ROUTE
    assert (repr(name) if name else "without SNI") in refused.why and "*.example.com" in refused.why
    found = by_hello(ALL, hello(name))
    assert isinstance(found, Passthrough) and found.route.name == "rest"


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (NotTls("first byte 0x47 is not a TLS handshake record"), Reason.PLAINTEXT),
        (Malformed("two host names in one server_name extension"), Reason.HELLO_MALFORMED),
        (Silence(5), Reason.HELLO_TIMEOUT),
        (NeedMore(9, 50), Reason.HELLO_TIMEOUT),
        (Gone(), Reason.HELLO_CLOSED),
    ],
)
def test_what_is_not_a_whole_hello_never_meets_the_catch_all(first: First, reason: Reason) -> None:
    found = by_hello(ALL, first)
    assert isinstance(found, Deny) and found.reason is reason


def test_a_refusal_names_few_of_many_and_says_how_many_more() -> None:
    many = TlsListener(443, HostTable((f"n{n}.example.com", passthrough("x")) for n in range(1000)))
    refused = by_sni(many, "localhost")
    assert isinstance(refused, Deny) and refused.why.endswith("and 995 more") and len(refused.why) < 200
    assert nearest(many, "n7.exmaple.com") == "n7.example.com"


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_each_backend_gets_exactly_its_share(weights: list[int]) -> None:
    route = Route("r", tuple(Backend(str(n), HERE, weight) for n, weight in enumerate(weights)))
    steps = 60 * sum(weights)
    found = Counter(
        answer.name for n in range(steps) if isinstance(answer := choose(route, (n + 0.5) / steps), Backend)
    )
    assert found == {str(n): 60 * weight for n, weight in enumerate(weights) if weight}
    if not steps:
        assert isinstance(choose(route, 0.5), Deny)


def test_a_backend_that_is_not_there_keeps_its_share_and_refuses_it() -> None:
    route = Route("r", (Backend("gone", (), fault="no such Service"), Backend("empty", ()), Backend("here", HERE, 2)))
    answers = [choose(route, draw) for draw in (0.0, 0.3, 0.6)]
    assert [getattr(answer, "reason", None) for answer in answers] == [Reason.NO_BACKEND, Reason.NO_BACKEND, None]
    assert "no such Service" in str(answers[0]) and "no endpoints" in str(answers[1])


def test_a_tcp_port_without_a_route_refuses() -> None:
    assert isinstance(by_port(TcpListener(1, "gw", None)), Deny)


# HTTP


def path(kind: Kind, value: str, **rest: object) -> Match:
    test = re.compile(value).fullmatch if kind is Kind.REGEX else None
    return Match(Text(kind, value, regex=test), **rest)  # type: ignore[arg-type]


def table(*matches: Match, host: str = "*") -> HttpTable:
    return HttpTable(HostTable([(host, tuple(Entry(match, Rule(str(n))) for n, match in enumerate(matches)))]))


@pytest.mark.parametrize(
    ("kind", "value", "asked", "holds"),
    [
        (Kind.SEGMENTS, "/v2", "/v2", True),
        (Kind.SEGMENTS, "/v2", "/v2/x", True),
        (Kind.SEGMENTS, "/v2", "/v2example", False),
        (Kind.SEGMENTS, "/v2/", "/v2", True),
        (Kind.SEGMENTS, "/", "/anything", True),
        (Kind.PREFIX, "/v2", "/v2example", True),
        (Kind.EXACT, "/v2", "/v2/", False),
        (Kind.EXACT, "/v2", "/V2", False),
        (Kind.REGEX, "/v[0-9]", "/v2", True),
        (Kind.REGEX, "/v[0-9]", "/v2/x", False),
    ],
)
def test_a_path_matches_as_its_kind_says(kind: Kind, value: str, asked: str, holds: bool) -> None:
    assert (table(path(kind, value)).find(Request("h", asked)) is not None) is holds


def test_all_conditions_of_a_match_must_hold_and_each_that_does_not_is_named() -> None:
    match = path(
        Kind.PREFIX,
        "/api",
        method=Text(Kind.EXACT, "GET"),
        headers=(("x-user", Text(Kind.PRESENT)),),
        without=(("x-debug", Text(Kind.PRESENT)),),
        query=(("page", Text(Kind.EXACT, "1")),),
    )
    good = Request("h", "/api/x", headers={"x-user": "me"}, query={"page": "1"})
    assert table(match).find(good) is not None
    bad = Request("h", "/app", "PUT", headers={"x-debug": "1"}, query={"page": "2"})
    assert [why.split()[0] for why in match.failures(bad)] == ["path", "method", "header", "query", "header"]


def test_gateway_api_prefers_exact_then_longest_prefix_then_method_headers_query_age() -> None:
    header = (("a", Text(Kind.EXACT, "b")),)
    ordered = [
        path(Kind.EXACT, "/x"),
        path(Kind.SEGMENTS, "/long/er"),
        path(Kind.SEGMENTS, "/long", method=Text(Kind.EXACT, "GET")),
        path(Kind.SEGMENTS, "/long", headers=header * 2),
        path(Kind.SEGMENTS, "/long", headers=header),
        path(Kind.SEGMENTS, "/long", query=header),
        path(Kind.SEGMENTS, "/long"),
        Match(),
    ]
    entries = [Entry(match, Rule(str(n)), ("2026", "a/a")) for n, match in enumerate(ordered)]
    older = Entry(Match(), Rule("older"), ("2025", "z/z"))
    assert gateway_api_order([*entries[::-1], older]) == (*entries[:-1], older, entries[-1])


def test_istio_keeps_the_order_of_the_file_but_for_catch_alls() -> None:
    matches = [Match(), path(Kind.PREFIX, "/"), path(Kind.PREFIX, "/a"), path(Kind.EXACT, "/ab")]
    entries = [Entry(match, Rule(str(n))) for n, match in enumerate(matches)]
    assert [entry.rule.name for entry in istio_order(entries)] == ["2", "3", "0", "1"]


def test_only_the_most_specific_host_is_asked() -> None:
    entry = (Entry(path(Kind.EXACT, "/x"), Rule("exact")),), (Entry(Match(), Rule("wild")),)
    made = HttpTable(HostTable([("a.example.com", entry[0]), ("*.example.com", entry[1])]))
    assert made.find(Request("a.example.com", "/y")) is None
    assert made.find(Request("b.example.com", "/y")) is not None


def test_an_explanation_ends_with_the_entry_that_was_found() -> None:
    made = table(path(Kind.EXACT, "/x"), path(Kind.PREFIX, "/y"), Match())
    told = list(made.explain(Request("h", "/y")))
    assert [why for _, _, why in told] == ["path '/y' is not exact '/x'", ""]
    found = made.find(Request("h", "/y"))
    assert found is not None and found.entry is told[-1][1]
