"""An authority's state in words, for ``tproxy ca show --dir`` and ``tproxy ca rotate``."""

from __future__ import annotations

import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path

from tproxy.cli.words import when
from tproxy.control import rotation, signer, tokens
from tproxy.control.authority import utc_now
from tproxy.control.explain import certificates, in_words, validity
from tproxy.control.state import State
from tproxy.control.tokens import JoinToken


def words(folder: Path) -> list[str]:
    """The authority's state as sentences."""
    now = int(time.time())
    with closing(State.open(folder)) as state:
        found, known = rotation.standing(state, now), tokens.listed(state)
        alive, total = state.rows("SELECT count(CASE WHEN not_after > ? THEN 1 END), count(*) FROM issued", now)[0]
    said = []
    for one in found.generations:
        ends = min(root.not_valid_after_utc for root in certificates(one.bundle.encode()))
        since = f" since {when(one.since)}" if one.since else ""
        said.append(f"generation {one.number}: {_MEANING[one.state]}{since}; its root ends {ends:%Y-%m-%d}")
    said.append(_signs(signer.home(folder, signer.signing(found.generations).number)))
    said.append(f"certificates: {alive} alive, {total} in the log; join tokens: {_good(known, now)}")
    following = found.step.following
    if found.waiting:
        span = in_words(timedelta(seconds=max(one.until for one in found.waiting) + rotation.SKEW - now))
        said.append(f"next step: tproxy ca rotate {following}, not before {len(found.waiting)} holders")
        said[-1] += f" renew or {span} pass" if following == "switch" else f"' certificates end in {span}"
    else:
        said.append(f"next step: tproxy ca rotate {following}, at any time")
    return said


_MEANING = {
    "next": "trusted, does not sign yet",
    "signing": "trusted, signs",
    "old": "trusted, signs no more",
    "dropped": "not trusted; its keys may be deleted",
}


def _signs(place: Path) -> str:
    if (place / "root.key").exists():
        return f"root.key is in {place}: a server makes its intermediate from it, in memory"
    held = signer.of_files(place).certificate
    span = validity(held.not_valid_before_utc, held.not_valid_after_utc, utc_now())
    return f"root.key is away: the intermediate in {place} signs, {span}"


def _good(known: list[JoinToken], now: int) -> str:
    return f"{sum(one.in_words(now).startswith('good') for one in known)} good, {len(known)} known"
