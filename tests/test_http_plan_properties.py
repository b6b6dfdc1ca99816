"""What holds for every request and every table: no exception, no second reading of a path, the index is the walk."""

from __future__ import annotations

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.test_http_plan import CLIENT, ID, backend
from tproxy.core.hostnames import HostTable
from tproxy.core.http.facts import Facts, parse_query
from tproxy.core.http.filters import (
    Cors,
    Fault,
    Filters,
    Flavour,
    FullPath,
    HeaderChange,
    PrefixPath,
    Redirect,
    Rewrite,
)
from tproxy.core.http.head import Head
from tproxy.core.http.path import BadPathError, changed, normal
from tproxy.core.http.plan import Answer, Forward, plan
from tproxy.core.http.routes import Entry, HttpTable, Kind, Match, Request, Rule, Text, gateway_api_order, istio_order
from tproxy.core.percent import quoted, unquoted
from tproxy.core.routes import Backend
from tproxy.gateway.regex import compile_regex

ODD = st.text(st.sampled_from("/.%2eEfF5cC;\\ab?#{}~é\0 "), max_size=20)
SEGMENTS = st.lists(st.sampled_from(["a", "b", "ab", "a b", "", "..", "%2e%2e", "a%2Fb", "A"]), max_size=4).map(
    "/".join
)
TARGETS = st.one_of(SEGMENTS.map("/{}".format), ODD.map("/{}".format), ODD, st.text(max_size=20))
PATHS = st.lists(st.sampled_from(["a", "b", "ab", "A"]), max_size=3).map(lambda parts: "/" + "/".join(parts))
FLAVOURS = st.sampled_from(Flavour)
WORDS = st.sampled_from(
    ["x", "y", "origin", "access-control-request-method", "x-forwarded-for", "host", "content-type"]
)
VALUES = st.sampled_from(["1", "2", "", "https://a.example", "application/grpc", "PUT"])


@st.composite
def texts(draw: st.DrawFn) -> Text:
    kind = draw(st.sampled_from([Kind.EXACT, Kind.PREFIX, Kind.SEGMENTS, Kind.SEGMENTS, Kind.REGEX]))
    if kind is Kind.REGEX:
        pattern = draw(st.sampled_from(["/a.*", ".*", "/[ab]/b", "/a"]))
        return Text(kind, pattern, regex=compile_regex(pattern))
    value = draw(PATHS) + (draw(st.sampled_from(["", "/"])) if kind is Kind.SEGMENTS else "")
    return Text(kind, value, ignore_case=draw(st.booleans()))


NAMED = st.lists(st.tuples(WORDS, VALUES.map(lambda value: Text(Kind.EXACT, value))), max_size=2).map(tuple)
MATCHES = st.builds(
    Match,
    path=st.none() | texts(),
    method=st.none() | st.sampled_from(["GET", "OPTIONS"]).map(lambda method: Text(Kind.EXACT, method)),
    headers=NAMED,
    without=NAMED,
    query=NAMED,
    authority=st.none() | st.just(Text(Kind.PREFIX, "a.")),
)
FILTERS = st.builds(
    Filters,
    request=st.sampled_from([HeaderChange(), HeaderChange((("x", "set"),), (("y", "add"),), ("z",))]),
    redirect=st.none()
    | st.sampled_from([Redirect("https"), Redirect(path=PrefixPath("/")), Redirect(path=FullPath("/n"))]),
    rewrite=st.none()
    | st.sampled_from([Rewrite("b.example"), Rewrite(path=PrefixPath("")), Rewrite(path=FullPath("/f"))]),
    cors=st.none() | st.just(Cors((Text(Kind.EXACT, "https://a.example"),), ("PUT",), forward_unmatched=False)),
)
BACKENDS = st.lists(
    st.sampled_from(
        [backend("a"), backend("b", weight=3), backend("c", weight=0), Backend("none", ()), backend("bad", fault="x")]
    ),
    max_size=3,
).map(tuple)
RULES = st.builds(
    Rule, st.just("r"), BACKENDS, filters=FILTERS, fault=st.none() | st.just(Fault(1.0, 0.5, 503, None, 0.5))
)
ENTRIES = st.lists(st.builds(Entry, MATCHES, RULES, st.tuples(st.just("1"), st.text("ab", max_size=2))), max_size=8)
HEADS = st.builds(
    Head,
    method=st.sampled_from(["GET", "OPTIONS", "CONNECT", "POST", "HEAD"]),
    scheme=st.just("http"),
    authority=st.sampled_from(["a.example", "A.example:80", "", "[::1]:8", "b", "a.example:", ":", "[", "é"]),
    target=TARGETS,
    headers=st.lists(st.tuples(WORDS, VALUES), max_size=4),
    upgrade=st.sampled_from(["", "websocket"]),
)


def made(entries: list[Entry], flavour: Flavour) -> HttpTable:
    ordered = istio_order(entries) if flavour is Flavour.ISTIO else gateway_api_order(entries)
    return HttpTable(HostTable([("a.example", ordered), ("*", tuple(reversed(ordered)))]), flavour)


@settings(max_examples=400)
@given(ENTRIES, FLAVOURS, HEADS, st.floats(0, 1, exclude_max=True))
def test_every_request_is_answered_or_sent_somewhere(
    entries: list[Entry], flavour: Flavour, head: Head, draw: float
) -> None:
    found = plan(made(entries, flavour), head, CLIENT, lambda: draw, lambda: ID)
    match found:
        case Answer(reply):
            assert 200 <= reply.status <= 599
        case Forward(rule, backend, sent):
            assert backend in rule.backends and backend.weight and backend.endpoints and not backend.fault
            assert sent.target.startswith("/") or sent.target == "*"
            assert dict(sent.headers)["x-forwarded-for"].endswith(CLIENT.address)
            assert [name for name, _ in sent.headers].count("x-request-id") == 1


ASKED = st.builds(
    Head,
    method=st.sampled_from(["GET", "OPTIONS"]),
    scheme=st.just("http"),
    authority=st.just("a.example"),
    target=st.tuples(PATHS, st.sampled_from(["", "/", "?x=1", "?y=2&x=1"])).map("".join),
    headers=st.lists(st.tuples(WORDS, VALUES), max_size=3),
)
SIMPLE = st.lists(
    st.builds(Entry, st.builds(Match, st.none() | texts()), st.builds(Rule, st.uuids().map(str))), max_size=12
)


@settings(max_examples=500)
@given(SIMPLE | ENTRIES, FLAVOURS, ASKED)
def test_the_index_finds_what_a_walk_over_all_entries_finds(entries: list[Entry], flavour: Flavour, head: Head) -> None:
    path, _, query = head.target.partition("?")
    table = made(entries, flavour)
    facts = Facts(head, "a.example", path, query, CLIENT, lambda: ID)
    asked = Request("a.example", path, head.method, head.scheme, facts.headers, facts.query)
    walked, found = table.find(asked), table.index.find("a.example")
    assert (found and found[1].find(facts)) == (walked and walked.entry)


@settings(max_examples=1000)
@example("/%2%65", Flavour.ISTIO)
@example("/a/..;/b", Flavour.ISTIO)
@example("/%2e;%2f", Flavour.GATEWAY_API)
@given(TARGETS, FLAVOURS)
def test_a_normal_path_is_its_own_normal_form_and_has_no_dot_segments(path: str, flavour: Flavour) -> None:
    try:
        once = normal(path, flavour)
    except BadPathError:
        return
    assert normal(once, flavour) == once
    assert not {segment.partition(";")[0] for segment in once.split("/")} & {".", ".."}
    assert flavour is Flavour.ISTIO or "//" not in once
    assert "\\" not in once and "%2e" not in once.lower()


@given(PATHS, PATHS, st.sampled_from(["", "/", "/new", "/new/", "new"]), st.sampled_from(["", "?a=b", "?", "?a//b?c"]))
def test_replacing_a_prefix_doubles_no_slash_and_keeps_the_query(
    prefix: str, rest: str, value: str, query: str
) -> None:
    bare = prefix.rstrip("/")
    assume("//" not in rest)
    target = changed(f"{bare}{rest}{query}", PrefixPath(value), bare)
    path, mark, kept = target.partition("?")
    assert path.startswith("/") and "//" not in path
    assert mark + kept == query
    assert path.rstrip("/").endswith(rest.rstrip("/"))


@given(st.text())
def test_queries_are_read_whatever_they_are(text: str) -> None:
    assert all(isinstance(value, str) for value in parse_query(text).values())
    assert unquoted(quoted(text).replace("+", "%2B")) == text.encode(errors="replace").decode()
