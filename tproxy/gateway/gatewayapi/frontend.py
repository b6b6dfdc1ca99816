"""Gateway API's client certificates: what a Gateway demands of clients (GEP-91), by port or for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from tproxy.core.fields import Fields, parse_port
from tproxy.core.routes import ClientCheck, ServerTls, TlsMode
from tproxy.gateway.gatewayapi.grants import GROUP, Ref, World
from tproxy.gateway.objects import Object

INSECURE = "AllowInsecureFallback"


@dataclass(frozen=True, slots=True)
class Clients:
    """Whose certificates clients must have; with ``insecure`` they are asked for one, and may come with any or none."""

    authorities: tuple[Ref, ...]
    faults: tuple[tuple[str, str], ...]  # reason and message
    insecure: bool

    @classmethod
    def read(cls, thing: Object, fields: Fields, world: World) -> Clients:
        """A ``validation``. A reference that leads nowhere is a fault, and no authority."""
        insecure = fields.choice("mode", "AllowValidOnly", ("AllowValidOnly", INSECURE)) == INSECURE
        refs = [Ref.read(each, "ConfigMap", thing.namespace) for each in fields.each("caCertificateRefs")]
        found = [(ref, _fault(thing, ref, world)) for ref in refs]
        missing = () if refs else (("InvalidCACertificateRef", "there is no caCertificateRef"),)
        faults = tuple(fault for _, fault in found if fault)
        return cls(tuple(ref for ref, fault in found if not fault), faults or missing, insecure)

    def tls(self, secrets: tuple[str, ...]) -> ServerTls:
        """As a handshake wants it."""
        check = ClientCheck(tuple(ref.material for ref in self.authorities), insecure=self.insecure)
        return ServerTls(TlsMode.OPTIONAL_MUTUAL if self.insecure else TlsMode.MUTUAL, secrets, check)


def _fault(thing: Object, ref: Ref, world: World) -> tuple[str, str] | None:
    if (ref.group, ref.kind) not in (("", "ConfigMap"), ("", "Secret")):
        return "InvalidCACertificateKind", f"{ref.kind} is not supported; ConfigMap and Secret are"
    if not world.permits(GROUP, thing.kind, thing.namespace, ref):
        return "RefNotPermitted", world.refused(thing.kind, thing.namespace, ref)
    why = world.authority_fault(ref)
    return ("InvalidCACertificateRef", why) if why else None


@dataclass(frozen=True, slots=True)
class Frontend:
    """What a Gateway says of clients' certificates."""

    default: Clients | None = None
    ports: dict[int, Clients | None] = field(default_factory=dict)

    @classmethod
    def read(cls, thing: Object, fields: Fields, world: World) -> Frontend:
        """A Gateway's ``tls.frontend``."""

        def clients(tls: Fields) -> Clients | None:
            return Clients.read(thing, tls.inner("validation"), world) if tls.raw("validation") is not None else None

        ports = {each.parsed("port", parse_port, None): clients(each.inner("tls")) for each in fields.each("perPort")}
        return cls(clients(fields.inner("default")), ports)

    def of(self, port: int) -> Clients | None:
        """What counts for a port: its own word, even if that is to demand nothing."""
        return self.ports.get(port, self.default)

    @property
    def insecure(self) -> bool:
        """Whether somebody may come with a certificate that nobody vouches for."""
        return any(one is not None and one.insecure for one in (self.default, *self.ports.values()))


NOTHING = Frontend()
