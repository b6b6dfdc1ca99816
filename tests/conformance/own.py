"""Manifests of our own for tests of the suite whose manifests are not given, after what these tests do in public."""

from __future__ import annotations

from typing import Any

from tests.conformance.certificates import APP, INFRA, WEB, Document

GROUP = "gateway.networking.k8s.io"
GATEWAY, V1, V2, V3 = "same-namespace", *({"name": f"infra-backend-v{index}", "port": 8080} for index in (1, 2, 3))
CERTIFICATE = {"name": "tls-validity-checks-certificate"}


def thing(kind: str, name: str, namespace: str = INFRA, annotated: bool = False, **spec: Any) -> Document:
    """Any object of Gateway API's; ``annotated``: nobody waits for it."""
    about: Document = {"name": name, "namespace": namespace}
    if annotated:
        about["annotations"] = {"gateway-api/skip-this-for-readiness": "true"}
    return {"apiVersion": f"{GROUP}/v1", "kind": kind, "metadata": about, "spec": spec}


def gateway(name: str, *listeners: Document, annotated: bool = False, **spec: Any) -> Document:
    return thing(
        "Gateway", name, annotated=annotated, gatewayClassName="conformance", listeners=list(listeners), **spec
    )


def listener(name: str, port: int = 80, protocol: str = "HTTP", **more: Any) -> Document:
    return {"name": name, "port": port, "protocol": protocol, **more}


def route(name: str, *rules: Document, to: str = GATEWAY, kind: str = "HTTPRoute", **more: Any) -> Document:
    parents = more.pop("parents", None) or [{"name": to, **more.pop("parent", {})}]
    return thing(kind, name, more.pop("namespace", INFRA), parentRefs=parents, rules=list(rules), **more)


def rule(*backends: Document, path: str = "", **more: Any) -> Document:
    if path:
        more.setdefault("matches", [{"path": {"type": "PathPrefix", "value": path}}])
    return {"backendRefs": list(backends), **more}


def redirect(path: str, **how: Any) -> Document:
    filters = [{"type": "RequestRedirect", "requestRedirect": how}]
    return {"matches": [{"path": {"type": "PathPrefix", "value": path}}], "filters": filters}


def grant(name: str, namespace: str, source: Document, target: Document) -> Document:
    whole = {"group": GROUP, "kind": "HTTPRoute", "namespace": INFRA, **source}
    return thing(
        "ReferenceGrant", name, namespace, **{"from": [whole]}, to=[{"group": "", "kind": "Service", **target}]
    )


def query(**wanted: str) -> Document:
    return {"queryParams": [{"name": name, "value": value} for name, value in wanted.items()]}


def listener_set(name: str, parent: str, *listeners: Document, namespace: str = INFRA) -> Document:
    return thing(
        "ListenerSet", name, namespace, parentRef={"name": parent, "namespace": INFRA}, listeners=list(listeners)
    )


def validation(*refs: Document) -> Document:
    return {"validation": {"caCertificateRefs": [{"group": "", "kind": "ConfigMap", **ref} for ref in refs]}}


def https(name: str, port: int, hostname: str) -> Document:
    return listener(name, port, "HTTPS", hostname=hostname, tls={"certificateRefs": [CERTIFICATE]})


def _bad_certificates() -> list[Document]:
    refs = {
        "nonexistent-secret": {"name": "nonexistent-certificate"},
        "unsupported-group": {**CERTIFICATE, "group": "wrong.group.company.io"},
        "unsupported-kind": {**CERTIFICATE, "kind": "WrongKind"},
        "malformed-secret": {"name": "malformed-certificate"},
    }
    made = [
        gateway(
            f"gateway-certificate-{name}",
            listener("https", 443, "HTTPS", tls={"certificateRefs": [ref]}),
            annotated=True,
        )
        for name, ref in refs.items()
    ]
    data = {"tls.crt": "bWFsZm9ybWVk", "tls.key": "bWFsZm9ybWVk"}
    about = {"name": "malformed-certificate", "namespace": INFRA}
    return [*made, {"apiVersion": "v1", "kind": "Secret", "metadata": about, "data": data}]


def _ports() -> list[Document]:
    listeners = [listener(f"port-{port}", port) for port in (80, 8080, 8090)]
    return [
        gateway("listener-ports", *listeners),
        route("by-port-80", rule(V1), to="listener-ports", parent={"port": 80}),
        route("by-port-8080", rule(V2), to="listener-ports", parent={"port": 8080}),
        route("by-port-8090", rule(V3), to="listener-ports", parent={"port": 8090, "sectionName": "port-8090"}),
    ]


def _udp() -> list[Document]:
    about = {"name": "udp-granted", "namespace": WEB, "labels": {"app": "udp-granted"}}
    selector = {"app": "udp-granted"}
    env = [{"name": "UDP_ECHO_SERVER", "value": "1"}]
    pod = {"metadata": {"labels": selector}, "spec": {"containers": [{"name": "echo", "image": "echo", "env": env}]}}
    ports = [{"name": "udp", "port": 8080, "protocol": "UDP"}]
    source = {"kind": "UDPRoute"}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": about, "spec": {"selector": selector, "ports": ports}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": about, "spec": {"replicas": 1, "template": pod}},
        grant("udp", WEB, source, {"name": "udp-granted"}),
        gateway("udp-granted", listener("udp", 5300, "UDP")),
        route("udp", rule({"name": "udp-granted", "namespace": WEB, "port": 8080}), to="udp-granted", kind="UDPRoute"),
    ]


def _backend_tls() -> list[Document]:
    ca = {"group": "", "kind": "ConfigMap", "name": "passthrough-ca-certificate"}
    target = {"group": "", "kind": "Service", "name": "tcp-backend", "sectionName": "echo-tcp-tls"}
    checks = {"hostname": "abc.example.com", "caCertificateRefs": [ca]}
    tls = {"mode": "Terminate", "certificateRefs": [{"name": "tls-terminate-checks-certificate"}]}
    return [
        thing("BackendTLSPolicy", "tlsroute-terminate", targetRefs=[target], validation=checks),
        gateway("tlsroute-backend-tls", listener("tls", 8443, "TLS", hostname="tls.example.com", tls=tls)),
        route(
            "tlsroute-backend-tls",
            rule({"name": "tcp-backend", "port": 8443}),
            to="tlsroute-backend-tls",
            kind="TLSRoute",
            hostnames=["tls.example.com"],
        ),
    ]


def _dead() -> list[Document]:
    """A Service of three addresses, at one of which nobody is."""
    about = {"name": "half-dead", "namespace": INFRA}
    labels = {"labels": {"kubernetes.io/service-name": "half-dead"}}
    slices = [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": INFRA, **labels},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 3000}],
            "endpoints": [{"addresses": ["127.10.250.1"]}],
        }
        for name in ("dead", "manual-alive")
    ]
    spec = {"ports": [{"name": "http", "port": 8080}]}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": about, "spec": spec}
    return [service, *slices, route("retry", rule({"name": "half-dead", "port": 8080}, retry={"attempts": 3}))]


def _grpc_tls() -> list[Document]:
    about = {"name": "grpc-tls", "namespace": INFRA, "labels": {"app": "grpc-tls"}}
    selector = {"app": "grpc-tls"}
    volumes = [{"name": "secret", "secret": {"secretName": "tls-checks-certificate"}}]
    env = [{"name": "GRPC_ECHO_SERVER", "value": "1"}]
    pod = {"containers": [{"name": "echo", "image": "echo", "env": env}], "volumes": volumes}
    template = {"metadata": {"labels": selector}, "spec": pod}
    ports = [{"name": "grpc", "port": 443, "targetPort": 8443}]
    ca = {"group": "", "kind": "ConfigMap", "name": "tls-checks-ca-certificate"}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": about, "spec": {"selector": selector, "ports": ports}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": about, "spec": {"template": template}},
        thing(
            "BackendTLSPolicy",
            "grpc-tls",
            targetRefs=[{"group": "", "kind": "Service", "name": "grpc-tls"}],
            validation={"hostname": "abc.example.com", "caCertificateRefs": [ca]},
        ),
        route("grpc-tls", rule({"name": "grpc-tls", "port": 443}), kind="GRPCRoute"),
    ]


def _named(backend: Document, value: str) -> Document:
    change = {"set": [{"name": "X-Backend", "value": value}]}
    return {**backend, "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": change}]}


_FAR = {"name": "app-backend-v1", "namespace": APP, "port": 8080}
_GRPC = {f"v{index}": {"name": f"grpc-infra-backend-v{index}", "port": 8080} for index in (1, 2, 3)}
_METHOD = {"service": "gateway_api_conformance.echo_basic.grpcecho.GrpcEcho", "method": "Echo"}
_MISDIRECTED = [
    "example.org",
    "second-example.org",
    *(f"{n}-example.wildcard.org" for n in ("third", "fourth", "fifth")),
]
_HEADERS = {
    "set": [{"name": "X-Header-Set", "value": "set-overwrites-values"}],
    "add": [{"name": "X-Header-Add", "value": "add-appends-values"}],
    "remove": ["X-Header-Remove"],
}
_REWRITE = {"hostname": "one.example.org", "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/one"}}
_ALL = {"namespaces": {"from": "All"}}

OWN: dict[str, list[Document]] = {
    "GatewayListenerUnsupportedProtocol": [
        gateway("unsupported-protocol", listener("x", 80, "example.com/Unknown"), annotated=True)
    ],
    "GatewayInvalidTLSConfiguration": _bad_certificates(),
    "GatewayNameMaximumLength": [gateway("g" * 63, listener("http"))],
    "HTTPRouteExactPathMatching": [
        route(
            "exact",
            *(
                rule(to, matches=[{"path": {"type": "Exact", "value": path}}])
                for path, to in (("/one", V1), ("/two", V2))
            ),
        )
    ],
    "HTTPRouteInvalidBackendRefUnknownKind": [route("unknown-kind", rule({**V1, "kind": "NonExistent"}))],
    "HTTPRouteInvalidNonExistentBackendRef": [route("nonexistent", rule({"name": "nonexistent", "port": 8080}))],
    "HTTPRouteInvalidParentRefNotMatchingSectionName": [
        route("wrong-section", rule(V1), parent={"sectionName": "not-matching"})
    ],
    "HTTPRouteInvalidReferenceGrant": [
        route("invalid-grant", rule(_FAR)),
        grant("wrong-from-group", APP, {"group": "not-the-group"}, {"name": _FAR["name"]}),
        grant("wrong-from-kind", APP, {"kind": "Gateway"}, {"name": _FAR["name"]}),
        grant("wrong-from-namespace", APP, {"namespace": "not-the-namespace"}, {"name": _FAR["name"]}),
        grant("wrong-to-kind", APP, {}, {"kind": "Secret", "name": _FAR["name"]}),
        grant("wrong-to-name", APP, {}, {"name": "not-the-service"}),
        grant("wrong-namespace", INFRA, {}, {"name": _FAR["name"]}),
    ],
    "HTTPRouteMultipleGateways": [
        route("multiple", rule(V1), parents=[{"name": GATEWAY}, {"name": "all-namespaces"}]),
    ],
    "HTTPRouteRedirectHostAndStatus": [
        route(
            "redirect-host",
            redirect("/hostname-redirect", hostname="example.org"),
            redirect("/host-and-status", hostname="example.org", statusCode=301),
        )
    ],
    "BackendTLSPolicyInvalidKind": [
        route("invalid-kind", rule({"name": "tls-backend", "port": 443})),
        thing(
            "BackendTLSPolicy",
            "invalid-kind",
            targetRefs=[{"group": "", "kind": "Service", "name": "tls-backend"}],
            validation={
                "hostname": "abc.example.com",
                "caCertificateRefs": [{"group": "", "kind": "InvalidKind", "name": "tls-checks-ca-certificate"}],
            },
        ),
    ],
    "GatewayFrontendInvalidDefaultClientCertificateValidation": [
        gateway(
            "invalid-default",
            https("https", 443, "example.org"),
            https("https-per-port", 8443, "second-example.org"),
            tls={
                "frontend": {
                    "default": validation({"name": "nonexistent"}),
                    "perPort": [{"port": 8443, "tls": validation({"name": "tls-validity-checks-ca-certificate"})}],
                }
            },
        )
    ],
    "GatewayInvalidFrontendClientCertificateValidation": [
        gateway(
            "invalid-validation",
            *(https(f"https-{port}", port, "example.org") for port in (443, 8443, 8444, 8445)),
            tls={
                "frontend": {
                    "default": validation({"name": "tls-validity-checks-ca-certificate"}),
                    "perPort": [
                        {"port": 8443, "tls": validation({"name": "nonexistent"})},
                        {"port": 8444, "tls": validation({"kind": "Invalid", "name": "x"})},
                        {"port": 8445, "tls": validation({"name": "x", "namespace": WEB})},
                    ],
                }
            },
        )
    ],
    "HTTPRouteHTTPSListenerDetectMisdirectedRequests": [
        route("misdirected", rule(V1), to="same-namespace-with-https-listener", hostnames=_MISDIRECTED)
    ],
    "HTTPRoute308Redirect": [route("redirect-308", redirect("/permanent", statusCode=308))],
    "HTTPRouteBackendRequestRedirect": [
        route(
            "backend-redirect",
            rule(
                {**V1, "filters": [{"type": "RequestRedirect", "requestRedirect": {"hostname": "example.org"}}]},
                path="/redirect",
            ),
        )
    ],
    "HTTPRouteTimeoutRequest": [
        route(
            "timeout",
            rule(V1, path="/request-timeout", timeouts={"request": "500ms"}),
            rule(V1, path="/disable-request-timeout", timeouts={"request": "0s"}),
        )
    ],
    "HTTPRouteBackendURLRewrite": [
        route(
            "backend-rewrite", rule({**V1, "filters": [{"type": "URLRewrite", "urlRewrite": _REWRITE}]}, path="/prefix")
        )
    ],
    "HTTPRouteMethodMatching": [
        route(
            "methods",
            rule(V1, matches=[{"method": "POST"}]),
            rule(V2, matches=[{"method": "GET"}]),
            rule(V3, matches=[{"path": {"type": "PathPrefix", "value": "/path"}, "method": "PUT"}]),
        )
    ],
    "HTTPRouteListenerPortMatching": _ports(),
    "HTTPRouteRedirectPort": [
        route(
            "redirect-port",
            redirect("/port", port=8083),
            redirect("/port-and-host", port=8083, hostname="example.org"),
            redirect("/port-and-status", port=8083, statusCode=301),
        )
    ],
    "HTTPRouteQueryParamMatching": [
        route(
            "query",
            rule(V1, matches=[query(animal="whale")]),
            rule(V2, matches=[query(animal="dolphin")]),
            rule(V3, matches=[query(animal="dolphin", color="blue"), query(ANIMAL="Whale")]),
        )
    ],
    "ListenerSetAllowedNamespaceNone": [
        gateway("sets-none", listener("http"), allowedListeners={"namespaces": {"from": "None"}}),
        listener_set("set-none", "sets-none", listener("more", 8080)),
    ],
    "ListenerSetAllowedNamespaceSame": [
        gateway("sets-same", listener("http"), allowedListeners={"namespaces": {"from": "Same"}}),
        listener_set("set-same", "sets-same", listener("more", 8080)),
        listener_set("set-other", "sets-same", listener("more", 8081), namespace=WEB),
    ],
    "ListenerSetAllowedRoutesNamespaces": [
        gateway("sets-routes", listener("http", hostname="gw.com"), allowedListeners=_ALL),
        listener_set(
            "set-routes",
            "sets-routes",
            listener("all", hostname="all.com", allowedRoutes=_ALL),
            listener("same", hostname="same.com", allowedRoutes={"namespaces": {"from": "Same"}}),
            namespace=WEB,
        ),
        route(
            "in-the-sets-namespace",
            rule({"name": "web-backend", "port": 8080}),
            namespace=WEB,
            parents=[{"group": GROUP, "kind": "ListenerSet", "name": "set-routes"}],
        ),
        route(
            "elsewhere",
            rule(V1),
            parents=[
                {"group": GROUP, "kind": "ListenerSet", "name": "set-routes", "namespace": WEB, "sectionName": name}
                for name in ("all", "same")
            ],
        ),
    ],
    "ListenerSetReferenceGrant": [
        gateway("sets-grant", listener("http"), allowedListeners=_ALL),
        *(
            listener_set(
                name,
                "sets-grant",
                listener(
                    "https",
                    port,
                    "HTTPS",
                    tls={"certificateRefs": [{"name": "certificate", "namespace": WEB}]},
                ),
                namespace=namespace,
            )
            for name, port, namespace in (("set-granted", 443, INFRA), ("set-not-granted", 8443, APP))
        ),
        grant("listener-sets", WEB, {"kind": "ListenerSet"}, {"kind": "Secret", "name": "certificate"}),
    ],
    "TLSRouteInvalidBackendRefUnknownKind": [
        gateway("tls-unknown-kind", listener("tls", 443, "TLS", tls={"mode": "Passthrough"})),
        route(
            "tls-unknown-kind",
            rule({"name": "x", "kind": "NonExistent", "port": 443}),
            to="tls-unknown-kind",
            kind="TLSRoute",
            hostnames=["example.com"],
        ),
    ],
    "TLSRouteListenerTerminateSupportedKinds": [
        gateway(
            "tls-terminate-kinds",
            listener(
                "tls",
                443,
                "TLS",
                tls={"mode": "Terminate", "certificateRefs": [{"name": "tls-terminate-checks-certificate"}]},
            ),
        )
    ],
    "BackendTLSPolicyTLSRouteTerminate": _backend_tls(),
    "GRPCRouteListenerHostnameMatching": [
        gateway(
            "grpc-hosts",
            listener("one", hostname="bar.com"),
            listener("two", hostname="foo.bar.com"),
            listener("three", hostname="*.bar.com"),
        ),
        *(
            route(f"grpc-{name}", rule(_GRPC[to]), to="grpc-hosts", kind="GRPCRoute", parent={"sectionName": name})
            for name, to in (("one", "v1"), ("two", "v2"), ("three", "v3"))
        ),
    ],
    "GRPCRouteWeight": [
        route("grpc-weight", rule({**_GRPC["v1"], "weight": 70}, {**_GRPC["v2"], "weight": 30}), kind="GRPCRoute")
    ],
    "GRPCRouteNamedRule": [
        route("grpc-named", rule(_GRPC["v1"], name="named", matches=[{"method": _METHOD}]), kind="GRPCRoute")
    ],
    "GRPCRouteRequestHeaderModifier": [
        route(
            "grpc-headers",
            rule(_GRPC["v1"], filters=[{"type": "RequestHeaderModifier", "requestHeaderModifier": _HEADERS}]),
            kind="GRPCRoute",
        )
    ],
    "TCPRouteParentRefPortAndSectionName": [
        gateway("tcp-ports", *(listener(f"tcp-{port}", port, "TCP") for port in (9300, 9301))),
        route(
            "tcp-by-port",
            rule({"name": "tcp-backend", "port": 3000}),
            to="tcp-ports",
            kind="TCPRoute",
            parent={"port": 9301, "sectionName": "tcp-9301"},
        ),
    ],
    "UDPRouteReferenceGrant": _udp(),
    "HTTPRouteRetryConnectionError": _dead(),
    "HTTPRouteRequestHeaderModifierBackendWeights": [route("weights", rule(_named(V1, "v1"), _named(V2, "v2")))],
    "BackendTLSPolicyGRPCRoute": _grpc_tls(),
}
