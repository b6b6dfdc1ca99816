"""The server's own certificate: made by the authority, swapped while connections run, made anew at half of its life."""

from __future__ import annotations

from collections.abc import Callable

import grpc
from cryptography.hazmat.primitives import serialization

from tproxy.control import authority
from tproxy.control.config import Name
from tproxy.control.issuer import Issuer, Made


class Serving:
    """``credentials`` are for gRPC; each handshake asks for what is newest."""

    def __init__(self, issuer: Issuer, names: tuple[Name, ...], swapped: Callable[[Made], None]) -> None:
        self._issuer, self._names, self._swapped = issuer, names, swapped
        self._made: Made | None = None
        self._new: grpc.ServerCertificateConfiguration | None = None

    async def renew(self) -> None:
        """A new certificate from the signer of this moment. ConfigError if it cannot be had; the old one stays then."""
        made, pair = await self._issuer.serving(self._names)
        above = self._issuer.signer.pair.certificate.public_bytes(serialization.Encoding.PEM)
        self._new = grpc.ssl_server_certificate_configuration([(pair.key_pem(), pair.certificate_pem() + above)])
        self._made = made
        self._swapped(made)

    def is_due(self) -> bool:
        """Whether half of its life is over."""
        if self._made is None:
            return True
        entry = self._made.entry
        return authority.utc_now().timestamp() > (entry.not_before + entry.not_after) / 2

    def credentials(self) -> grpc.ServerCredentials:
        """``renew`` must have been called."""
        first, self._new = self._new, None
        assert first is not None
        return grpc.dynamic_ssl_server_credentials(first, self._newest)  # type: ignore[arg-type]  # None: the same as before

    def _newest(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC's threads before each handshake; None if nothing changed."""
        new, self._new = self._new, None
        return new
