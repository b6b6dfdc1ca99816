"""A real gateway in a network namespace of its own, fed from a directory, before the pods of a world.

    with Live() as live:
        faults = live.replay("HTTPRouteWeight", world)

The process is one for all tests: each is a change of its configuration.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.conformance.clients import To, faults
from tests.conformance.pods import Pods
from tests.conformance.world import World
from tproxy.kernel import netns
from tproxy.world.process import Process, wait_for

TPROXY = str(Path(sys.executable).with_name("tproxy"))


def _read() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    name = ""
    for line in Path(__file__).with_name("traffic.txt").read_text(encoding="utf-8").split("\n"):
        if line.startswith(" "):
            found[name].append(line.strip())
        elif line and not line.startswith("#"):
            found[name := line] = []
    return found


TRAFFIC = _read()


class Live:
    """KernelError where no namespace can be made."""

    def __enter__(self) -> Live:
        self._stack = ExitStack()
        try:
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _begin(self) -> None:
        name = f"tp{os.getpid()}-conformance"  # whose it is, for tproxy.world.pods.sweep
        netns.create(name)
        self._stack.callback(netns.delete, name)
        self._stack.enter_context(netns.inside(name))
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self.pods = Pods()
        self._stack.callback(self.pods.stop)
        self._text, self._reloads, self._errors = "", 0, 0
        self._conf = self._folder / "conf"
        self._conf.mkdir()
        self._write(World.with_base())
        self._process = self._start()

    def _start(self) -> Process:
        argv = [TPROXY, "gateway", "run", "--config", str(self._conf), "--drain", "0", "--log-format", "json"]
        argv += ["--metrics-port", "0", "--ready-port", "0", "--admin-port", "0", "--stats-port", "0"]
        log = self._folder / "gateway.log"
        with log.open("wb") as out:
            popen = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT, env={"PATH": os.environ["PATH"]})
        process = Process(popen, argv, log, "the conformance namespace")
        self._stack.callback(process.stop)
        wait_for(lambda: "ready: ports" in log.read_text(), 30, "the gateway", process)
        return process

    def _write(self, world: World) -> bool:
        text = world.text()
        changed, self._text = text != self._text, text
        if changed:
            fresh = self._folder / "cluster.new"  # beside what is watched: one change is one reload
            fresh.write_text(text)
            fresh.rename(self._conf / "cluster.yaml")
        return changed

    def sync(self, world: World) -> str:
        """The gateway serves this world, or why not."""
        self.pods.sync(world)
        if not self._write(world):
            return ""
        log = self._process.log

        def done() -> bool:
            said = log.read_text()
            return said.count("reloaded: ports") + said.count("not taken up") > self._reloads + self._errors

        wait_for(done, 20, "the gateway to take it up", self._process)
        said = log.read_text()
        errors, self._reloads = said.count("not taken up"), said.count("reloaded: ports")
        refused, self._errors = errors > self._errors, errors
        return said[said.rindex("not taken up") :].split("\n")[0] if refused else ""

    def replay(self, test: str, world: World) -> list[str]:
        """Send what a test sends; what is not as it should be."""
        if why := self.sync(world):
            return [why]
        for pod in self.pods.http:
            pod.seen.clear()
        found: list[str] = []
        to = To("")
        for line in TRAFFIC[test]:
            if line.startswith("@"):
                gateway, *more = line[1:].split()
                name, _, port = gateway.partition(":")
                to = To(world.address(name), int(port or 80), *more)
            else:
                found += faults(line, to, self.pods)
        return found

    def tail(self) -> str:
        """What the gateway said last."""
        return self._process.tail()
