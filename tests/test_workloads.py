"""Kubernetes objects to entries: who is in the mesh, under which id, and what a service's address expects."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cluster import endpoints, pod, service
from tproxy.core import workloads
from tproxy.core.address import parse_address
from tproxy.core.directory import Entry, Kind, Mirror, Part, Version
from tproxy.core.workloads import Book

IP, OTHER, VIP = "10.0.0.7", "10.0.0.8", "10.96.0.1"
WEB = ("ns/demo/sa/web",)


def book(*documents: dict[str, Any]) -> Book:
    made = Book()
    for document in documents:
        put(made, document)
    made.flush()
    return made


def put(made: Book, document: dict[str, Any], gone: bool = False) -> None:
    key = workloads.name_of(document)
    if "endpoints" in document:
        made.slice(key, None if gone else workloads.endpoint_slice(document))
    elif "status" in document:
        made.pod(key, None if gone else workloads.pod(document))
    else:
        made.service(key, None if gone else workloads.service(document))


def at(made: Book, address: str = IP) -> Entry | None:
    return made.entries.get(parse_address(address))


# pods


def test_a_pod_is_expected_at_each_of_its_addresses_under_its_service_account() -> None:
    made = book(pod("web-0", "web", IP, "fd00::7"))
    assert at(made) == at(made, "fd00::7") == Entry(Kind.POD, "demo/web-0", WEB)


@pytest.mark.parametrize(
    ("about", "meshed"),
    [
        ({"annotations": {"tproxy.dev/status": "injected"}}, True),
        ({"annotations": {"tproxy.dev/status": '{"injected": true}'}}, True),
        ({"annotations": {"tproxy.dev/status": '{"containers": ["tproxy"]}'}}, True),
        ({"annotations": {"tproxy.dev/status": '{"injected": false, "reason": "opted out"}'}}, False),
        ({"annotations": {"tproxy.dev/status": "left alone: opted out"}}, False),
        ({"annotations": {"tproxy.dev/status": ""}}, False),
        ({"labels": {"security.istio.io/tlsMode": "istio"}}, True),
        ({"labels": {"security.istio.io/tlsMode": "disabled"}}, False),
        ({}, False),
    ],
)
def test_the_injector_s_mark_or_istio_s_says_that_a_pod_is_in_the_mesh(about: dict[str, Any], meshed: bool) -> None:
    made = book(pod("web-0", "web", IP, meshed=False, **about))
    assert at(made) == Entry(Kind.POD, "demo/web-0", WEB if meshed else ())


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_has_no_entry(phase: str) -> None:
    assert at(book(pod("job-0", "web", IP, phase=phase))) is None


def test_a_pod_on_the_host_s_network_or_without_an_address_has_no_entry() -> None:
    on_host = pod("node-0", "web", IP)
    on_host["spec"]["hostNetwork"] = True
    assert book(on_host, pod("new-0", "web")).entries == {}


def test_a_pod_that_is_being_deleted_keeps_its_entry_until_it_is_gone_or_another_takes_the_address() -> None:
    leaving = pod("web-0", "web", IP, created=100, deletionTimestamp="2026-01-01T00:00:00Z")
    made = book(leaving)
    assert at(made) == Entry(Kind.POD, "demo/web-0", WEB)
    put(made, pod("db-0", "db", IP, created=50))
    made.flush()
    assert at(made) == Entry(Kind.POD, "demo/db-0", ("ns/demo/sa/db",))
    put(made, leaving, gone=True)
    assert not made.flush()


@given(st.permutations(("old", "new", "ended")))
def test_of_pods_that_claim_one_address_the_newest_is_expected_in_whatever_order_they_are_seen(
    order: list[str],
) -> None:
    documents = {
        "old": pod("old", "a", IP, created=1),
        "new": pod("new", "b", IP, created=2),
        "ended": pod("ended", "c", IP, created=3, phase="Failed"),
    }
    made = book(*(documents[one] for one in order))
    assert at(made) == Entry(Kind.POD, "demo/new", ("ns/demo/sa/b",))
    put(made, documents["new"], gone=True)
    made.flush()
    assert at(made) == Entry(Kind.POD, "demo/old", ("ns/demo/sa/a",))


def test_an_address_that_changes_its_pod_is_one_change_and_not_a_removal() -> None:
    made = book(pod("old", "a", IP))
    put(made, pod("old", "a", IP), gone=True)
    put(made, pod("new", "b", IP))
    delta = made.flush()
    assert [entry.name for entry in delta.set.values()] == ["demo/new"]
    assert not delta.removed


# services


def test_a_service_s_address_expects_all_accounts_behind_it() -> None:
    made = book(service("web", VIP), endpoints("web", IP, OTHER), pod("a", "web", IP), pod("b", "db", OTHER))
    assert at(made, VIP) == Entry(Kind.SERVICE, "demo/web", ("ns/demo/sa/db", "ns/demo/sa/web"))


def test_a_service_some_of_whose_endpoints_are_outside_expects_the_others_and_says_so() -> None:
    made = book(
        service("web", VIP), endpoints("web", IP, OTHER), pod("a", "web", IP), pod("b", "db", OTHER, meshed=False)
    )
    entry = at(made, VIP)
    assert entry == Entry(Kind.SERVICE, "demo/web", WEB, mixed=True)
    assert entry.rule == "directory: service demo/web (mixed: not every endpoint is in the mesh)"


def test_a_service_nobody_of_which_is_in_the_mesh_speaks_no_mtls() -> None:
    made = book(service("web", VIP), endpoints("web", IP, "192.0.2.1"), pod("a", "web", IP, meshed=False))
    assert at(made, VIP) == Entry(Kind.SERVICE, "demo/web")


def test_endpoints_that_are_not_ready_count_only_when_there_are_no_others() -> None:
    documents = service("web", VIP), pod("a", "web", IP), pod("b", "db", OTHER)
    assert at(book(*documents, endpoints("web", IP, waiting=(OTHER,))), VIP) == Entry(Kind.SERVICE, "demo/web", WEB)
    alone = at(book(*documents, endpoints("web", waiting=(OTHER,))), VIP)
    assert alone == Entry(Kind.SERVICE, "demo/web", ("ns/demo/sa/db",))


def test_an_endpoint_that_drains_is_still_chosen_by_kube_proxy() -> None:
    slice_ = endpoints("web", IP)
    slice_["endpoints"][0]["conditions"] = {"ready": False, "serving": True, "terminating": True}
    made = book(service("web", VIP), slice_, endpoints("web", waiting=(OTHER,), number=2), pod("a", "web", IP))
    assert at(made, VIP) == Entry(Kind.SERVICE, "demo/web", WEB)


def test_headless_services_and_services_without_endpoints_have_no_entry() -> None:
    made = book(service("headless"), endpoints("headless", IP), service("empty", VIP), pod("a", "web", IP))
    assert set(made.entries) == {parse_address(IP)}


# any order, any time


NAMES = ("a", "b", "c")
ADDRESSES = (IP, OTHER, "10.0.0.9", "fd00::7")
some = st.lists(st.sampled_from(ADDRESSES), max_size=2, unique=True)
documents = st.one_of(
    st.builds(
        lambda name, account, ips, created, **more: pod(name, account, *ips, created=created, **more),
        *(st.sampled_from(NAMES), st.sampled_from(("web", "db")), some, st.integers(0, 3)),
        meshed=st.booleans(),
        phase=st.sampled_from(("Running", "Succeeded")),
    ),
    st.builds(lambda name, ips: service(name, *ips), st.sampled_from(NAMES), st.lists(st.just(VIP), max_size=1)),
    st.builds(
        lambda name, ready, waiting: endpoints(name, *ready, waiting=tuple(waiting)), st.sampled_from(NAMES), some, some
    ),
)


@given(st.lists(st.tuples(documents, st.booleans(), st.booleans()), max_size=25))
def test_what_is_kept_step_by_step_is_what_a_fresh_look_at_the_end_finds(
    steps: list[tuple[dict[str, Any], bool, bool]],
) -> None:
    """And whoever applied each step has the same."""
    made, mirror, last = Book(), Mirror(), dict[tuple[bool, bool, str], dict[str, Any]]()
    mirror.take(Part(Version("e", 0), True, made.flush()))
    number = 0
    for document, gone, look in steps:
        key = ("endpoints" in document, "status" in document, workloads.name_of(document))
        put(made, document, gone)
        if gone:
            last.pop(key, None)
        else:
            last[key] = document
        if look:
            number += 1
            mirror.take(Part(Version("e", number), False, made.flush()))
    mirror.take(Part(Version("e", number + 1), False, made.flush()))
    assert made.entries == mirror.entries == book(*last.values()).entries


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ("metadata", "spec", "status", "endpoints", "addresses", "podIPs", "ip", "labels", "clusterIPs")
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@given(json)
def test_no_object_of_whatever_shape_makes_the_reader_stumble(document: Any) -> None:
    workloads.name_of(document)
    workloads.pod(document)
    workloads.service(document)
    workloads.endpoint_slice(document)
