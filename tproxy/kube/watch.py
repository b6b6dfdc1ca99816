"""One collection of the Kubernetes API, followed for ever: list, watch, go on where it broke, list again if too much
is missing.

Bounded: objects are handed on as they come and kept by nobody here but their names; one page or one event at a time.
Source: kubernetes.io/docs/reference/using-api/api-concepts, "Efficient detection of changes".
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from tproxy.core.certificates.renewal import pause
from tproxy.kube.api_server import ApiError, Reply, connected
from tproxy.kube.where import Kubernetes

log = logging.getLogger("tproxy")
PAGE = 250  # objects
PAGE_LIMIT = 32 * 1024 * 1024  # bytes; an object has at most 1.5 MiB (etcd), most have 10 KiB
LISTING = 120.0  # seconds for all pages
LIFE = 300  # seconds of one watch; the server ends it
SILENCE = 100.0  # seconds; bookmarks come about every minute
SHORT, LONG = 1.0, 10.0  # seconds: a watch that ends sooner is a failure, too; one that lives longer was a success
RELIST = 3  # failures in a row
Put = Callable[[str, dict[str, Any] | None], None]


@dataclass(slots=True)
class Status:
    """How it goes."""

    synced: bool = False  # there was a whole list
    lists: int = 0
    failures: int = 0  # in a row
    error: str = ""


class Watch:
    """``put`` gets namespace/name (or the name, without a namespace) and the object, or None when it is gone.

    ``only`` is a field selector.
    """

    def __init__(self, where: Kubernetes, path: str, put: Put, only: str = "") -> None:
        self._where, self._path, self._put = where, path, put
        self._only = {"fieldSelector": only} if only else {}
        self._version = ""  # of the collection; without one it is listed
        self._known = set[str]()
        self.status = Status()

    def follow(self, path: str) -> None:
        """The same objects are found there from now on. Not while it runs."""
        self._path, self._version = path, ""

    def forget(self) -> None:
        """There is no such collection any more, so nothing in it. Not while it runs."""
        for gone in self._known:
            self._put(gone, None)
        self._known, self._version, self.status = set(), "", Status(synced=True, lists=self.status.lists)

    async def run(self) -> None:
        """For ever."""
        while True:
            began = time.monotonic()
            try:
                if not self._version:
                    await self._list()
                await self._watch()
                why = "" if time.monotonic() - began > SHORT else "the watch ended as soon as it began"
            except ApiError as error:
                why = str(error)
            if time.monotonic() - began > LONG:
                self.status.failures = 0
            if why:
                self._failed(why)
            await asyncio.sleep(pause(self.status.failures, random.random()) if why else 0)

    async def _list(self) -> None:
        seen, more = set[str](), ""
        async with connected(self._where, LISTING) as api:
            while True:
                reply = await api.get(self._with(limit=PAGE, **{"continue": more} if more else {}), PAGE_LIMIT)
                if reply.status != 200:  # 410, too: the pages have become too old
                    raise self._unexpected(reply, "list")
                about = reply.body.get("metadata")
                about = about if isinstance(about, dict) else {}
                for one in reply.body.get("items") or ():
                    self._take(one, seen)
                if not (more := str(about.get("continue") or "")):
                    break
        for gone in self._known - seen:
            self._put(gone, None)
        self._known, self._version = seen, str(about.get("resourceVersion") or "")
        self.status.synced, self.status.lists = True, self.status.lists + 1

    async def _watch(self) -> None:
        path = self._with(
            watch=1,
            allowWatchBookmarks="true",
            resourceVersion=self._version,
            timeoutSeconds=LIFE + random.randrange(60),
        )
        async with connected(self._where, LIFE * 2) as api, aclosing(api.lines(path)) as lines:
            lasts = asyncio.get_running_loop().call_later(LONG, self._lasts)
            try:
                await self._events(lines)
            finally:
                lasts.cancel()

    async def _events(self, lines: AsyncGenerator[Reply, None]) -> None:
        while True:
            try:
                async with asyncio.timeout(SILENCE):
                    reply = await anext(lines, None)
            except TimeoutError:
                return
            if reply is None:
                return
            self._event(reply)
            self.status.failures = 0

    def _lasts(self) -> None:
        """Nothing need happen for a watch to be a success: bookmarks may be a minute apart."""
        self.status.failures = 0

    def _event(self, reply: Reply) -> None:
        kind, one = reply.body.get("type"), reply.body.get("object")
        code = one.get("code") if kind == "ERROR" and isinstance(one, dict) else reply.status
        if code == 410:  # more has happened than the server remembers
            log.info("%s is listed again: %s is too old", self._path, self._version)
            self._version = ""
            raise ApiError("the version is too old")
        if kind not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK"):
            self._version = ""
            raise self._unexpected(Reply(code if isinstance(code, int) else reply.status, reply.body), "watch")
        about = one.get("metadata") if isinstance(one, dict) else None
        if not isinstance(about, dict):
            raise ApiError(f"an event of {self._path} has no metadata")
        if kind == "DELETED":
            self._known.discard(key_of(one))
            self._put(key_of(one), None)
        elif kind != "BOOKMARK":
            self._take(one, self._known)
        self._version = str(about.get("resourceVersion") or self._version)

    def _take(self, one: Any, seen: set[str]) -> None:
        if name := key_of(one):
            seen.add(name)
            self._put(name, one)

    def _with(self, **query: Any) -> str:
        return f"{self._path}?{urlencode({**query, **self._only})}"

    def _unexpected(self, reply: Reply, right: str) -> ApiError:
        may = f"; our service account may not {right} it" if reply.status in (401, 403) else ""
        return ApiError(f"the API server answers {reply.status} for {self._path}{may}")

    def _failed(self, why: str) -> None:
        known = self.status.failures and self.status.error == why
        self.status.failures, self.status.error = self.status.failures + 1, why
        if self.status.failures % RELIST == 0:  # whatever stands in the way there, a list leads around it
            self._version = ""
        log.log(logging.DEBUG if known else logging.WARNING, "going on with what is known: %s", why)


def key_of(document: Any) -> str:
    """namespace/name, or the name of what has no namespace; empty without."""
    about = document.get("metadata") if isinstance(document, dict) else None
    about = about if isinstance(about, dict) else {}
    namespace, name = about.get("namespace", ""), about.get("name")
    if not isinstance(name, str) or not isinstance(namespace, str):
        return ""
    return f"{namespace}/{name}" if namespace else name
