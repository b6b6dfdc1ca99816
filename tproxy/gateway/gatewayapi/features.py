"""What a GatewayClass's status says is supported, in the words of Gateway API's pkg/features, sorted as it wants."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SUPPORTED = """
BackendTLSPolicy BackendTLSPolicySANValidation GRPCRoute GRPCRouteNamedRouteRule GRPCRouteRequestHeaderModifier Gateway
GatewayBackendClientCertificate GatewayFrontendClientCertificateValidation
GatewayFrontendClientCertificateValidationInsecureFallback GatewayHTTPListenerIsolation
GatewayHTTPSListenerDetectMisdirectedRequests GatewayPort8080 GatewayStaticAddresses HTTPRoute
HTTPRoute303RedirectStatusCode HTTPRoute307RedirectStatusCode HTTPRoute308RedirectStatusCode HTTPRouteBackendProtocolH2C
HTTPRouteBackendProtocolWebSocket HTTPRouteBackendRequestHeaderModification HTTPRouteBackendRequestRedirect
HTTPRouteBackendTimeout HTTPRouteBackendURLRewrite HTTPRouteCORS HTTPRouteDestinationPortMatching HTTPRouteHostRewrite
HTTPRouteMethodMatching HTTPRouteNamedRouteRule HTTPRouteParentRefPort HTTPRoutePathRedirect HTTPRoutePathRewrite
HTTPRoutePortRedirect HTTPRouteQueryParamMatching HTTPRouteRequestMirror HTTPRouteRequestMultipleMirrors
HTTPRouteRequestPercentageMirror HTTPRouteRequestTimeout HTTPRouteResponseHeaderModification HTTPRouteRetry
HTTPRouteRetryConnectionError HTTPRouteSchemeRedirect ListenerSet ReferenceGrant TCPRoute
TLSRoute TLSRouteModeMixed TLSRouteModeTerminate UDPRoute
"""
SUPPORTED = tuple(sorted(_SUPPORTED.split()))
NEWEST = 6  # v1.6, whose definitions this gateway was written by
_BUNDLE = re.compile(r"v1\.([0-9]{1,3})\.[0-9]+(-[0-9A-Za-z.-]+)?")


def unknown_bundles(bundles: Mapping[str, str]) -> str:
    """Which definitions are of another Gateway API than v1.0 to v1.6, or do not say of which; empty: none.

    They are served as well as it goes: GatewayClassConditionStatusSupportedVersion leaves that to us.
    """
    odd: dict[str, list[str]] = {}
    for name, version in sorted(bundles.items()):
        found = _BUNDLE.fullmatch(version)
        if found is None or int(found[1]) > NEWEST:
            odd.setdefault(version or "no version", []).append(name.partition(".")[0])
    told = "; ".join(f"{', '.join(names)}: {version}" for version, names in odd.items())
    return f"the cluster's definitions are not of the Gateway API v1.0 to v1.{NEWEST}: {told}" if told else ""
