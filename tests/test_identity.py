"""Who a peer is: what may be called a SPIFFE id, which ids a pattern covers, which certificate names one."""

from __future__ import annotations

import string
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.core.certificates.x509 import LeafFacts
from tproxy.core.identity import IdPattern, SpiffeId, Svid, parse_trust_domain, svid_id
from tproxy.core.reason import Deny, Reason

OWN = "cluster.local"
WEB = SpiffeId.parse("spiffe://cluster.local/ns/shop/sa/web")

domains = st.text(string.ascii_lowercase + string.digits + "._-", min_size=1, max_size=30).filter(
    lambda text: text not in (".", "..")
)
segments = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=20).filter(
    lambda text: text not in (".", "..")
)
paths = st.lists(segments, min_size=1, max_size=6).map(tuple)
ids = st.builds(SpiffeId, domains, paths)


@given(ids)
def test_an_id_is_read_back_from_its_text(spiffe_id: SpiffeId) -> None:
    assert SpiffeId.parse(str(spiffe_id)) == spiffe_id


@given(st.text(alphabet="spiffe:/.*%?#@AZaz09_- \n\0é\u202e", max_size=60).map("spiffe://".__add__) | st.text())
def test_a_text_is_an_id_as_it_stands_or_not_at_all(text: str) -> None:
    try:
        spiffe_id = SpiffeId.parse(text)
    except ValueError:
        return
    assert str(spiffe_id) == text and len(text) <= 2048
    assert spiffe_id.trust_domain == spiffe_id.trust_domain.lower() and spiffe_id.path
    assert not {"", ".", ".."} & {spiffe_id.trust_domain, *spiffe_id.path}
    assert not set(text) & set("%?#@*\\ \n\0") and text.isascii()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe://cluster.local",
        "spiffe://cluster.local/",
        "spiffe:///ns/shop",
        "spiffe://cluster.local/ns/shop/",
        "spiffe://cluster.local//ns",
        "spiffe://cluster.local/ns/../sa",
        "spiffe://cluster.local/ns/.",
        "spiffe://../ns",
        "spiffe://Cluster.local/ns/shop",
        "SPIFFE://cluster.local/ns/shop",
        "https://cluster.local/ns/shop",
        "spiffe://cluster.local:443/ns/shop",
        "spiffe://me@cluster.local/ns/shop",
        "spiffe://cluster.local/ns/sh%6fp",
        "spiffe://cluster.local/ns/shop?x=1",
        "spiffe://cluster.local/ns/shop#x",
        "spiffe://cluster.local/ns/shop\n",
        "spiffe://cluster.local/ns/*",
        "spiffe://cluster.local/ns/šhop",
        " spiffe://cluster.local/ns/shop",
        f"spiffe://{'a' * 256}/ns",
    ],
)
def test_what_the_specification_forbids_is_no_id(text: str) -> None:
    with pytest.raises(ValueError):
        SpiffeId.parse(text)


def test_an_id_has_at_most_2048_bytes() -> None:
    longest = "spiffe://a/" + "x" * 2037
    assert len(longest) == 2048 and str(SpiffeId.parse(longest)) == longest
    with pytest.raises(ValueError, match="at most 2048 bytes, this one 2049"):
        SpiffeId.parse(longest + "x")


def test_paths_are_case_sensitive() -> None:
    assert SpiffeId.parse("spiffe://a/ns/Shop") != SpiffeId.parse("spiffe://a/ns/shop")


def test_a_workload_s_id_has_the_form_of_istio() -> None:
    assert SpiffeId.workload(OWN, "shop", "web") == WEB


@pytest.mark.parametrize("name", ["", ".", "..", "shop/sa/admin", "web/", "/web", "*", "sh%6fp", "web\n"])
def test_a_namespace_or_service_account_cannot_make_another_path(name: str) -> None:
    for pair in ((name, "web"), ("shop", name)):
        with pytest.raises(ValueError, match="is not a path segment"):
            SpiffeId.workload(OWN, *pair)
    with pytest.raises(ValueError, match="is not a trust domain"):
        SpiffeId.workload(f"{OWN}/{name}", "shop", "web")


@pytest.mark.parametrize(
    ("path", "namespace"),
    [
        ("ns/shop/sa/web", "shop"),
        ("ns/shop", None),
        ("ns/shop/sa/web/x", None),
        ("sa/web/ns/shop", None),
        ("web", None),
    ],
)
def test_only_an_id_in_that_form_has_a_namespace(path: str, namespace: str | None) -> None:
    assert SpiffeId.parse(f"spiffe://{OWN}/{path}").namespace == namespace


@pytest.mark.parametrize("text", ["", "Cluster", "a b", "a/b", "a:1", "a\n", ".", "..", "x" * 256])
def test_what_is_no_trust_domain_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a trust domain"):
        parse_trust_domain(text)


@given(ids, st.data())
def test_a_star_stands_for_exactly_one_segment_whatever_it_is(spiffe_id: SpiffeId, data: st.DataObject) -> None:
    stars = data.draw(st.lists(st.booleans(), min_size=len(spiffe_id.path), max_size=len(spiffe_id.path)))
    path = ["*" if star else part for star, part in zip(stars, spiffe_id.path, strict=True)]
    pattern = IdPattern.parse("/".join(path), spiffe_id.trust_domain)
    assert pattern.matches(spiffe_id)
    assert IdPattern.parse(str(pattern), "elsewhere") == pattern

    place = data.draw(st.integers(0, len(path) - 1))
    other = data.draw(segments)
    changed = replace(spiffe_id, path=(*spiffe_id.path[:place], other, *spiffe_id.path[place + 1 :]))
    assert pattern.matches(changed) is (stars[place] or other == spiffe_id.path[place])
    longer = replace(spiffe_id, path=(*spiffe_id.path[:place], other, *spiffe_id.path[place:]))
    assert not pattern.matches(longer)
    shorter = replace(spiffe_id, path=spiffe_id.path[:place] + spiffe_id.path[place + 1 :])
    assert not pattern.matches(shorter)


@given(ids, domains)
def test_a_pattern_never_matches_another_trust_domain(spiffe_id: SpiffeId, domain: str) -> None:
    stars = IdPattern.parse("/".join("*" * len(spiffe_id.path)), domain)
    assert stars.matches(spiffe_id) is (domain == spiffe_id.trust_domain)


@given(ids)
def test_a_pattern_without_stars_matches_itself_only(spiffe_id: SpiffeId) -> None:
    pattern = IdPattern.parse(str(spiffe_id), OWN)
    assert pattern.matches(spiffe_id) and str(pattern) == str(spiffe_id)
    assert not pattern.matches(replace(spiffe_id, path=(*spiffe_id.path, "x")))


def test_a_path_alone_is_meant_in_our_own_trust_domain() -> None:
    assert IdPattern.parse("ns/shop/sa/*", OWN) == IdPattern.parse(f"spiffe://{OWN}/ns/shop/sa/*", "elsewhere")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/ns/shop",
        "ns/shop/",
        "ns//sa",
        "ns/../sa/web",
        "ns/shop/sa/web*",
        "ns/**/sa/web",
        "ns/sh%6fp",
        "ns/shop?x",
        "spiffe://cluster.local",
        "spiffe://*/ns/shop/sa/web",
        "SPIFFE://cluster.local/ns/shop",
    ],
)
def test_what_could_never_match_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError):
        IdPattern.parse(text, OWN)


def test_a_private_key_is_in_no_repr() -> None:
    svid = Svid(WEB, b"chain", b"secret", 1, 0, 1)
    assert "secret" not in repr(svid) and "secret" not in str(svid)


LEAF = LeafFacts(1, 0, 1, (str(WEB),), False, frozenset({"digitalSignature", "keyAgreement"}), None)


def test_a_leaf_with_one_id_names_its_workload() -> None:
    assert svid_id(LEAF) == WEB


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        (replace(LEAF, uris=()), Reason.PEER_NO_ID),
        (replace(LEAF, uris=(str(WEB), str(WEB))), Reason.PEER_MANY_IDS),
        (replace(LEAF, uris=(str(WEB), "https://example.com")), Reason.PEER_MANY_IDS),
        (replace(LEAF, uris=("https://example.com",)), Reason.PEER_BAD_ID),
        (replace(LEAF, uris=("spiffe://cluster.local",)), Reason.PEER_BAD_ID),
        (replace(LEAF, is_ca=True), Reason.PEER_IS_CA),
        (replace(LEAF, key_usage=frozenset({"digitalSignature", "keyCertSign"})), Reason.PEER_IS_CA),
        (replace(LEAF, key_usage=frozenset({"digitalSignature", "cRLSign"})), Reason.PEER_IS_CA),
        (replace(LEAF, key_usage=frozenset({"keyAgreement"})), Reason.PEER_WRONG_USAGE),
        (replace(LEAF, key_usage=None), Reason.PEER_WRONG_USAGE),
    ],
    ids=lambda value: value.value if isinstance(value, Reason) else "",
)
def test_a_leaf_that_is_no_svid_is_denied_with_its_reason(leaf: LeafFacts, reason: Reason) -> None:
    found = svid_id(leaf)
    assert isinstance(found, Deny) and found.reason is reason and found.why.isprintable()


@given(
    st.builds(
        LeafFacts,
        serial=st.just(1),
        not_before=st.just(0),
        not_after=st.just(1),
        uris=st.lists(ids.map(str) | st.text(max_size=30), max_size=2).map(tuple),
        is_ca=st.booleans(),
        key_usage=st.none() | st.frozensets(st.sampled_from(["digitalSignature", "keyCertSign", "cRLSign", "other"])),
        eku=st.none(),
    )
)
def test_only_a_leaf_that_cannot_sign_others_and_has_exactly_one_valid_uri_gets_an_id(leaf: LeafFacts) -> None:
    match svid_id(leaf):
        case SpiffeId() as found:
            assert leaf.uris == (str(found),) and not leaf.is_ca
            assert leaf.key_usage is not None and "digitalSignature" in leaf.key_usage
            assert not leaf.key_usage & {"keyCertSign", "cRLSign"}
        case Deny(reason, why):
            assert reason.value.startswith("peer_") and why
