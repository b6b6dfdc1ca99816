"""From a call's credential to who it is: the only place where an id comes from."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from tproxy.control import pods, tokens
from tproxy.control.config import Control
from tproxy.control.refusal import Refused, Why
from tproxy.control.state import State
from tproxy.core.address import Address
from tproxy.core.identity import SpiffeId

REVIEWS = 32  # questions to the API server at once; callers wait, within their deadline
TOKEN_LIMIT = 8192  # characters; a projected token has about 1200


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and by what proof."""

    id: SpiffeId
    how: str  # "kubernetes" or "join token"
    holder: str  # who comes back to renew: the pod's uid, or the token and its address
    pod: str = ""  # namespace/name
    node: str = ""
    token: str = ""  # the join token's name


class Door:
    """Asks each credential's authority."""

    def __init__(self, config: Control, trust_domain: str, state: State) -> None:
        self._config, self._domain, self._state = config, trust_domain, state
        self._reviews = asyncio.Semaphore(REVIEWS)

    async def authenticate(self, authorization: str, address: Address | None) -> Caller | Refused:
        """``authorization`` is the metadata of that name; the address is the other end's."""
        scheme, _, token = authorization.strip().partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            return Refused(Why.NO_TOKEN, "the call carries no bearer token")
        if len(token) > TOKEN_LIMIT:
            return Refused(Why.NOT_A_TOKEN, f"the token has {len(token)} characters, more than {TOKEN_LIMIT}")
        if token.startswith(tokens.PREFIX):
            return self._join(token, address)
        return await self._review(token, address)

    def _join(self, token: str, address: Address | None) -> Caller | Refused:
        if not self._config.join_tokens:
            return Refused(Why.JOIN_TOKEN, "join tokens are switched off here (joinTokens)")
        found = tokens.check(self._state, token, address, int(time.time()))
        if isinstance(found, Refused):
            return found
        workload = SpiffeId.parse(found.id)
        if workload.trust_domain != self._domain:
            return Refused(Why.JOIN_TOKEN, f"the join token is of another trust domain than {self._domain}", found.id)
        return Caller(workload, "join token", f"{found.name} {address}", token=found.name)

    async def _review(self, token: str, address: Address | None) -> Caller | Refused:
        config = self._config
        if config.kubernetes is None:
            return Refused(Why.NOT_A_TOKEN, "what was sent is no join token, and Kubernetes is not asked here")
        if refused := pods.glance(token, config.audience, time.time()):
            return refused
        async with self._reviews:
            found = await pods.identify(config.kubernetes, token, config.audience, address)
        if isinstance(found, Refused):
            return found
        workload = SpiffeId.workload(self._domain, found.namespace, found.service_account)
        return Caller(workload, "kubernetes", found.uid, f"{found.namespace}/{found.name}", found.node)

    async def impersonate(self, caller: Caller, wanted: str) -> Caller | Refused:
        """ztunnel asks for its pods' certificates: only who is listed may, and only for pods of its own node."""
        who = str(caller.id)
        if caller.id not in self._config.impersonators:
            return Refused(Why.IMPERSONATION, "the caller asks for another's id and may not", who)
        try:
            workload = SpiffeId.parse(wanted)
        except ValueError:
            return Refused(Why.IMPERSONATION, "the id that is asked for is not a SPIFFE id", who)
        if workload.trust_domain != self._domain:
            return Refused(Why.IMPERSONATION, f"{workload} is not of the trust domain {self._domain}", who)
        if self._config.kubernetes is not None and caller.node:
            if workload.namespace is None:
                return Refused(Why.IMPERSONATION, f"{workload} is not a service account's id", who)
            async with self._reviews:
                there = await pods.runs_on(self._config.kubernetes, caller.node, workload.path[1], workload.path[3])
            if isinstance(there, Refused):
                return there
            if not there:
                return Refused(Why.IMPERSONATION, f"no pod of {workload} runs on the caller's node {caller.node}", who)
        return Caller(workload, f"{caller.how}, by {who}", caller.holder, caller.pod, caller.node, caller.token)
