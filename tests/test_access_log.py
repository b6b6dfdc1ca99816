"""Lines as Istio's gateways write them, character by character."""

from __future__ import annotations

import json

from tproxy.core.access_log import Access

SERVED = Access(
    start=1608049845.678,
    method="GET",
    path="/status/418",
    protocol="HTTP/1.1",
    status=418,
    received=0,
    sent=135,
    duration=5,
    service_time=4,
    headers={
        "x-forwarded-for": "10.0.0.9",
        "user-agent": "curl/7.73.0",
        "x-request-id": "84961386-6d84-929d-98bd-c5aee93b5c88",
    },
    authority="httpbin:8000",
    upstream_host="10.44.1.27:80",
    cluster="outbound|8000||httpbin.foo.svc.cluster.local",
    upstream_local="10.44.1.23:37652",
    local="10.0.45.184:8000",
    remote="10.44.1.23:46520",
    route="default",
)


def test_a_request_that_was_served() -> None:
    """The example of Istio's own documentation (Getting Envoy's Access Logs), with a forwarded address."""
    assert SERVED.text() == (
        '[2020-12-15T16:30:45.678Z] "GET /status/418 HTTP/1.1" 418 - via_upstream - "-" 0 135 5 4 "10.0.0.9" '
        '"curl/7.73.0" "84961386-6d84-929d-98bd-c5aee93b5c88" "httpbin:8000" "10.44.1.27:80" '
        "outbound|8000||httpbin.foo.svc.cluster.local 10.44.1.23:37652 10.0.45.184:8000 10.44.1.23:46520 - default"
    )


def test_a_request_that_no_route_is_for() -> None:
    found = Access(0.0, "GET", "/", "HTTP/2", 404, "NR", authority="other", local="10.0.0.1:443", remote="10.0.0.2:9")
    assert found.text() == (
        '[1970-01-01T00:00:00.000Z] "GET / HTTP/2" 404 NR route_not_found - "-" 0 0 0 - "-" "-" "-" "other" "-" - - '
        "10.0.0.1:443 10.0.0.2:9 - -"
    )


def test_a_handshake_that_failed_is_a_line_with_the_name_that_was_asked_for() -> None:
    found = Access(
        0.0, flags="NR", details="filter_chain_not_found", local="10.0.0.1:443", remote="10.0.0.2:9", sni="x.org"
    )
    assert found.text() == (
        '[1970-01-01T00:00:00.000Z] "- - -" 0 NR filter_chain_not_found - "-" 0 0 0 - "-" "-" "-" "-" "-" - - '
        "10.0.0.1:443 10.0.0.2:9 x.org -"
    )


def test_the_json_has_the_fields_of_istio() -> None:
    found = json.loads(SERVED.json())
    assert set(found) == {
        "authority", "bytes_received", "bytes_sent", "connection_termination_details", "downstream_local_address",
        "downstream_remote_address", "duration", "method", "path", "protocol", "requested_server_name", "request_id",
        "response_code", "response_code_details", "response_flags", "route_name", "start_time", "upstream_cluster",
        "upstream_host", "upstream_local_address", "upstream_service_time", "upstream_transport_failure_reason",
        "user_agent", "x_forwarded_for",
    }  # fmt: skip
    assert (found["response_code"], found["requested_server_name"], found["upstream_service_time"]) == (418, None, "4")


def test_the_path_is_the_one_that_the_client_sent_when_it_was_rewritten() -> None:
    found = Access(0.0, "GET", "/new", "HTTP/1.1", 200, headers={"x-envoy-original-path": "/old"})
    assert '"GET /old HTTP/1.1"' in found.text()


def test_a_quote_in_a_failure_does_not_end_its_field() -> None:
    assert Access(0.0, failure='no "x"').text().split('"')[3] == "no 'x'"
