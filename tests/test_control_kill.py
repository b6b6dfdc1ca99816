"""kill -9 of the authority at random moments, under load and in the middle of rotations: nothing that was said is lost.

TPROXY_KILLS is the number of times (20; ``make kills`` does 200).
"""

from __future__ import annotations

import os
import random
import threading
import time
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.control import DOMAIN, WEB, Ca, csr, leaf, unary
from tproxy.control import rotation
from tproxy.control.signer import roots
from tproxy.wire.ca_pb2 import IstioCertificateRequest

KILLS = int(os.environ.get("TPROXY_KILLS", "20"))
STEPS = ("add", "switch", "drop")
CLIENTS = 4


class Client(threading.Thread):
    """Asks without a pause and remembers what it was given."""

    def __init__(self, ca: Ca, token: str, stop: threading.Event) -> None:
        super().__init__()
        self.ca, self.token, self.stop = ca, token, stop
        self.serials: list[str] = []

    def run(self) -> None:
        request = IstioCertificateRequest(csr=csr(ec.generate_private_key(ec.SECP256R1())), validity_duration=3600)
        metadata = (("authorization", f"Bearer {self.token}"),)
        with self.ca.channel() as channel, suppress(grpc.RpcError):
            method = unary(channel)
            while not self.stop.is_set():
                chain = method(request, metadata=metadata, timeout=10, wait_for_ready=False).cert_chain
                self.serials.append(f"{leaf(list(chain)).serial_number:x}")


def rotate(ca: Ca, step: str) -> None:
    """One step in the middle of everything, as the command does it."""
    state, now = ca.state(), int(time.time())
    try:
        if step == "add":
            assert not isinstance(rotation.add(ca.dir, state, DOMAIN, "ecdsa", now), rotation.NotYet)
        else:
            take = rotation.switch if step == "switch" else rotation.drop
            assert not isinstance(take(ca.dir, state, now, force=True), rotation.NotYet)
    finally:
        state.close()


@pytest.mark.timeout(60 + 10 * KILLS)
def test_kill_9_loses_nothing_that_was_answered_and_no_serial_number_comes_twice(tmp_path: Path) -> None:
    chance = random.Random(1)
    ca = Ca(tmp_path, limits={"concurrency": 200})
    token, uses = ca.token(), 1_000_000
    bounded = ca.token(uses=uses)
    given: list[str] = []
    counted = 0
    try:
        for turn in range(KILLS):
            if turn % 5 == 4:  # once in a while before it is ready
                ca.spawn()
                time.sleep(chance.random())
                ca.kill()
            ca.start()
            stop = threading.Event()
            clients = [Client(ca, bounded if number else token, stop) for number in range(CLIENTS)]
            for client in clients:
                client.start()
            time.sleep(chance.random() * 0.4)
            if turn % 4 == 3:
                rotate(ca, STEPS[turn // 4 % 3])
            ca.kill()
            stop.set()
            for client in clients:
                client.join()
                given += client.serials
            counted = max(counted, _check(ca, given, uses, turn))
    finally:
        ca.kill()
    assert len(given) > KILLS and counted >= len(given)
    print(f"{KILLS} kills, {len(given)} certificates answered, {counted} in the log")


def _check(ca: Ca, given: list[str], uses: int, turn: int) -> int:
    """The state as the next start finds it; how many certificates are in the log."""
    state = ca.state()
    try:
        assert state.rows("PRAGMA integrity_check") == [("ok",)]
        logged = [str(row[0]) for row in state.rows("SELECT serial FROM issued WHERE how != 'self'")]
        assert len(given) == len(set(given))
        assert not set(given) - set(logged)
        taken = state.rows(
            "SELECT count(*) FROM issued WHERE token IN (SELECT name FROM tokens WHERE uses IS NOT NULL)"
        )
        left = state.rows("SELECT uses FROM tokens WHERE uses IS NOT NULL")
        assert taken[0][0] == uses - int(str(left[0][0]))  # a use and its certificate are one
        steps = (turn + 1) // 4
        version, generations = state.generations()
        assert version == 1 + steps and len(generations) == 1 + (steps + 2) // 3
        assert (ca.dir / "bundle.pem").read_text() == roots(generations)
        assert {str(row[0]) for row in state.rows("SELECT DISTINCT id FROM issued WHERE how != 'self'")} <= {str(WEB)}
        return len(logged)
    finally:
        state.close()
