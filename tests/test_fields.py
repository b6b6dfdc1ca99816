"""Reading a configuration: every fault names file, field and value; what nobody read is refused; no secret is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.core.config import parse_port
from tproxy.core.fields import ConfigError, Fields

KEY = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIG9uZSBzZWNyZXQ=\n-----END EC PRIVATE KEY-----\n"
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20))
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3), max_leaves=8
)
READERS: dict[str, Callable[[Fields], Any]] = {
    "text": lambda f: f.text("key"),
    "number": lambda f: f.number("key", 1.5, 0.5, 2.5),
    "integer": lambda f: f.integer("key", 1, 0, 10),
    "flag": lambda f: f.flag("key", True),
    "choice": lambda f: f.choice("key", "one", ["one", "two"]),
    "items": lambda f: f.items("key", parse_port),
    "inner": lambda f: f.inner("key").data,
    "each": lambda f: [entry.data for entry in f.each("key")],
}


def fault(read: Callable[[Fields], Any], data: Any) -> str:
    """The sentence that refuses this mapping."""
    with pytest.raises(ConfigError) as caught:
        read(Fields(data, "sidecar.yaml"))
    return str(caught.value)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@given(value=anything)
def test_no_value_makes_a_reader_raise_anything_but_a_config_error_of_one_line(
    read: Callable[[Fields], Any], value: Any
) -> None:
    try:
        read(Fields({"key": value}, "sidecar.yaml"))
    except ConfigError as error:
        assert str(error).startswith("sidecar.yaml: key")
        assert "\n" not in str(error) and len(str(error)) < 1000


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_null_means_the_default(read: Callable[[Fields], Any]) -> None:
    assert read(Fields({"key": None}, "sidecar.yaml")) == read(Fields({}, "sidecar.yaml"))


@pytest.mark.parametrize(
    ("reader", "value", "sentence"),
    [
        ("text", 5, "sidecar.yaml: key: 5: expected one line of text"),
        ("text", "two\nlines", r"sidecar.yaml: key: 'two\nlines': expected one line of text"),
        ("number", "fast", "sidecar.yaml: key: 'fast': expected a number from 0.5 to 2.5"),
        ("number", 3, "sidecar.yaml: key: 3: expected a number from 0.5 to 2.5"),
        ("number", True, "sidecar.yaml: key: True: expected a number from 0.5 to 2.5"),
        ("number", float("nan"), "sidecar.yaml: key: nan: expected a number from 0.5 to 2.5"),
        ("integer", 1.5, "sidecar.yaml: key: 1.5: expected a whole number"),
        ("integer", 11, "sidecar.yaml: key: 11: expected a number from 0 to 10"),
        ("flag", "yes", "sidecar.yaml: key: 'yes': expected true or false"),
        ("flag", 1, "sidecar.yaml: key: 1: expected true or false"),
        ("choice", "tow", "sidecar.yaml: key: 'tow': expected one of one, two; did you mean 'two'?"),
        ("choice", ["one"], "sidecar.yaml: key: ['one']: expected one of one, two; did you mean 'one'?"),
        ("items", {}, "sidecar.yaml: key: {}: expected a list"),
        ("items", True, "sidecar.yaml: key: True: expected a list"),
        ("inner", [], "sidecar.yaml: key: []: expected a mapping (key: value)"),
        ("each", {}, "sidecar.yaml: key: {}: expected a list"),
        ("each", ["x"], "sidecar.yaml: key[0]: 'x': expected a mapping (key: value)"),
        ("each", [{}, None], "sidecar.yaml: key[1]: is empty; expected a mapping (key: value)"),
    ],
)
def test_a_wrong_value_is_refused_by_file_field_and_value(reader: str, value: Any, sentence: str) -> None:
    assert fault(READERS[reader], {"key": value}) == sentence


@pytest.mark.parametrize("value", [[1, 2, 3], ["1", "2", "3"], "1,2,3", " 1, 2 ,3, ", [1, "2", 3]])
def test_a_list_may_be_written_as_annotations_have_it(value: Any) -> None:
    assert Fields({"ports": value}, "").items("ports", int) == (1, 2, 3)


@pytest.mark.parametrize("value", ["", " ", ",", []])
def test_an_empty_text_is_an_empty_list(value: Any) -> None:
    assert Fields({"ports": value}, "").items("ports", int, (1,)) == ()


def test_one_number_is_a_list_of_one() -> None:
    assert Fields({"ports": 80}, "").items("ports", int) == (80,)


def test_a_fault_in_a_list_names_the_item() -> None:
    assert fault(lambda f: f.items("ports", int), {"ports": "1,x"}).startswith("sidecar.yaml: ports[1]: 'x': ")


def test_a_fault_deep_inside_names_its_whole_path() -> None:
    data = {"inbound": {"rules": [{}, {"ports": [80, "http"]}]}}
    said = fault(lambda f: f.inner("inbound").each("rules")[1].items("ports", int), data)
    assert said.startswith("sidecar.yaml: inbound.rules[1].ports[1]: 'http': ")


def test_a_field_that_nobody_read_is_refused_with_the_nearest_name() -> None:
    def read(fields: Fields) -> None:
        fields.text("mode")
        fields.text("rules")
        fields.finish()

    assert fault(read, {"modee": "x"}) == "sidecar.yaml: modee: unknown field; did you mean 'mode'?"
    assert fault(read, {"MODE": "x"}) == "sidecar.yaml: MODE: unknown field; did you mean 'mode'?"
    assert fault(read, {"zzz": "x"}) == "sidecar.yaml: zzz: unknown field"
    assert fault(read, {7: "x"}) == "sidecar.yaml: 7: unknown field"


@given(st.text(max_size=300))
def test_a_field_s_name_cannot_break_the_line(name: str) -> None:
    said = fault(Fields.finish, {name: 1})
    assert said.isprintable() and len(said) < 200


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("pasted", [KEY, KEY.replace("\n", " "), [KEY], {"a": KEY}, {KEY: 1}, [{"a": KEY}], "x," + KEY])
def test_a_private_key_in_the_wrong_field_is_not_repeated(read: Callable[[Fields], Any], pasted: Any) -> None:
    def whole(fields: Fields) -> None:
        read(fields)
        raise ConfigError("", "", "accepted")

    said = fault(whole, {"key": pasted})
    assert "MHcCAQ" not in said and "BEGIN" not in said


def test_what_a_parser_says_of_a_pasted_key_is_not_repeated_either() -> None:
    def parse(text: str) -> str:
        raise ValueError(f"{text!r} is not a host")

    with pytest.raises(ConfigError) as caught:
        Fields({"host": KEY}, "sidecar.yaml").parsed("host", parse, None)
    assert str(caught.value) == "sidecar.yaml: host: a private key does not belong here"
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_a_long_value_is_shortened() -> None:
    assert fault(lambda f: f.flag("key", True), {"key": "x" * 5000}).count("x") < 80
