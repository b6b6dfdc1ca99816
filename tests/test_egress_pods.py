"""Egress by rule in real pods: a sidecar, two routers that are ``tproxy forward``, and an Internet of one server."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DOMAIN, LIMITS
from tests.gateway import TPROXY, certificate
from tproxy.world.apps import peer
from tproxy.world.pods import Pod, Process, World, wait_for
from tproxy.world.sidecars import Authority, Record, Sidecar

HTTPBIN = "198.51.100.10"  # RFC 5737
NGINX = """daemon off; pid {folder}/pid; error_log stderr; user root; events {{}}
http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 80; listen 443 ssl; ssl_certificate {crt}; ssl_certificate_key {key};
    location = /ip {{ default_type application/json; return 200 '{{"origin": "$remote_addr"}}'; }}
    location = /slow {{ default_type text/plain; limit_rate 100; alias {folder}/slow; }} }} }}
"""
POLICY = """table inet networkpolicy {{
chain egress {{
  type filter hook postrouting priority 300; policy accept;
  oifname "lo" accept
  udp dport 53 accept
  tcp dport 53 accept
  ip daddr {{ {router1}, {router2} }} tcp dport {{ 8080, 8081 }} accept
  tcp dport {{ 15001, 15006, 15010, 15011, 15012, 15020 }} accept
  ct direction reply accept
  meta l4proto tcp counter drop
}}
}}
"""


@dataclass
class Stage:
    """even and odd by their last octets; ``forwards`` are the routers' processes by name and port."""

    even: Pod
    odd: Pod
    routers: dict[str, Pod]
    httpbin: Pod
    sidecars: dict[str, Sidecar] = field(default_factory=dict)
    forwards: dict[tuple[str, int], Process] = field(default_factory=dict)

    def routes(self, **more: Any) -> dict[str, Any]:
        """The document's rule: even to the first, odd to the second."""
        rules = [
            {"name": f"by-{parity}", "ports": [80, 443], "sourceOctet": parity, "routers": [name]}
            for parity, name in (("even", "egress-router1"), ("odd", "egress-router2"))
        ]
        hosts = {name: {"host": pod.v4} for name, pod in self.routers.items()}
        return {"routers": hosts, "rules": rules, "check": 0.2, "connect": 1, **more}

    def forward(self, name: str, port: int) -> None:
        """A router takes connections on this port."""
        argv = [TPROXY, "forward", "run", f"TCP-LISTEN:{port},fork,reuseaddr"]
        argv.append(f"TCP:{HTTPBIN}:{443 if port == 8080 else 80}")
        process = self.forwards[name, port] = self.routers[name].start(argv)
        wait_for(lambda: self.routers[name].listens(port, 6), 20, f"{name} listens on {port}", process)

    def configure(self, pod: Pod, seconds: float = 10, **config: Any) -> None:
        """A new configuration, taken up by the running sidecar."""
        sidecar = self.sidecars[pod.name]
        count = sidecar.log.read_text().count("reloaded: ")
        sidecar.write(limits=LIMITS, **config)
        wait_for(lambda: sidecar.log.read_text().count("reloaded: ") > count, seconds, "the reload", sidecar.running())

    def next_record(self, pod: Pod, after: int) -> Record:
        return self.sidecars[pod.name].wait_record(lambda record: record["direction"] == "egress", after=after)

    def count(self, pod: Pod) -> int:
        return len(self.sidecars[pod.name].records())


@pytest.fixture(scope="module")
def stage(world: World) -> Stage:
    ca = Authority(world, DOMAIN)
    odd, even, router1, router2, httpbin = (
        world.pod(name) for name in ("odd", "even", "egress-router1", "egress-router2", "httpbin")
    )
    assert (odd.v4, even.v4) == ("10.77.0.1", "10.77.0.2")
    made = Stage(even, odd, {"egress-router1": router1, "egress-router2": router2}, httpbin)
    httpbin.add_address(f"{HTTPBIN}/32")
    _nginx(httpbin)
    for name in made.routers:
        for port in (8080, 8081):
            made.forward(name, port)
    for pod in (odd, even):
        sidecar = Sidecar(pod, ca.issue(pod.name), DOMAIN, limits=LIMITS, egressRoutes=made.routes())
        made.sidecars[pod.name] = sidecar.up()
    return made


def _nginx(pod: Pod) -> None:
    folder = pod.world.directory / "httpbin"
    folder.mkdir()
    (folder / "slow").write_bytes(b"x" * 100_000)
    crt, key = certificate(folder, "httpbin.org")
    conf = folder / "nginx.conf"
    conf.write_text(NGINX.format(folder=folder, crt=crt, key=key))
    process = pod.start(["nginx", "-e", "stderr", "-c", str(conf), "-p", str(folder)])
    wait_for(lambda: pod.listens(443, 4), 10, "httpbin listens", process)


@pytest.fixture(autouse=True)
def _as_it_was(stage: Stage) -> Iterator[None]:
    """Each test finds the document's rules and all routers."""
    yield
    for (name, port), process in list(stage.forwards.items()):
        if not process.alive:
            stage.forward(name, port)
    for pod in (stage.odd, stage.even):
        stage.configure(pod, egressRoutes=stage.routes())
        wait_for(lambda pod=pod: all(_up(stage, pod).values()), 10, "all routers are up")  # type: ignore[misc]


def _up(stage: Stage, pod: Pod) -> dict[str, float]:
    samples = stage.sidecars[pod.name].metrics()
    return {name: value for name, value in samples.items() if name.startswith("tproxy_router_up")}


def go_client(pod: Pod, proto: str, host: str = "httpbin.org") -> str:
    """What the document's client prints: protocol, host, the origin that the server sees, status."""
    port = {"HTTP": 80, "HTTPS": 443}[proto]
    argv = ["curl", "-sk", "-m", "8", "--resolve", f"{host}:{port}:{HTTPBIN}", "-w", "\n%{http_code}"]
    done = pod.run([*argv, f"{proto.lower()}://{host}/ip"])
    if done.returncode:
        return f"{proto} {host} - ERROR: curl {done.returncode}"
    body, _, code = done.stdout.rpartition("\n")
    found = re.search(r'"origin": "([^"]*)"', body)
    return f"{proto} {host} {found[1] if found else '-'} {code}"


def test_002_01_https_leaves_through_a_router_and_the_client_prints_its_address(stage: Stage) -> None:
    for pod, router in ((stage.even, "egress-router1"), (stage.odd, "egress-router2")):
        assert go_client(pod, "HTTPS") == f"HTTPS httpbin.org {stage.routers[router].v4} 200"


def test_what_a_rule_routes_is_not_told_as_plaintext_and_what_goes_directly_is(stage: Stage) -> None:
    assert go_client(stage.even, "HTTPS").endswith(" 200")
    assert _plaintext(stage, stage.even) == set()
    stage.configure(stage.even, egress="passthrough")
    assert go_client(stage.even, "HTTPS").endswith(" 200")
    assert _plaintext(stage, stage.even) == {(HTTPBIN, 443)}


def _plaintext(stage: Stage, pod: Pod) -> set[tuple[str, int]]:
    page = pod.run(["curl", "-s", "-m", "5", "http://127.0.0.1:15000/plaintext"]).stdout
    return {(row["peer"], row["port"]) for row in json.loads(page)["rows"]}


def test_002_02_the_source_s_last_octet_chooses_the_router(stage: Stage) -> None:
    for pod, rule, router in (
        (stage.even, "by-even", "egress-router1"),
        (stage.odd, "by-odd", "egress-router2"),
    ):
        before = stage.count(pod)
        go_client(pod, "HTTPS")
        record = stage.next_record(pod, before)
        assert (record["rule"], record["router"], record["outcome"]) == (rule, router, "closed")


def test_002_03_ports_are_mapped_and_names_are_istios_where_that_is_asked(stage: Stage) -> None:
    pod, router = stage.even, stage.routers["egress-router1"].v4
    stage.configure(pod, egressRoutes=stage.routes(names="istio"))
    for proto, at in (("HTTPS", 8080), ("HTTP", 8081)):
        before = stage.count(pod)
        go_client(pod, proto)
        record = stage.next_record(pod, before)
        assert (record["backend"], record["router"]) == (f"{router}:{at}", f"outbound|{at}||{router}")


def test_002_04_port_80_is_routed_and_without_the_rule_it_is_503_or_refused(stage: Stage) -> None:
    pod = stage.even
    assert go_client(pod, "HTTP") == f"HTTP httpbin.org {stage.routers['egress-router1'].v4} 200"
    stage.configure(pod, egressRoutes={"http503": [80]})
    before = stage.count(pod)
    assert go_client(pod, "HTTP") == "HTTP httpbin.org - 503"
    assert stage.next_record(pod, before)["reason"] == "egress_denied"
    assert "ERROR" in go_client(pod, "HTTPS")
    stage.configure(pod)
    assert "ERROR" in go_client(pod, "HTTP")


def test_002_04_the_503_says_why_and_what_is_no_http_is_reset(stage: Stage) -> None:
    pod = stage.even
    stage.configure(pod, egressRoutes={"http503": [80]})
    said = pod.run(["curl", "-si", "-m", "8", f"http://{HTTPBIN}/ip", "-d", "x" * 100_000]).stdout
    assert said.startswith("HTTP/1.1 503 ") and "egress_denied" in said and "is not in the mesh" in said
    with pod.inside(), socket.create_connection((HTTPBIN, 80), 10) as sock, pytest.raises(ConnectionResetError):
        sock.sendall(b"\x16\x03\x01")
        assert sock.recv(1) != b""


def test_002_05_a_line_with_the_tag_says_source_octet_and_router(stage: Stage) -> None:
    pod = stage.even
    stage.configure(pod, egressRoutes=stage.routes(tag="TCP WASM", names="istio"))
    before = stage.count(pod)
    go_client(pod, "HTTPS")
    record, router = stage.next_record(pod, before), stage.routers["egress-router1"].v4
    (line,) = [line for line in stage.sidecars[pod.name].log.read_text().splitlines() if "[TCP WASM]" in line]
    for fact in (
        f"Source address: {record['source']};",
        f"Source IP last octet: 2, intercepting {HTTPBIN}:443 by rule by-even;",
        "Routing to egress-router1;",
        f"status: connected to {router}:8080;",
        f"Rerouting to outbound|8080||{router}",
    ):
        assert fact in line


def test_002_06_the_sidecar_dials_nothing_that_the_network_policy_forbids(stage: Stage) -> None:
    """The document's NetworkPolicy as nft behind everything of ours, in the client's own pod."""
    pod = stage.even
    rules = POLICY.format(**{name.removeprefix("egress-"): router.v4 for name, router in stage.routers.items()})
    pod.run(["nft", "-f", "-"], stdin=rules, check=True)
    try:
        for proto in ("HTTP", "HTTPS"):
            assert go_client(pod, proto).endswith(" 200")
        stage.configure(pod, egressRoutes=stage.routes(rules=[], http503=[80]))
        assert go_client(pod, "HTTP") == "HTTP httpbin.org - 503"
        time.sleep(0.5)  # checks of routers go on
        assert _dropped(pod) == 0
        pod.run(["setpriv", "--reuid", "1337", "--clear-groups", "curl", "-m", "1", f"http://{HTTPBIN}/"])
        assert _dropped(pod) == 0, "an application with the sidecar's uid is captured like any other"
        stage.configure(pod, egress="passthrough")
        go_client(pod, "HTTP")
        assert _dropped(pod) > 0, "the policy does bite"
    finally:
        pod.run(["nft", "delete table inet networkpolicy"], check=True)


def _dropped(pod: Pod) -> int:
    table = json.loads(pod.run(["nft", "-j", "list table inet networkpolicy"], check=True).stdout)
    rules = [item["rule"]["expr"] for item in table["nftables"] if "rule" in item]
    return next(part["counter"]["packets"] for part in rules[-1] if "counter" in part)


def test_002_07_the_listeners_stand_in_the_dump_as_jq_looks_for_them(stage: Stage) -> None:
    """.configs[] | select(."@type" | contains("Listener")) | .dynamic_listeners[] | select(.name == "0.0.0.0_443")"""
    dump = json.loads(stage.sidecars[stage.even.name].page(15000, "/config_dump"))
    (listeners,) = [part for part in dump["configs"] if "Listener" in part["@type"]]
    for name in ("0.0.0.0_80", "0.0.0.0_443"):
        (found,) = [one for one in listeners["dynamic_listeners"] if one["name"] == name]
        filters = found["active_state"]["listener"]["filter_chains"][0]["filters"]
        assert [one["name"] for one in filters] == ["tproxy.egress_routes", "envoy.filters.network.tcp_proxy"]


def test_002_08_a_changed_rule_holds_for_the_next_connection_without_a_restart(stage: Stage) -> None:
    pod, routes = stage.even, stage.routes()
    pid = stage.sidecars[pod.name].running().pid
    routes["rules"][0]["routers"] = ["egress-router2"]
    for _ in range(3):
        stage.configure(pod, egressRoutes=routes)
        assert go_client(pod, "HTTPS") == f"HTTPS httpbin.org {stage.routers['egress-router2'].v4} 200"
        stage.configure(pod, egressRoutes=stage.routes())
        assert go_client(pod, "HTTPS") == f"HTTPS httpbin.org {stage.routers['egress-router1'].v4} 200"
    assert stage.sidecars[pod.name].running().alive and stage.sidecars[pod.name].running().pid == pid


def test_002_08_rules_in_a_config_map_are_followed_as_the_kubelet_writes_them(stage: Stage) -> None:
    """A folder of symlinks, of which ..data is replaced: kubelet, atomic_writer.go."""
    pod, folder = stage.even, stage.even.world.directory / "config-map"
    sidecar, routes = stage.sidecars[pod.name], stage.routes()
    folder.mkdir()
    (folder / "egress.yaml").symlink_to("..data/egress.yaml")
    write_config_map(folder, "1", routes)
    stage.configure(pod, egressRoutes={"file": str(folder / "egress.yaml")})
    assert go_client(pod, "HTTPS") == f"HTTPS httpbin.org {stage.routers['egress-router1'].v4} 200"
    before, refused = (sidecar.log.read_text().count(text) for text in ("reloaded: ", "reload refused"))
    write_config_map(folder, "2", {**routes, "rules": [{"routers": ["egress-router9"]}]})
    wait_for(lambda: sidecar.log.read_text().count("reload refused") > refused, 10, "the refusal")
    assert f"{folder}/egress.yaml: rules[0].routers.egress-router9: is no router" in sidecar.log.read_text()
    assert go_client(pod, "HTTPS").endswith(" 200")
    routes["rules"][0]["routers"] = ["egress-router2"]
    write_config_map(folder, "3", routes)
    wait_for(lambda: sidecar.log.read_text().count("reloaded: ") > before, 10, "the reload")
    assert go_client(pod, "HTTPS") == f"HTTPS httpbin.org {stage.routers['egress-router2'].v4} 200"


def write_config_map(folder: Path, version: str, routes: dict[str, Any]) -> None:
    (folder / f"..{version}").mkdir()
    (folder / f"..{version}" / "egress.yaml").write_text(json.dumps(routes))
    (folder / "..data_tmp").symlink_to(f"..{version}")
    (folder / "..data_tmp").rename(folder / "..data")


def test_002_08_no_connection_fails_while_rules_change(stage: Stage) -> None:
    """Both routers may carry it before and after, only their order changes."""
    pod, answers, over = stage.even, list[bytes](), threading.Event()

    def calls() -> None:
        with pod.inside():
            while not over.is_set():
                with socket.create_connection((HTTPBIN, 80), 10) as sock:
                    sock.sendall(b"GET /ip HTTP/1.0\r\n\r\n")
                    answers.append(b"".join(iter(lambda: sock.recv(4096), b""))[:12])

    caller = threading.Thread(target=calls)
    caller.start()
    try:
        for turn in range(10):
            routes = stage.routes()
            routes["rules"][0]["routers"] = {"egress-router1": turn % 2, "egress-router2": 1 - turn % 2}
            stage.configure(pod, egressRoutes=routes)
    finally:
        over.set()
        caller.join(20)
    assert len(answers) > 20 and set(answers) == {b"HTTP/1.1 200"}


def test_ipv6_is_routed_as_well_unless_the_rule_asks_for_an_octet(stage: Stage) -> None:
    pod, target, router = stage.even, "2001:db8::10", stage.routers["egress-router2"]
    stage.httpbin.add_address(f"{target}/128")
    argv = ["curl", "-s", "-m", "8", f"http://[{target}]/ip"]
    assert pod.run(argv).returncode != 0
    routers = {"six": {"host": router.v6}}
    stage.configure(pod, egressRoutes={"routers": routers, "rules": [{"cidrs": ["2001:db8::/32"], "routers": ["six"]}]})
    before = stage.count(pod)
    assert json.loads(pod.run(argv, check=True).stdout) == {"origin": router.v4}
    assert stage.next_record(pod, before)["backend"] == f"[{router.v6}]:8081"


def test_002_08_a_broken_rule_is_not_taken_up(stage: Stage) -> None:
    sidecar = stage.sidecars[stage.even.name]
    sidecar.write(limits=LIMITS, egressRoutes=stage.routes(rules=[{"routers": ["nobody"]}]))
    wait_for(lambda: "routers.nobody: is no router" in sidecar.log.read_text(), 10, "it is said")
    assert go_client(stage.even, "HTTPS").endswith(" 200")


@contextmanager
def running(pod: Pod) -> Iterator[socket.socket]:
    """A connection whose answer takes long."""
    with pod.inside():
        sock = socket.create_connection((HTTPBIN, 80), 10)
    with sock:
        sock.sendall(b"GET /slow HTTP/1.1\r\nhost: httpbin.org\r\n\r\n")
        assert sock.recv(1)
        yield sock


def drained(sock: socket.socket) -> None:
    while sock.recv(65536):
        pass


def test_002_08_a_running_connection_stays_while_its_router_may_carry_it_and_is_cut_when_not(stage: Stage) -> None:
    pod, routes = stage.even, stage.routes()
    routes["rules"][0]["routers"] = {"egress-router2": 1, "egress-router1": 0}
    with running(pod) as sock:
        stage.configure(pod, egressRoutes=routes)
        assert sock.recv(1)
        routes["rules"][0]["routers"] = ["egress-router2"]
        before = stage.count(pod)
        stage.configure(pod, egressRoutes=routes)
        with pytest.raises(ConnectionResetError):
            drained(sock)
    assert stage.next_record(pod, before)["reason"] == "cut_by_policy"


def test_a_router_that_is_down_is_passed_over_and_comes_back(stage: Stage) -> None:
    """Passive: its refusal; active: the check that reaches it again."""
    pod, routes = stage.even, stage.routes(check=0, rest=0.5)
    routes["rules"][0]["routers"] = {"egress-router1": 1, "egress-router2": 0}
    stage.configure(pod, egressRoutes=routes)
    stage.forwards["egress-router1", 8080].kill()
    assert go_client(pod, "HTTPS") == f"HTTPS httpbin.org {stage.routers['egress-router2'].v4} 200"
    sidecar = stage.sidecars[pod.name]
    assert "router 10.77.0.3 port 8080 is down: connecting to 10.77.0.3:8080: Connection refused" in (
        sidecar.log.read_text()
    )
    assert sidecar.metrics()['tproxy_router_up{host="10.77.0.3",port="8080"}'] == 0.0
    stage.forward("egress-router1", 8080)
    back = f"HTTPS httpbin.org {stage.routers['egress-router1'].v4} 200"
    wait_for(lambda: go_client(pod, "HTTPS") == back, 10, "the first router is tried again")
    name = 'tproxy_routed_connections_total{outcome="closed",router="egress-router2",rule="by-even"}'
    assert sidecar.metrics()[name] >= 1.0


def test_where_nobody_checks_a_router_that_failed_is_tried_again_when_there_is_no_other(stage: Stage) -> None:
    pod = stage.even
    stage.configure(pod, egressRoutes=stage.routes(check=0, rest=3600))
    stage.forwards["egress-router1", 8080].kill()
    for _ in range(2):
        before = stage.count(pod)
        assert "ERROR" in go_client(pod, "HTTPS")
        why = stage.next_record(pod, before)["why"]
        assert why == "egress-router1: connecting to 10.77.0.3:8080: Connection refused"
    stage.forward("egress-router1", 8080)
    assert go_client(pod, "HTTPS").endswith(" 200")


@pytest.mark.parametrize("proto", ["HTTPS", "HTTP"])
def test_without_a_router_it_is_refused_unless_the_rule_says_otherwise(stage: Stage, proto: str) -> None:
    pod, routes = stage.even, stage.routes(http503=[80])
    port = {"HTTPS": 8080, "HTTP": 8081}[proto]
    stage.configure(pod, egressRoutes=routes)
    stage.forwards["egress-router1", port].kill()
    wait_for(lambda: 0.0 in _up(stage, pod).values(), 10, "the check notices")
    before = stage.count(pod)
    assert go_client(pod, proto).startswith(f"{proto} httpbin.org - " + ("503" if proto == "HTTP" else "ERROR"))
    record = stage.next_record(pod, before)
    assert (record["reason"], record["rule"], record["outcome"]) == ("no_router", "by-even", "failed")
    assert "egress-router1 is down: connecting to 10.77.0.3" in record["why"]
    routes["rules"][0]["otherwise"] = "direct"
    stage.configure(pod, egressRoutes=routes)
    before = stage.count(pod)
    assert go_client(pod, proto) == f"{proto} httpbin.org {pod.v4} 200"
    assert "router" not in stage.next_record(pod, before)


def test_names_choose_the_router_and_the_hello_arrives_whole(stage: Stage) -> None:
    pod = stage.even
    rules = [
        {"name": "exact", "ports": [443], "sni": ["httpbin.org"], "routers": ["egress-router1"]},
        {"name": "wild", "ports": [443], "sni": ["*.example.com"], "routers": ["egress-router2"]},
    ]
    stage.configure(pod, egressRoutes=stage.routes(rules=rules))
    for host, router in (("httpbin.org", "egress-router1"), ("a.b.example.com", "egress-router2")):
        before = stage.count(pod)
        assert go_client(pod, "HTTPS", host) == f"HTTPS {host} {stage.routers[router].v4} 200"
        record = stage.next_record(pod, before)
        assert (record["sni"], record["router"], record["tls"]) == (host, router, "passthrough")
    before = stage.count(pod)
    assert "ERROR" in go_client(pod, "HTTPS", "example.com")
    assert stage.next_record(pod, before)["reason"] == "egress_denied"
    with pod.inside(), socket.create_connection((HTTPBIN, 443), 10) as sock, pytest.raises(OSError):
        sock.sendall(b"no TLS at all")
        raise OSError if not sock.recv(1) else AssertionError


def test_a_router_may_be_a_name_whose_addresses_are_looked_up(stage: Stage) -> None:
    """localhost here: a router in the client's own pod, that speaks first."""
    pod = stage.even
    process = peer(pod, 2525, "banner")
    routers = {"near": {"host": "localhost", "ports": {"25": 2525}}}
    rules = [{"name": "mail", "ports": [25], "routers": ["near"]}]
    stage.configure(pod, egressRoutes={"routers": routers, "rules": rules})
    with pod.inside(), socket.create_connection((HTTPBIN, 25), 10) as sock:
        assert sock.recv(100).startswith(b"220 ")
    process.kill()
    routers["near"]["host"] = "nobody.invalid"
    stage.configure(pod, egressRoutes={"routers": routers, "rules": rules})
    before = stage.count(pod)
    with pytest.raises(OSError), pod.inside(), socket.create_connection((HTTPBIN, 25), 10) as sock:
        raise OSError if not sock.recv(1) else AssertionError
    assert stage.next_record(pod, before)["why"].startswith("near: looking up nobody.invalid: ")
