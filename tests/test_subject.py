"""Which names a certificate is for, and what is told of it."""

from __future__ import annotations

from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as st

from tproxy.core.certificates.subject import Names, dns_covers, is_for
from tproxy.core.certificates.xfcc import xfcc

LABEL = st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True)
NAME = st.lists(LABEL, min_size=2, max_size=5).map(".".join)


@given(NAME, LABEL)
def test_a_wildcard_is_for_one_label_more_and_no_other_number(base: str, label: str) -> None:
    assert dns_covers(f"*.{base}", f"{label}.{base}")
    assert dns_covers(f"*.{base.upper()}", f"{label}.{base}")
    assert not dns_covers(f"*.{base}", base)
    assert not dns_covers(f"*.{base}", f"x.{label}.{base}")
    assert not dns_covers(f"*.{base}", f".{base}")
    assert not dns_covers(base, f"{label}.{base}")


def test_a_wildcard_is_never_for_a_whole_top_level_domain() -> None:
    assert not dns_covers("*.com", "example.com")
    assert not dns_covers("*", "example.com")


def test_each_kind_of_name_is_compared_with_its_own() -> None:
    names = Names(("a.example.com",), ("spiffe://x/A",), ("192.0.2.1", "2001:db8::1"))
    for wanted in ("A.example.com", "spiffe://x/A", "192.0.2.1", "2001:db8:0::1"):
        assert is_for(names, ["other", wanted])
    for wanted in ("spiffe://x/a", "192.0.2.2", "example.com", ""):
        assert not is_for(names, [wanted])
    assert not is_for(Names(("192.0.2.1",)), ["192.0.2.1"])
    assert not is_for(names, [])


@given(st.text(), st.lists(st.text()), st.lists(st.text()))
def test_no_certificate_can_add_an_element_or_a_line(subject: str, uris: list[str], dns: list[str]) -> None:
    told = xfcc("ab", "-----BEGIN CERTIFICATE-----\nA+/=\n", subject, uris, dns)
    assert told.isascii()
    assert told.isprintable()
    outside = ""
    quoted = escaped = False
    for char in told:
        if escaped:
            escaped = False
        elif char == "\\" and quoted:
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif not quoted:
            outside += char
    assert not quoted
    assert "," not in outside
    keys = [part.partition("=")[0] for part in outside.split(";")]
    assert keys[:3] == ["Hash", "Cert", "Subject"]
    assert set(keys[3:]) <= {"URI", "DNS"}
    assert unquote(told.split('"')[1]) == "-----BEGIN CERTIFICATE-----\nA+/=\n"
