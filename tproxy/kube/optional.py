"""A kind of objects that a cluster may have or not: followed while its CustomResourceDefinition is there.

The definition is asked for by name, because 404 for the objects themselves may also come from an API server that has
just started and does not know its definitions yet; to take that for "there are none" would open what policies close.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any

from tproxy.core.certificates.renewal import pause
from tproxy.kube.api_server import ApiError, connected, failed
from tproxy.kube.watch import Put, Status, Watch
from tproxy.kube.where import Kubernetes

log = logging.getLogger("tproxy")
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
Tell = Callable[[Mapping[str, Any]], None]
LOOK = 10.0  # seconds between two looks whether it is there, and as which version


class Optional:
    """``name`` is the definition's, plural.group; of ``versions`` the first that the cluster serves is followed.

    ``tell`` is given the definition itself, each time that it was asked for; an empty one if there is none.
    """

    def __init__(
        self,
        where: Kubernetes,
        name: str,
        versions: tuple[str, ...],
        put: Put,
        namespace: str = "",
        tell: Tell | None = None,
    ) -> None:
        self._where, self._name, self._versions, self._tell = where, name, versions, tell
        self._space = f"namespaces/{namespace}/" if namespace else ""
        self._version: str | None = None  # "": there is no such kind; None: nobody has said
        self._failures, self._error = 0, ""
        self._watch = Watch(where, "", put)
        self._following: asyncio.Task[None] | None = None

    @property
    def status(self) -> Status:
        """Of the watch; as long as the definition itself cannot be asked for, of that."""
        if self._failures and not self._watch.status.failures:
            return Status(self._watch.status.synced, self._watch.status.lists, self._failures, self._error)
        return self._watch.status

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                await self._look()
                await asyncio.sleep(pause(self._failures, random.random()) if self._failures else LOOK)
                if self._following is not None and self._following.done():
                    self._following.result()  # a defect
        finally:
            await self._stop()

    async def _look(self) -> None:
        try:
            version = await self._served()
        except ApiError as error:
            known = self._error == str(error)
            self._failures, self._error = self._failures + 1, str(error)
            log.log(logging.DEBUG if known else logging.WARNING, "going on with what is known: %s", error)
            return
        self._failures, self._error = 0, ""
        if version == self._version:
            return
        await self._stop()
        self._version = version
        plural, _, group = self._name.partition(".")
        if version:
            log.info("%s: version %s is followed", self._name, version)
            self._watch.follow(f"/apis/{group}/{version}/{self._space}{plural}")
            self._following = asyncio.create_task(self._watch.run())
        else:
            log.info("%s: the cluster does not have this kind; we look again every %g s", self._name, LOOK)
            self._watch.forget()

    async def _stop(self) -> None:
        task, self._following = self._following, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    async def _served(self) -> str:
        path = f"{DEFINITIONS}/{self._name}"
        async with connected(self._where) as api:
            reply = await api.get(path)
        if reply.status in (200, 404) and self._tell is not None:
            self._tell(reply.body if reply.status == 200 else {})
        if reply.status == 404:
            return ""
        if reply.status != 200:
            raise failed(reply, f"GET {path}", f"get customresourcedefinitions {self._name}")
        spec = reply.body.get("spec")
        served = {one.get("name") for one in _versions(spec) if one.get("served") is True}
        found = next((version for version in self._versions if version in served), "")
        if not found:
            raise ApiError(f"{self._name} serves none of {', '.join(self._versions)}")
        return found


def _versions(spec: Any) -> list[dict[str, Any]]:
    found = spec.get("versions") if isinstance(spec, dict) else None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
