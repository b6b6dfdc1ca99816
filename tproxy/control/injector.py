"""The webhook with all that makes it work in a cluster: its server, its settings, and what is published for it."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable

from tproxy.control.config import Control
from tproxy.control.issuer import Issuer
from tproxy.control.publisher import Publisher
from tproxy.control.record import Reviewed
from tproxy.control.serving import Serving
from tproxy.control.webhook import Webhook
from tproxy.control.webhook_config import WebhookConfig
from tproxy.core.inject.injection import Injection
from tproxy.kernel.sock import plain_listener

log = logging.getLogger("tproxy")


class Injector:
    """Without ``kubernetes`` in the configuration nothing is published, and ``injection.native`` is taken as it is."""

    def __init__(
        self,
        config: Control,
        what: WebhookConfig,
        issuer: Issuer,
        serving: Serving,
        finished: Callable[[Reviewed], None],
        current: Callable[[str, bool], None],
    ) -> None:
        self._what, self._serving, self._finished = what, serving, finished
        self._publisher: Publisher | None = None
        if config.kubernetes is not None:
            self._publisher = Publisher(config.kubernetes, what, lambda: issuer.signer.roots, current)
        domain = issuer.signer.trust_domain
        self._settings = {native: what.settled(domain, native, config.policies is not None) for native in (True, False)}
        self._webhook = Webhook(self._newest, self.settings, self._reviewed)
        self._task: asyncio.Task[None] | None = None

    async def start(self, host: str, ended: Callable[[], object]) -> None:
        """Answer, and publish; there must be a serving certificate. ``ended`` is called if a defect ends publishing."""
        await self._webhook.listen(plain_listener(host, self._what.port))
        log.info("ready: webhook of %s, port %d", self._what.host, self._what.port)
        if self._publisher is not None:
            self._task = asyncio.create_task(self._publisher.run())
            self._task.add_done_callback(lambda _: ended())

    async def stop(self, seconds: float) -> None:
        """Publish no more, and answer what is under way."""
        if self._task is not None and not self._task.cancel() and (why := self._task.exception()):
            log.error("publishing failed", exc_info=why)
        await self._webhook.close(seconds)

    def look(self) -> None:
        """The trust bundle is another one: tell the cluster."""
        if self._publisher is not None:
            self._publisher.look()

    def settings(self) -> Injection | None:
        """As they are in this cluster; None while its version counts and is not known."""
        native = self._publisher.native if self._publisher is not None else True
        if native is None:
            return None if self._what.asks else self._settings[True]
        return self._settings[native]

    def _reviewed(self, line: Reviewed) -> None:
        self._finished(line)
        if line.reply.did == "injected" and self._publisher is not None:
            self._publisher.injected(line.reply.pod.partition("/")[0])

    def _newest(self) -> ssl.SSLContext:
        assert self._serving.https is not None
        return self._serving.https
