"""``python -m pods``: the image, the manifests, real containers; the last line says how many checks passed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from images import build
from images.engine import Engine, EngineError, need
from pods import kind
from pods.podman import Podman
from pods.story import Story
from tproxy.demo.stage import Stage

GOAL = 150  # MB
OVERLAYS = Path("manifests/overlays")


def main() -> int:
    """0 if all passed, 1 if not, 3 if something is missing."""
    parser = argparse.ArgumentParser(prog="pods", description=__doc__)
    parser.add_argument("--kind", action="store_true", help="on kind, which needs Docker, instead of podman")
    where = "kind-demo" if (on_kind := parser.parse_args().kind) else "pod-demo"
    try:
        return _kind(Path(f"build/{where}")) if on_kind else _podman(Path("build/podman"))
    except EngineError as error:
        print(f"{where}: {error}", file=sys.stderr)
        return 3


def _podman(folder: Path) -> int:
    need()
    engine, stage = Engine(folder), Stage()
    stage.step("The image, and the pods of the manifests in real containers")
    build.build(engine)
    megabytes = build.size(engine)
    stage.check(f"the image has {megabytes:.0f} MB, less than {GOAL}", megabytes < GOAL)
    with Podman(engine, OVERLAYS / "podman") as cluster:
        stage.say(cluster.remarks)
        cluster.up()
        Story(cluster, stage, folder / "wire.pcap").tell()
        left = cluster.remove()
    stage.check("nothing is left behind", not left, left)
    return stage.close(Path("build/pod-demo.json"))


def _kind(folder: Path) -> int:
    kind.need()
    stage = Stage()
    stage.step("A cluster by kind, the image, the manifests")
    with kind.Kind(folder, OVERLAYS / "demo") as cluster:
        cluster.up()
        Story(cluster, stage, folder / "wire.pcap").tell()
        left = cluster.remove()
    stage.check("nothing is left behind", not left, left)
    return stage.close(folder / "report.json")


if __name__ == "__main__":
    sys.exit(main())
