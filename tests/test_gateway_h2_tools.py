"""HTTP/2 as the tools people have speak it: curl, nghttp, h2load."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.http2 import Site, serving


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(Site().accept) as port:
        yield f"http://127.0.0.1:{port}"


def run(*command: str, data: bytes = b"") -> str:
    return subprocess.run(command, input=data, capture_output=True, check=True, timeout=30).stdout.decode()


def test_curl_with_prior_knowledge_gets_an_answer(url: str) -> None:
    assert run("curl", "-si", "--http2-prior-knowledge", f"{url}/get?a=1").splitlines() == [
        *("HTTP/2 200 ", "content-type: text/plain", "content-length: 15", "", "GET /get?a=1 0")
    ]


def test_curl_sends_a_body_larger_than_every_window(url: str) -> None:
    sent = run("curl", "-s", "--http2-prior-knowledge", "--data-binary", "@-", f"{url}/post", data=b"x" * 5_000_000)
    assert sent == "POST /post 5000000\n"


def test_curl_gets_a_body_larger_than_every_window(url: str) -> None:
    assert len(run("curl", "-s", "--http2-prior-knowledge", f"{url}/big/20000000")) == 20_000_000


def test_a_head_request_of_curl_gets_a_length_and_no_body(url: str) -> None:
    """Row 003-09."""
    lines = run("curl", "-sI", "--http2-prior-knowledge", f"{url}/big/472").splitlines()
    assert lines == ["HTTP/2 200 ", "content-type: text/plain", "content-length: 472", ""]


def test_nghttp_sees_one_hundred_streams_announced(url: str) -> None:
    """Row 003-06."""
    seen = run("nghttp", "-nv", "--no-dep", f"{url}/one", f"{url}/two")
    assert "SETTINGS_MAX_CONCURRENT_STREAMS(0x03):100" in seen
    assert seen.count(":status: 200") == 2
    assert "RST_STREAM" not in seen
    assert "recv GOAWAY" not in seen


@pytest.mark.parametrize("options", [("-m", "100"), ("-m", "10", "-c", "10"), ("-m", "32", "-w", "30", "-W", "30")])
def test_h2load_has_no_failed_request(url: str, options: tuple[str, ...]) -> None:
    seen = run("h2load", "-n", "5000", *options, f"{url}/big/1000")
    assert re.search("5000 succeeded, 0 failed, 0 errored, 0 timeout", seen), seen
