"""What is shown and checked, on podman and on kind alike: only ``Cluster`` is asked."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pods.cluster import Cluster
from pods.load import Load
from tproxy.demo.stage import Stage
from tproxy.demo.story import tls13

MARKER, PORT = "the-page-of-web-4711", 8080
SIDECAR, NET_RAW = "tproxy-sidecar", 1 << 13  # linux/capability.h
WAIT = 10.0  # seconds
AWAY = 4.0  # seconds without control in the middle of a rollout
STATUS = "import sys; print(open('/proc/1/status').read())"


class Story:
    """The steps, in order."""

    def __init__(self, on: Cluster, stage: Stage, pcap: Path) -> None:
        self.on, self.stage, self.pcap = on, stage, pcap

    def tell(self) -> None:
        """All of it."""
        for scene in (
            self.ready,
            self.rights,
            self.page,
            self.refused,
            self.probes,
            self.job,
            self.killed,
            self.rollout,
            self.alone,
        ):
            try:
                scene()
            except TimeoutError as error:
                self.stage.check(f"{scene.__name__} went to its end", False, error)

    def ready(self) -> None:
        stage = self.stage
        stage.step("Who is injected, and how long a sidecar takes")
        injected = self.on.injected()
        wanted = {"web": True, "client": True, "order": True, "outsider": False}
        stage.check("web, client and order are injected, outsider is not", injected == wanted, injected)
        took = self.on.started()
        stage.say(", ".join(f"{name}: ready {seconds:.2f} s after its start" for name, seconds in took.items()))
        stage.check(
            "the rules are in place and the sidecars of web and client are ready", set(took) == {"web", "client"}
        )

    def rights(self) -> None:
        stage = self.stage
        stage.step("What the sidecar may do")
        _, out = self.on.execute("web", SIDECAR, "python3", "-c", STATUS)
        found = dict(line.split(":", 1) for line in out.splitlines() if ":" in line)
        shown = {
            name: found.get(name, "").split() for name in ("Uid", "CapPrm", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
        }
        stage.say(json.dumps(shown))
        stage.check("it runs as uid 1337", shown["Uid"] == ["1337"] * 4, shown["Uid"])
        has = int("".join(shown["CapEff"]) or "0", 16), int("".join(shown["CapPrm"]) or "0", 16)
        stage.check("NET_RAW is its only capability", has == (NET_RAW, NET_RAW), shown)
        confined = shown["NoNewPrivs"] == ["1"] and shown["Seccomp"] == ["2"]
        stage.check("it can gain none, and the runtime's seccomp profile filters it", confined, shown)
        code, out = self.on.execute("web", SIDECAR, "python3", "-c", "open('/opt/tproxy/x', 'w')")
        stage.check("its root is read-only", code != 0 and "Read-only" in out, out)
        shell = self.on.execute("web", SIDECAR, "sh", "-c", "true")
        stage.check("its image has no shell", shell[0] != 0, shell)
        _, said = self.on.execute("web", SIDECAR, "tproxy", "--version")
        stage.check("relay and gateway run compiled in it", said.count(": compiled") == 2, said)

    def page(self) -> None:
        stage = self.stage
        stage.step("client gets web's page, while the wire is watched")
        with self.on.wire(self.pcap):
            code, out = self.curl("client")
        stage.check("the page arrives", code == 0 and MARKER in out, out)
        wire = self.pcap.read_bytes()
        stage.say(f"tcpdump captured {len(wire)} bytes")
        seen = tls13(wire)
        stage.check("TLS 1.3 crossed the wire", seen, f"{len(wire)} bytes")
        stage.check(
            "neither the page nor the request did", seen and MARKER.encode() not in wire and b"GET /" not in wire
        )
        for name, other in (("client", "web"), ("web", "client")):
            record = self.record(name, lambda line: line.get("outcome") == "closed")
            stage.say(f"{name}: {json.dumps(record)}")
            ids = record.get("self"), record.get("peer")
            wanted = tuple(f"spiffe://cluster.local/ns/demo/sa/{who}" for who in (name, other))
            stage.check(f"{name}'s record names both SPIFFE ids", ids == wanted, ids)

    def refused(self) -> None:
        stage = self.stage
        stage.step("outsider has no sidecar: strict refuses it, and web's record says why")
        answered = self.answered()
        code, out = self.curl("outsider")
        stage.check("outsider gets nothing", code != 0 and MARKER not in out, out)
        record = self.record("web", lambda line: line.get("outcome") == "refused")
        stage.say(f"web: {json.dumps(record)}")
        from_it = self.on.address("outsider") in str(record.get("source"))
        stage.check(
            "the record says plaintext, and from where", record.get("reason") == "plaintext" and from_it, record
        )
        stage.check("nginx has not seen it", self.answered() == answered)

    def probes(self) -> None:
        stage = self.stage
        stage.step("The kubelet's probes under strict: HTTP, TCP and gRPC, as the containers declare them")
        found = self.on.probes("web")
        for probe in found:
            stage.check(f"web {probe.name} passes", probe.passed, probe.seen)
        kinds = {kind for kind in ("httpGet", "tcpSocket", "grpc") if any(f"({kind})" in probe.name for probe in found)}
        stage.check("one of each kind was asked", len(kinds) == 3, kinds)
        why = self.on.plain_from_node("web", PORT)
        stage.say(f"node: GET http://web:{PORT}/healthz: {why}")
        stage.check("the same question without the rewriting is refused", why != "", why)

    def job(self) -> None:
        stage = self.stage
        stage.step("A Job: curl once, and done")
        ended = self.on.job("order")
        stage.say(self.on.logs("order", "curl"))
        stage.check("its application got the page over mTLS and exited with 0", ended.code == 0, ended)
        stage.check("its sidecar was alive until then", ended.beside, ended)
        stage.check("then the sidecar ended with 0 on SIGTERM", ended.sidecar == 0, ended)

    def killed(self) -> None:
        stage = self.stage
        stage.step("kill -9 of web's sidecar, then of client's: refused, never answered in plaintext")
        answered = self.answered()
        self.on.kill_sidecar("web")
        results = [self.curl(name) for name in ("client", "outsider", "client", "outsider")]
        closed = all(code != 0 and MARKER not in out for code, out in results)
        stage.check("while it is dead client and outsider are refused", closed, results)
        why = self.on.plain_from_node("web", PORT)
        stage.check("and so is the node", why != "", why)
        stage.check("nginx answered nothing meanwhile", self.answered() == answered, self.answered() - answered)
        self.on.restart_sidecar("web")
        self.on.kill_sidecar("client")
        with self.on.wire(self.pcap):
            (code, out), _ = self.curl("client", "/from-client"), self.curl("outsider", "/from-outsider")
        wire = self.pcap.read_bytes()
        stage.check("client without its sidecar reaches nobody", code != 0 and MARKER not in out, out)
        silent = b"/from-client" not in wire and b"/from-outsider" in wire
        stage.check(
            "not a word of it crosses the wire, on which outsider's words are seen", silent, f"{len(wire)} bytes"
        )
        self.on.restart_sidecar("client")
        code, out = self.curl("client")
        stage.check("after their restart the page arrives again", code == 0 and MARKER in out, out)

    def rollout(self) -> None:
        stage = self.stage
        stage.step(
            "Rollout under load: web's two pods get another image of the sidecar, and control goes and comes back"
        )
        self.on.scale("web")
        before, records = self.on.images("web"), len(self.records("client"))
        url = f"http://{self.on.service('web')}:{PORT}/"
        with Load(lambda *argv: self.on.execute("client", "curl", *argv), url) as load, ThreadPoolExecutor() as other:
            rolling = other.submit(self.on.upgrade, "web")
            self.on.stop_control()
            time.sleep(AWAY)
            self.on.start_control()
            rolling.result()
        for kind, answers in (("new connections", load.new), ("kept connections", load.kept)):
            stage.say(f"{kind}: {answers.requests} requests over {answers.connections} connections")
            stage.check(f"no request failed on {kind}", bool(answers.requests) and not answers.failed, answers.failed)
        after = self.on.images("web")
        stage.say(f"sidecars of web: {before} before, {after} after")
        stage.check("both pods are new ones", len(before) == len(after) == 2 and not set(before) & set(after), after)
        lines = self.records("client")[records:]
        ends = Counter(str(line.get("reason") or line["outcome"]) for line in lines)
        stage.say(f"client's records meanwhile: {dict(ends)}")
        fine = bool(lines) and not {line["outcome"] for line in lines} & {"refused", "failed", "cut"}
        stage.check("client's sidecar was refused nothing, and cut nothing", fine, dict(ends))

    def alone(self) -> None:
        stage = self.stage
        stage.step("The control plane goes away")
        self.on.stop_control()
        results = [self.curl("client") for _ in range(5)]
        fine = all(code == 0 and MARKER in out for code, out in results)
        stage.check("pods go on speaking mTLS without it", fine, results)

    def curl(self, workload: str, path: str = "/") -> tuple[int, str]:
        """curl's exit code and output."""
        url = f"http://{self.on.address('web')}:{PORT}{path}"
        code, out = self.on.execute(workload, "curl", "curl", "-sS", "-m", "5", url)
        print(f"   {self.stage.paint(workload, '36;1')}$ curl {url}", flush=True)
        self.stage.say(out)
        return code, out

    def answered(self) -> int:
        """Pages that nginx has served."""
        return sum('"GET / ' in line for line in self.on.logs("web", "nginx").splitlines())

    def record(self, workload: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The last of the sidecar's records like this. TimeoutError if none comes."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            if found := [line for line in self.records(workload) if wanted(line)]:
                return found[-1]
            time.sleep(0.1)
        raise TimeoutError(f"no such record of {workload} within {WAIT:g} s")

    def records(self, workload: str) -> list[dict[str, Any]]:
        """Of the sidecar, one for each connection that ended."""
        lines = [json.loads(line) for line in self.on.logs(workload, SIDECAR).splitlines() if line.startswith("{")]
        return [line for line in lines if "direction" in line]
