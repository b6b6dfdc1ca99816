"""A DestinationRule's ``loadBalancer``: how requests are shared, or by which key they are bound to endpoints."""

from __future__ import annotations

from dataclasses import dataclass

from tproxy.core.address import Endpoint
from tproxy.core.balance.affinity import Affinity, By
from tproxy.core.balance.ring import MAGLEV, MOST, RING, Ring, maglev, ring
from tproxy.core.fields import Fields
from tproxy.core.routes import Balance
from tproxy.gateway.findings import Findings, ignore
from tproxy.gateway.http_words import cookie_name, cookie_path, header_name, seconds
from tproxy.gateway.objects import Object

_SIMPLE = {
    **dict.fromkeys(("UNSPECIFIED", "LEAST_REQUEST", "LEAST_CONN", "PASSTHROUGH"), Balance.LEAST_REQUEST),
    "ROUND_ROBIN": Balance.ROUND_ROBIN,
    "RANDOM": Balance.RANDOM,
}
_KEYS = ("httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName")
_LARGEST_RING, _LARGEST_TABLE = 1 << 23, 5_000_011  # Envoy's
_PSEUDO = (":authority", ":method", ":path")


@dataclass(frozen=True, slots=True)
class Key:
    """Of ``consistentHash``; see ``Affinity``."""

    by: By
    name: str = ""
    ttl: float | None = None
    path: str = ""


@dataclass(frozen=True, slots=True)
class Balancer:
    """What is left of the settings once they are read."""

    simple: Balance = Balance.LEAST_REQUEST
    key: Key | None = None
    maglev: bool = False
    size: int = RING

    def affinity(self, endpoints: tuple[Endpoint, ...], weights: tuple[int, ...]) -> Affinity | None:
        """For a backend with these endpoints."""
        key = self.key
        if key is None or not endpoints:
            return None
        return Affinity(key.by, self._ring(endpoints, weights), key.name, key.ttl, key.path)

    def _ring(self, endpoints: tuple[Endpoint, ...], weights: tuple[int, ...]) -> Ring:
        return (maglev if self.maglev else ring)(endpoints, weights, self.size)


DEFAULT = Balancer()


def balancer(thing: Object, given: Fields, findings: Findings) -> Balancer:
    """LoadBalancerSettings. ConfigError as the webhook's."""
    simple = given.choice("simple", "UNSPECIFIED", _SIMPLE)
    ignore(thing, given, ("localityLbSetting", "warmupDurationSecs", "warmup"), findings)
    hashed = given.raw("consistentHash") is not None
    if hashed and given.raw("simple") is not None:
        raise given.error("consistentHash", "stands beside simple; one of them can be given")
    made = _hashed(thing, given.inner("consistentHash"), findings) if hashed else Balancer(_SIMPLE[simple])
    given.finish()
    if simple == "PASSTHROUGH":
        why = "means the address that a client called; a gateway's clients call the gateway. It is ignored"
        findings.warn(thing, given.name("simple"), why)
    return made


def _hashed(thing: Object, given: Fields, findings: Findings) -> Balancer:
    key = _key(given)
    if key is None:
        findings.warn(thing, given.path, f"names no key ({', '.join(_KEYS)}): requests go to any endpoint")
    table, least = given.raw("maglev") is not None, given.raw("minimumRingSize")
    if least and (table or given.raw("ringHash") is not None):
        raise given.error("minimumRingSize", "only one of MinimumRingSize or Maglev/Ringhash can be specified")
    if table and given.raw("ringHash") is not None:
        raise given.error("maglev", "stands beside ringHash; one of them can be given")
    size = _table(given.inner("maglev")) if table else _ring(given)
    given.finish()
    if size > MOST:
        what = "tableSize" if table else "minimumRingSize"
        findings.warn(thing, given.path, f"{what} {size} is taken as {MOST}: shares become no more even than that")
    return Balancer(key=key, maglev=table, size=min(size, MOST))


def _key(given: Fields) -> Key | None:
    named = [name for name in _KEYS if given.raw(name) not in (None, "", False)]
    if len(named) > 1:
        raise given.error(named[1], f"stands beside {named[0]}; one key can be given")
    match named:
        case ["httpHeaderName"]:
            return Key(By.HEADER, given.parsed("httpHeaderName", _header, None))
        case ["httpQueryParameterName"]:
            return Key(By.QUERY, given.text("httpQueryParameterName"))
        case ["useSourceIp"]:
            return Key(By.SOURCE) if given.flag("useSourceIp", False) else None
        case ["httpCookie"]:
            return _cookie(given.inner("httpCookie"))
        case _:
            return None


def _cookie(given: Fields) -> Key:
    if not given.text("name"):
        raise given.error("name", "name required for HttpCookie")
    ttl = given.parsed("ttl", seconds, None) if given.raw("ttl") is not None else None
    made = Key(By.COOKIE, given.parsed("name", cookie_name, None), ttl, given.parsed("path", cookie_path, ""))
    given.finish()
    return made


def _header(text: object) -> str:
    return str(text) if text in _PSEUDO else header_name(text)


def _ring(given: Fields) -> int:
    inner = given.inner("ringHash")
    size = inner.integer("minimumRingSize", 0, 0, _LARGEST_RING)
    inner.finish()
    return size or given.integer("minimumRingSize", 0, 0, _LARGEST_RING) or RING


def _table(given: Fields) -> int:
    size = given.integer("tableSize", 0, 0, _LARGEST_TABLE - 1) or MAGLEV
    given.finish()
    if size < 2 or any(size % factor == 0 for factor in range(2, int(size**0.5) + 1)):
        raise given.error("tableSize", "tableSize must be a prime number for maglev", size)
    return size
