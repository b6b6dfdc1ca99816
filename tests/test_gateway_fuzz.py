"""Whatever stands in the YAML, reading it ends in a table and findings: never in an exception."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_gateway_istio import GATEWAY, HTTP, SERVICES, VIRTUAL
from tproxy.core.http.explain import done, table_of
from tproxy.core.http.forwarded import Client
from tproxy.core.http.head import Head
from tproxy.core.http.routes import Request
from tproxy.core.route_explain import lines, told
from tproxy.gateway.compile import compile_table
from tproxy.gateway.envoy.dump import config_dump
from tproxy.gateway.objects import Object, parse

SUITE = Path(os.environ.get("TPROXY_GATEWAY_API") or Path(__file__).parents[2] / "shared" / "gateway-api")
API = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: shop}
spec:
  gatewayClassName: any
  addresses: [{type: IPAddress, value: 192.0.2.1}]
  listeners:
  - name: tls
    port: 443
    protocol: TLS
    hostname: "*.example.com"
    tls: {mode: Passthrough}
    allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {a: b}}}, kinds: [{kind: TLSRoute}]}
  - {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}
  - {name: tcp, port: 5000, protocol: TCP}
  - {name: http, port: 8080, protocol: HTTP}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{name: gw, sectionName: tls, port: 443}]
  hostnames: [a.example.com]
  rules: [{backendRefs: [{name: web, port: 443, weight: 3}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: h, namespace: shop}
spec:
  parentRefs: [{name: gw}]
  hostnames: [b.example.com]
  rules:
  - matches: [{path: {type: Exact, value: /x}, headers: [{name: a, value: b}]}]
    backendRefs: [{name: web, port: 443}]
---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: g, namespace: shop}
spec:
  from: [{group: gateway.networking.k8s.io, kind: TLSRoute, namespace: x}]
  to: [{group: "", kind: Service}]
---
apiVersion: v1
kind: Secret
metadata: {name: cert, namespace: shop}
data: {tls.crt: LS0tLS1CRUdJTiA=, tls.key: LS0tLS1CRUdJTiA=}
"""
RULES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: all, namespace: shop}
spec:
  hosts: [webapp.istioinaction.io]
  gateways: [coolstore-gateway]
  http:
  - match:
    - uri: {regex: "/v[0-9]"}
      ignoreUriCase: false
      headers: {a: {prefix: b}}
      withoutHeaders: {c: {}}
      queryParams: {q: {exact: "1"}}
      authority: {exact: x}
      scheme: {exact: http}
      port: 80
    route:
    - destination: {host: web, port: {number: 443}, subset: v1}
      weight: 1
      headers: {response: {remove: [x]}}
    rewrite: {uriRegexRewrite: {match: "^/(a)", rewrite: \\1}, authority: b.example}
    headers: {request: {set: {a: b}, add: {c: d}, remove: [e]}}
    mirrors: [{destination: {host: web, port: {number: 443}}, percentage: {value: 5}}]
    timeout: 5s
    retries: {attempts: 3, perTryTimeout: 2s, retryOn: "5xx,503", backoff: 25ms}
    corsPolicy: {allowOrigins: [{exact: "*"}], allowMethods: [GET], maxAge: 24h, allowCredentials: true}
    fault: {delay: {fixedDelay: 1s, percentage: {value: 1}}, abort: {httpStatus: 503, percentage: {value: 2}}}
  - match: [{uri: {prefix: /old}}]
    redirect: {uri: /new, authority: b.example, scheme: https, derivePort: FROM_REQUEST_PORT, redirectCode: 308}
  - match: [{uri: {prefix: /said}}]
    directResponse: {status: 200, body: {string: hello}}
  - match: [{uri: {prefix: /on}}]
    delegate: {name: other}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: other, namespace: shop}
spec: {http: [{match: [{uri: {exact: /on/x}}], route: [{destination: {host: web, port: {number: 443}}}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: all, namespace: shop}
spec:
  parentRefs: [{name: gw}]
  rules:
  - name: first
    matches: [{path: {type: PathPrefix, value: /x}, method: GET, queryParams: [{name: a, value: b}]}]
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], remove: [c]}}
    - {type: URLRewrite, urlRewrite: {hostname: b.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /y}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: web, port: 443}, fraction: {numerator: 1}}}
    - {type: CORS, cors: {allowOrigins: ["https://*.example"], allowMethods: ["*"], maxAge: 5}}
    backendRefs:
    - name: web
      port: 443
      filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: a, value: b}]}}]
    timeouts: {request: 10s, backendRequest: 1s}
    retry: {codes: [500], attempts: 2, backoff: 10ms}
  - matches: [{path: {type: RegularExpression, value: /z.*}}]
    filters:
    - type: RequestRedirect
      requestRedirect:
        {scheme: https, hostname: b.example, port: 443, path: {type: ReplaceFullPath, replaceFullPath: /}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: all, namespace: shop}
spec:
  parentRefs: [{name: gw}]
  rules:
  - matches: [{method: {service: a.B, method: C, type: Exact}, headers: [{name: v, value: "1"}]}]
    backendRefs: [{name: web, port: 443}]
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: logs, namespace: istio-system}
spec:
  selector: {matchLabels: {istio: ingressgateway}}
  accessLogging: [{providers: [{name: envoy}], filter: {expression: response.code >= 400}, disabled: false}]
"""
GOOD = [each for text in (GATEWAY, VIRTUAL, SERVICES, HTTP, API, RULES) for each in yaml.safe_load_all(text)]
ODD = st.sampled_from(
    [
        None,
        "",
        0,
        -1,
        1.5,
        True,
        [],
        {},
        [None],
        [[]],
        [{}],
        {"a": None},
        "*",
        "a b",
        "x" * 300,
        2**70,
        float("nan"),
        ".inf",
    ]
)


def spots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to everything inside."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(spot for key, each in inner for spot in spots(each, (*path, key)))]


SPOTS = [spot for spot in spots(GOOD) if len(spot) > 1]


@settings(deadline=None, max_examples=400)
@given(st.lists(st.tuples(st.sampled_from(SPOTS), ODD), min_size=1, max_size=3))
def test_odd_values_anywhere_are_findings_and_the_rest_is_served(edits: list[tuple[tuple[Any, ...], Any]]) -> None:
    things = copy.deepcopy(GOOD)
    for spot, value in edits:
        into: Any = things
        try:
            for key in spot[:-1]:
                into = into[key]
            into[spot[-1]] = copy.deepcopy(value)  # else one edit could put a thing into itself
        except (KeyError, IndexError, TypeError):
            continue  # an earlier edit took the way there
    read("\n---\n".join(json.dumps(each) for each in things))


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_text_cut_and_mixed_up_is_findings(data: st.DataObject) -> None:
    text = "\n---\n".join((GATEWAY, VIRTUAL, API))
    at, length = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 60))
    read(text[:at] + data.draw(st.text(max_size=8)) + text[at + length :])


@pytest.mark.skipif(not SUITE.is_dir(), reason="the Gateway API's manifests are not here (TPROXY_GATEWAY_API)")
def test_all_manifests_of_the_conformance_suite_together_are_read() -> None:
    read("\n---\n".join(path.read_text() for path in sorted(SUITE.glob("*/*.yaml")) if path.parent.name != "crds"))


def read(text: str) -> None:
    """As the gateway does, and every question that one can ask."""
    found = list(parse(text, "conf.yaml"))
    objects = [each for each in found if isinstance(each, Object)]
    loaded = compile_table(
        objects, [each for each in found if not isinstance(each, Object)], {"istio": "ingressgateway"}
    )
    for listener in loaded.table.listeners.values():
        assert all(line.port for line in lines(listener))
        for name in (None, "a.example.com", "x"):
            told(listener, name, None)
            told(listener, name, Request(name or "b.example.com", "/x"))
            for path in ("/x", "/v1", "/old", "/said", "/on/x", "/a.B/C"):
                head = Head("GET", "http", name or "webapp.istioinaction.io", path, [("origin", "https://a.example")])
                if (table := table_of(listener, name)) is not None:
                    assert list(done(table, head, Client("192.0.2.1")))
    assert config_dump(loaded.table, {}, "", "")["configs"]
    for finding in loaded.findings:
        assert len(finding.text) < 2000
