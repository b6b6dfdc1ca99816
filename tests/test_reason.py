"""Every reason has a name that metrics can carry, and advice that an operator can follow."""

from __future__ import annotations

import re

import pytest

from tproxy.core.reason import ADVICE, Deny, Reason


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_advice_of_one_line(reason: Reason) -> None:
    advice = Deny(reason, "because").advice
    assert advice == ADVICE[reason] and advice.isprintable() and advice.isascii() and len(advice) > 20


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_s_name_is_a_word_that_a_metric_label_can_carry(reason: Reason) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", reason) and reason.name == reason.value.upper()


def test_advice_is_given_for_reasons_only_and_no_two_share_it() -> None:
    assert set(ADVICE) == set(Reason) and len(set(ADVICE.values())) == len(Reason)


def test_denials_are_values() -> None:
    assert Deny(Reason.POLICY, "why", "rule") == Deny(Reason.POLICY, "why", "rule") != Deny(Reason.POLICY, "why")
    assert len({Deny(Reason.POLICY, "why"), Deny(Reason.POLICY, "why")}) == 1
