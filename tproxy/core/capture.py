"""What the kernel hands to the sidecar. None means all; the names in YAML are Istio's (``includeOutboundIPRanges``)."""

from __future__ import annotations

from dataclasses import dataclass

from tproxy.core.address import Network


@dataclass(frozen=True, slots=True)
class Capture:
    """Include lists first, then exclude lists; by default everything is captured."""

    include_outbound_networks: tuple[Network, ...] | None = None
    exclude_outbound_networks: tuple[Network, ...] = ()
    include_outbound_ports: frozenset[int] | None = None
    exclude_outbound_ports: frozenset[int] = frozenset()
    exclude_outbound_uids: frozenset[int] = frozenset()
    include_inbound_ports: frozenset[int] | None = None
    exclude_inbound_ports: frozenset[int] = frozenset()
    include_inbound_networks: tuple[Network, ...] | None = None
    exclude_inbound_networks: tuple[Network, ...] = ()
