"""The story that ``make demo`` tells: who is in the world, and the ten steps."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tproxy.core.hello import server_hello
from tproxy.demo.stage import Stage
from tproxy.world import apps
from tproxy.world.control import Control
from tproxy.world.pods import Pod, World, wait_for
from tproxy.world.sidecars import TPROXY, Authority, Sidecar

DOMAIN, MARKER = "demo.local", "the-page-of-web-4711"
OUTSIDE = "198.51.100.10"  # RFC 5737: a documentation address, in no mesh range
RULE = "only-client-may-call"
WEB = {"inbound": {"rules": [{"name": RULE, "ports": [80], "ids": ["ns/demo/sa/client"]}]}}
TTL = "4s"  # certificates live so long here, to be seen changing
GIB = 1 << 30
CURL = ["curl", "-sS", "-m", "10"]
PEER = (sys.executable, "-m", "tproxy.world.peer")


@dataclass(slots=True)
class Cast:
    """Everyone on stage."""

    world: World
    stage: Stage
    control: Control
    web: Pod
    client: Pod
    intruder: Pod
    foreign: Pod
    outsider: Pod
    sidecars: dict[str, Sidecar]

    def curl(self, pod: Pod, host: str) -> tuple[int, str]:
        """curl's exit code and output."""
        return self.stage.run(pod, [*CURL, f"http://{host}/"])

    def answered(self) -> int:
        """Requests that nginx has answered."""
        log = apps.nginx_folder(self.web) / "access.log"
        return len(log.read_text().splitlines())


def cast(world: World, stage: Stage) -> Cast:
    """Pods, applications, certificates, sidecars."""
    stage.step("Five pods on a bridge, and a sixth that issues certificates; applications know nothing of TLS")
    pods = {name: world.pod(name) for name in ("web", "client", "intruder", "foreign", "outsider")}
    authority = world.pod("control")
    for name, pod in pods.items():
        stage.say(f"pod {name:<9} {pod.v4:<11} {pod.v6}")
    stage.say("control$ tproxy ca init --dir ca --trust-domain demo.local && tproxy control --config control.yaml")
    control, evil = Control(authority, DOMAIN).start(), Authority(world, "evil.example")
    apps.nginx(pods["web"], {"index.html": f"{MARKER}\n".encode()})
    apps.peer(pods["web"], 25, "banner")
    apps.peer(pods["web"], 9000, "duplex", GIB)
    pods["outsider"].add_address(f"{OUTSIDE}/24")
    apps.nginx(pods["outsider"], {"index.html": b"outside the mesh\n"})
    sidecars = {
        "web": Sidecar(pods["web"], control.identity("web", ttl=TTL), DOMAIN, **WEB),
        "client": Sidecar(pods["client"], control.identity("client", ttl=TTL), DOMAIN, egress="passthrough"),
        "intruder": Sidecar(pods["intruder"], control.identity("intruder", ttl=TTL), DOMAIN),
        "foreign": Sidecar(pods["foreign"], evil.issue("client"), "evil.example"),
    }
    for sidecar in sidecars.values():
        stage.say(f"{sidecar.pod.name}$ tproxy init --config {sidecar.path.name} && tproxy sidecar --config ...")
        sidecar.up()
    stage.check("four sidecars are ready", all(sidecar.ready() for sidecar in sidecars.values()))
    code, out = stage.run(pods["web"], [*TPROXY, "identity"])
    stage.check("web's certificate came from the CA, over gRPC", code == 0 and f"Istio CA {authority.v4}" in out, out)
    return Cast(world, stage, control, **pods, sidecars=sidecars)


def page(on: Cast) -> None:
    """Steps of the plain path: the page, the source address, the wire, the records."""
    stage, pcap = on.stage, on.world.directory / "wire.pcap"
    stage.step("curl in client gets nginx's page, over IPv4 and IPv6, while the bridge is watched")
    with on.world.tcpdump(pcap):
        code4, out4 = on.curl(on.client, on.web.v4)
        code6, out6 = on.curl(on.client, f"[{on.web.v6}]")
    stage.check("the page arrives over IPv4", code4 == 0 and MARKER in out4, out4)
    stage.check("the page arrives over IPv6", code6 == 0 and MARKER in out6, out6)
    stage.step("nginx sees the client's own address")
    log = (apps.nginx_folder(on.web) / "access.log").read_text()
    stage.say(log)
    sources = [line.split()[0] for line in log.splitlines()]
    stage.check("nginx logged the client's IPv4 and IPv6 addresses", sources == [on.client.v4, on.client.v6], sources)
    stage.step("What crossed the bridge")
    wire = pcap.read_bytes()
    stage.say(f"tcpdump captured {len(wire)} bytes")
    stage.check("TLS 1.3 crossed the bridge", tls13(wire), f"{len(wire)} bytes")
    stage.check("neither the page nor the request did", MARKER.encode() not in wire and b"GET /" not in wire)
    stage.step("The records name both identities")
    for name, other in (("client", "web"), ("web", "client")):
        record = on.sidecars[name].wait_record(lambda r: r["outcome"] == "closed")
        stage.say(f"{name}: {json.dumps(record)}")
        ids = (record.get("self"), record.get("peer"))
        wanted = tuple(f"spiffe://{DOMAIN}/ns/demo/sa/{who}" for who in (name, other))
        stage.check(f"{name}'s record names both SPIFFE ids", ids == wanted, ids)


def tls13(wire: bytes) -> bool:
    """Whether a capture holds a ServerHello that chose TLS 1.3 (RFC 8446, 4.1.3)."""
    at = wire.find(b"\x16\x03\x03")
    while at >= 0:
        found = server_hello(wire[at : at + 1400])
        if found is not None and found.version == 0x0304:
            return True
        at = wire.find(b"\x16\x03\x03", at + 1)
    return False


def refusals(on: Cast) -> None:
    """Who is refused, and that the record says why."""
    stage, web = on.stage, on.sidecars["web"]
    stage.step("Who is not allowed is refused, and the record says why")
    answered = on.answered()
    s_client = ["openssl", "s_client", "-connect", f"{on.web.v4}:80", "-quiet", "-no_ign_eof"]
    svid = on.sidecars["foreign"].base["identity"]
    stolen = ["-cert", svid["cert"], "-key", svid["key"]]
    attempts = (
        ("intruder is refused by policy", on.intruder, ["curl", "-sS", "-m", "5", f"http://{on.web.v4}/"], "policy"),
        (
            "foreign is refused in the handshake",
            on.foreign,
            ["curl", "-sS", "-m", "5", f"http://{on.web.v4}/"],
            "refused_by_peer",
        ),
        ("foreign's certificate is refused in the handshake", on.outsider, [*s_client, *stolen], "peer_untrusted"),
        (
            "outsider in plaintext is refused",
            on.outsider,
            ["curl", "-sS", "-m", "5", f"http://{on.web.v4}/"],
            "plaintext",
        ),
        ("outsider with TLS but no certificate is refused", on.outsider, s_client, "no_certificate"),
    )
    for claim, pod, argv, reason in attempts:
        before = len(web.records())
        code, out = stage.run(pod, argv, stdin="GET / HTTP/1.0\r\n\r\n")
        try:
            record = web.wait_record(lambda r: r["outcome"] == "refused", after=before)
        except TimeoutError as error:
            record = {"reason": f"none: {error}"}
        seen = {key: record.get(key) for key in ("reason", "rule", "peer", "why", "advice")}
        stage.say(f"web: {json.dumps(seen)}")
        right = record["reason"] == reason and MARKER not in out and (reason != "policy" or record.get("rule") == RULE)
        stage.check(claim, right and (code != 0 or "openssl" in argv), seen)
    stage.check("nginx answered none of them", on.answered() == answered, on.answered() - answered)


def outside(on: Cast) -> None:
    """Destinations that are not in the mesh."""
    stage, sidecar = on.stage, on.sidecars["client"]
    stage.step("Traffic to an address outside the mesh follows egress: passthrough | deny")
    code, out = on.curl(on.client, OUTSIDE)
    stage.check("egress: passthrough lets it through unchanged", code == 0 and "outside the mesh" in out, out)
    reconfigure(sidecar, egress="deny")
    before = len(sidecar.records())
    code, out = on.curl(on.client, OUTSIDE)
    record = sidecar.wait_record(lambda r: r["outcome"] == "refused", after=before)
    stage.say(f"client: {json.dumps(record)}")
    stage.check("egress: deny refuses it", code != 0 and record["reason"] == "egress_denied", out)


def reconfigure(sidecar: Sidecar, **config: object) -> None:
    """Write a new configuration and wait until the sidecar says that it took it."""
    before = len(reloads(sidecar))
    sidecar.write(**config)
    wait_for(lambda: len(reloads(sidecar)) > before, 10, "the sidecar takes the new configuration")


def streams(on: Cast) -> None:
    """A protocol in which the server speaks first, and a gibibyte each way."""
    stage = on.stage
    stage.step("A server that speaks first, and 1 GiB each way at once, the client half-closing first")
    code, out = stage.run(on.client, ["curl", "-sS", "-m", "5", f"telnet://{on.web.v4}:25"], stdin="QUIT\n")
    stage.check("the banner of a server-first protocol arrives", "220 mail.example.org" in out, out)
    argv = [*PEER, "connect", "--to", f"{on.web.v4}:9000", "--bytes", str(GIB - 1), "--expect", str(GIB)]
    code, out = stage.run(on.client, argv, timeout=170)
    found = json.loads(out) if out.startswith("{") else {}
    stage.check("client received 1 GiB, SHA-256 equal", code == 0 and found.get("exact") is True, out)
    server = server_saw(on, GIB - 1)
    equal = server.get("sha256") == found.get("sha256_sent")
    stage.check("web received 1 GiB less a byte, SHA-256 equal", equal and "sha256" in server, server)


def server_saw(on: Cast, count: int) -> dict[str, object]:
    """What the duplex server of web printed about the connection that brought ``count`` bytes."""
    logs = [path.read_text() for path in on.world.directory.glob("web-python*.log")]
    lines = [json.loads(line) for text in logs for line in text.splitlines() if line.startswith("{")]
    return next((line for line in lines if line.get("received") == count), {})


def killed(on: Cast) -> None:
    """kill -9 of web's sidecar."""
    stage, web = on.stage, on.sidecars["web"]
    stage.step("kill -9 of web's sidecar: refused, never answered in plaintext")
    answered = on.answered()
    stage.say(f"kill -9 {web.running().pid}")
    web.kill()
    results = [on.curl(pod, host) for pod in (on.client, on.outsider) for host in (on.web.v4, f"[{on.web.v6}]")]
    refused = all(code != 0 and MARKER not in out for code, out in results)
    stage.check("while it is dead every connection is refused, IPv4 and IPv6", refused, results)
    stage.check("nginx answered nothing meanwhile", on.answered() == answered, on.answered() - answered)
    web.start()
    code, out = on.curl(on.client, on.web.v4)
    stage.check("after its restart the page arrives again", code == 0 and MARKER in out, out)


def rotation(on: Cast) -> None:
    """New certificates on both sides, again and again, while a transfer runs."""
    stage, web, client = on.stage, on.sidecars["web"], on.sidecars["client"]
    stage.step(f"Certificates live {TTL} and are renewed by the CA under load")
    old = {line["self_serial"] for sidecar in (web, client) for line in sidecar.records() if "self_serial" in line}
    argv = [*PEER, "connect", "--to", f"{on.web.v4}:9000", "--bytes", str(2 * GIB), "--expect", str(GIB)]
    before, issued = [len(renewals(sidecar)) for sidecar in (web, client)], len(on.control.issued())
    load = on.client.start(argv, log=on.world.directory / "load.log")
    calls = failures = 0
    while load.alive:
        calls, failures = calls + 1, failures + (on.client.run([*CURL, f"http://{on.web.v4}/"]).returncode != 0)
        time.sleep(0.1)
    code = load.wait(120)
    taken = [len(renewals(sidecar)) - count for sidecar, count in zip((web, client), before, strict=True)]
    stage.say(
        f"{len(on.control.issued()) - issued} certificates issued meanwhile; web took {taken[0]}, client {taken[1]}"
    )
    stage.say(load.tail())
    stage.check("the transfer ran through rotations and is exact", code == 0 and min(taken) > 0, load.tail())
    stage.check(f"none of {calls} new connections failed meanwhile", calls > 0 and failures == 0, failures)
    since = len(web.records())
    on.curl(on.client, on.web.v4)
    record = web.wait_record(lambda r: r["outcome"] == "closed" and r["destination"].endswith(":80"), after=since)
    new = {record["self_serial"], record["peer_serial"]}
    stage.say(f"web: self_serial {record['self_serial']}, peer_serial {record['peer_serial']}")
    stage.check("new connections use the new serials on both sides", not new & old, new)


def reloads(sidecar: Sidecar) -> list[object]:
    """Its messages that new configuration is in force."""
    return [line for line in sidecar.lines() if str(line.get("message", "")).startswith("reloaded")]


def renewals(sidecar: Sidecar) -> list[object]:
    """Its messages that new credentials are in force."""
    return [line for line in sidecar.lines() if str(line.get("message", "")).startswith("renewed")]


def play(report: Path) -> int:
    """Everything, in order; the world is gone afterwards, whatever happened."""
    stage = Stage()
    with World() as world:
        on = cast(world, stage)
        for scene in (page, refusals, outside, streams, killed, rotation):
            try:
                scene(on)
            except TimeoutError as error:
                stage.check(f"{scene.__name__} went to its end", False, error)
    return stage.close(report)
