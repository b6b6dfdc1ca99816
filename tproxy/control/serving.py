"""The server's own certificate: made by the authority, swapped while connections run, made anew at half of its life."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import grpc

from tproxy.control import authority, https
from tproxy.control.config import Name
from tproxy.control.issuer import Issuer, Made


class Serving:
    """``credentials`` are for gRPC, ``https`` for ssl; each handshake asks for what is newest."""

    def __init__(self, issuer: Issuer, names: tuple[Name, ...], swapped: Callable[[Made], None]) -> None:
        self._issuer, self._names, self._swapped = issuer, names, swapped
        self._made: Made | None = None
        self._newest: dict[bool, grpc.ServerCertificateConfiguration] = {}  # True: callers show a certificate, too
        self.https: ssl.SSLContext | None = None  # for servers that are not gRPC's; None before the first renewal

    async def renew(self) -> None:
        """A new certificate from the signer of this moment. ConfigError if it cannot be had; the old one stays then."""
        made, pair = await self._issuer.serving(self._names)
        *chain, roots = made.chain()
        own = [(pair.key_pem(), "".join(chain).encode())]
        self._newest = {
            False: grpc.ssl_server_certificate_configuration(own),
            True: grpc.ssl_server_certificate_configuration(own, roots.encode()),
        }
        self.https = https.context(pair.key_pem(), own[0][1])
        self._made = made
        self._swapped(made)

    def is_due(self) -> bool:
        """Whether half of its life is over, another one signs now, or other roots are trusted."""
        signs = self._issuer.signer
        if self._made is None or self._made.signer.pair is not signs.pair or self._made.signer.roots != signs.roots:
            return True
        entry = self._made.entry
        begin = entry.not_before + authority.SKEW.total_seconds()
        return authority.utc_now().timestamp() > (begin + entry.not_after) / 2

    def credentials(self, mutual: bool = False) -> grpc.ServerCredentials:
        """For one server; ``mutual``: callers must show a certificate of ours. ``renew`` must have been called."""
        seen = self._newest[mutual]

        def newest() -> grpc.ServerCertificateConfiguration | None:
            """Called by gRPC's threads before each handshake; None if nothing changed."""
            nonlocal seen
            if (new := self._newest[mutual]) is seen:
                return None
            seen = new
            return new

        return grpc.dynamic_ssl_server_credentials(seen, newest, mutual)  # type: ignore[arg-type]  # None: the same as before
