"""What would be done with a request, in lines for people: the same plan as for traffic, told in words.

PURE.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import assert_never

from tproxy.core.http.facts import Facts, host_of
from tproxy.core.http.filters import Retry, Timeouts
from tproxy.core.http.forwarded import Client
from tproxy.core.http.head import Head
from tproxy.core.http.local import Answer
from tproxy.core.http.onward import Forward
from tproxy.core.http.path import BadPathError, normal
from tproxy.core.http.plan import plan
from tproxy.core.http.routes import HttpTable, Request
from tproxy.core.routes import HttpListener, Listener, Terminate, TlsListener, by_sni

_ID = "(random)"


def table_of(listener: Listener, name: str | None) -> HttpTable | None:
    """The HTTP rules behind a port, for clients that ask for this name by SNI."""
    if isinstance(listener, HttpListener):
        return listener.table
    chain = by_sni(listener, name) if isinstance(listener, TlsListener) else None
    return chain.inside if isinstance(chain, Terminate) and isinstance(chain.inside, HttpTable) else None


def request_of(head: Head, table: HttpTable | None, client: Client) -> Request:
    """The facts that rules compare; the path is normal, if it has a normal form."""
    path, _, query = head.target.partition("?")
    with suppress(BadPathError):  # the plan says so
        path = normal(path, table.flavour) if table else path
    facts = Facts(head, host_of(head.authority), path, query, client, lambda: _ID)
    return Request(facts.host, path, head.method, facts.scheme, facts.headers, facts.query)


def done(table: HttpTable, head: Head, client: Client) -> Iterator[str]:
    """What the client gets, or what the backend is sent, and what becomes of its reply. No dice are thrown: the first
    backend is shown, every mirror is, and faults that happen to some requests only do not happen."""
    found = plan(table, head, client, lambda: 0.0, lambda: _ID)
    match found:
        case Answer():
            yield from _answered(found)
        case Forward():
            yield from _sent(found, head)
        case never:
            assert_never(never)


def _answered(answer: Answer) -> Iterator[str]:
    flags = f" ({answer.flags})" if answer.flags else ""
    yield f"answered {answer.reply.status}{flags}: {answer.why}" if answer.why else f"answered {answer.reply.status}"
    if answer.delay:
        yield f"after {answer.delay:g} s"
    yield from (f"response header {name}: {value}" for name, value in answer.reply.headers)


def _sent(forward: Forward, asked: Head) -> Iterator[str]:
    head = forward.head
    yield f"sent to {forward.backend.name} as {head.method} {head.target} of {head.authority}"
    if forward.delay:
        yield f"after {forward.delay:g} s"
    if forward.rule.session is not None:
        yield f"endpoint by {forward.rule.session}"
    elif forward.backend.affinity is not None:
        yield f"endpoint by {forward.backend.affinity}"
    if forward.backend.care is not None:
        yield from (f"endpoints: {words}" for words in forward.backend.care.words())
    had = set(asked.headers)
    kept = {name for name, _ in head.headers}
    yield from (f"header {name}: {value}" for name, value in head.headers if (name, value) not in had)
    yield from (f"without header {name}" for name, _ in asked.headers if name not in kept)
    yield from (f"mirrored to {backend.name} as {copy.authority}" for backend, copy in forward.mirrors)
    yield from _limits(forward.timeouts, forward.retry)
    respond = forward.respond
    for change in (respond.first.response, respond.second.response):
        yield from (f"response header {name}: {value} (set)" for name, value in change.set)
        yield from (f"response header {name}: {value} (added)" for name, value in change.add)
        yield from (
            f"response header {name}: {form} ({'added' if adds else 'set'})" for name, form, adds in change.formats
        )
        yield from (f"response without header {name}" for name in change.remove)
    yield from (f"response header {name}: {value}" for name, value in respond.cors)


def _limits(limits: Timeouts, retry: Retry | None) -> Iterator[str]:
    if limits.request:
        yield f"within {limits.request:g} s"
    if limits.backend:
        yield f"each try within {limits.backend:g} s"
    if retry is not None:
        on = ", ".join((*sorted(retry.on), *map(str, sorted(retry.codes))))
        yield f"tried again up to {retry.attempts} times on {on}"
