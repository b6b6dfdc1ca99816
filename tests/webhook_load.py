"""What the webhook carries: python -m tests.webhook_load [requests]. Numbers for ARCHITECTURE.md; nothing is asserted.

Callers (h2load, HTTP/1.1 over TLS) ask again as soon as they are answered, so that with eight of them a review waits
for seven others: its latency is eight times what one costs. What one costs is the CPU time of the server.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.ca_load import cpu
from tests.control import Ca
from tests.pods import pod
from tests.test_admission import asked, large
from tests.webhook import injecting, percentile, port


def load(ca: Ca, folder: Path, name: str, callers: int, requests: int) -> None:
    """One line of figures."""
    log, pid = folder / "log", ca.running().pid
    log.unlink(missing_ok=True)
    url = f"https://127.0.0.1:{port(ca)}/inject"
    argv = ["h2load", "--h1", "-t", "1", "-c", str(callers), "-n", str(requests), "-d", str(folder / name)]
    used = cpu(pid)
    subprocess.run(
        [*argv, "-H", "content-type: application/json", "--log-file", str(log), url],
        check=True,
        timeout=600,
        stdout=subprocess.DEVNULL,
    )
    used = cpu(pid) - used
    rows = [row.split("\t") for row in log.read_text().splitlines()]
    assert {row[1] for row in rows} == {"200"}, {row[1] for row in rows}
    took = [int(row[2]) / 1e6 for row in rows]
    shown = ", ".join(f"p{share:g} {percentile(took, share / 100):.1f}" for share in (50, 90, 99))
    print(f"{name} bytes, {callers} callers: {used / requests * 1000:.2f} ms of CPU each; {shown} ms", flush=True)


def main(requests: int) -> None:
    """All figures."""
    with tempfile.TemporaryDirectory() as name:
        ca = injecting(Path(name))
        try:
            ca.start()
            for body in (asked(pod()), asked(large(2)), asked(large(50))):
                (Path(name) / str(len(body))).write_bytes(body)
                for callers in (1, 8):
                    load(ca, Path(name), str(len(body)), callers, requests)
            print(f"PSS {ca.running().pss() / 2**20:.0f} MiB")
        finally:
            ca.kill()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
