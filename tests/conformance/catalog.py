"""Every test of the suite by profile and feature, and the manifest it applies; of some no manifest is given."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SHARED = (
    "GatewayListenerUnsupportedProtocol GatewayInvalidParametersRef GatewayInvalidRouteKind "
    "GatewayInvalidTLSConfiguration GatewayModifyListeners GatewayNameMaximumLength GatewayObservedGenerationBump "
    "GatewaySecretInvalidReferenceGrant GatewaySecretMissingReferenceGrant GatewaySecretReferenceGrantAllInNamespace "
    "GatewaySecretReferenceGrantSpecific GatewayWithAttachedRoutes GatewayClassObservedGenerationBump"
)
# profile, then feature ("" is core) and its tests; what several profiles share stands under HTTP, where it is run
_TESTS = f"""
HTTP
: {_SHARED} HTTPRouteCrossNamespace HTTPRouteExactPathMatching HTTPRouteHeaderMatching HTTPRouteHostnameIntersection \
HTTPRouteHTTPSListener HTTPRouteInvalidBackendRefUnknownKind HTTPRouteInvalidCrossNamespaceBackendRef \
HTTPRouteInvalidCrossNamespaceParentRef HTTPRouteInvalidNonExistentBackendRef \
HTTPRouteInvalidParentRefNotMatchingSectionName HTTPRouteInvalidReferenceGrant HTTPRouteListenerHostnameMatching \
HTTPRouteMatchingAcrossRoutes HTTPRouteMatching HTTPRouteMultipleGateways HTTPRouteObservedGenerationBump \
HTTPRouteNoBackendRefs HTTPRoutePartiallyInvalidViaInvalidReferenceGrant HTTPRoutePathMatchOrder \
HTTPRouteRedirectHostAndStatus HTTPRouteReferenceGrant HTTPRouteRequestHeaderModifier HTTPRouteServiceTypes \
HTTPRouteSimpleSameNamespace HTTPRouteWeight
BackendTLSPolicy: BackendTLSPolicyConflictResolution BackendTLSPolicyInvalidCACertificateRef \
BackendTLSPolicyInvalidKind BackendTLSPolicyObservedGenerationBump BackendTLSPolicy BackendTLSPolicySANValidation
GatewayAddressEmpty: GatewayOptionalAddressValue
GatewayBackendClientCertificate: GatewayInvalidTLSBackendConfiguration GatewayTLSBackendClientCertificate
GatewayFrontendClientCertificateValidation: GatewayFrontendInvalidDefaultClientCertificateValidation \
GatewayFrontendClientCertificateValidation GatewayInvalidFrontendClientCertificateValidation \
GatewayFrontendClientCertificateValidationInsecureFallback
GatewayHTTPListenerIsolation: GatewayHTTPListenerIsolation
GatewayHTTPSListenerDetectMisdirectedRequests: HTTPRouteHTTPSListenerDetectMisdirectedRequests
GatewayInfrastructurePropagation: GatewayInfrastructure
GatewayPort8080: GatewayWithAttachedRoutesWithPort8080
GatewayStaticAddresses: GatewayStaticAddresses
HTTPRoute303RedirectStatusCode: HTTPRoute303Redirect
HTTPRoute307RedirectStatusCode: HTTPRoute307Redirect
HTTPRoute308RedirectStatusCode: HTTPRoute308Redirect
HTTPRouteBackendProtocolH2C: HTTPRouteBackendProtocolH2C
HTTPRouteBackendProtocolWebSocket: HTTPRouteBackendProtocolWebSocket
HTTPRouteBackendRequestHeaderModification: HTTPRouteRequestHeaderModifierBackendWeights \
HTTPRouteBackendRequestHeaderModifier
HTTPRouteBackendRequestRedirect: HTTPRouteBackendRequestRedirect
HTTPRouteBackendTimeout: HTTPRouteTimeoutBackendRequest
HTTPRouteBackendURLRewrite: HTTPRouteBackendURLRewrite
HTTPRouteCORS: HTTPRouteCORS
HTTPRouteDestinationPortMatching: HTTPRouteInvalidParentRefNotMatchingListenerPort
HTTPRouteHostRewrite: HTTPRouteRewriteHost
HTTPRouteMethodMatching: HTTPRouteMethodMatching
HTTPRouteNamedRouteRule: HTTPRouteNamedRule
HTTPRouteParentRefPort: HTTPRouteInvalidParentRefSectionNameNotMatchingPort HTTPRouteListenerPortMatching
HTTPRoutePathRedirect: HTTPRouteRedirectPath
HTTPRoutePathRewrite: HTTPRouteRewritePath
HTTPRoutePortRedirect: HTTPRouteRedirectPort HTTPRouteRedirectPortAndScheme
HTTPRouteQueryParamMatching: HTTPRouteQueryParamMatching
HTTPRouteRequestMirror: HTTPRouteRequestMirror HTTPRouteRequestMultipleMirrors
HTTPRouteRequestPercentageMirror: HTTPRouteRequestPercentageMirror
HTTPRouteRequestTimeout: HTTPRouteTimeoutRequest
HTTPRouteResponseHeaderModification: HTTPRouteResponseHeaderModifier
HTTPRouteRetry: HTTPRouteRetry HTTPRouteRetryWithTimeouts HTTPRouteRetryConnectionError
HTTPRouteSchemeRedirect: HTTPRouteRedirectScheme
ListenerSet: ListenerSetAllowedNamespaceNone ListenerSetAllowedNamespaceSame ListenerSetAllowedNamespaceSelector \
ListenerSetAllowedRoutesNamespaces ListenerSetDefaultNotAllowed ListenerSetDualParentRefIndependence \
ListenerSetGatewayParentSectionNameNotFound ListenerSetHostnameConflict ListenerSetHTTPRouting \
ListenerSetProtocolConflict ListenerSetReferenceGrant ListenerSetRouteStatusScopedToParentRef
TLS
: TLSRouteHostnameIntersection TLSRouteInvalidBackendRefNonexistent TLSRouteInvalidBackendRefUnknownKind \
TLSRouteInvalidNoMatchingListenerHostname TLSRouteInvalidNoMatchingListener TLSRouteInvalidReferenceGrant \
TLSRouteListenerPassthroughSupportedKinds TLSRouteListenerTerminateNotSupported TLSRouteSimpleSameNamespace
ListenerSet: ListenerSetAllowedRoutesSupportedKinds
TLSRouteModeTerminate: TLSRouteListenerMixedTerminationNotSupported TLSRouteListenerTerminateSupportedKinds \
TLSRouteTerminateSimpleSameNamespace BackendTLSPolicyTLSRouteTerminate
TLSRouteModeMixed: TLSRouteMixedTerminationSameNamespace
GRPC
: GRPCExactMethodMatching GRPCRouteHeaderMatching GRPCRouteListenerHostnameMatching GRPCRouteWeight
BackendTLSPolicy: BackendTLSPolicyGRPCRoute
GRPCRouteNamedRouteRule: GRPCRouteNamedRule
GRPCRouteRequestHeaderModifier: GRPCRouteRequestHeaderModifier
TCP
: TCPRouteInvalidBackendRefNonexistent TCPRouteInvalidCrossNamespaceBackendRef TCPRouteInvalidNonTCPListener \
TCPRouteMultipleRoutesAttachment TCPRouteParentRefAttachAll TCPRouteParentRefPortAndSectionName \
TCPRouteReferenceGrant TCPRouteWeightedRouting
UDP
: UDPRouteInvalidBackendRefNonexistent UDPRouteInvalidCrossNamespaceBackendRef UDPRouteMultipleRoutesAttachment \
UDPRouteNotAllowedByListeners UDPRouteParentRefAttachAllListeners UDPRouteParentRefPortAndSectionName \
UDPRouteReferenceGrant UDPRoute UDPRouteWeightedRouting
"""
# whose manifest is not called as its test
_MANIFESTS = {
    "BackendTLSPolicy": "backendtlspolicy",
    "BackendTLSPolicySANValidation": "backendtlspolicy-san",
    "GatewayClassObservedGenerationBump": "gatewayclass-observed-generation-bump",
    "GatewayFrontendClientCertificateValidation": "gateway-with-clientcertificate-validation",
    "GatewayFrontendClientCertificateValidationInsecureFallback": (
        "gateway-with-clientcertificate-validation-insecure-fallback"
    ),
    "GatewayWithAttachedRoutesWithPort8080": "gateway-with-attached-routes-with-port-8080",
    "GRPCExactMethodMatching": "grpcroute-exact-method-matching",
    "HTTPRouteBackendRequestHeaderModifier": "httproute-request-header-modifier-backend",
    "HTTPRouteBackendProtocolH2C": "httproute-backend-protocol-h2c",
    "HTTPRouteBackendProtocolWebSocket": "httproute-backend-protocol-websocket",
    "HTTPRouteInvalidParentRefNotMatchingListenerPort": "httproute-invalid-parentref-not-matching-listener-port",
    "HTTPRouteInvalidParentRefSectionNameNotMatchingPort": (
        "httproute-invalid-parentref-section-name-not-matching-port"
    ),
    "HTTPRouteNoBackendRefs": "httproute-omitted-backendrefs",
    "ListenerSetDualParentRefIndependence": "listenerset-dual-parentref-independence",
    "ListenerSetRouteStatusScopedToParentRef": "listenerset-route-status-scoped-to-parentref",
    "TCPRouteInvalidBackendRefNonexistent": "tcproute-invalid-backendref-nonexistent",
    "TCPRouteInvalidNonTCPListener": "tcproute-invalid-non-tcp-listener",
    "TCPRouteParentRefAttachAll": "tcproute-parentref-attach-all",
    "TLSRouteInvalidBackendRefNonexistent": "tlsroute-invalid-backendref-nonexistent",
    "UDPRoute": "udproute-simple",
    "UDPRouteInvalidBackendRefNonexistent": "udproute-invalid-backendref-nonexistent",
    "UDPRouteParentRefAttachAllListeners": "udproute-parentref-attach-all-listeners",
    "UDPRouteParentRefPortAndSectionName": "udproute-parentref-port-and-section-name",
}
_PREFIXES = ("BackendTLSPolicy", "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute", "ListenerSet", "Gateway")


@dataclass(frozen=True, slots=True)
class Case:
    """One test of the suite."""

    name: str
    profile: str
    feature: str  # empty: core

    @property
    def manifest(self) -> str:
        """What it applies, by the name of the file without its suffix; it need not be given."""
        return _MANIFESTS.get(self.name) or _kebab(self.name)


def _kebab(name: str) -> str:
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    words = re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z][a-z]+|[A-Z]+|\d+", name.removeprefix(prefix))
    return "-".join([prefix.lower(), *(word.lower() for word in words)])


def _read() -> tuple[Case, ...]:
    found, profile = [], ""
    for line in _TESTS.split("\n"):
        feature, colon, names = line.partition(":")
        if not colon:
            profile = line or profile
        found += [Case(name, profile, feature) for name in names.split()]
    return tuple(found)


TESTS = _read()
