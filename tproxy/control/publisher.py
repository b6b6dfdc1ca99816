"""Telling the cluster what it must know of us, and learning from it what we must: again and again, a failure at a time.

At start, after a step of the rotation, when a pod was injected (its namespace may be new) and every minute, which mends
what others changed. A failure is one line until it changes, and is tried again after 2, 4, 8 ... 60 seconds.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping

from tproxy.control import cabundle, rootmaps
from tproxy.control.webhook_config import WebhookConfig
from tproxy.kube.api_server import ApiError, Reply, connected
from tproxy.kube.where import Kubernetes

log = logging.getLogger("tproxy")
EVERY = 60.0  # seconds between two looks
PAUSE = 1.0  # seconds at least, whoever asks for one
NEW = 1000  # namespaces, in one minute
NATIVE = (1, 29)  # native sidecars are on by default (KEP-753)


class Publisher:
    """``native`` is None until the API server has told its version."""

    def __init__(
        self, where: Kubernetes, what: WebhookConfig, roots: Callable[[], str], current: Callable[[str, bool], None]
    ) -> None:
        self._where, self._what, self._roots, self._current = where, what, roots, current
        self._wanted, self._said = asyncio.Event(), dict[str, str]()
        self._covered, self._asked = frozenset[str](), set[str]()
        self.native: bool | None = None

    def look(self) -> None:
        """Look soon, and not only when it is time."""
        self._wanted.set()

    def injected(self, namespace: str) -> None:
        """A pod comes there, and waits for its ConfigMap. Once a minute each, as strangers may name what they like."""
        if namespace in self._covered or namespace in self._asked or len(self._asked) >= NEW:
            return
        self._asked.add(namespace)
        self.look()

    async def run(self) -> None:
        """For ever."""
        failures = 0
        while True:
            self._wanted.clear()
            failures = 0 if await self._all() else min(failures + 1, 6)
            await asyncio.sleep(PAUSE)
            pause = min(EVERY, PAUSE * 2**failures) if failures else EVERY
            try:
                async with asyncio.timeout(pause - PAUSE):
                    await self._wanted.wait()
            except TimeoutError:
                self._asked.clear()

    async def _all(self) -> bool:
        """Whether all is as it should be; nothing keeps the others from being tried."""
        injection = self._what.injection
        ours = not injection.secret and injection.config.get("identity") is None  # else the roots are another CA's
        steps: Mapping[str, Callable[[], Awaitable[None]]] = {
            **({"version": self._version} if self.native is None else {}),
            "caBundle": self._ca_bundle,
            **({"roots": self._root_maps} if ours else {}),
        }
        return all([await self._try(name, step) for name, step in steps.items()])

    async def _try(self, name: str, step: Callable[[], Awaitable[None]]) -> bool:
        try:
            await step()
        except ApiError as error:
            same = self._said.get(name) == str(error)
            log.log(logging.DEBUG if same else logging.ERROR, "%s: %s", name, error)
            self._said[name] = str(error)
        else:
            self._said.pop(name, None)
        self._current(name, name not in self._said)
        return name not in self._said

    async def _version(self) -> None:
        """Once: what follows from it is in every pod that was injected. Nodes may be older, then ``native: false``."""
        async with connected(self._where) as api:
            found = version(await api.get("/version"))
        self.native = found >= NATIVE
        log.info("Kubernetes %d.%d: sidecars are %s", *found, "native" if self.native else "ordinary containers")

    async def _ca_bundle(self) -> None:
        name = self._what.configuration
        async with connected(self._where) as api:
            if await cabundle.publish(api, name, self._roots()):
                log.info("caBundle of the MutatingWebhookConfiguration %s is the trust bundle now", name)

    async def _root_maps(self) -> None:
        injection = self._what.injection
        spared = frozenset((*injection.never, injection.namespace))
        found = await rootmaps.publish(self._where, injection.roots, self._what.namespaces, spared, self._roots())
        self._covered = found.every
        if found.written:
            some = ", ".join(found.written[:10]) + (" and more" if len(found.written) > 10 else "")
            log.info("ConfigMap %s is the trust bundle now in %s", injection.roots, some)


def version(reply: Reply) -> tuple[int, int]:
    """Major and minor of GET /version, whose minor may be 29+. ApiError if there are none."""
    found = [re.match(r"[0-9]{1,4}", str(reply.body.get(key))) for key in ("major", "minor")]
    if reply.status != 200 or not found[0] or not found[1]:
        raise ApiError(f"GET /version: status {reply.status} and no version")
    return int(found[0][0]), int(found[1][0])
