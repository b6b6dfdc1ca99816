"""The next State, whenever something has changed: configuration, credentials, files of trust, objects of policy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from tproxy.core.config import Config
from tproxy.core.fields import ConfigError
from tproxy.core.identity import Snapshot, SpiffeId
from tproxy.core.policy.effective import settle, with_set
from tproxy.core.policy.told import Told
from tproxy.identity.keeper import Keeper, Status
from tproxy.identity.open import open_source
from tproxy.identity.trusted import paths, trusted
from tproxy.identity.watch import Watch
from tproxy.proxy.side import State
from tproxy.proxy.tls import Contexts, contexts

if TYPE_CHECKING:
    from tproxy.identity.policies import Policies  # gRPC costs memory

log = logging.getLogger("tproxy")


class _Supply:
    """A source at work, for one configuration."""

    def __init__(self, config: Config, taken: Callable[[_Supply, Snapshot], None], failed: Callable[[], None]) -> None:
        assert config.identity is not None  # the command line has seen to it
        source = open_source(config.identity, config.trust_domain, config.trust)
        self.config, self.keeper = config, Keeper(source, partial(taken, self), failed)
        self.task = asyncio.create_task(self.keeper.run())


class Generations:
    """Follows files and source; ``taken`` gets each State after the first, ``refused`` hears of what cannot be used."""

    def __init__(
        self,
        config: Config,
        read: Callable[[], Config],
        file: str,
        taken: Callable[[State], None],
        refused: Callable[[], None],
        policies: Policies | None = None,
    ) -> None:
        self._policies = policies
        self._read, self._file, self._taken, self._refused = read, file, taken, refused
        self._config = self._files = config  # with and without the policies that control tells
        self._told: tuple[str, ...] = ()  # remarks
        self._watched = self._paths()
        self._watch = Watch(self._watched)  # from now on: the first credentials may take long
        self._first: asyncio.Future[State] = asyncio.get_running_loop().create_future()
        self._snapshot: Snapshot | None = None
        self._state: State | None = None
        self._asked = asyncio.Event()
        self._fresh = dict[_Supply, Snapshot]()  # delivered, and not looked at yet
        self._delivered = asyncio.Event()
        self._next: _Supply | None = None  # another source, which has delivered nothing yet
        self._supply = _Supply(config, self._renewed, refused)

    @property
    def status(self) -> Status:
        """Of the source in use."""
        return self._supply.keeper.status

    async def first(self) -> State:
        """Waits for credentials, however long that takes. ConfigError if the files of trust are no good."""
        return await self._first

    def reload(self) -> None:
        """Read everything anew, and ask the source, too (SIGHUP)."""
        self._asked.set()

    async def run(self) -> None:
        """For ever, once there is a first State."""
        try:
            while True:
                asked, changed, others = await self._change()
                while self._fresh:
                    await self._take(*self._fresh.popitem())
                if asked or changed or others:
                    await self._reload(asked, asked or changed)
        finally:
            self.stop()

    def stop(self) -> None:
        """Leave every source."""
        for supply in (self._supply, self._next):
            if supply is not None:
                supply.task.cancel()

    async def _change(self) -> tuple[bool, bool, bool]:
        """Waits until credentials are delivered, or: whether somebody asks, files change, control tells policies."""
        if self._watched != (now := self._paths()):
            self._watched, self._watch = now, Watch(now)
        news = self._policies.news if self._policies else asyncio.Event()
        changing = asyncio.create_task(self._watch.change())
        tasks = changing, *(asyncio.create_task(one.wait()) for one in (self._asked, news, self._delivered))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return self._asked.is_set(), changing.done(), news.is_set()
        finally:
            for task in tasks:
                task.cancel()
            for event in (self._asked, news, self._delivered):
                event.clear()

    def _paths(self) -> list[str]:
        config = self._config
        files = filter(None, [self._file, config.workload.labels_file, config.egress_routes.file])
        return [*files, *paths(config.trust), *config.policies]

    async def _reload(self, asked: bool, read: bool) -> None:
        told = self._policies.newest if self._policies else None
        try:
            if read:
                self._files = self._read()
            config, settled = await self._compiled(told)
            if self._next is not None:
                self._next.task.cancel()
                self._next = None
            if _source_of(config) != _source_of(self._config):
                log.info("reload: credentials come from another source now; the old ones serve until it delivers")
                self._next = _Supply(config, self._renewed, self._refused)
            elif self._snapshot is not None:
                snapshot = None
                while snapshot is not self._snapshot:
                    snapshot = self._snapshot
                    made = await _made(snapshot, config, settled)
                self._swap(config, snapshot, settled, made)
                if asked:
                    self._supply.keeper.renew()
        except ConfigError as error:
            self._refuse(error)
        except ImportError:  # privileges are gone, and Python's files may be out of reach
            self._refuse(ConfigError("configuration", "identity", "this source needs a restart of the sidecar"))

    async def _compiled(self, told: Told | None) -> tuple[Config, Config]:
        """The files with these policies of control, and what that means for us; off the loop: objects may be many."""
        while True:
            own = self._snapshot.svid.id if self._snapshot else None
            try:
                found = await asyncio.to_thread(_compile, self._files, told, own)
            except ConfigError as error:
                if self._policies is not None and told is not None:
                    self._policies.refused(str(error))
                raise
            if self._snapshot is None or own == self._snapshot.svid.id:
                return found

    def _renewed(self, supply: _Supply, snapshot: Snapshot) -> None:
        another = supply is self._next
        if not another and (supply is not self._supply or snapshot == self._snapshot):
            return
        if self._first.done():
            self._fresh[supply] = snapshot
            self._delivered.set()
            return
        try:
            settled = self._settled(self._config, snapshot)
            self._swap(self._config, snapshot, settled, _contexts(snapshot, self._config, settled))
        except ConfigError as error:
            self._first.set_exception(error)

    async def _take(self, supply: _Supply, snapshot: Snapshot) -> None:
        """Credentials that were delivered while we serve."""
        another = supply is self._next
        if not another and supply is not self._supply:
            return  # of a source that was left meanwhile
        config = supply.config if another else self._config
        try:
            settled = self._settled(config, snapshot)
            self._swap(config, snapshot, settled, await _made(snapshot, config, settled))
        except ConfigError as error:
            self._refuse(error)
            return
        if another:
            self._supply.task.cancel()
            self._supply, self._next = supply, None

    def _swap(self, config: Config, snapshot: Snapshot, settled: Config, made: Contexts) -> None:
        state = State(settled, made)
        self._tell(settled)
        self._config, self._snapshot, self._state = config, snapshot, state
        if self._policies is not None:
            self._policies.taken(config.held)
        if self._first.done():
            self._taken(state)
        else:
            self._first.set_result(state)

    def _settled(self, config: Config, snapshot: Snapshot) -> Config:
        """The same object as long as nothing but credentials has changed: then nothing need be asked again."""
        same = (
            self._state is not None
            and config is self._config
            and snapshot.svid.id == self._state.contexts.snapshot.svid.id
        )
        return self._state.config if same and self._state else settle(config, snapshot.svid.id)

    def _tell(self, settled: Config) -> None:
        """Of objects that do less than it seems, once."""
        remarks = settled.settled.remarks if settled.settled else ()
        for remark in remarks:
            if remark not in self._told:
                log.warning("%s", remark)
        self._told = remarks

    def _refuse(self, error: ConfigError) -> None:
        none = self._policies is not None and self._policies.held is None
        kept = "nobody is let in without policies" if none else "the last good configuration keeps serving"
        log.error("reload refused, %s: %s", kept, error)
        self._refused()


async def _made(snapshot: Snapshot, config: Config, settled: Config) -> Contexts:
    """Off the loop where there are lists of revoked certificates: 20 000 entries take 40 ms and more to read."""
    if snapshot.crls or config.trust.crl:
        return await asyncio.to_thread(_contexts, snapshot, config, settled)
    return _contexts(snapshot, config, settled)


def _contexts(snapshot: Snapshot, config: Config, settled: Config) -> Contexts:
    return contexts(trusted(snapshot, config.trust), settled)


def _compile(files: Config, told: Told | None, own: SpiffeId | None) -> tuple[Config, Config]:
    config = with_set(files, told)
    return config, settle(config, own)


def _source_of(config: Config) -> object:
    """What a source is made of; bundles in files are not."""
    return config.identity, config.trust_domain, [other.trust_domain for other in config.trust.federated]
