"""What is done with a request: answered at once, or sent to a backend, changed how, and what becomes of its reply.

PURE. ``draw`` gives random numbers in [0, 1), ``new_id`` a request id, ``clock`` unix seconds; asked only when needed.

    match plan(table, head, client, draw, new_id):
        case Answer(reply, body): ...
        case Forward(backend, head): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from tproxy.core.balance.affinity import Bond
from tproxy.core.balance.session import Session, Tie, cookie_path
from tproxy.core.hostnames import HostTable
from tproxy.core.http import cors
from tproxy.core.http.facts import Facts, host_of
from tproxy.core.http.filters import NO_FILTERS, Fault, Filters, Flavour, HeaderChange, Pairs, Timeouts
from tproxy.core.http.forwarded import Client, Respond
from tproxy.core.http.head import Head, Headers
from tproxy.core.http.local import Answer, is_grpc, local
from tproxy.core.http.onward import Forward
from tproxy.core.http.operators import Moment
from tproxy.core.http.path import BadPathError, changed, checked, normal, unescaped
from tproxy.core.http.redirect import location, matched
from tproxy.core.http.routes import Entry, HttpTable, Kind, Rule
from tproxy.core.http.weights import by_weight
from tproxy.core.policy.policy import Policy
from tproxy.core.policy.visit import called
from tproxy.core.reason import Deny
from tproxy.core.routes import Backend

Draw = Callable[[], float]
_ISTIO: Final = Flavour.ISTIO
_GATEWAY_API: Final = Flavour.GATEWAY_API
_PLAIN: Final = {flavour: Respond(flavour) for flavour in Flavour}
_NO_UPSTREAM: Final = b"no healthy upstream"
_REFUSED: Final = b"RBAC: access denied"


def plan(
    table: HttpTable,
    head: Head,
    client: Client,
    draw: Draw,
    new_id: Callable[[], str],
    clock: Draw = float,
    policy: Policy | None = None,
) -> Answer | Forward:
    """The one decision for a request; first of all whether ``policy``, if there is one, lets it in."""
    path, mark, query = head.target.partition("?")
    flavour = table.flavour
    try:
        checked(head.target)
        path = normal(path, flavour)
    except BadPathError as error:
        return local(head, flavour, 400, flags="DPE", why=f"path_normalization_failed: {error}")
    if flavour is _GATEWAY_API and (bare := unescaped(path)) is not None:
        return _again(head, f"{normal(bare, flavour)}{mark}{query}")
    facts = Facts(head, host_of(head.authority), path, query, client, new_id)
    if policy is not None and (denied := _denied(policy, table, head, client, facts)):
        return denied
    if table.owners is not None and (refused := _misdirected(table, table.owners, head, facts)):
        return refused
    found = table.index.find(facts.host)
    entry = found[1].find(facts) if found is not None and path != "*" else None  # which is no path: RFC 9112, 3.2.4
    if entry is None:
        return local(head, flavour, 404, flags="NR", why=_unmatched(facts, found[0] if found else ""))
    return _Request(table, head, client, facts, f"{path}{mark}{query}", draw, clock).meets(entry)


def _again(head: Head, target: str) -> Answer:
    """Escaped slashes mean different things to different backends: the client has to say which (Envoy Gateway)."""
    if is_grpc(head):
        return local(head, Flavour.GATEWAY_API, 400, why="escaped slashes in a gRPC path")
    to = [("location", target)]  # it has one slash at its beginning, so it names no host
    return local(head, Flavour.GATEWAY_API, 307, headers=to, why="path_with_escaped_slashes: redirected without them")


def fallen(policy: Policy, table: HttpTable, head: Head, client: Client) -> Answer | None:
    """What is said to a request that was let in, if another policy would not do that."""
    path, _, query = head.target.partition("?")
    facts = Facts(head, host_of(head.authority), normal(path, table.flavour), query, client, str)
    return _denied(policy, table, head, client, facts)


def _denied(policy: Policy, table: HttpTable, head: Head, client: Client, facts: Facts) -> Answer | None:
    """In Envoy's words to the client, which tell it nothing of the policies."""
    assert client.link is not None
    uris = client.peer.uris if client.peer is not None else ()
    answer = policy.check(called(client.link, uris, client.sni, facts))
    if not isinstance(answer, Deny):
        return None
    details = f"rbac_access_denied_matched_policy[{answer.rule}]"
    why = f"{answer.why}: {answer.rule}"
    return local(head, table.flavour, 403, body=_REFUSED, rule=answer.rule, why=why, details=details)


def _misdirected(table: HttpTable, owners: HostTable[str], head: Head, facts: Facts) -> Answer | None:
    """RFC 9110, 15.5.20: a request that came by another server's connection (HTTP/2 clients share them)."""
    owner = owners.find(facts.host)
    if owner is None or owner[1] == table.server:
        return None
    return local(head, table.flavour, 421, why=f"{facts.host} is {owner[1]}'s; the connection is of {table.server}")


def _unmatched(facts: Facts, host: str) -> str:
    held = f"no rule of {host} holds for {facts.method} {facts.path}"
    return held if host else f"no route is for host {facts.host!r}"


class _Request:
    """A request on its way through a rule; ``target`` has the normal path."""

    __slots__ = ("added", "client", "clock", "draw", "facts", "head", "table", "target")

    def __init__(
        self, table: HttpTable, head: Head, client: Client, facts: Facts, target: str, draw: Draw, clock: Draw
    ) -> None:
        self.table, self.head, self.client, self.facts = table, head, client, facts
        self.target, self.draw, self.clock = target, draw, clock
        self.added: Pairs = ()  # of CORS, to whatever is answered

    def meets(self, entry: Entry) -> Answer | Forward:
        """What the entry's rule does with it."""
        rule, filters = entry.rule, entry.rule.filters
        if filters.cors is not None and (origin := cors.allowed(filters.cors, self.facts)) is not None:
            if cors.is_preflight(self.facts):
                return self._answered(rule, 200, headers=cors.preflight(filters.cors, self.facts, origin))
            self.added = cors.actual(filters.cors, origin)
        elif filters.cors is not None and not filters.cors.forward_unmatched and cors.is_preflight(self.facts):
            return self._answered(rule, 200, why="the origin is not allowed")
        delay = 0.0
        if rule.fault is not None:
            delay = rule.fault.delay if self._happens(rule.fault.delay_share) else 0.0
            if self._happens(rule.fault.abort_share):
                return self._aborted(rule, rule.fault, delay)
        if filters.redirect is not None:
            return self._redirected(entry, filters)
        if rule.direct is not None:
            made, change = rule.direct, filters.response
            headers = change.applied([], self._moment(change, rule, status=made.status))
            return self._answered(rule, made.status, body=made.body, headers=headers, why=made.why)
        if rule.session is not None:
            return self._in_session(entry, rule.session, delay)
        backend = self._chosen(rule)
        if isinstance(backend, Answer):
            return backend
        return self._sent(entry, backend, delay)

    def _in_session(self, entry: Entry, session: Session, delay: float) -> Answer | Forward:
        """To the session's backend, whatever weight it has by now; a new session begins by the weights."""
        now = self.clock()
        known = session.known(self.facts.forwarded, now)
        backend = entry.rule.backends[known.backend] if known is not None else self._chosen(entry.rule)
        if isinstance(backend, Answer):
            return backend
        text = entry.match.path
        path = "/" if text is None else cookie_path(text.value, text.kind is Kind.REGEX)
        tie = Tie(session, backend.name, known, path, self.client.scheme == "https", now)
        return self._sent(entry, backend, delay, tie)

    def _happens(self, share: float) -> bool:
        return share > 0.0 and self.draw() < share

    def _aborted(self, rule: Rule, fault: Fault, delay: float) -> Answer:
        return local(
            self.head,
            self.table.flavour,
            fault.status or 503,
            body=b"fault filter abort",
            rule=rule.name,
            flags="FI",
            why="fault_filter_abort",
            grpc_status=fault.grpc_status,
            delay=delay,
        )

    def _redirected(self, entry: Entry, filters: Filters) -> Answer:
        assert filters.redirect is not None
        to = location(filters.redirect, self.head, self.target, matched(entry, self.facts.path), self.client)
        change, status = filters.response, filters.redirect.status
        headers = change.applied([("location", to)], self._moment(change, entry.rule, status=status))
        return self._answered(entry.rule, status, headers=headers, why="redirect")

    def _moment(
        self, change: HeaderChange, rule: Rule, headers: Headers | None = None, to: str = "", status: int = 0
    ) -> Moment | None:
        """What values with operators tell of: the request before its rule rewrites it. None: there are none."""
        if not change.formats:
            return None
        head, seen = self.head, self.facts.forwarded if headers is None else headers
        asked = Head(head.method, self.client.scheme, head.authority, self.target, seen, head.version)
        return Moment(asked, self.client, self.clock(), to, rule.name, None, status)

    def _answered(
        self,
        rule: Rule,
        status: int,
        *,
        body: bytes = b"",
        headers: Iterable[tuple[str, str]] = (),
        flags: str = "",
        why: str = "",
    ) -> Answer:
        headers = [*headers, *self.added]
        return local(
            self.head, self.table.flavour, status, body=body, headers=headers, rule=rule.name, flags=flags, why=why
        )

    def _chosen(self, rule: Rule) -> Backend | Answer:
        """One of the backends by weight, or what its share gets when nobody is there."""
        found = rule.backends[0] if len(rule.backends) == 1 else by_weight(rule.backends, self.draw)
        if found is None or not found.weight:
            return self._nowhere(rule, "the rule has no backend")
        if found.fault:
            return self._nowhere(rule, f"{found.name}: {found.fault}")
        if not found.endpoints and found.filters.redirect is None:
            why = f"{found.name} has no endpoints that are ready"
            return self._answered(rule, 503, body=_NO_UPSTREAM, flags="UH", why=why)
        return found

    def _nowhere(self, rule: Rule, why: str) -> Answer:
        """A backend that cannot be: Istio's gateway says 503 with NC, Gateway API demands 500."""
        if self.table.flavour is _ISTIO:
            return self._answered(rule, 503, flags="NC", why=why)
        return self._answered(rule, 500, why=why)

    def _sent(self, entry: Entry, backend: Backend, delay: float, bond: Bond | None = None) -> Answer | Forward:
        rule, own = entry.rule, backend.filters
        filters = rule.filters
        if own.redirect is not None:
            return self._redirected(entry, own)
        head = self._written(entry, own, backend.name)
        mirrors: tuple[tuple[Backend, Head], ...] = ()
        if filters.mirrors or own.mirrors:
            mirrors = tuple(
                (mirror.backend, self._mirrored(head))
                for mirror in (*filters.mirrors, *own.mirrors)
                if mirror.share >= 1.0 or self._happens(mirror.share)
            )
        respond = _PLAIN[self.table.flavour]
        filtered = own is not NO_FILTERS or filters is not NO_FILTERS
        if self.added or (filtered and (own.response or filters.response)):
            respond = Respond(self.table.flavour, *_order(own, rule, self.table.flavour is _ISTIO), self.added)
            if own.response.formats or filters.response.formats:
                respond = replace(respond, moment=Moment(head, self.client, self.clock(), backend.name, rule.name))
        if bond is None and backend.affinity is not None:
            bond = backend.affinity.bond(self.facts, self.client.address, self.draw)
        if delay:  # Envoy: neither limits nor tries while a fault is being injected
            return Forward(rule, backend, head, respond, Timeouts(), None, mirrors, delay, bond)
        return Forward(rule, backend, head, respond, rule.timeouts, rule.retry, mirrors, 0.0, bond)

    def _written(self, entry: Entry, own: Filters, backend: str) -> Head:
        """The head as the backend gets it: our headers, then the changes of the backend and of the rule."""
        head, target, authority = self.head, self.target, self.head.authority
        rule, istio = entry.rule, self.table.flavour is _ISTIO
        headers = self.facts.forwarded
        if own is not NO_FILTERS or rule.filters is not NO_FILTERS:
            for filters in _order(own, rule, istio):
                if filters.request:
                    moment = self._moment(filters.request, rule, headers, backend)
                    headers = filters.request.applied(headers, moment)
            rewrites = [each.rewrite for each in ((rule.filters, own) if istio else (own, rule.filters))]
            for rewrite in filter(None, reversed(rewrites)):
                target = changed(self.target, rewrite.path, matched(entry, self.facts.path)) if rewrite.path else target
                authority = rewrite.host or authority
        if istio:
            if rule.timeouts.request:
                headers.append(("x-envoy-expected-rq-timeout-ms", str(round(rule.timeouts.request * 1000))))
            if target != self.target:
                headers.append(("x-envoy-original-path", self.target))
            if rule.decorator:
                headers.append(("x-envoy-decorator-operation", rule.decorator))
            headers.append(("x-envoy-attempt-count", "1"))
        return Head(head.method, self.client.scheme, authority, target, headers, head.version, head.upgrade)

    def _mirrored(self, head: Head) -> Head:
        """The same, with headers of its own; Envoy marks the host in Istio's gateways."""
        host = head.authority
        if self.table.flavour is _ISTIO:
            name, port = (
                (host, "") if host.endswith("]") else (host.rpartition(":")[::2] if ":" in host else (host, ""))
            )
            host = f"{name}-shadow{f':{port}' if port else ''}"
        return Head(head.method, head.scheme, host, head.target, list(head.headers), head.version)


def _order(own: Filters, rule: Rule, istio: bool) -> tuple[Filters, Filters]:
    """Whose header changes come first: the backend's, but those of Istio's only destination stand behind the rule's."""
    return (rule.filters, own) if istio and len(rule.backends) == 1 else (own, rule.filters)
