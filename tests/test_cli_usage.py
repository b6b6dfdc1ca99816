"""What every command line has in common: help that helps, faults of one line, numbers with bounds."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from tproxy.cli import main, parser
from tproxy.cli.ask import page
from tproxy.core.fields import ConfigError
from tproxy.kernel.sock import plain_listener

BARE = ("tproxy forward status", "tproxy forward remove", "tproxy forward disable")  # no options at all


def every(top: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield top
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from every(inner)


ALL = [one for one in every(parser()) if one.prog not in BARE]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str]:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.prog)
def test_every_command_describes_itself_with_an_example(one: argparse.ArgumentParser) -> None:
    text = one.format_help()
    assert one.description, one.prog
    assert one.prog in (one.epilog or ""), f"no example:\n{text}"


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.prog)
def test_every_option_says_what_it_is(one: argparse.ArgumentParser) -> None:
    assert [action.dest for action in one._actions if not action.help] == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["gatway"], "did you mean gateway?; see tproxy --help"),
        (["gateway", "chek"], "did you mean check?; see tproxy gateway --help"),
        (["gateway", "check", "conf", "--jsn"], "unrecognized arguments: --jsn; did you mean --json?"),
        (
            ["gateway", "run", "conf", "--redy-port=3"],
            "unrecognized arguments: --redy-port=3; did you mean --ready-port?",
        ),
        (["gateway", "run", "conf", "--hello", "nan"], "argument --hello: 'nan': expected seconds"),
        (["gateway", "run", "conf", "--connect", "-1"], "argument --connect: '-1': expected seconds"),
        (["gateway", "run", "conf", "--half-open", "0"], "argument --half-open: '0': expected a whole number, 1 to"),
        (["gateway", "run", "conf", "--metrics-port", "99999"], "expected a whole number, 0 to 65535"),
        (["gateway", "explain", "conf", "--port", "0"], "expected a whole number, 1 to 65535"),
        (["forward", "run", "TCP-LISTEN:1", "TCP:a:1", "--connect", "inf"], "argument --connect: 'inf'"),
        (["identity", "--port", "x"], "argument --port: 'x': expected a whole number"),
        (["ca"], "the following arguments are required: CALL; see tproxy ca --help"),
        (["bench", "--seconds", "x"], "argument --seconds: 'x': expected seconds, 0.001 to 31536000"),
    ],
)
def test_a_wrong_word_is_one_line_with_the_nearest_and_exit_code_2(
    words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = said(capsys, *words)
    assert code == 2 and why in text and text.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value"), [("--watch-namespace", "shop"), ("--publish-service", "a/b"), ("--ca-file", "x")]
)
def test_what_is_for_a_cluster_is_refused_without_one(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gateway", "run", "conf", option, value]) == 2
    assert f"{option}: '{value}': is for a cluster" in capsys.readouterr().err


def test_a_gateway_listens_at_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gateway", "run", "conf", "--listen", "nowhere"]) == 2
    assert "--listen: 'nowhere'" in capsys.readouterr().err


def test_who_answers_on_the_admin_port_and_is_no_sidecar_is_named_so() -> None:
    import threading

    sock = plain_listener("127.0.0.1", 0)
    port = sock.getsockname()[1]

    def answer() -> None:
        peer, _ = sock.accept()
        peer.recv(4096)
        peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nhtml")
        peer.close()

    sock.setblocking(True)
    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(ConfigError, match="something answers there that is no sidecar"):
        page(port, "/identity", "--port")
    thread.join()
    sock.close()
