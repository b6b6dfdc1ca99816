"""Command operators in header values: read once, and what they say of a request."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests import gateway as gw
from tests.echo_backend import EchoBackend
from tests.pki import Ca
from tests.test_http_plan import CLIENT, head, one
from tests.web import curl, rule, service, to
from tproxy.core.http.filters import Filters, HeaderChange
from tproxy.core.http.forwarded import Client
from tproxy.core.http.operators import Format, Moment, parse
from tproxy.core.http.plan import Forward, plan

BEGAN = 1795273079.603636


def told(text: str, *headers: tuple[str, str], client: Client = CLIENT) -> str:
    found = parse(text, "host-1")
    return found if isinstance(found, str) else found.at(Moment(head("/p?q", *headers), client, BEGAN, "c", "r"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("100%%", "100%"),
        ("%%REQ(x)%%", "%REQ(x)%"),
        ("%HOSTNAME%-%%", "host-1-%"),
        ("%START_TIME%", "2026-11-21T14:57:59.603Z"),
        ("%START_TIME(%s.%3f)%", "1795273079.603"),
        ("%START_TIME(%Y/%m/%dT%H:%M:%S%z %6f)%", "2026/11/21T14:57:59+0000 603636"),
        ("%START_TIME(%a %e %b %j %y %p %f %E3S %9f)%", "Sat 21 Nov 325 26 PM 603636000 59.603 603636000"),
        ("%REQ(X-A)%", "abc"),
        ("%REQ(x-a):2%", "ab"),
        ("%REQ(x-a):0%", ""),
        ("[%DOWNSTREAM_REMOTE_ADDRESS%]", "[]"),
        ("%DOWNSTREAM_PEER_URI_SAN%", ""),
    ],
)
def test_values_are_formatted_as_envoy_formats_them(text: str, value: str) -> None:
    """The lines with times were seen of Envoy 1.40 itself."""
    assert told(text, ("x-a", "abc")) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("%", "'%' is no command operator"),
        ("50% of it", "'% of it' is no command operator"),
        ("%REQ(x)", "'%REQ(x)' is no command operator"),
        ("%REQ()%", "must name a header"),
        ("%REQ%", "must name a header"),
        ("%REQ(a?b?c)%", "must name a header, or two"),
        ("%REQ(a b)%", "must name a header"),
        ("%PROTOCOL(x)%", "%PROTOCOL% takes no argument"),
        ("%PROTOCOL:3%", "%PROTOCOL% takes no length"),
        ("%START_TIME(%Q)%", "'%Q' is not known"),
        ("%DOWNSTREAM_REMOTE_ADRESS%", "the nearest is %DOWNSTREAM_REMOTE_ADDRESS%"),
        ("%ENVIRONMENT(SECRET)%", "is not supported"),
    ],
)
def test_what_is_no_operator_is_an_error_that_names_the_nearest(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=r"[%]") as error:
        parse(text, "h")
    assert why in str(error.value)


PIECES = st.sampled_from(["%", "%%", "%REQ(", "x-a", ")%", "?", ":3", "%START_TIME(", "%s", "%E3S", "%PROTOCOL%", "é"])


@given(st.lists(PIECES | st.text(max_size=4), max_size=8).map("".join))
@example("%START_TIME(%)%")
@example("%START_TIME(\n%Y)%")
def test_any_text_is_a_value_or_an_error_and_never_more_than_one_line_that_it_was(text: str) -> None:
    try:
        value = told(text, ("x-a", "1"))
    except ValueError:
        return
    assert ("\n" in value) <= ("\n" in text)


@given(st.text())
def test_a_text_whose_percent_signs_are_doubled_stays_what_it_is(text: str) -> None:
    assert parse(text.replace("%", "%%"), "h") == text


def test_where_nothing_is_known_the_clients_own_header_does_not_pass_for_ours() -> None:
    """Envoy leaves it: who asks a backend to believe x-user would believe the client."""
    form = parse("%DOWNSTREAM_PEER_URI_SAN%", "h")
    assert isinstance(form, Format)
    change = HeaderChange(formats=(("x-user", form, False), ("x-more", form, True)))
    made = one(filters=Filters(request=change))
    found = plan(made, head("/", ("x-user", "admin"), ("x-more", "kept")), CLIENT, lambda: 0.0, lambda: "id")
    assert isinstance(found, Forward)
    assert {name for name, _ in found.head.headers} & {"x-user", "x-more"} == {"x-more"}


REQUEST = {
    "x-peer": "%DOWNSTREAM_PEER_URI_SAN%",
    "x-subject": "%DOWNSTREAM_PEER_SUBJECT%|%DOWNSTREAM_PEER_ISSUER%",
    "x-tls": "%DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_TLS_CIPHER% %REQUESTED_SERVER_NAME%",
    "x-client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "x-from": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "x-at": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "x-proto": "%PROTOCOL% %REQ(:path)%",
    "x-began": "%START_TIME(%s)%",
}
RESPONSE = {
    "x-by": "%UPSTREAM_HOST% %UPSTREAM_CLUSTER%",
    "x-code": "%RESPONSE_CODE% %RESP(content-type)% of %REQ(:path)%",
    "x-id": "%STREAM_ID%",
}


def test_a_virtualservices_headers_tell_of_client_connection_and_backend(tmp_path: Path) -> None:
    port, ca, clients = gw.free_port(), Ca("servers"), Ca("clients")
    cert = ca.issue("a.example.com")
    who = clients.issue("client.example.com", "spiffe://mesh.local/ns/x/sa/y", client=True)
    crt, key = who.files(tmp_path, "client")
    headers = {"request": {"set": REQUEST}, "response": {"set": RESPONSE}}
    direct = {
        "match": [{"uri": {"exact": "/here"}}],
        "directResponse": {"status": 201},
        "headers": {"response": {"set": RESPONSE}},
    }
    with EchoBackend("web-0", "web", "shop") as pod:
        gw.write(
            tmp_path / "conf" / "all.yaml",
            gw.secret("c", "istio-system", cert.pem, cert.key, **{"ca.crt": clients.pem}),
            gw.gateway_yaml(gw.server(port, "HTTPS", "a.example.com", mode="MUTUAL", credentialName="c")),
            gw.virtual(
                "v", ["a.example.com"], http=[direct, rule(to("web"), headers=headers, rewrite={"uri": "/new"})]
            ),
            *service("web", {"http": 80}, pod.port),
        )
        with gw.running(tmp_path / "conf"):
            url = f"https://a.example.com:{port}/"
            shown = ("-k", "--resolve", f"a.example.com:{port}:127.0.0.1", "--cert", str(crt), "--key", str(key))
            found = curl(url, *shown, "-H", "x-peer: lie")
            said = {name.lower(): values[0] for name, values in found.said["headers"].items()}
            assert said["x-peer"] == "spiffe://mesh.local/ns/x/sa/y"
            assert said["x-subject"] == "CN=client.example.com|CN=clients"
            assert said["x-tls"] == "TLSv1.3 TLS_AES_256_GCM_SHA384 a.example.com"
            assert said["x-client"] == "127.0.0.1"
            assert said["x-from"].startswith("127.0.0.1:")
            assert said["x-at"] == f"127.0.0.1:{port}"
            assert said["x-proto"] == "HTTP/2 /"
            assert int(said["x-began"]) > 1_700_000_000
            assert found.header("x-by") == f"127.0.0.1:{pod.port} outbound|80||web.shop.svc.cluster.local"
            assert found.header("x-code") == "200 application/json of /new"
            assert found.header("x-id") == said["x-request-id"]
            here = curl(f"{url}here", *shown)
            assert (here.status, here.header("x-code"), "x-by" in here.names) == (201, "201  of /here", False)
