"""Which kinds of objects a gateway follows in a cluster, and how much of each it keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Document = Mapping[str, Any]
_PEM = ("tls.crt", "tls.key", "cert", "key", "ca.crt", "cacert", "ca.crl", "crl", "tls.ocsp-staple")
_HEAD = ("namespace", "name", "labels", "creationTimestamp")
_NO_SECRETS = ("helm.sh/release.v1", "kubernetes.io/service-account-token", "kubernetes.io/dockerconfigjson")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind; ``optional`` ones have a CustomResourceDefinition, of whose versions the first is followed."""

    name: str
    plural: str
    group: str
    versions: tuple[str, ...]
    optional: bool = True
    namespaced: bool = True
    only: str = ""  # a field selector
    keep: Callable[[Document], Document] = lambda document: document

    @property
    def definition(self) -> str:
        """As its definition is called."""
        return f"{self.plural}.{self.group}"

    def path(self, version: str, namespace: str = "") -> str:
        """Where its objects are, of one namespace or of all."""
        base = f"/apis/{self.group}/{version}" if self.group else f"/api/{version}"
        return f"{base}/namespaces/{namespace}/{self.plural}" if namespace else f"{base}/{self.plural}"


def _pem(document: Document) -> Document:
    """What can be certificates and keys; nothing else of a Secret or ConfigMap is kept."""
    data = document.get("data")
    data = {key: data[key] for key in _PEM if key in data} if isinstance(data, Mapping) else {}
    return {**_head(document), "data": data}


def _head(document: Document) -> Document:
    """Who it is, and its labels; annotations change for reasons that are none of ours."""
    about = document.get("metadata")
    about = about if isinstance(about, Mapping) else {}
    return {"metadata": {key: about[key] for key in _HEAD if key in about}}


_API, _V = "gateway.networking.k8s.io", ("v1", "v1beta1", "v1alpha3", "v1alpha2")
_ISTIO, _IV = "networking.istio.io", ("v1", "v1beta1", "v1alpha3")
CORE = (
    Kind("Service", "services", "", ("v1",), False),
    Kind("EndpointSlice", "endpointslices", "discovery.k8s.io", ("v1",), False),
    Kind("Namespace", "namespaces", "", ("v1",), False, False, keep=_head),
    Kind("Secret", "secrets", "", ("v1",), False, only=",".join(f"type!={each}" for each in _NO_SECRETS), keep=_pem),
    Kind("ConfigMap", "configmaps", "", ("v1",), False, keep=_pem),
    Kind("Pod", "pods", "", ("v1",), False, keep=_head),  # DestinationRules' subsets are labels of pods
)
CUSTOM = (
    Kind("GatewayClass", "gatewayclasses", _API, _V, namespaced=False),
    Kind("Gateway", "gateways", _API, _V),
    Kind("ListenerSet", "listenersets", _API, _V),
    Kind("HTTPRoute", "httproutes", _API, _V),
    Kind("GRPCRoute", "grpcroutes", _API, _V),
    Kind("TLSRoute", "tlsroutes", _API, _V),
    Kind("TCPRoute", "tcproutes", _API, _V),
    Kind("UDPRoute", "udproutes", _API, _V),
    Kind("ReferenceGrant", "referencegrants", _API, _V),
    Kind("BackendTLSPolicy", "backendtlspolicies", _API, _V),
    Kind("Gateway", "gateways", _ISTIO, _IV),
    Kind("VirtualService", "virtualservices", _ISTIO, _IV),
    Kind("DestinationRule", "destinationrules", _ISTIO, _IV),
    Kind("ServiceEntry", "serviceentries", _ISTIO, _IV),
    Kind("Telemetry", "telemetries", "telemetry.istio.io", ("v1", "v1alpha1")),
    Kind("AuthorizationPolicy", "authorizationpolicies", "security.istio.io", ("v1", "v1beta1")),
)
WITH_STATUS = {kind.name: kind for kind in CUSTOM if kind.group == _API and kind.name != "ReferenceGrant"}
