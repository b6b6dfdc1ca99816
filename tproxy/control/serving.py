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
        self.https: ssl.SSLContext | None = None  # for servers that are not gRPC's; None before the first renewal
        self._new: grpc.ServerCertificateConfiguration | None = None

    async def renew(self) -> None:
        """A new certificate from the signer of this moment. ConfigError if it cannot be had; the old one stays then."""
        made, pair = await self._issuer.serving(self._names)
        chain = "".join(made.chain()[:-1]).encode()
        self.https = https.context(pair.key_pem(), chain)
        self._new = grpc.ssl_server_certificate_configuration([(pair.key_pem(), chain)])
        self._made = made
        self._swapped(made)

    def is_due(self) -> bool:
        """Whether half of its life is over, or another one signs now."""
        if self._made is None or self._made.signer.pair is not self._issuer.signer.pair:
            return True
        entry = self._made.entry
        begin = entry.not_before + authority.SKEW.total_seconds()
        return authority.utc_now().timestamp() > (begin + entry.not_after) / 2

    def credentials(self) -> grpc.ServerCredentials:
        """``renew`` must have been called."""
        first, self._new = self._new, None
        assert first is not None
        return grpc.dynamic_ssl_server_credentials(first, self._newest)  # type: ignore[arg-type]  # None: the same as before

    def _newest(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC's threads before each handshake; None if nothing changed."""
        new, self._new = self._new, None
        return new
