"""The kubelet's file of labels: each line is one, and what is none is an error."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.core.fields import ConfigError
from tproxy.core.podinfo import pod_labels

NAME = st.from_regex(r"[A-Za-z0-9]([-_.A-Za-z0-9]{0,20}[A-Za-z0-9])?", fullmatch=True)
KEY = st.builds(
    lambda prefix, name: prefix + name, st.sampled_from(["", "app.kubernetes.io/", "security.istio.io/"]), NAME
)


@given(st.dictionaries(KEY, st.just("") | NAME))
def test_what_a_kubelet_writes_is_read(labels: dict[str, str]) -> None:
    text = "".join(f'{key}="{value}"\n' for key, value in sorted(labels.items()))
    assert pod_labels(text, "labels") == labels
    assert pod_labels(text.rstrip("\n"), "labels") == labels


@pytest.mark.parametrize("line", ["app", "app=web", 'app="web', 'app="w*b"', '="web"', 'app="a" ', 'app="a\\"b"', ""])
def test_a_line_that_is_no_label_is_an_error_that_names_file_and_line(line: str) -> None:
    with pytest.raises(ConfigError, match=r'^labels: line 2: .*expected key="value"'):
        pod_labels(f'tier="front"\n{line}\nzone="a"\n', "labels")


def test_a_label_that_stands_twice_is_an_error() -> None:
    with pytest.raises(ConfigError, match="line 2"):
        pod_labels('app="web"\napp="db"\n', "labels")


@given(st.text(max_size=200))
def test_nothing_but_a_configuration_error_comes_of_any_text(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert all(key and "\n" not in value for key, value in pod_labels(text, "labels").items())
