"""Rules of HTTP as Envoy's RouteConfiguration (envoy.config.route.v3), in proto-JSON."""

from __future__ import annotations

from typing import Any

from tproxy.core.http.filters import Filters, FullPath, HeaderChange, PrefixPath, Redirect, RegexPath, Retry
from tproxy.core.http.routes import Entry, HttpTable, Kind, Match, Rule, Text
from tproxy.core.routes import Backend
from tproxy.gateway.envoy.names import TYPE, cluster, config_path

Json = dict[str, Any]
_CODES = {
    301: "MOVED_PERMANENTLY",
    302: "FOUND",
    303: "SEE_OTHER",
    307: "TEMPORARY_REDIRECT",
    308: "PERMANENT_REDIRECT",
}


def route_configuration(name: str, table: HttpTable, port: int) -> Json:
    """One table; without hosts it is Istio's blackhole, whose answer is 404."""
    hosts = [_host(host, entries, port) for host, entries in table.hosts.items()]
    blackhole = {"name": f"blackhole:{port}", "domains": ["*"]}
    return {
        "@type": f"{TYPE}.config.route.v3.RouteConfiguration",
        "name": name,
        "virtual_hosts": hosts or [blackhole],
        "validate_clusters": False,
        "ignore_port_in_host_matching": True,
    }


def _host(host: str, entries: tuple[Entry, ...], port: int) -> Json:
    return {
        "name": f"{host}:{port}",
        "domains": [host],
        "routes": [_route(entry) for entry in entries],
        "include_request_attempt_count": True,
    }


def _route(entry: Entry) -> Json:
    rule, filters = entry.rule, entry.rule.filters
    made: Json = {"match": _match(entry.match), **_action(rule, _is_exact(entry)), **_changes(filters)}
    if rule.decorator:
        made["decorator"] = {"operation": rule.decorator}
    if path := config_path(rule.name):
        made["metadata"] = {"filter_metadata": {"istio": {"config": path}}}
    return made


def _is_exact(entry: Entry) -> bool:
    return entry.match.path is not None and entry.match.path.kind is Kind.EXACT


def _match(match: Match) -> Json:
    made: Json = {**_path(match.path), "case_sensitive": not (match.path and match.path.ignore_case)}
    special = ((":method", match.method), (":scheme", match.scheme), (":authority", match.authority))
    headers = [_header(name, text) for name, text in match.headers]
    headers += [{**_header(name, text), "invert_match": True} for name, text in match.without]
    headers += [_header(name, text) for name, text in special if text is not None]
    if headers:
        made["headers"] = headers
    if match.query:
        made["query_parameters"] = [_header(name, text) for name, text in match.query]
    return made


def _path(path: Text | None) -> Json:
    if path is None or (path.kind is Kind.SEGMENTS and path.value == "/"):
        return {"prefix": "/"}
    match path.kind:
        case Kind.EXACT:
            return {"path": path.value}
        case Kind.SEGMENTS:
            return {"path_separated_prefix": path.value.rstrip("/")}
        case Kind.REGEX:
            return {"safe_regex": {"regex": path.value}}
        case _:
            return {"prefix": path.value or "/"}


def _header(name: str, text: Text) -> Json:
    if text.kind is Kind.PRESENT:
        return {"name": name, "present_match": True}
    return {"name": name, "string_match": string_match(text)}


def string_match(text: Text) -> Json:
    """StringMatcher."""
    if text.kind is Kind.REGEX:
        return {"safe_regex": {"regex": text.value}}
    return {text.kind.value: text.value, **({"ignore_case": True} if text.ignore_case else {})}


def _action(rule: Rule, exact: bool) -> Json:
    filters = rule.filters
    if filters.redirect is not None:
        return {"redirect": _redirect(filters.redirect)}
    if rule.direct is not None:
        body = {"body": {"inline_string": rule.direct.body.decode(errors="replace")}} if rule.direct.body else {}
        return {"direct_response": {"status": rule.direct.status, **body}}
    if not rule.backends:
        return {"direct_response": {"status": 500}}
    made: Json = {"timeout": f"{rule.timeouts.request or 0:g}s", **_clusters(rule.backends), **_rewrite(filters, exact)}
    if rule.retry is not None:
        made["retry_policy"] = _retry(rule.retry)
    if filters.mirrors:
        made["request_mirror_policies"] = [
            {"cluster": cluster(mirror.backend), "runtime_fraction": {"default_value": _fraction(mirror.share)}}
            for mirror in filters.mirrors
        ]
    return {"route": made}


def _clusters(backends: tuple[Backend, ...]) -> Json:
    if len(backends) == 1 and not backends[0].filters.request and not backends[0].filters.response:
        return {"cluster": cluster(backends[0])}
    weighted = [
        {"name": cluster(backend), "weight": backend.weight, **_changes(backend.filters)} for backend in backends
    ]
    return {"weighted_clusters": {"clusters": weighted}}


def _rewrite(filters: Filters, exact: bool) -> Json:
    if filters.rewrite is None:
        return {}
    made: Json = {"host_rewrite_literal": filters.rewrite.host} if filters.rewrite.host else {}
    match filters.rewrite.path:
        case PrefixPath(value):
            made["prefix_rewrite"] = value or "/"
        case FullPath(value) if exact:
            made["prefix_rewrite"] = value
        case FullPath(value):
            made["regex_rewrite"] = {"pattern": {"regex": "^/.*$"}, "substitution": value.replace("\\", "\\\\")}
        case RegexPath(pattern, replacement):
            made["regex_rewrite"] = {"pattern": {"regex": pattern}, "substitution": replacement}
    return made


def _redirect(redirect: Redirect) -> Json:
    made: Json = {"response_code": _CODES[redirect.status]}
    if redirect.scheme:
        made["scheme_redirect"] = redirect.scheme
    if redirect.host:
        made["host_redirect"] = redirect.host
    if redirect.port is not None:
        made["port_redirect"] = redirect.port
    match redirect.path:
        case PrefixPath(value):
            made["prefix_rewrite"] = value
        case FullPath(value):
            made["path_redirect"] = value
    return made


def _retry(retry: Retry) -> Json:
    on = ",".join([*sorted(retry.on), *(["retriable-status-codes"] if retry.codes else [])])
    made: Json = {"retry_on": on, "num_retries": retry.attempts}
    if retry.codes:
        made["retriable_status_codes"] = sorted(retry.codes)
    if retry.per_try:
        made["per_try_timeout"] = f"{retry.per_try:g}s"
    return made


def _fraction(share: float) -> Json:
    return {"numerator": round(share * 1_000_000), "denominator": "MILLION"}


def _changes(filters: Filters) -> Json:
    return {**_change("request", filters.request), **_change("response", filters.response)}


def _change(which: str, change: HeaderChange) -> Json:
    made: Json = {}
    if change.set or change.add or change.formats:
        made[f"{which}_headers_to_add"] = [
            *(_option(name, value.replace("%", "%%"), False) for name, value in change.set),
            *(_option(name, value.replace("%", "%%"), True) for name, value in change.add),
            *(_option(name, str(form), adds) for name, form, adds in change.formats),
        ]
    if change.remove:
        made[f"{which}_headers_to_remove"] = list(change.remove)
    return made


def _option(name: str, value: str, adds: bool) -> Json:
    action = "APPEND_IF_EXISTS_OR_ADD" if adds else "OVERWRITE_IF_EXISTS_OR_ADD"
    return {"header": {"key": name, "value": value}, "append_action": action}
