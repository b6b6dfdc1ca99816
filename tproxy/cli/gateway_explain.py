"""What ``tproxy gateway explain`` prints: the rule that a request meets on each port, and why not the others."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from tproxy.cli.gateway_show import backends_of, complained, listeners_of, plain
from tproxy.cli.gateway_source import load
from tproxy.core.fields import ConfigError

if TYPE_CHECKING:
    from tproxy.core.policy.policy import Policy
    from tproxy.core.route_explain import Line, Told
    from tproxy.core.routes import Bind, Listener
    from tproxy.gateway.compile import Loaded

SHOWN = 20  # rules that are not taken, unless all are asked for
_HOST = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
_HEADER = re.compile(r"([A-Za-z0-9!#$%&'*+.^_`|~-]+):(.*)", re.DOTALL)  # RFC 9110, 5.1


def explain(args: argparse.Namespace) -> int:
    """For each port: the rule that is taken, or the refusal; then why not the others. 1 if no port takes it."""
    headers = _checked(args)
    loaded = complained(load(args))
    found = [(bind, listener) for bind, listener in listeners_of(loaded) if _asked(args, listener)]
    answers = [_told(args, headers, bind, listener, loaded.table.policies.get(bind)) for bind, listener in found]
    if args.json:
        print(json.dumps([_plain(*answer) for answer in answers], indent=2))
    else:
        for answer, done in answers:
            _print(answer, done, args.all)
        if not answers:
            print(_nothing(args, loaded))
    return 0 if any(answer.taken for answer, _ in answers) else 1


def _checked(args: argparse.Namespace) -> list[tuple[str, str]]:
    """The headers; ConfigError for what no client could send."""
    for option, text in (("--host", args.host), ("--sni", args.sni)):
        if text is not None and not _HOST.fullmatch(text):
            raise ConfigError("command line", option, "expected a name, without scheme and path", text)
    headers = []
    for text in args.header:
        if (pair := _HEADER.fullmatch(text)) is None:
            raise ConfigError("command line", "--header", "expected name: value", text)
        headers.append((pair[1].lower(), pair[2].strip()))
    return headers


def _asked(args: argparse.Namespace, listener: Listener) -> bool:
    """Whether the question is one about this port."""
    from tproxy.core.routes import HttpListener, TlsListener

    if args.port:
        return bool(args.port == listener.port)
    return isinstance(listener, TlsListener) or (args.sni is None and isinstance(listener, HttpListener))


def _told(
    args: argparse.Namespace, headers: list[tuple[str, str]], bind: Bind, listener: Listener, policy: Policy | None
) -> tuple[Told, list[str]]:
    """The rule on a port, and what it does with the request, where requests are read and a host is known."""
    from tproxy.cli.gateway_policy import NOBODY, verdict
    from tproxy.core.http.explain import done, request_of, table_of
    from tproxy.core.http.facts import host_of
    from tproxy.core.http.forwarded import Client
    from tproxy.core.http.head import Head
    from tproxy.core.route_explain import told
    from tproxy.core.routes import TlsListener

    tls, host = isinstance(listener, TlsListener), args.host or args.sni
    sni = (args.sni or host_of(args.host or "")).lower() or None
    table = table_of(listener, sni)
    if table is None or not host:
        refusal, lines = verdict(args, policy, bind[1], sni or "", None) if table is None else ("", [])
        return _judged(told(listener, sni, None), refusal), lines
    head = Head(args.method, "https" if tls else "http", host, args.path, headers)
    client = Client(str(NOBODY), head.scheme, listener.port, (sni or "") if tls else "")
    request = request_of(head, table, client)
    refusal, lines = verdict(args, policy, bind[1], client.sni, request)
    if refusal:
        return _judged(told(listener, sni, request), refusal), ["answered 403: RBAC: access denied", *lines]
    return told(listener, sni, request), [*lines, *done(table, head, client)]


def _judged(answer: Told, refusal: str) -> Told:
    """Who is refused by a policy takes no rule."""
    return replace(answer, taken=None, refusal=refusal) if refusal else answer


def _print(answer: Told, done: list[str], everything: bool) -> None:
    print(f"port {answer.port}: {_taken(answer.taken) if answer.taken else answer.refusal}")
    for line in done:
        print(f"  {line}")
    others = answer.others if everything else answer.others[:SHOWN]
    for other in others:
        print(f"  not {other.host} ({other.rule or other.server}): {other.why_not}")
    if len(others) < len(answer.others):
        print(f"  and {len(answer.others) - len(others)} others; --all shows them")


def _taken(line: Line) -> str:
    where = f" ({line.where})" if line.where else ""
    of = f" of {line.server}" if line.server and line.rule else ""
    to = f" -> {backends_of(line)}" if line.backends else ""
    return f"{line.kind} {line.host} by {line.rule or line.server}{where}{of}{to}"


def _nothing(args: argparse.Namespace, loaded: Loaded) -> str:
    ports = ", ".join(str(listener.port) for _, listener in listeners_of(loaded)) or "none"
    return f"nothing {f'listens on port {args.port}' if args.port else 'takes it'}; ports are: {ports}"


def _plain(answer: Told, done: list[str]) -> dict[str, object]:
    return {
        "port": answer.port,
        "taken": answer.taken and plain(answer.taken),
        "refusal": answer.refusal,
        "done": done,
        "others": [plain(line) for line in answer.others],
    }
