"""The section ``egressRoutes`` of a sidecar's YAML, read into ``core.egress.routes``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tproxy.core.address import parse_network
from tproxy.core.capture import Capture
from tproxy.core.egress.routes import PORTS, REST, EgressRoutes, EgressRule, Names, Otherwise, Parity, Router
from tproxy.core.fields import Fields, parse_port, parse_whole, text_of
from tproxy.core.hostnames import ANY, parse_hostname
from tproxy.core.socat import Target


def parse_routes(fields: Fields, capture: Capture) -> EgressRoutes:
    """ConfigError names what cannot be meant, and rules for what is never captured. A file is only named here."""
    if file := fields.text("file"):
        if len(fields.data) > 1:
            raise fields.error("file", "stands alone: everything else belongs into it", file)
        return EgressRoutes(file=file)
    base = EgressRoutes()
    routers = _routers(fields.inner("routers"))
    rules = tuple(_rule(entry, index, routers, capture) for index, entry in enumerate(fields.each("rules")))
    names = [rule.name for rule in rules]
    if twice := next((index for index, name in enumerate(names) if name in names[:index]), None):
        raise fields.error(f"rules[{twice}].name", "is the name of an earlier rule, too", names[twice])
    routes = EgressRoutes(
        rules=rules,
        names=Names(fields.choice("names", base.names, list(Names))),
        tag=fields.text("tag", base.tag),
        check=fields.number("check", base.check, 0, 3600),
        rest=fields.number("rest", base.rest, 0.1, 3600),
        connect=fields.number("connect", base.connect, 0.1, 60),
        http503=frozenset(fields.items("http503", parse_port)),
    )
    fields.finish()
    return routes


def _routers(fields: Fields) -> dict[str, Router]:
    found: dict[str, Router] = {}
    for key in fields.data:
        inner = fields.inner(key)
        if inner.raw("host") is None:
            raise inner.error("host", "is missing: an address or a name")
        host = inner.parsed("host", text_of(_host), "")
        ports, rest = (dict(PORTS), REST) if inner.raw("ports") is None else _ports(inner.inner("ports"))
        found[str(key)] = Router(str(key), host, tuple(sorted(ports.items())), rest)
        inner.finish()
    return found


def _host(text: str) -> str:
    return Target.parse(f"TCP:[{text}]:1" if ":" in text else f"TCP:{text}:1").host


def _ports(fields: Fields) -> tuple[dict[int, int], int]:
    """Destination port to router's port; ``*`` for all that are not listed."""
    ports, rest = {}, 0
    for key in fields.data:
        if key == ANY:
            rest = fields.parsed(ANY, parse_port, 0)
            continue
        try:
            port = parse_port(key)
        except ValueError as error:
            raise fields.error(key, f"{error}, or *") from None
        fields.known.add(key)
        ports[port] = fields.parsed(key, parse_port, 0)
    if not ports and not rest:
        raise fields.error(ANY, "is missing: which of the router's ports takes what?")
    return ports, rest


def _rule(fields: Fields, index: int, routers: Mapping[str, Router], capture: Capture) -> EgressRule:
    parity = fields.raw("sourceOctet")
    rule = EgressRule(
        name=fields.text("name", f"egress-{index + 1}"),
        routers=_weights(fields, routers),
        ports=frozenset(fields.some("ports", parse_port)),
        networks=fields.some("cidrs", text_of(parse_network)),
        sni=fields.some("sni", text_of(_pattern)),
        octet=None if parity is None else Parity(fields.choice("sourceOctet", "", list(Parity))),
        otherwise=Otherwise(fields.choice("otherwise", Otherwise.REFUSE, list(Otherwise))),
    )
    _carried(fields, rule)
    _captured(fields, rule, capture)
    fields.finish()
    return rule


def _pattern(text: str) -> str:
    name = parse_hostname(text)
    if name == ANY:
        raise ValueError("leave sni out to mean any name, and none")
    return name


def _weights(fields: Fields, routers: Mapping[str, Router]) -> tuple[tuple[Router, int], ...]:
    """A list of names, or names with weights."""
    said = fields.raw("routers", {})
    weights: Mapping[Any, Any] = said if isinstance(said, Mapping) else dict.fromkeys(fields.items("routers", str), 1)
    if not weights:
        raise fields.error("routers", "is missing: who carries it?", valid=routers)
    inner, found = Fields(weights, fields.where, fields.name("routers"), fields.lines), []
    for name in weights:
        if str(name) not in routers:
            raise inner.error(name, f"is no router; these are: {', '.join(routers) or 'none'}", valid=routers)
        found.append(
            (routers[str(name)], inner.parsed(name, lambda value: parse_whole(value, "a weight", 0, 10_000), 1))
        )
    return tuple(found)


def _carried(fields: Fields, rule: EgressRule) -> None:
    for port in sorted(rule.ports):
        if all(router.port(port) is None for router, _ in rule.routers):
            raise fields.error("ports", "none of the rule's routers has a port for it, nor *", port)


def _captured(fields: Fields, rule: EgressRule, capture: Capture) -> None:
    """What leaves the pod without the sidecar no rule can route."""
    for port in sorted(rule.ports & capture.exclude_outbound_ports):
        raise fields.error("ports", "is not captured: capture.excludeOutboundPorts has it", port)
    included = capture.include_outbound_ports
    for port in sorted(rule.ports - included) if included is not None else ():
        raise fields.error("ports", "is not captured: capture.includeOutboundPorts has it not", port)
    for network in rule.networks:
        if any(_within(network, other) for other in capture.exclude_outbound_networks):
            raise fields.error("cidrs", "is not captured: capture.excludeOutboundIPRanges has it", str(network))
        ranges = capture.include_outbound_networks
        if ranges is not None and not any(_within(network, other) for other in ranges):
            raise fields.error("cidrs", "is not captured: capture.includeOutboundIPRanges has it not", str(network))


def _within(network: Any, other: Any) -> bool:
    return network.version == other.version and bool(network.subnet_of(other))
