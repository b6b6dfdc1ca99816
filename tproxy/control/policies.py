"""Policies from the Kubernetes API: follows both kinds of Istio's objects, and streams them to sidecars
(tproxy.v1.Policies).

Whose policies a caller sees, his SVID says: those of his namespace and of the root namespace. Which of them select his
pod he finds out himself, by labels that the kubelet tells him, also while we are away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from tproxy.control import streams
from tproxy.control.config import Control
from tproxy.control.record import Line
from tproxy.control.shelf import Shelf
from tproxy.control.streams import Streams
from tproxy.core.identity import SpiffeId
from tproxy.core.policy.manifest import GROUP, KINDS, VERSIONS
from tproxy.kube.optional import Optional
from tproxy.wire import WATCH_POLICIES
from tproxy.wire.policies_pb2 import PoliciesRequest, PolicySet

log = logging.getLogger("tproxy")
PACE = 0.1  # seconds between two looks: what happens meanwhile is told at once
SHARE = 0.0004  # seconds more for each stream, as in the directory
_PLURALS = {"AuthorizationPolicy": "authorizationpolicies", "PeerAuthentication": "peerauthentications"}


class Policies:
    """Watches, shelf and streams."""

    def __init__(self, config: Control, trust_domain: str, finished: Callable[[Line], None]) -> None:
        assert config.policies is not None and config.kubernetes is not None
        self.shelf = Shelf(config.policies.root, trust_domain)
        self.streams = Streams(
            WATCH_POLICIES, PoliciesRequest.FromString, self._tell, self.not_ready, trust_domain, finished, True
        )
        where = config.kubernetes
        self.kinds = tuple(
            Optional(where, f"{_PLURALS[kind]}.{GROUP}", VERSIONS, partial(self.shelf.put, kind)) for kind in KINDS
        )
        self._news = asyncio.Event()
        self._held_back = False  # somebody waits for the API server to answer again

    def not_ready(self) -> str:
        """Why nobody is told anything yet, or nothing."""
        if self.streams.is_open:
            return ""
        return next((one.status.error for one in self.kinds if one.status.error), "policies have not been listed yet")

    def failures(self) -> int:
        """Failed questions to the API server, in a row, of the kind that fares worst."""
        return max(one.status.failures for one in self.kinds)

    async def run(self) -> None:
        """Follow the cluster for ever."""
        async with asyncio.TaskGroup() as group:
            for one in self.kinds:
                group.create_task(one.run())
            group.create_task(self._publish())

    async def _publish(self) -> None:
        while True:
            await asyncio.sleep(max(PACE, SHARE * self.streams.running))
            if not all(one.status.synced for one in self.kinds):
                continue
            if not self.streams.is_open:
                log.info("policies: %d objects", len(self.shelf))
                self.streams.open()
            if self.shelf.changed or (self._held_back and not self.failures()):
                self.shelf.changed = self._held_back = False
                self._news.set()
                self._news = asyncio.Event()

    async def _tell(self, who: SpiffeId, request: PoliciesRequest, context: streams.Context) -> None:
        await streams.accept(context)
        have, first = request.have, True
        while have and self.failures():  # he may have newer ones from another replica: to go back could open something
            self._held_back = True
            await self._news.wait()
        while True:
            news = self._news
            version, messages = self.shelf.told(who.namespace or "")
            if version == have:
                messages = (PolicySet(version=version, unchanged=True).SerializeToString(),) if first else ()
            for message in messages:
                await context.write(message)
            have, first = version, False
            await news.wait()
