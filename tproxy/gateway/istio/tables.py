"""Servers and VirtualServices that mean the same hosts, as HttpTables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from tproxy.core.hostnames import HostTable, intersection
from tproxy.core.http.filters import Filters, Redirect
from tproxy.core.http.routes import Entry, HttpTable, Match, Rule, istio_order
from tproxy.core.routes import ServerTls
from tproxy.gateway.istio.gateway import Server
from tproxy.gateway.istio.virtual import Virtual


class Virtuals(list[Virtual]):
    """Those that are bound to a Gateway, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self._exact: dict[str, list[int]] = {}
        self._wild: list[int] = []
        self._read = 0

    def for_hosts(self, hosts: Iterable[str]) -> Iterable[Virtual]:
        """Those that may share a host with a server: so a thousand servers do not look at a thousand each."""
        for place in range(self._read, len(self)):
            for host in self[place].hosts:
                (self._wild if host.startswith("*") else self._exact.setdefault(host, [])).append(place)
        self._read = len(self)
        wanted = list(hosts)
        if any(host.startswith("*") for host in wanted):
            return self
        return [
            self[place] for place in sorted({*self._wild, *(p for host in wanted for p in self._exact.get(host, ()))})
        ]


Bound = Mapping[str, Virtuals]  # by Gateway, namespace/name


def requests(found: list[Server], bound: Bound, name: str = "", owners: HostTable[str] | None = None) -> HttpTable:
    """Hosts that servers and VirtualServices both mean; rules of several for one host stand one after the other."""
    hosts: dict[str, list[Entry]] = {}
    redirected: dict[str, list[Entry]] = {}
    for server in found:
        if server.redirects:
            always = [Entry(Match(), _to_https(server))]
            redirected |= dict.fromkeys((host for _, host in server.hosts), always)
        for host, entries in _shared(server, bound):
            if server.redirects:
                redirected[host] = always
            else:
                hosts.setdefault(host, []).extend(entries)
    hosts |= redirected  # whoever else serves them, too
    made_of = HostTable((host, istio_order(entries)) for host, entries in hosts.items())
    return HttpTable(made_of, server=name, owners=owners)


def is_routed(server: Server, bound: Bound) -> bool:
    """Whether any host of it is answered by more than 404."""
    return server.redirects or next(_shared(server, bound), None) is not None


def _shared(server: Server, bound: Bound) -> Iterator[tuple[str, list[Entry]]]:
    """Hosts that a server and the VirtualServices of its Gateway both mean, with their rules for it."""
    for made, entries in _bound_to(server, bound):
        for where, host in server.hosts:
            for own in made.hosts if where in ("*", made.thing.namespace) else ():
                if (both := intersection(host, own)) is not None:
                    yield both, entries


def _bound_to(server: Server, bound: Bound) -> Iterator[tuple[Virtual, list[Entry]]]:
    """The VirtualServices of a server's Gateway, with their rules for it."""
    gateway = f"{server.gateway.namespace}/{server.gateway.name}"
    for made in bound[gateway].for_hosts(host for _, host in server.hosts):
        entries = [
            Entry(condition.match, rule.rule)
            for rule in made.http
            for condition in rule.conditions
            if condition.port in (None, server.port) and gateway in (condition.gateways or made.gateways)
        ]
        if entries:
            yield made, list(_until_all(entries))


def _until_all(entries: list[Entry]) -> Iterator[Entry]:
    """Within one VirtualService nothing comes after what takes everything; behind those of others it stands last."""
    for entry in entries:
        yield entry
        if entry.match.is_catch_all:
            return


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
    first: dict[ServerTls | None, str] = {}
    leaders = {server.name: first.setdefault(server.tls, server.name) for server in ending}
    alike: dict[str, list[Server]] = {}
    for server in ending:
        alike.setdefault(leaders[server.name], []).append(server)
    owners = HostTable((host, leaders.get(server.name, server.name)) for server in found for _, host in server.hosts)
    tables: dict[str, HttpTable] = {}
    for server in ending:
        leader = leaders[server.name]
        if leader not in tables:
            tables[leader] = requests(alike[leader], bound, leader, owners)
        tables[server.name] = tables[leader]
    return tables
