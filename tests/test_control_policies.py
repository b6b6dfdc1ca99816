"""``tproxy control`` and policies: who is told which, and what it makes of an API server that comes and goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests import telling
from tests.cluster import PODS, pod
from tests.control import DOMAIN
from tests.istio import auth, peer
from tproxy.control import authority
from tproxy.control.authority import Pair
from tproxy.core.identity import SpiffeId
from tproxy.core.workloads import name_of
from tproxy.wire import WATCH_POLICIES
from tproxy.wire import policies_pb2 as wire
from tproxy.world.process import wait_for

WEB = SpiffeId.workload(DOMAIN, "demo", "web")
_POOL = ThreadPoolExecutor()
DENY = "action: DENY\nrules: [{}]"


class Follower:
    """A stream as a sidecar reads it."""

    def __init__(self, port: int, roots: bytes, svid: Pair | None, middle: bytes = b"", have: str = "") -> None:
        shown = (svid.key_pem(), svid.certificate_pem() + middle) if svid else (None, None)
        options = (("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1))
        self.channel = grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(roots, *shown), options)
        method = self.channel.unary_stream(
            WATCH_POLICIES, wire.PoliciesRequest.SerializeToString, wire.PolicySet.FromString
        )
        self.stream = method(wire.PoliciesRequest(have=have), timeout=60)
        self.last = wire.PolicySet()
        self._waiting: Future[dict[str, Any]] | None = None

    def next(self) -> dict[str, Any]:
        """The next set: its objects by kind and name."""
        found = dict[str, Any]()
        while True:
            self.last = next(self.stream)
            for one in map(json.loads, self.last.objects):
                found[f"{one['kind']} {name_of(one)}"] = one
            if not self.last.more:
                return found

    def within(self, seconds: float) -> dict[str, Any]:
        """The next set; TimeoutError if it does not come in time, and then it still may."""
        self._waiting = self._waiting or _POOL.submit(self.next)
        found = self._waiting.result(seconds)
        self._waiting = None
        return found

    def until(self, *names: str) -> dict[str, Any]:
        """Read until a set holds exactly these."""
        while True:
            found = self.next()
            if set(found) == set(names):
                return found

    def close(self) -> None:
        """Hang up."""
        self.stream.cancel()
        self.channel.close()


class Place(telling.Place[Follower]):
    """Of policies."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "policies", WEB, Follower, policies={})
        self.cluster.define("v1", "v1beta1")

    def follows(self, who: SpiffeId = WEB, have: str = "") -> Follower:
        """A sidecar's stream."""
        return self.reads(who, have=have)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("policies"))
    try:
        made.ca.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def place(shared: Place) -> Iterator[Place]:
    yield shared
    shared.cluster.bookmarks = 2.0
    shared.clear("objects")


# who is told what


def test_a_sidecar_is_told_its_namespace_s_objects_and_the_root_s_whole_at_each_change(place: Place) -> None:
    sidecar, other = place.follows(), place.follows(SpiffeId.workload(DOMAIN, "data", "db"))
    assert sidecar.next() == other.next() == {}
    place.cluster.apply(auth(DENY, "demo/closed"))
    place.cluster.apply(auth(DENY, "data/closed"))
    place.cluster.apply(peer("mtls: {mode: STRICT}", "istio-system/default"))
    root = "PeerAuthentication istio-system/default"
    found = sidecar.until("AuthorizationPolicy demo/closed", root)
    assert found[root]["spec"] == {"mtls": {"mode": "STRICT"}}
    assert (sidecar.last.namespace, sidecar.last.root) == ("demo", "istio-system")
    other.until("AuthorizationPolicy data/closed", root)
    place.cluster.remove("PeerAuthentication", "istio-system/default")
    sidecar.until("AuthorizationPolicy demo/closed")
    other.until("AuthorizationPolicy data/closed")


def test_only_what_says_something_about_traffic_is_told_and_only_its_change_is_one(place: Place) -> None:
    sidecar = place.follows()
    sidecar.next()
    noisy = auth(DENY, "demo/noisy", dry_run="true")
    noisy["metadata"].update(uid="u", labels={"a": "b"}, managedFields=[{"manager": "kubectl"}], generation=7)
    noisy["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] = "{}"
    place.cluster.apply({**noisy, "status": {"conditions": []}})
    (told,) = sidecar.next().values()
    assert set(told) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(told["metadata"]) == {"namespace", "name", "creationTimestamp", "annotations"}
    assert told["metadata"]["annotations"] == {"istio.io/dry-run": "true"}
    place.cluster.apply({**noisy, "status": {"conditions": ["another"]}})
    place.cluster.apply(auth(DENY, "demo/next"))
    assert len(sidecar.next()) == 2


def test_who_comes_back_with_what_there_is_is_told_so_by_any_server(place: Place) -> None:
    place.cluster.apply(auth(DENY, "demo/closed"))
    sidecar = place.follows()
    sidecar.until("AuthorizationPolicy demo/closed")
    version = sidecar.last.version
    again = place.follows(have=version)
    assert again.next() == {} and again.last.unchanged and again.last.version == version
    place.ca.kill()
    place.ca.start()
    later = place.follows(have=version)
    assert later.next() == {} and later.last.unchanged
    place.cluster.remove("AuthorizationPolicy", "demo/closed")
    assert later.next() == {} and not later.last.unchanged and later.last.version != version


def test_a_large_set_comes_in_pieces(place: Place) -> None:
    ports = ", ".join(f"'{port}'" for port in range(1, 60_000))
    for number in range(6):
        place.cluster.apply(auth(f"rules: [{{to: [{{operation: {{ports: [{ports}]}}}}]}}]", f"demo/large-{number}"))
    wait_for(lambda: place.metric("objects") == 6, 20, "all are known")
    sidecar, pieces = place.follows(), 0
    while True:
        part = next(sidecar.stream)
        pieces += 1
        assert part.ByteSize() < 2 << 20
        if not part.more:
            break
    assert pieces > 1


def test_only_who_shows_an_svid_of_the_trust_domain_with_a_namespace_is_told_anything(place: Place) -> None:
    assert place.refused(None) is grpc.StatusCode.UNAVAILABLE  # TLS itself
    now = authority.utc_now()
    root, key = authority.new_root(DOMAIN, "ecdsa", now), authority.new_key("ecdsa")
    forged = Pair(authority.issue(root, WEB, key.public_key(), timedelta(hours=1), now), key)
    assert place.refused(forged) is grpc.StatusCode.UNAVAILABLE
    for text in ("spiffe://elsewhere.example/ns/demo/sa/web", f"spiffe://{DOMAIN}/vm/db"):
        before = len(place.ca.lines("refused"))
        assert place.refused(*place.svid(SpiffeId.parse(text))) is grpc.StatusCode.PERMISSION_DENIED
        line = place.ca.lines("refused")[before]
        assert (line["reason"], line["who"]) == ("no_svid", text)


def test_an_object_that_no_sidecar_can_use_is_counted_and_named_at_once(place: Place) -> None:
    place.cluster.apply(auth("rules: [{to: [{operation: {methods: [GET]}}]}]", "data/http"))
    wait_for(lambda: place.metric("invalid") == 1, 10, "it is counted")
    said = place.ca.running().log.read_text()
    assert "(AuthorizationPolicy data/http): spec.rules[0].to[0].operation.methods: ['GET']" in said
    place.cluster.apply(auth("rules: [{}]", "data/http"))
    wait_for(lambda: place.metric("invalid") == 0, 10, "it is mended")


# the API server


def test_a_watch_that_is_cut_or_too_old_misses_nothing(place: Place) -> None:
    place.cluster.apply(auth(DENY, "demo/gone"))
    sidecar = place.follows()
    sidecar.until("AuthorizationPolicy demo/gone")
    place.cluster.cut()
    place.cluster.apply(auth(DENY, "demo/cut"))
    sidecar.until("AuthorizationPolicy demo/gone", "AuthorizationPolicy demo/cut")
    place.cluster.down = True
    place.cluster.cut()
    place.cluster.remove("AuthorizationPolicy", "demo/gone")
    place.cluster.apply(auth(DENY, "demo/new"))
    place.cluster.forget()
    place.cluster.down = False
    sidecar.until("AuthorizationPolicy demo/cut", "AuthorizationPolicy demo/new")


def test_who_has_a_set_already_is_told_no_other_while_the_api_server_is_away(place: Place) -> None:
    """Another replica may have told him something newer: to go back could open what was closed."""
    place.cluster.apply(auth(DENY, "demo/closed"))
    place.follows().until("AuthorizationPolicy demo/closed")
    place.cluster.down = True
    place.cluster.cut()
    wait_for(lambda: place.metric("failures") > 0, 20, "it has noticed")
    place.follows().until("AuthorizationPolicy demo/closed")  # who has nothing is told what is known
    place.cluster.bookmarks = 3600  # a watch in which nothing happens is a success, too
    later = place.follows(have="of another replica")
    with pytest.raises(TimeoutError):
        later.within(3)
    place.cluster.down = False
    assert set(later.within(30)) == {"AuthorizationPolicy demo/closed"}


def test_an_api_server_that_does_not_know_its_definitions_yet_takes_no_policy_away(tmp_path: Path) -> None:
    """After its start it may answer 404 for a while; the definition itself is still there."""
    made = Place(tmp_path)
    try:
        made.cluster.apply(auth(DENY, "demo/closed"))
        made.ca.start()
        made.follows().until("AuthorizationPolicy demo/closed")
        kept = {path: made.cluster.objects.pop(path) for path in list(made.cluster.objects) if "istio" in path}
        made.cluster.cut()
        wait_for(lambda: made.metric("failures") > 2, 20, "the objects are not found")
        assert made.metric("objects") == 1
        made.follows().until("AuthorizationPolicy demo/closed")
        made.cluster.objects.update(kept)
        wait_for(lambda: made.metric("failures") == 0, 30, "they are there again")
        made.cluster.define()
        made.follows().until()
    finally:
        for one in made.open:
            one.close()
        made.stop()


def test_nothing_is_told_before_both_kinds_were_seen_or_are_known_to_be_missing(tmp_path: Path) -> None:
    made = Place(tmp_path)
    try:
        made.cluster.define()
        made.cluster.put(PODS, pod("web-0", "web", "10.0.0.1"))
        made.cluster.down = True
        made.ca.spawn()
        wait_for(lambda: made.ca.page("/healthz/ready")[0] == 503, 20, "it lives", made.ca.running())
        assert made.refused(*made.svid()) is grpc.StatusCode.UNAVAILABLE
        assert made.ca.lines("refused")[-1]["reason"] == "not_synced"
        made.cluster.down = False
        wait_for(lambda: made.ca.page("/healthz/ready")[0] == 200, 20, "it is ready")
        assert made.follows().next() == {}
    finally:
        for one in made.open:
            one.close()
        made.stop()
