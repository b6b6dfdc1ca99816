"""socat's two address strings, as ``tproxy forward`` takes them over (socat(1), TCP-LISTEN and TCP).

>>> Listen.parse("TCP-LISTEN:443,fork,reuseaddr")
Listen(host='', port=443, fork=True)
>>> str(Target.parse("TCP:10.211.55.14:32653"))
'10.211.55.14:32653'
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tproxy.core.address import parse_address
from tproxy.core.fields import ConfigError, parse_port

WHERE = "command line"
LISTENS = {"TCP-LISTEN": "", "TCP-L": "", "TCP4-LISTEN": "0.0.0.0", "TCP4-L": "0.0.0.0", "TCP6-LISTEN": "::"}
TARGETS = ("TCP", "TCP-CONNECT", "TCP4", "TCP4-CONNECT", "TCP6", "TCP6-CONNECT")
OPTIONS = ("fork", "reuseaddr", "bind")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?")
_TARGET = re.compile(r"(\[(?P<v6>[^][]*)\]|(?P<host>[^][:]*)):(?P<port>[^:]*)")


@dataclass(frozen=True, slots=True)
class Listen:
    """Where connections are accepted; without a host on every address, and without ``fork`` one only, then the end."""

    host: str
    port: int
    fork: bool = False

    @classmethod
    def parse(cls, text: str) -> Listen:
        """``TCP-LISTEN:port[,fork][,reuseaddr][,bind=address]``; ConfigError names what is wrong."""
        kind, colon, rest = text.partition(":")
        if not colon or kind.upper() not in LISTENS:
            raise ConfigError(WHERE, "LISTEN", "expected TCP-LISTEN:port,fork,reuseaddr", text, LISTENS)
        port, *words = rest.split(",")
        host, fork = LISTENS[kind.upper()], False
        for word in words:
            name, equals, value = word.partition("=")
            if name == "bind":
                host = _address(value)
            elif name not in OPTIONS or equals:
                raise ConfigError(
                    WHERE, "LISTEN", f"unknown option; these are known: {', '.join(OPTIONS)}", word, OPTIONS
                )
            fork = fork or name == "fork"
        return cls(host, _port("LISTEN", port), fork)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host or '*'}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """Where connections go: an address, or a name that is looked up for each connection anew."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Target:
        """``TCP:host:port``; an IPv6 address stands in brackets. ConfigError names what is wrong."""
        kind, colon, rest = text.partition(":")
        found = _TARGET.fullmatch(rest)
        if not colon or kind.upper() not in TARGETS or found is None:
            raise ConfigError(WHERE, "TARGET", "expected TCP:host:port (IPv6: TCP:[address]:port)", text, TARGETS)
        host = found["host"] or ""
        if found["v6"] is not None:
            host = _address(found["v6"])
        elif not _HOST.fullmatch(host):
            raise ConfigError(WHERE, "TARGET", "expected a host's name or address", text)
        return cls(host, _port("TARGET", found["port"]))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _address(text: str) -> str:
    try:
        return str(parse_address(text.removeprefix("[").removesuffix("]")))
    except ValueError:
        raise ConfigError(WHERE, "bind", "expected an IP address", text) from None


def _port(field: str, text: str) -> int:
    try:
        return parse_port(text)
    except ValueError as error:
        raise ConfigError(WHERE, field, str(error), text) from None
