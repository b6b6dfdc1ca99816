"""The short cut on the running kernel: exact in every case, bounded, blind to other pods, gone without a trace."""

from __future__ import annotations

import ctypes
import hashlib
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.test_relay import push
from tproxy.core.address import Endpoint
from tproxy.core.config import Config
from tproxy.core.settings import Marks
from tproxy.kernel import cgroup, netns, selftest, sockmap
from tproxy.kernel.errors import KernelError
from tproxy.kernel.libbpf import Program
from tproxy.kernel.sock import SO_MARK, unread
from tproxy.kernel.sockmap import KEY, NOBODY, OBJECT, STEP, WINDOW, Off, Shortcut

ROOT = Path(__file__).parent.parent
CONFIG = Config.parse({}, "test")
SO_ZEROCOPY = 60  # asm-generic/socket.h
SLOW = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@contextmanager
def namespace() -> Iterator[None]:
    """The test's thread moves into a namespace of its own."""
    name = f"sm-{uuid.uuid4().hex[:8]}"
    netns.create(name)
    try:
        with netns.inside(name):
            yield
    finally:
        netns.delete(name)


def loaded(both: bool) -> Shortcut:
    """For whoever connects, whether or not applications could notice; skips where the kernel does not take it."""
    try:
        made = Shortcut(CONFIG.marks, both)
    except KernelError as error:
        pytest.skip(f"no sockmap here: {error}")
    assert selftest.prove(made) == ""
    made.admit(0)
    return made


@pytest.fixture(scope="module", params=[False, True], ids=["sent", "both"])
def shortcut(request: pytest.FixtureRequest) -> Iterator[Shortcut]:
    """One in a namespace of its own; tests run inside it."""
    with namespace():
        made = loaded(request.param)
        yield made
        made.close()


@pytest.fixture(scope="module")
def both() -> Iterator[Shortcut]:
    """One that redirects to the application too."""
    with namespace():
        made = loaded(True)
        yield made
        made.close()


class Pair:
    """What the application opened (``app``), and what the sidecar accepted (``own``)."""

    def __init__(self, family: int = socket.AF_INET, mark: int = Marks().own) -> None:
        host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        with socket.create_server((host, 0), family=family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            self.app = socket.create_connection(listener.getsockname()[:2], timeout=10)
            self.own, _ = listener.accept()
        self.own.settimeout(10)

    def key(self, shortcut: Shortcut, sender: socket.socket) -> bytes:
        """The flow that this socket sends."""
        receiver = self.own if sender is self.app else self.app
        return shortcut.key(Endpoint.of_socket(sender.getsockname()), Endpoint.of_socket(receiver.getsockname()))

    def close(self) -> None:
        self.app.close()
        self.own.close()


def content(size: int) -> bytes:
    return hashlib.shake_128(b"position").digest(size)


def pull(sock: socket.socket, report: Any, every: int) -> bytes:
    """Read to the end, and say what was consumed after every so many bytes; 0 never says it."""
    seen, told = bytearray(), 0
    while piece := sock.recv(65536):
        seen += piece
        if every and len(seen) - told >= every:
            told = len(seen)
            report(told)
    return bytes(seen)


@SLOW
@given(
    size=st.integers(0, 3_000_000),
    sizes=st.lists(st.integers(1, 300_000), min_size=1, max_size=5),
    every=st.sampled_from((0, 1, STEP, WINDOW)),
    v6=st.booleans(),
    from_app=st.booleans(),
)
def test_bytes_are_exact_wherever_the_flow_goes_back_to_tcp(
    shortcut: Shortcut, size: int, sizes: list[int], every: int, v6: bool, from_app: bool
) -> None:
    pair = Pair(socket.AF_INET6 if v6 else socket.AF_INET)
    sender, receiver = (pair.app, pair.own) if from_app else (pair.own, pair.app)
    flow, data = shortcut.flow(pair.own), content(size)
    key = pair.key(shortcut, sender)
    job = threading.Thread(target=push, args=(sender, data, [max(size // 500, one) for one in sizes]))
    job.start()
    assert pull(receiver, flow.received if from_app else flow.sent, every) == data
    job.join()
    redirected, _ = shortcut.state(key) or (-1, False)
    assert (redirected > 0) == (size > 0 and (from_app or shortcut.both))
    if not every:
        assert redirected <= WINDOW
    if from_app:  # whoever takes over from recv(2) may do so only when nothing can come by the short cut any more
        assert flow.by_tcp(size) == (shortcut.state(key) or (0, False))[1]
        assert not size or not flow.by_tcp(redirected - 1)
    pair.close()


def test_a_reader_that_stops_bounds_what_is_redirected_and_loses_nothing(shortcut: Shortcut) -> None:
    for from_app in (True, False) if shortcut.both else (True,):
        pair, data = Pair(), content(4 * WINDOW)
        sender, receiver = (pair.app, pair.own) if from_app else (pair.own, pair.app)
        key = pair.key(shortcut, sender)
        job = threading.Thread(target=push, args=(sender, data, [10_000]))
        job.start()
        job.join(0.3)
        redirected, off = shortcut.state(key) or (0, False)
        assert 0 < redirected <= WINDOW and off
        assert pull(receiver, None, 0) == data
        job.join()
        pair.close()


def test_what_the_application_left_unread_is_not_taken_for_consumed(both: Shortcut) -> None:
    shortcut = both
    if not shortcut.accounted:
        pytest.skip("this kernel does not account for what is redirected; the window is never moved then")
    pair = Pair()
    flow = shortcut.flow(pair.own)
    pair.own.sendall(content(STEP))
    flow.sent(STEP)
    assert int.from_bytes(shortcut.consumed.lookup(pair.key(shortcut, pair.own), 8) or b"", "little") == 0
    pair.app.recv(STEP, socket.MSG_WAITALL)
    flow.sent(STEP)
    assert int.from_bytes(shortcut.consumed.lookup(pair.key(shortcut, pair.own), 8) or b"", "little") == STEP
    pair.close()


def test_one_direction_may_end_while_the_other_goes_on(shortcut: Shortcut) -> None:
    pair = Pair()
    pair.app.sendall(b"question")
    pair.app.shutdown(socket.SHUT_WR)
    assert pair.own.recv(100) == b"question" and pair.own.recv(100) == b""
    pair.own.sendall(b"answer")
    assert pair.app.recv(100) == b"answer"
    pair.close()
    assert pair.app.fileno() == -1


def test_a_reset_is_a_reset(shortcut: Shortcut) -> None:
    for from_app in (True, False):
        pair = Pair()
        first, second = (pair.app, pair.own) if from_app else (pair.own, pair.app)
        first.sendall(b"x")
        assert second.recv(1) == b"x"
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        first.close()
        with pytest.raises(ConnectionResetError):
            second.recv(1)
        pair.close()


def test_only_a_pair_of_application_and_sidecar_takes_the_short_cut(shortcut: Shortcut) -> None:
    both_applications = Pair(mark=0)
    both_applications.app.sendall(b"x")
    assert both_applications.own.recv(1) == b"x"
    assert (shortcut.state(both_applications.key(shortcut, both_applications.app)) or (0, True))[0] == 0
    assert shortcut.state(both_applications.key(shortcut, both_applications.own)) is None
    both_applications.close()


def test_two_pods_under_one_cgroup_never_meet(shortcut: Shortcut) -> None:
    before = set(shortcut.flows.keys(KEY.size))
    with namespace():
        pair = Pair()
        pair.app.sendall(b"x")
        assert pair.own.recv(1) == b"x"
        assert set(shortcut.flows.keys(KEY.size)) <= before
        pair.close()


def test_entries_go_with_their_sockets(shortcut: Shortcut) -> None:
    for _ in range(20):
        pair = Pair()
        pair.app.sendall(b"x")
        pair.own.recv(1)
        pair.close()
    assert not shortcut.flows.keys(KEY.size) and not shortcut.consumed.keys(KEY.size)


def test_a_report_on_a_connection_that_is_gone_leaves_nothing(shortcut: Shortcut) -> None:
    pair = Pair()
    flow = shortcut.flow(pair.own)
    flow.received(1)
    pair.close()
    flow.received(WINDOW)
    flow.sent(WINDOW)
    assert not shortcut.consumed.keys(KEY.size)


@pytest.mark.parametrize("from_app", [True, False])
def test_when_the_short_cut_goes_connections_go_on_by_tcp(from_app: bool) -> None:
    with namespace():
        made = loaded(True)
        pair, data = Pair(), content(3 * WINDOW)
        sender, receiver = (pair.app, pair.own) if from_app else (pair.own, pair.app)
        job = threading.Thread(target=push, args=(sender, data, [5000]))
        job.start()
        seen = receiver.recv(100_000)
        made.close()
        assert seen + pull(receiver, None, 0) == data
        job.join()
        pair.close()


def test_what_was_redirected_outlives_the_sidecar() -> None:
    with namespace():
        made = loaded(True)
        pair, data = Pair(), content(WINDOW // 2)
        pair.own.sendall(data)
        pair.own.close()
        made.close()
        assert pull(pair.app, None, 0) == data
        pair.app.close()


def test_a_thread_that_sends_before_the_connection_is_made_is_not_overtaken(shortcut: Shortcut) -> None:
    """Its first bytes go by TCP, because when it called send(2) the socket was an ordinary one."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, SO_MARK, Marks().own)
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        with socket.create_connection(listener.getsockname()):  # the backlog is full: the next SYN is dropped
            app = socket.socket()
            app.setblocking(False)
            app.connect_ex(listener.getsockname())
            app.setblocking(True)
            job = threading.Thread(target=app.send, args=(b"first ",))
            job.start()
            listener.accept()[0].close()
            job.join()
            app.sendall(b"second")
            own, _ = listener.accept()
            app.shutdown(socket.SHUT_WR)
            assert pull(own, None, 0) == b"first second"
            app.close()
            own.close()


def test_after_a_shutdown_nothing_can_be_sent(shortcut: Shortcut) -> None:
    pair = Pair()
    pair.app.sendall(b"x")
    pair.app.shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenPipeError):
        pair.app.sendall(b"y")
    assert pull(pair.own, None, 0) == b"x"
    pair.close()


def test_zero_copy_is_refused_because_its_completion_would_never_come(shortcut: Shortcut) -> None:
    pair = Pair()
    with pytest.raises(PermissionError):
        pair.app.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    pair.close()


def test_an_application_cannot_notice_where_only_what_it_sends_takes_the_short_cut() -> None:
    with namespace():
        made = selftest.open_shortcut(CONFIG)
        if isinstance(made, Off):
            assert any(word in made.why for word in ("FIONREAD", "splice", "EAGAIN")) or "sockmap" not in made.why
            pytest.skip(f"off on this kernel: {made.why}")
        pair = Pair()
        pair.own.sendall(content(1000))
        assert unread(pair.app) == 1000
        pair.app.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 2000)
        assert not select.select([pair.app], [], [], 0)[0]
        pair.close()
        made.close()


def test_where_it_is_on_no_blocking_recv_ends_early_because_another_thread_sends() -> None:
    with namespace():
        made = selftest.open_shortcut(CONFIG)
        if isinstance(made, Off):
            pytest.skip(f"off on this kernel: {made.why}")
        for _ in range(100):
            pair = Pair()
            assert selftest.duplex(pair.app, pair.own) == ""
            pair.close()
        made.close()


def test_the_look_for_an_early_end_of_recv_does_not_accuse_tcp(shortcut: Shortcut) -> None:
    shortcut.admit(NOBODY)
    for _ in range(20):
        pair = Pair()
        assert selftest.duplex(pair.app, pair.own) == ""
        pair.close()
    shortcut.admit(0)


def test_the_self_test_says_how_a_blocking_recv_ended(shortcut: Shortcut) -> None:
    """It is a race: what ten looks do not see may still be there, but what one saw is."""
    found = {selftest.interrupted(shortcut) for _ in range(10)} - {""}
    shortcut.admit(0)
    assert found <= {"a blocking recv(2) of the application ends with EAGAIN while another thread sends"}


def test_the_self_test_takes_less_than_a_fifth_of_a_second() -> None:
    with namespace():
        assert min(duration() for _ in range(5)) < 0.2


def duration() -> float:
    """Seconds, of loading and of every step whatever the one before it found."""
    began, made = time.perf_counter(), loaded(False)
    selftest.miscounted(made)
    selftest.interrupted(made)
    took = time.perf_counter() - began
    made.close()
    return took


def test_what_came_by_the_short_cut_is_told_after_the_application_has_gone(shortcut: Shortcut) -> None:
    """splice(2) does not see it, so the sidecar must know even then."""
    pair = Pair()
    flow, key = shortcut.flow(pair.own), pair.key(shortcut, pair.app)
    pair.app.sendall(b"x")
    pair.app.close()
    assert shortcut.state(key) == (1, False) and not flow.by_tcp(0)
    pair.close()
    assert shortcut.state(key) is None


def test_the_self_test_touches_no_other_connection(shortcut: Shortcut) -> None:
    shortcut.admit(1)
    pair = Pair()
    assert shortcut.state(pair.key(shortcut, pair.app)) is None
    pair.close()
    shortcut.admit(0)


def test_the_structs_are_as_the_object_file_has_them() -> None:
    found = {name: struct_of(name) for name in ("key", "flow", "settings")}
    assert found["key"] == (KEY.size, [0, 8, 24, 40, 42, 44])
    assert found["flow"] == (sockmap.FLOW.size, [0, 8, 12, 16, 20])
    assert found["settings"] == (sockmap.SETTINGS.size, [0, 8, 12, 16, 20])


def struct_of(name: str) -> tuple[int, list[int]]:
    """Size and offsets in bytes, from the object's BTF (linux/btf.h)."""
    library = ctypes.CDLL("libbpf.so.1")
    library.btf__parse_elf.restype = library.btf__type_by_id.restype = ctypes.c_void_p
    btf = ctypes.c_void_p(library.btf__parse_elf(bytes(OBJECT), None))
    kind = library.btf__find_by_name_kind(btf, name.encode(), 4)
    at = library.btf__type_by_id(btf, kind)
    _name, info, size = struct.unpack("=III", ctypes.string_at(at, 12))
    members = [struct.unpack("=III", ctypes.string_at(at + 12 + 12 * index, 12)) for index in range(info & 0xFFFF)]
    return size, [offset // 8 for _name, _type, offset in members]


def test_the_source_compiles_and_the_verifier_accepts_it(tmp_path: Path) -> None:
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed; the committed object is what runs")
    subprocess.run(["make", "-s", "bpf", f"BPF_OUT={tmp_path}/o"], cwd=ROOT, check=True, timeout=60)
    Program(tmp_path / "o").close()


def test_without_the_object_there_is_a_reason_and_no_short_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockmap, "OBJECT", Path("/nonexistent/sockmap.bpf.o"))
    made = selftest.open_shortcut(CONFIG)
    assert isinstance(made, Off) and "No such file" in made.why


def test_without_cgroup_v2_there_is_a_reason_and_no_short_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "pod_cgroup", lambda own, mounts: None)
    made = selftest.open_shortcut(CONFIG)
    assert isinstance(made, Off) and "cgroup" in made.why


def test_it_can_be_turned_off() -> None:
    made = selftest.open_shortcut(Config.parse({"fast": {"sockmap": "off"}}, "test"))
    assert made == Off("fast.sockmap is off")
