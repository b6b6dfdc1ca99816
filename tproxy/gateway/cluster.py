"""A Kubernetes cluster as the source of configuration: kinds followed, changes told together, statuses written back.

    cluster = Cluster(where, namespaces)
    async with asyncio.TaskGroup() as group:
        group.create_task(cluster.run())
        await cluster.change()
        objects, errors = cluster.read()

Replicas need no leader: what they say of an object follows from the objects alone, and each writes only what its own
view has newly come to say, against the version of the object that it has seen. Who is late is refused by that version
and finds, when it has caught up, that everything is written.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from tproxy.core.fields import ConfigError
from tproxy.gateway.gatewayapi.grants import GROUP
from tproxy.gateway.gatewayapi.status_merge import merged
from tproxy.gateway.kinds import CORE, CUSTOM, WITH_STATUS, Kind
from tproxy.gateway.objects import Object, from_document
from tproxy.kube.api_server import MERGE_PATCH, ApiError, connected, failed
from tproxy.kube.optional import Optional, Tell
from tproxy.kube.watch import Put, Watch
from tproxy.kube.where import Kubernetes

log = logging.getLogger("tproxy")
PACE = 0.1  # seconds: what happens within them is one change
SHARE = 4  # times as long as reading took: so much rest
REPAIR = 60.0  # seconds: what others have overwritten is written again
WRITING = 30.0  # seconds for all statuses
MOST_TOLD = 5  # lines about statuses that are not taken, at once
_BUNDLE = f"{GROUP}/bundle-version"
_Key = tuple[str, str, str]  # group, kind, namespace/name


class Cluster:
    """The objects of the namespaces (all, if none is named) and of the cluster itself."""

    def __init__(self, where: Kubernetes, namespaces: tuple[str, ...] = ()) -> None:
        self._where = where
        self._objects: dict[_Key, Object] = {}
        self._errors: dict[_Key, ConfigError] = {}
        self._statuses: dict[_Key, tuple[str, Mapping[str, Any], str]] = {}  # path, status, resourceVersion
        self._said: dict[str, tuple[Mapping[str, Any], float]] = {}  # by title: what we came to say, and when
        self.bundles: dict[str, str] = {}  # by definition of the Gateway API: of which of its versions, as annotated
        self._news, self._rest, self._begun = asyncio.Event(), PACE, False
        self._watches: list[Watch | Optional] = []
        for kind in (*CORE, *CUSTOM):
            for namespace in (namespaces or ("",)) if kind.namespaced else ("",):
                self._watches.append(self._follow(kind, namespace))

    def _follow(self, kind: Kind, namespace: str) -> Watch | Optional:
        if kind.optional:
            tell = self._defined(kind.definition) if kind.group == GROUP else None
            return Optional(self._where, kind.definition, kind.versions, self._sink(kind), namespace, tell)
        return Watch(self._where, kind.path(kind.versions[0], namespace), self._sink(kind), kind.only)

    async def run(self) -> None:
        """Follow the cluster for ever."""
        async with asyncio.TaskGroup() as group:
            for one in self._watches:
                group.create_task(one.run())

    @property
    def synced(self) -> bool:
        """Whether every kind has been listed, or is known to be missing."""
        return all(one.status.synced for one in self._watches)

    def not_ready(self) -> str:
        """Why nothing is known yet, or nothing."""
        waits = (one.status.error for one in self._watches if not one.status.synced)
        return next(waits, "") or ("" if self.synced else "the cluster has not been listed yet")

    async def change(self) -> None:
        """Returns once when everything has been seen whole, for half of it would refuse what the other half explains;
        then once after each change of anything but statuses."""
        while True:
            try:
                async with asyncio.timeout(None if self._begun else PACE):
                    await self._news.wait()
                    await asyncio.sleep(self._rest)
            except TimeoutError:
                pass
            if self._begun or self.synced:
                self._begun = True
                self._news.clear()
                return

    def took(self, seconds: float) -> None:
        """So long was the reading of the last change: a busy cluster must not take all of a CPU."""
        self._rest = max(PACE, SHARE * seconds)

    def read(self) -> tuple[list[Object], list[ConfigError]]:
        """All objects, and what could not be read."""
        return list(self._objects.values()), list(self._errors.values())

    def _defined(self, name: str) -> Tell:
        def tell(definition: Mapping[str, Any]) -> None:
            before, found = self.bundles.get(name), _bundle(definition)
            if definition:
                self.bundles[name] = found
            else:
                self.bundles.pop(name, None)
            if before != self.bundles.get(name):
                self._news.set()

        return tell

    def _sink(self, kind: Kind) -> Put:
        def put(name: str, document: dict[str, Any] | None) -> None:
            key = kind.group, kind.name, name
            before = self._objects.get(key)
            if document is None:
                self._forget(key)
            else:
                self._take(key, kind, document)
            if self._objects.get(key) != before or key in self._errors:
                self._news.set()

        return put

    def _forget(self, key: _Key) -> None:
        self._objects.pop(key, None)
        self._errors.pop(key, None)
        self._statuses.pop(key, None)
        self._said.pop(f"{key[1]} {key[2]}", None)

    def _take(self, key: _Key, kind: Kind, document: dict[str, Any]) -> None:
        version = str(document.get("apiVersion") or "").rpartition("/")[2] or kind.versions[0]
        self._errors.pop(key, None)
        about = document.get("metadata")
        about = dict(about) if isinstance(about, dict) else {}
        about.pop("managedFields", None)
        resource = str(about.pop("resourceVersion", ""))
        if WITH_STATUS.get(kind.name) is kind:
            status = document.pop("status", None)
            namespace, _, name = key[2].rpartition("/")
            path = f"{kind.path(version, namespace)}/{name}/status"
            self._statuses[key] = path, status if isinstance(status, dict) else {}, resource
        kept = kind.keep({**document, "metadata": about})
        api = f"{kind.group}/{version}" if kind.group else version
        try:
            self._objects[key] = from_document({**kept, "apiVersion": api, "kind": kind.name}, f"{kind.name} {key[2]}")
        except ConfigError as error:
            self._objects.pop(key, None)
            self._errors[key] = error

    async def publish(self, statuses: Mapping[str, Mapping[str, Any]]) -> int:
        """Write what has changed; the number of objects written. What cannot be written is tried again later."""
        now, moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), time.monotonic()
        writes = list(self._due(statuses, now, moment))
        if not writes:
            return 0
        done, refused = 0, set[str]()
        try:
            async with connected(self._where, WRITING) as api:
                for title, path, body in writes:
                    reply = await api.patch(path, body, MERGE_PATCH)
                    if reply.status in (404, 409):  # gone, or changed meanwhile: its event comes
                        continue
                    self._said[title] = statuses.get(title, {}), moment
                    if reply.status == 200:
                        done += 1
                    else:
                        kind = path.split("/")[-3]
                        refused.add(str(failed(reply, f"PATCH {kind}/status, {title}", f"patch {kind}/status")))
        except ApiError as error:
            refused.add(str(error))
        for each in sorted(refused)[:MOST_TOLD]:
            log.warning("statuses are not written: %s", each)
        return done

    def _due(
        self, statuses: Mapping[str, Mapping[str, Any]], now: str, moment: float
    ) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Title, path and merge patch of each object whose status says something else than we do."""
        for key, (path, there, version) in self._statuses.items():
            thing = self._objects.get(key)
            ours = statuses.get(str(thing), {}) if thing is not None else {}
            if thing is None or _generation(ours) not in (None, thing.generation):
                continue  # it has changed since: the next reading speaks of it
            said, at = self._said.get(str(thing), (None, 0.0))
            if said == ours and moment - at < REPAIR:
                continue
            made = merged(ours, there, now)
            if made is None:
                self._said[str(thing)] = ours, moment
            else:
                yield str(thing), path, {"metadata": {"resourceVersion": version}, "status": made}


def _bundle(definition: Mapping[str, Any]) -> str:
    about = definition.get("metadata")
    notes = about.get("annotations") if isinstance(about, Mapping) else None
    return str(notes.get(_BUNDLE, "")) if isinstance(notes, Mapping) else ""


def _generation(status: Mapping[str, Any]) -> int | None:
    """Of the object that it speaks of."""
    part = (status.get("parents") or status.get("ancestors") or [status])[0]
    return next((each["observedGeneration"] for each in part.get("conditions", ())), None)
