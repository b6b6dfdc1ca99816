"""Gateway API's CORS filter (HTTPCORSFilter)."""

from __future__ import annotations

import re

from tproxy.core.fields import Fields
from tproxy.core.http.filters import Cors
from tproxy.core.http.routes import Kind, Text
from tproxy.gateway.http_words import header_name, regex_text

_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
_ORIGIN = re.compile(r"(https?)://((?:\*\.)?(?:[a-zA-Z0-9-]+\.)*[a-zA-Z0-9-]+|\*)(:[0-9]{1,5})?")


def read_cors(inner: Fields) -> Cors:
    """A CORS filter; a preflight of a foreign origin is answered without any of the headers."""
    for key in ("allowOrigins", "allowMethods", "allowHeaders"):
        found = inner.raw(key, [])
        if isinstance(found, list) and len(found) > 1 and "*" in found:
            raise inner.error(key, f"{key[0].upper()}{key[1:]} cannot contain '*' alongside others")
    return Cors(
        origins=inner.items("allowOrigins", origin),
        methods=inner.items("allowMethods", _method),
        headers=inner.items("allowHeaders", header_name),
        expose=inner.items("exposeHeaders", header_name),
        max_age=inner.integer("maxAge", 5, 1, 2**31 - 1),
        credentials=inner.flag("allowCredentials", False),
        forward_unmatched=False,
    )


def origin(text: object) -> Text:
    """``*``, ``https://a.example``, ``https://*.a.example:8443``: a wildcard stands for any number of labels."""
    if text == "*":
        return Text(Kind.PRESENT)
    found = _ORIGIN.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError("expected an origin such as https://a.example, https://*.a.example or *")
    scheme, host, port = found[1], found[2].lower(), found[3] or ""
    if not host.startswith("*"):
        return Text(Kind.EXACT, f"{scheme}://{host}{port}")
    return regex_text(f"{scheme}://[A-Za-z0-9_.-]+{re.escape(host[1:])}{port}")


def _method(value: object) -> str:
    if value not in (*_METHODS, "*"):
        raise ValueError(f"expected one of {', '.join(_METHODS)}, *")
    return str(value)
