"""The story that ``make demo-gateway`` tells: two hosts on one port, a third passed through, into pods of the mesh."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tproxy.demo.stage import Stage
from tproxy.demo.story import tls13
from tproxy.world import apps
from tproxy.world.control import Control
from tproxy.world.pods import Pod, Process, World, wait_for
from tproxy.world.sidecars import TPROXY, Sidecar

DOMAIN, PORT = "demo.local", 443
SHOP, API, LEGACY = "shop.example.com", "api.example.com", "legacy.example.com"
PAGES = {SHOP: "the-shop-4711", API: "the-api-0815"}
GATEWAY_ID = f"spiffe://{DOMAIN}/ns/demo/sa/gateway"
ONLY_GATEWAY = {"inbound": {"rules": [{"name": "only-the-gateway", "ports": [80], "ids": ["ns/demo/sa/gateway"]}]}}
Object = dict[str, Any]


@dataclass(slots=True)
class Cast:
    """Everyone on stage."""

    world: World
    stage: Stage
    gateway: Pod
    client: Pod
    folder: Path
    log: Path
    process: Process
    sidecars: dict[str, Sidecar]

    def curl(self, host: str, *options: str) -> tuple[int, str]:
        """From outside, by name, with the CA of the certificates."""
        ca = ["--cacert", str(self.folder / "ca.crt")]
        to = ["--resolve", f"{host}:{PORT}:{self.gateway.v4}", f"https://{host}/"]
        return self.stage.run(self.client, ["curl", "-sS", "-m", "10", *ca, *options, *to])

    def shown(self, host: str) -> str:
        """Subject and serial number of the certificate that a client of this name is shown."""
        argv = f"openssl s_client -connect {self.gateway.v4}:{PORT} -servername {host} </dev/null 2>/dev/null"
        return self.client.run(["sh", "-c", f"{argv} | openssl x509 -noout -subject -serial"]).stdout

    def lines(self) -> list[Object]:
        """What the gateway has logged."""
        return [json.loads(line) for line in self.log.read_text().split("\n")[:-1] if line.startswith("{")]

    def record(self, **wanted: str) -> Object:
        """The first record with these fields, awaited."""

        def look() -> list[Object]:
            return [line for line in self.lines() if wanted.items() <= line.items()]

        return wait_for(look, 10, f"a record with {wanted}", self.process)[0]


def certificate(folder: Path, host: str, pod: Pod) -> None:
    """``HOST.crt`` and ``HOST.key`` by the demo's CA, which is made first."""
    key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    if not (folder / "ca.crt").exists():
        ca = f"openssl req -x509 {key} -days 2 -subj /CN=demo-ca -keyout ca.key -out ca.crt"
        pod.run(["sh", "-c", f"cd {folder} && {ca}"], check=True)
    make = f"openssl req {key} -subj /CN={host} -addext subjectAltName=DNS:{host} -keyout {host}.key -out {host}.csr"
    sign = f"openssl x509 -req -in {host}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -copy_extensions copy"
    pod.run(["sh", "-c", f"cd {folder} && {make} && {sign} -out {host}.crt"], check=True)


def secret(folder: Path, host: str) -> Object:
    """A kubernetes.io/tls Secret in the gateway's namespace."""
    files = {f"tls.{kind}": (folder / f"{host}.{kind}").read_bytes() for kind in ("crt", "key")}
    data = {name: base64.b64encode(text).decode() for name, text in files.items()}
    meta = {"name": host.partition(".")[0], "namespace": "istio-system"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "kubernetes.io/tls", "data": data}


def istio(kind: str, name: str, **spec: Any) -> Object:
    """One of Istio's objects."""
    meta = {"name": name, "namespace": "demo"}
    return {"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": meta, "spec": spec}


def objects(folder: Path, pods: Mapping[str, Pod]) -> list[Object]:
    """What people write for Istio: a Gateway, routes, and mutual TLS towards the pods."""

    def server(host: str, protocol: str, **tls: str) -> Object:
        return {"port": {"number": PORT, "name": host, "protocol": protocol}, "hosts": [host], "tls": tls}

    servers = [server(host, "HTTPS", mode="SIMPLE", credentialName=host.partition(".")[0]) for host in PAGES]
    servers.append(server(LEGACY, "TLS", mode="PASSTHROUGH"))
    made = [istio("Gateway", "gw", selector={"istio": "ingressgateway"}, servers=servers)]
    for host, pod in pods.items():
        name, port = pod.name, PORT if host == LEGACY else 80
        inside = f"{name}.demo.svc.cluster.local"
        ports = [{"number": port, "name": "any", "protocol": "TLS" if host == LEGACY else "HTTP"}]
        route = [{"destination": {"host": inside}}]
        rule: Object = {"http": [{"route": route}]}
        if host == LEGACY:
            rule = {"tls": [{"match": [{"sniHosts": [host]}], "route": route}]}
        entry = {"hosts": [inside], "ports": ports, "resolution": "STATIC", "endpoints": [{"address": pod.v4}]}
        made += [
            istio("ServiceEntry", name, **entry),
            istio("VirtualService", name, hosts=[host], gateways=["gw"], **rule),
        ]
        if host != LEGACY:
            wanted = {"mode": "ISTIO_MUTUAL", "subjectAltNames": [f"spiffe://{DOMAIN}/ns/demo/sa/{name}"]}
            made.append(istio("DestinationRule", name, host=inside, trafficPolicy={"tls": wanted}))
    return made + [secret(folder, host) for host in PAGES]


def write(folder: Path, things: list[Object]) -> None:
    """At once; JSON is YAML."""
    part = folder / "gateway.new"
    part.write_text("\n---\n".join(json.dumps(thing) for thing in things))
    part.rename(folder / "gateway.yaml")


def cast(world: World, stage: Stage) -> Cast:
    """Pods, certificates, sidecars, and the gateway."""
    stage.step("Two pods of the mesh, one with TLS of its own, a gateway before them, and a client outside")
    pods = {name: world.pod(name) for name in ("shop", "api", "legacy", "gateway", "outside")}
    control = Control(world.pod("control"), DOMAIN).start()
    certs, config = world.directory / "certs", world.directory / "gateway"
    certs.mkdir()
    config.mkdir()
    for host in (*PAGES, LEGACY):
        certificate(certs, host, pods["gateway"])
    sidecars = {}
    for host, text in PAGES.items():
        name = host.partition(".")[0]
        apps.nginx(pods[name], {"index.html": f"{text}\n".encode()})
        sidecars[name] = Sidecar(pods[name], control.identity(name), DOMAIN, **ONLY_GATEWAY)
        sidecars[name].up()
    server = ["openssl", "s_server", "-accept", str(PORT), "-www", "-quiet"]
    server += ["-cert", str(certs / f"{LEGACY}.crt"), "-key", str(certs / f"{LEGACY}.key")]
    apps.listening(pods["legacy"].start(server, log=world.directory / "legacy.log"), pods["legacy"], PORT)
    write(config, objects(certs, {SHOP: pods["shop"], API: pods["api"], LEGACY: pods["legacy"]}))
    mesh = Sidecar(pods["gateway"], control.identity("gateway"), DOMAIN)  # its configuration only
    mesh.path.chmod(0o600)
    argv = [*TPROXY, "gateway", "run", "--config", str(config), "--mesh", str(mesh.path), "--log-format", "json"]
    log = world.directory / "gateway.log"
    stage.say(f"gateway$ tproxy gateway run --config {config.name} --mesh {mesh.path.name}")
    process = pods["gateway"].start(argv, log=log)
    wait_for(lambda: GATEWAY_ID in log.read_text() and "ready: ports" in log.read_text(), 20, "the gateway", process)
    stage.check("the gateway listens and has an identity of its own in the mesh", process.alive)
    return Cast(world, stage, pods["gateway"], pods["outside"], certs, log, process, sidecars)


def hosts(on: Cast) -> None:
    """Two certificates on one port, into the mesh."""
    stage, pcap = on.stage, on.world.directory / "gateway.pcap"
    stage.step("Two hosts with two certificates on one port, into pods that take mTLS from the gateway only")
    with on.world.tcpdump(pcap, "port 80"):
        for host, text in PAGES.items():
            code, out = on.curl(host, "-w", "HTTP/%{http_version} %{response_code}\n")
            good = code == 0 and text in out and "HTTP/2 200" in out
            stage.check(f"{host} answers with its own page over HTTP/2, its certificate verified", good, out)
            stage.say(shown := on.shown(host))
            stage.check(f"{host} is shown its own certificate", f"CN = {host}" in shown, shown)
    wire = pcap.read_bytes()
    hidden = not any(text.encode() in wire for text in PAGES.values())
    stage.check("between gateway and pods there was TLS 1.3 and no page", tls13(wire) and hidden, len(wire))


def passed(on: Cast) -> None:
    """Passthrough beside it."""
    stage = on.stage
    stage.step("On the same port a third host is passed through: its TLS ends in its own pod")
    code, out = on.curl(LEGACY)
    stage.check(f"{LEGACY} answers", code == 0 and "s_server" in out, out)
    stage.check("its record says passthrough", on.record(sni=LEGACY)["tls"] == "passthrough")


def refused(on: Cast) -> None:
    """What does not match, and who goes around the gateway."""
    stage = on.stage
    stage.step("A name that nobody serves is reset, the record says which there are; nobody goes around the gateway")
    code, _ = on.curl("wrong.example.com")
    record = on.record(sni="wrong.example.com")
    stage.say(json.dumps({key: record.get(key) for key in ("reason", "why", "advice")}))
    stage.check("curl is reset, without an alert (rc 35)", code == 35 and record["reason"] == "no_route", code)
    code, out = stage.run(on.client, ["curl", "-sS", "-m", "5", f"http://{on.sidecars['shop'].pod.v4}/"])
    stage.check("the shop's pod refuses the client itself", code != 0 and PAGES[SHOP] not in out, out)


def rotation(on: Cast) -> None:
    """A new Secret."""
    stage = on.stage
    stage.step("A new Secret for the shop is shown at the next handshake; nothing is restarted")
    before = on.shown(SHOP)
    certificate(on.folder, SHOP, on.gateway)
    config = on.log.parent / "gateway" / "gateway.yaml"
    things = [json.loads(text) for text in config.read_text().split("\n---\n")]
    fresh = secret(on.folder, SHOP)
    kept = [thing for thing in things if (thing["kind"], thing["metadata"]) != ("Secret", fresh["metadata"])]
    write(config.parent, [*kept, fresh])
    wait_for(lambda: any(str(line.get("message", "")).startswith("reloaded") for line in on.lines()), 10, "a reload")
    after = on.shown(SHOP)
    stage.say(before + after)
    stage.check("the serial number is another, the name the same", before != after and f"CN = {SHOP}" in after, after)
    code, out = on.curl(SHOP)
    stage.check("and the page arrives", code == 0 and PAGES[SHOP] in out, out)


def ended(on: Cast) -> None:
    """SIGTERM, and what the pods' sidecars have seen."""
    stage = on.stage
    stage.step("The gateway is told to stop; the records of the pods' sidecars name it")
    stage.check("it drains and leaves with exit code 0", on.process.stop() == 0, on.process.tail())
    for name, sidecar in on.sidecars.items():
        record = sidecar.wait_record(lambda r: r["outcome"] == "closed")
        seen = {key: record.get(key) for key in ("peer", "self", "rule", "tls", "received")}
        stage.say(f"{name}: {json.dumps(seen)}")
        stage.check(f"{name}'s sidecar saw the gateway's own id", record.get("peer") == GATEWAY_ID, record)


def play(report: Path) -> int:
    """Everything, in order; the world is gone afterwards, whatever happened."""
    stage = Stage()
    with World() as world:
        on = cast(world, stage)
        for scene in (hosts, passed, refused, rotation, ended):
            try:
                scene(on)
            except TimeoutError as error:
                stage.check(f"{scene.__name__} went to its end", False, error)
    return stage.close(report)
