"""Keeping credentials fresh: what a source yields, and what happens when it fails, ends, stalls or is wrong."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from asyncinotify import Inotify

from tproxy.control import store
from tproxy.core.certificates import renewal
from tproxy.core.identity import Snapshot, SpiffeId, Svid
from tproxy.core.settings import Bundle, Files
from tproxy.identity.files_source import FilesSource
from tproxy.identity.keeper import Keeper
from tproxy.identity.source import SourceError
from tproxy.identity.watch import Watch

Act = Callable[[], AsyncIterator[Snapshot | SourceError]]


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same doubling, a hundred times as fast."""
    monkeypatch.setattr(renewal, "FIRST", 0.005)
    monkeypatch.setattr("tproxy.identity.keeper.LOOK", 0.02)


def snapshot(serial: int, begin: float = 0, end: float = 2e9) -> Snapshot:
    """One that says who it is by its serial."""
    who = SpiffeId.parse("spiffe://test.local/ns/a/sa/b")
    return Snapshot(Svid(who, b"", b"the key", serial, int(begin), int(end)), {})


class Acting:
    """A source that does what it is told, one act for each time that it is asked."""

    name = "acting"

    def __init__(self, *acts: Act) -> None:
        self.acts, self.asked = list(acts), 0

    def snapshots(self) -> AsyncIterator[Snapshot | SourceError]:
        """The next act; the last one again and again."""
        act = self.acts[min(self.asked, len(self.acts) - 1)]
        self.asked += 1
        return act()


async def good(*serials: int) -> AsyncIterator[Snapshot | SourceError]:
    for serial in serials:
        yield snapshot(serial)
    await asyncio.Event().wait()


async def bad() -> AsyncIterator[Snapshot | SourceError]:
    raise SourceError("acting", "refuses")
    yield  # makes it a generator


async def wrong() -> AsyncIterator[Snapshot | SourceError]:
    raise ZeroDivisionError
    yield


async def ending() -> AsyncIterator[Snapshot | SourceError]:
    yield snapshot(7)


def kept(source: Any, until: Callable[[Keeper, list[int]], bool], later: Callable[[], None] | None = None) -> Keeper:
    """A keeper that ran until something was true."""

    async def run() -> Keeper:
        taken: list[int] = []
        keeper = Keeper(source, lambda found: taken.append(found.svid.serial))
        running = asyncio.create_task(keeper.run())
        if later:
            asyncio.get_running_loop().call_later(0.2, later)
        async with asyncio.timeout(10):
            while not until(keeper, taken):  # noqa: ASYNC110  # one of many things
                await asyncio.sleep(0.002)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return keeper

    return asyncio.run(run())


def test_every_snapshot_is_handed_on() -> None:
    keeper = kept(Acting(lambda: good(1, 2, 3)), lambda _, taken: taken == [1, 2, 3])
    assert keeper.current is not None
    assert keeper.current.svid.serial == 3
    assert (keeper.status.renewals, keeper.status.error) == (3, "")


def test_a_source_that_fails_is_asked_again_and_the_error_is_kept() -> None:
    keeper = kept(Acting(bad, bad, lambda: good(1)), lambda _, taken: taken == [1])
    assert keeper.status.error == "acting: refuses"
    assert keeper.status.failures == 0


def test_failures_are_counted_while_the_last_good_snapshot_stays() -> None:
    keeper = kept(Acting(ending, bad), lambda keeper, _: keeper.status.failures > 3)
    assert keeper.current is not None
    assert keeper.current.svid.serial == 7


def test_a_source_that_ends_is_asked_again() -> None:
    keeper = kept(Acting(ending, lambda: good(8)), lambda _, taken: taken == [7, 8])
    assert keeper.status.error == "the source ended"


def test_a_defect_of_a_source_does_not_end_renewals(caplog: pytest.LogCaptureFixture) -> None:
    kept(Acting(wrong, lambda: good(1)), lambda _, taken: taken == [1])
    assert "ZeroDivisionError" in caplog.text


def test_the_same_error_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tproxy"):
        kept(Acting(bad), lambda keeper, _: keeper.status.failures >= 4)
    assert caplog.text.count("refuses") == 1


def test_asking_for_renewal_asks_the_source_at_once() -> None:
    source = Acting(lambda: good(1), lambda: good(2))

    def until(keeper: Keeper, taken: list[int]) -> bool:
        if taken == [1]:
            keeper.renew()
        return taken == [1, 2]

    kept(source, until)
    assert source.asked == 2


def test_a_certificate_with_less_than_a_third_left_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    async def short() -> AsyncIterator[Snapshot | SourceError]:
        yield snapshot(1, time.time() - 900, time.time() + 100)
        await asyncio.sleep(0.2)
        yield snapshot(2, time.time() - 100, time.time() + 900)
        await asyncio.Event().wait()

    kept(Acting(short), lambda _, taken: taken == [1, 2])
    assert caplog.text.count("is not renewed") == 1


def test_a_key_is_never_shown() -> None:
    keeper = kept(Acting(lambda: good(1)), lambda _, taken: taken == [1])
    assert "the key" not in repr((keeper.current, keeper.status, keeper))


@pytest.fixture
def volume(tmp_path: Path) -> Files:
    """A volume as the kubelet makes it, from an authority of files."""
    store.create(tmp_path / "ca", "test.local", "ecdsa")
    _issue(tmp_path, renew=False)
    return Files(*(str(tmp_path / "svid" / f"{name}.pem") for name in ("cert", "key", "ca")))


def _issue(folder: Path, renew: bool) -> None:
    from datetime import timedelta

    who = SpiffeId.parse("spiffe://test.local/ns/a/sa/b")
    store.issue(folder / "ca", who, folder / "svid", timedelta(hours=1), "ecdsa", renew, None)


def test_a_swap_of_the_kubelets_link_is_one_new_snapshot(volume: Files, tmp_path: Path) -> None:
    def swap() -> None:
        _issue(tmp_path, renew=True)

    keeper = kept(FilesSource(volume, "test.local"), lambda _, taken: len(set(taken)) == 2, swap)
    assert keeper.status.failures == 0


def test_a_half_written_file_is_waited_for(volume: Files) -> None:
    whole = Path(volume.cert).read_bytes()
    Path(volume.cert).resolve().write_bytes(whole[: len(whole) // 3])

    def finish() -> None:
        Path(volume.cert).resolve().write_bytes(whole)

    keeper = kept(FilesSource(volume, "test.local"), lambda _, taken: len(taken) == 1, finish)
    assert volume.cert in keeper.status.error


def test_a_mismatched_pair_is_refused_until_it_fits(volume: Files, tmp_path: Path) -> None:
    key = Path(volume.key).read_bytes()
    _issue(tmp_path, renew=True)
    new = Path(volume.key).read_bytes()
    Path(volume.key).resolve().write_bytes(key)

    def finish() -> None:
        Path(volume.key).resolve().write_bytes(new)

    keeper = kept(FilesSource(volume, "test.local"), lambda _, taken: len(taken) == 1, finish)
    assert "is not the key of" in keeper.status.error


def test_key_and_chain_may_stand_in_one_file(volume: Files, tmp_path: Path) -> None:
    """As PodCertificateRequest's credentialBundlePath has them: key first."""
    one = tmp_path / "credentials.pem"
    one.write_bytes(Path(volume.key).read_bytes() + Path(volume.cert).read_bytes())
    one.chmod(0o600)
    keeper = kept(FilesSource(Bundle(str(one), volume.ca), "test.local"), lambda _, taken: len(taken) == 1)
    assert str(one) in keeper.status.source


def test_waiting_for_changes_never_holds_up_the_loop(
    volume: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """close(2) of an inotify instance waits for all its readers in the kernel; one stays open while folders stay."""
    opened: list[Inotify] = []

    class Counted(Inotify):
        def __init__(self) -> None:
            super().__init__()
            opened.append(self)

    monkeypatch.setattr("tproxy.identity.watch.Inotify", Counted)
    monkeypatch.setattr("tproxy.identity.watch.LOOK", 0.02)

    async def wait() -> None:
        watch = Watch([volume.cert, volume.key])
        change = asyncio.create_task(watch.change())
        await asyncio.sleep(0.5)  # many looks
        assert not change.done()
        _issue(tmp_path, renew=True)
        async with asyncio.timeout(5):
            await change
        assert len(opened) == 1
        change = asyncio.create_task(watch.change())
        await asyncio.sleep(0.3)
        _issue(tmp_path, renew=True)  # another folder behind the link
        async with asyncio.timeout(5):
            await change

    asyncio.run(wait())
    assert len(opened) <= 3


def test_a_watch_that_lives_to_the_end_does_not_hold_up_the_end_of_the_program(tmp_path: Path) -> None:
    program = f"""
import asyncio, sys
from tproxy.identity.watch import Watch
watch = sys.modules["kept to the end"] = Watch([{str(tmp_path)!r}])
try:
    asyncio.run(asyncio.wait_for(watch.change(), 0.2))
except TimeoutError:
    assert watch._inotify, "it did not watch"
"""
    subprocess.run([sys.executable, "-c", program], timeout=20, check=True)
