"""Servers and VirtualServices that mean the same hosts, as HttpTables."""

from __future__ import annotations

from collections.abc import Mapping

from tproxy.core.hostnames import HostTable, intersection
from tproxy.core.http_filters import Filters, Redirect
from tproxy.core.http_routes import Entry, HttpTable, Match, Rule, istio_order
from tproxy.gateway.istio_gateway import Server
from tproxy.gateway.istio_virtual import Virtual

Bound = Mapping[str, list[Virtual]]  # by Gateway, namespace/name


def requests(found: list[Server], bound: Bound, name: str = "", owners: HostTable[str] | None = None) -> HttpTable:
    """Hosts that servers and VirtualServices both mean; rules of several for one host stand one after the other."""
    hosts: dict[str, list[Entry]] = {}
    for server in found:
        if server.redirects:
            for _, host in server.hosts:
                hosts.setdefault(host, [Entry(Match(), _to_https(server))])
            continue
        for made, entries in _bound_to(server, bound):
            for where, host in server.hosts:
                for own in made.hosts if where in ("*", made.thing.namespace) else ():
                    if (both := intersection(host, own)) is not None:
                        hosts.setdefault(both, []).extend(entries)
    made_of = HostTable((host, istio_order(entries)) for host, entries in hosts.items())
    return HttpTable(made_of, server=name, owners=owners)


def _bound_to(server: Server, bound: Bound) -> list[tuple[Virtual, list[Entry]]]:
    """The VirtualServices of a server's Gateway, with their rules for it."""
    gateway = f"{server.gateway.namespace}/{server.gateway.name}"
    found = []
    for made in bound[gateway]:
        entries = [
            Entry(condition.match, rule.rule)
            for rule in made.http
            for condition in rule.conditions
            if condition.port in (None, server.port) and gateway in (condition.gateways or made.gateways)
        ]
        if entries:
            found.append((made, entries))
    return found


def _to_https(server: Server) -> Rule:
    """``tls.httpsRedirect``: whatever is asked for, whether a VirtualService knows it or not."""
    where = server.gateway.fields().place(server.path)
    return Rule(f"{server.name} httpsRedirect", where=where, filters=Filters(redirect=Redirect(scheme="https")))


def requests_by_tls(found: list[Server], bound: Bound) -> dict[str, HttpTable]:
    """For each HTTPS server of a port its table, by the server's name.

    Browsers send requests for one host over a connection to another that shows a certificate for both. Servers that end
    TLS in the same way share one table, so such a request is served; for all others it is misdirected (421).
    """
    ending = [server for server in found if server.protocol == "HTTPS" and not server.passes]
    leaders = {server.name: next(other.name for other in ending if other.tls == server.tls) for server in ending}
    owners = HostTable((host, leaders.get(server.name, server.name)) for server in found for _, host in server.hosts)
    tables: dict[str, HttpTable] = {}
    for server in ending:
        leader = leaders[server.name]
        if leader not in tables:
            alike = [other for other in ending if leaders[other.name] == leader]
            tables[leader] = requests(alike, bound, leader, owners)
        tables[server.name] = tables[leader]
    return tables
