"""``tproxy control`` as the directory: what it tells whom, and what it makes of an API server that comes and goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests import telling
from tests.cluster import PODS, SERVICES, SLICES, endpoints, pod, service
from tests.control import DOMAIN
from tproxy.control import authority, rotation
from tproxy.control.authority import Pair
from tproxy.core.directory import Mirror
from tproxy.core.identity import Snapshot, SpiffeId, Svid
from tproxy.core.settings import Directory as Settings
from tproxy.identity.directory import Directory, parsed
from tproxy.wire import WATCH_DIRECTORY
from tproxy.wire import directory_pb2 as wire
from tproxy.world.process import wait_for

SIDECAR = SpiffeId.workload(DOMAIN, "demo", "client")


class Told:
    """A stream as a sidecar reads it, and the mirror that it keeps."""

    def __init__(
        self, port: int, roots: bytes, svid: Pair | None, middle: bytes = b"", mirror: Mirror | None = None
    ) -> None:
        self.mirror, self.parts = mirror or Mirror(), list[Any]()
        shown = (svid.key_pem(), svid.certificate_pem() + middle) if svid else (None, None)
        options = (
            ("grpc.ssl_target_name_override", "localhost"),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.http2.bdp_probe", 0),
        )
        self.channel = grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(roots, *shown), options)
        method = self.channel.unary_stream(WATCH_DIRECTORY, wire.WatchRequest.SerializeToString)
        have = self.mirror.version
        asked = wire.WatchRequest(have=wire.Version(epoch=have.epoch, number=have.number) if have else None)
        self.stream = method(asked, timeout=60)

    def until(self, **expected: str) -> Mirror:
        """Read until these addresses (with _ for .) are expected to be these accounts of demo; "" for no entry."""
        want = {name.strip("_").replace("_", "."): account for name, account in expected.items()}
        while not all(self.account(address) == account for address, account in want.items()):
            part = parsed(next(self.stream))
            self.parts.append(part)
            self.mirror.take(part)
        return self.mirror

    def account(self, address: str) -> str:
        """Who is expected there."""
        found = {str(one): entry for one, entry in self.mirror.entries.items()}.get(address)
        return " ".join(path.rpartition("/")[2] for path in found.ids) if found else ""

    def close(self) -> None:
        """Hang up."""
        self.stream.cancel()
        self.channel.close()


class Place(telling.Place[Told]):
    """Of the directory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "directory", SIDECAR, Told)

    def told(self, mirror: Mirror | None = None) -> Told:
        """A sidecar's stream."""
        return self.reads(mirror=mirror)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("directory"))
    try:
        made.ca.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def place(shared: Place) -> Iterator[Place]:
    yield shared
    shared.clear("entries")


# who is told what


def test_after_a_long_outage_sidecars_are_back_within_seconds_of_control_and_not_all_at_once(tmp_path: Path) -> None:
    place = Place(tmp_path)
    svid, middle = place.svid()
    shown = Svid(SIDECAR, svid.certificate_pem() + middle, svid.key_pem(), 1, 0, 2**31)
    known = Snapshot(shown, {DOMAIN: place.roots})
    settings = Settings(f"127.0.0.1:{place.port}", server_name="localhost")

    async def away() -> list[float]:
        sidecars = [Directory(settings, DOMAIN) for _ in range(12)]
        for one in sidecars:
            one.status.failures = 40  # as after half an hour
            one.renewed(known)
        tasks = [asyncio.create_task(one.run(lambda _: None)) for one in sidecars]
        try:
            await asyncio.to_thread(wait_for, lambda: {one.status.failures for one in sidecars} == {41}, 5, "tries")
            await asyncio.to_thread(place.ca.start)
            back, began = dict[int, float](), time.monotonic()
            while len(back) < len(sidecars):
                for number, one in enumerate(sidecars):
                    if one.status.connected:
                        back.setdefault(number, time.monotonic() - began)
                assert time.monotonic() - began < 15, [one.status.error for one in sidecars]
                await asyncio.sleep(0.02)
            return sorted(back.values())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    try:
        back = asyncio.run(away())
        assert back[-1] - back[0] > 0.5, back
    finally:
        place.stop()


def test_a_sidecar_gets_everything_and_then_what_changes(place: Place) -> None:
    place.cluster.put(PODS, pod("web-0", "web", "10.0.0.1"))
    told = place.told()
    told.until(_10_0_0_1="web")
    place.cluster.put(PODS, pod("db-0", "db", "10.0.0.2"))
    told.until(_10_0_0_2="db")
    assert told.parts[0].snapshot
    assert not told.parts[-1].snapshot and len(told.parts[-1].delta.set) == 1
    place.cluster.delete(PODS, "demo/web-0")
    told.until(_10_0_0_1="")


def test_a_service_follows_its_slices_and_their_pods(place: Place) -> None:
    told = place.told()
    place.cluster.put(SERVICES, service("web", "10.96.0.1"))
    place.cluster.put(SLICES, endpoints("web", "10.0.0.1"))
    place.cluster.put(PODS, pod("web-0", "web", "10.0.0.1"))
    told.until(_10_96_0_1="web")
    place.cluster.put(PODS, pod("web-0", "blue", "10.0.0.1"))
    told.until(_10_96_0_1="blue")


def test_who_comes_back_gets_only_what_he_missed(place: Place) -> None:
    for number in range(50):
        place.cluster.put(PODS, pod(f"web-{number}", "web", f"10.0.1.{number}"))
    told = place.told()
    mirror = told.until(_10_0_1_49="web")
    told.close()
    place.cluster.put(PODS, pod("db-0", "db", "10.0.0.2"))
    again = place.told(mirror)
    again.until(_10_0_0_2="db")
    assert [part.snapshot for part in again.parts] == [False]
    assert len(again.mirror.entries) == 51


def test_who_comes_back_with_another_server_s_version_gets_everything(place: Place) -> None:
    place.cluster.put(PODS, pod("web-0", "web", "10.0.0.1"))
    told = place.told()
    mirror = told.until(_10_0_0_1="web")
    epoch = mirror.version.epoch if mirror.version else ""
    told.close()
    place.ca.kill()
    place.cluster.put(PODS, pod("web-0", "other", "10.0.0.1"))
    place.ca.start()
    again = place.told(mirror)
    again.until(_10_0_0_1="other")
    assert again.parts[0].snapshot and again.parts[0].version.epoch != epoch


def test_a_reader_who_falls_behind_gets_a_snapshot_and_costs_nothing(place: Place) -> None:
    slow = place.told()
    slow.mirror.take(parsed(next(slow.stream)))  # a snapshot, too
    names = [f"web-{number}" for number in range(1000)]
    quick = place.told()
    for turn in range(25):
        for number, name in enumerate(names):
            place.cluster.put(
                PODS, pod(name, f"a-rather-long-service-account-{turn}", f"10.1.{number >> 8}.{number & 255}")
            )
        quick.until(_10_1_3_231=f"a-rather-long-service-account-{turn}")
    end = quick.account("10.1.3.231")
    slow.until(_10_1_3_231=end)
    assert slow.mirror.entries == quick.mirror.entries
    assert any(part.snapshot for part in slow.parts)
    assert len(slow.parts) < len(quick.parts)
    assert place.ca.running().pss() < 100 << 20


def test_only_who_shows_an_svid_of_the_trust_domain_is_told_anything(place: Place) -> None:
    assert place.refused(None) is grpc.StatusCode.UNAVAILABLE  # TLS itself
    now = authority.utc_now()
    root = authority.new_root(DOMAIN, "ecdsa", now)
    key = authority.new_key("ecdsa")
    forged = Pair(authority.issue(root, SIDECAR, key.public_key(), timedelta(hours=1), now), key)
    assert place.refused(forged) is grpc.StatusCode.UNAVAILABLE
    before = len(place.ca.lines("refused"))
    stranger = SpiffeId.parse("spiffe://elsewhere.example/ns/demo/sa/client")
    assert place.refused(*place.svid(stranger)) is grpc.StatusCode.PERMISSION_DENIED
    line = place.ca.lines("refused")[before]
    assert (line["reason"], line["who"], line["caller"]) == ("no_svid", str(stranger), "127.0.0.1")


def test_a_message_that_is_no_request_is_refused(place: Place) -> None:
    told = place.told()
    told.close()
    shown, middle = place.svid()
    credentials = grpc.ssl_channel_credentials(
        (place.ca.dir / "bundle.pem").read_bytes(), shown.key_pem(), shown.certificate_pem() + middle
    )
    with grpc.secure_channel(f"127.0.0.1:{place.port}", credentials) as channel:
        method = channel.unary_stream(WATCH_DIRECTORY, lambda data: data)
        with pytest.raises(grpc.RpcError) as error:
            next(method(b"\xff\xff", timeout=10))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_streams_are_counted_and_forgotten_when_they_end(place: Place) -> None:
    told = [place.told() for _ in range(3)]
    wait_for(lambda: place.metric("streams") == 3, 10, "three follow")
    for one in told:
        one.close()
    wait_for(lambda: place.metric("streams") == 0, 10, "nobody follows")


# the API server


def test_a_watch_that_is_cut_goes_on_where_it_broke(place: Place) -> None:
    told = place.told()
    asked = len(place.cluster.asked)
    for number in range(3):
        place.cluster.cut()
        place.cluster.put(PODS, pod("web-0", f"web-{number}", "10.0.0.1"))
        told.until(_10_0_0_1=f"web-{number}")
    assert all("watch=1" in one for one in place.cluster.asked[asked:])


def test_what_was_missed_while_the_version_grew_too_old_is_found_by_a_new_list(place: Place) -> None:
    place.cluster.put(PODS, pod("gone-0", "web", "10.0.0.1"))
    told = place.told()
    told.until(_10_0_0_1="web")
    place.cluster.down = True
    place.cluster.cut()
    place.cluster.delete(PODS, "demo/gone-0")
    place.cluster.put(PODS, pod("new-0", "web", "10.0.0.2"))
    place.cluster.forget()
    place.cluster.down = False
    told.until(_10_0_0_1="", _10_0_0_2="web")
    assert any("watch" not in one for one in place.cluster.asked[-30:])


def test_while_the_api_server_is_away_the_last_state_is_told(place: Place) -> None:
    place.cluster.put(PODS, pod("web-0", "web", "10.0.0.1"))
    place.told().until(_10_0_0_1="web")
    place.cluster.down = True
    place.cluster.cut()
    wait_for(lambda: place.metric("failures") > 1, 20, "it has noticed")
    place.told().until(_10_0_0_1="web")
    assert place.ca.page("/healthz/ready")[0] == 200


def test_lists_come_in_pages(place: Place) -> None:
    for number in range(600):
        place.cluster.put(PODS, pod(f"web-{number:03}", "web", f"10.2.{number >> 8}.{number & 255}"))
    place.cluster.forget()
    place.cluster.cut()
    wait_for(lambda: any("continue=500" in one for one in place.cluster.asked), 20, "the third page is asked for")
    told = place.told()
    told.until(_10_2_2_87="web")
    wait_for(lambda: place.metric("entries") == 600, 10, "all are known")


def test_an_event_too_long_to_be_one_does_not_stop_the_directory(place: Place) -> None:
    place.cluster.put(
        PODS, pod("fat-0", "web", "10.0.0.1", annotations={"tproxy.dev/status": "injected", "note": "x" * (5 << 20)})
    )
    told = place.told()
    wait_for(lambda: "longer than" in place.ca.running().log.read_text(), 20, "it has refused the event")
    place.cluster.put(PODS, pod("web-0", "web", "10.0.0.2"))
    told.until(_10_0_0_1="web", _10_0_0_2="web")  # a list leads around it
    place.cluster.put(PODS, pod("fat-0", "slim", "10.0.0.1"))
    told.until(_10_0_0_1="slim")


def test_nothing_is_told_before_everything_was_seen_once(tmp_path: Path) -> None:
    made = Place(tmp_path)
    try:
        made.cluster.down = True
        made.ca.spawn()
        wait_for(lambda: made.ca.page("/healthz/ready")[0] == 503, 20, "it lives", made.ca.running())
        wait_for(lambda: "answers 503" in made.ca.page("/healthz/ready")[1], 10, "it says what it waits for")
        assert made.refused(*made.svid()) is grpc.StatusCode.UNAVAILABLE
        assert made.ca.lines("refused")[-1]["reason"] == "not_synced"
        made.cluster.put(PODS, pod("web-0", "web", "10.0.0.1"))
        made.cluster.down = False
        wait_for(lambda: made.ca.page("/healthz/ready")[0] == 200, 20, "it is ready")
        told = made.told()
        told.until(_10_0_0_1="web")
        told.close()
    finally:
        made.stop()


def test_callers_of_a_new_root_are_known_as_soon_as_it_is_trusted(tmp_path: Path) -> None:
    made = Place(tmp_path)
    try:
        made.ca.start()
        made.cluster.put(PODS, pod("web-0", "web", "10.0.0.1"))
        state, now = made.ca.state(), int(time.time())
        try:
            rotation.add(made.ca.dir, state, DOMAIN, "ecdsa", now)
            rotation.switch(made.ca.dir, state, now, force=True)
        finally:
            state.close()

        def reads() -> bool:
            told = made.told()
            try:
                return told.until(_10_0_0_1="web") is not None
            except grpc.RpcError:
                return False

        wait_for(reads, 20, "an SVID of the new root is taken")
        for one in made.open:
            one.close()
    finally:
        made.stop()
