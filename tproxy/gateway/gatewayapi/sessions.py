"""``sessionPersistence`` of a rule (GEP-1619), which only the experimental CRDs have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256

from tproxy.core.balance.session import Session
from tproxy.core.fields import Fields
from tproxy.core.routes import Backend
from tproxy.gateway.http_words import changed_header, cookie_name, seconds

_LONGEST = 128  # characters of a name
_FOREVER = float(2**31)


def session(rule: Fields, scope: str, backends: Iterable[Backend], key: bytes) -> Session | None:
    """What keeps clients of a rule (``scope`` is its name) with their endpoints. ConfigError as the CRD's."""
    if rule.raw("sessionPersistence") is None:
        return None
    given = rule.inner("sessionPersistence")
    header = given.choice("type", "Cookie", ("Cookie", "Header")) == "Header"
    config = given.inner("cookieConfig")
    permanent = config.choice("lifetimeType", "Session", ("Permanent", "Session")) == "Permanent"
    config.finish()
    if header and given.raw("cookieConfig") is not None:
        raise given.error("cookieConfig", "cookieConfig can only be set with type Cookie")
    absolute, idle = (_seconds(given, key) for key in ("absoluteTimeout", "idleTimeout"))
    if permanent and absolute is None:
        raise given.error("absoluteTimeout", "AbsoluteTimeout must be specified when cookie lifetimeType is Permanent")
    name = _name(given, scope, header)
    given.finish()
    made = Session(name, header, absolute, idle, permanent, scope, key)
    return replace(made, places=made.over(backends))


def _name(given: Fields, scope: str, header: bool) -> str:
    name = given.text("sessionName")
    if len(name) > _LONGEST:
        raise given.error("sessionName", f"may have {_LONGEST} characters", name)
    if not name:  # one of its own: clients send a cookie to every rule whose path it covers
        name = f"tproxy-session-{sha256(scope.encode()).hexdigest()[:8]}"
    return given.parsed("sessionName", changed_header if header else cookie_name, name)


def _seconds(given: Fields, key: str) -> float | None:
    if given.raw(key) is None:
        return None
    value = given.parsed(key, seconds, None)
    if not 0 < value < _FOREVER:
        raise given.error(key, "expected more than 0s, and less than 68 years", given.raw(key))
    return value
