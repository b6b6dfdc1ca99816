"""Where a gateway runs: whose classes are its own, at which addresses it is reached, which it can bind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tproxy.core.fields import ConfigError
from tproxy.core.policy.istio_policy import Names
from tproxy.core.routes import Bind
from tproxy.gateway.objects import Object
from tproxy.gateway.secrets import Where


def _any(_: str) -> bool:
    return True


USUAL = Names("cluster.local")  # where no identity says otherwise


@dataclass(frozen=True, slots=True)
class Site:
    """Facts about the place that no YAML states; a reader of files alone needs none of them."""

    controllers: frozenset[str] | None = None  # whose GatewayClasses are ours; None: all that are there
    classes: frozenset[str] = frozenset()  # of those only these; none: all
    published: tuple[str, ...] = ()  # where clients reach a Gateway that names no address; also behind a load balancer
    usable: Callable[[str], bool] = _any  # whether an address that a Gateway names can be had
    trusting: bool = True  # whether who writes the objects may reach whatever the gateway itself can
    secrets: Where = field(default_factory=Where)
    binds: Mapping[str, str] = field(default_factory=dict)  # Gateways (namespace/name) with an address of their own
    taken: frozenset[Bind] = frozenset()  # ports that cannot be had
    bundles: Mapping[str, str] = field(default_factory=dict)  # versions of the Gateway API that definitions are of
    names: Names = USUAL  # the mesh's trust domain, as policies name it
    session_key: bytes = field(default=b"", repr=False)  # of this process and its workers; a Secret's goes before it


ANYWHERE = Site()


def published(objects: Iterable[Object], service: str) -> tuple[str, ...]:
    """Where clients reach a Service (namespace/name): its load balancer, its external addresses, else its own."""
    found = next((one for one in objects if (one.group, one.kind, "/".join(one.key)) == ("", "Service", service)), None)
    try:
        outside, own = _addresses(found) if found else ([], [])
    except ConfigError:
        return ()
    return tuple(dict.fromkeys(each for each in outside if each)) or tuple(own)


def _addresses(service: Object) -> tuple[list[str], list[str]]:
    ingress, spec = service.fields("status").inner("loadBalancer").each("ingress"), service.fields("spec")
    outside = [each.text("ip") or each.text("hostname") for each in ingress]
    own = spec.items("clusterIPs", str) or (spec.text("clusterIP"),)
    return [*outside, *spec.items("externalIPs", str)], [each for each in own if each not in ("", "None")]
