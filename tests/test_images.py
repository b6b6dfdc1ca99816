"""The files from which the image is made agree with the project; that it runs, ``make pod-demo`` shows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

from pods.podman import injection
from pods.render import containers, find, render
from tproxy import __version__

HERE = Path(__file__).parents[1]
DOCKERFILE = (HERE / "images/Dockerfile").read_text().replace("\\\n", " ")


def test_every_dependency_has_one_version_which_the_project_allows() -> None:
    lines = (HERE / "images/constraints.txt").read_text().splitlines()
    pinned = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    wanted = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]["dependencies"]
    for requirement in map(Requirement, wanted):
        assert pinned[requirement.name.lower()] in requirement.specifier


def test_the_image_is_an_empty_root_with_what_was_assembled_and_nobody_special_in_it() -> None:
    last = DOCKERFILE.rpartition("\nFROM ")[2].splitlines()
    assert last[0] == "scratch"
    words = [line.split(maxsplit=1) for line in last[1:] if line and not line.startswith("#")]
    assert {word for word, _ in words} == {"COPY", "ARG", "LABEL", "ENV", "USER", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert dict(words)["COPY"] == "--from=build /out /"
    assert dict(words)["USER"] == "1337:1337"
    assert dict(words)["ENTRYPOINT"] == '["tproxy"]'


def test_what_the_dockerfile_copies_is_not_ignored() -> None:
    allowed = {line[1:] for line in (HERE / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        line.split()[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ") and "--from" not in line
    ]
    sources = {source for line in copied for source in line}
    assert {source.split("/")[0] for source in sources} == allowed
    assert all((HERE / source).exists() for source in sources)


def test_image_and_manifests_are_of_this_version() -> None:
    assert re.findall(r"ARG VERSION=(\S+)", DOCKERFILE) == [__version__]
    objects = render(HERE / "manifests/overlays/demo")
    ours = {one["image"] for each in objects for one in containers(each) if one["image"].startswith("tproxy")}
    assert ours == {f"tproxy:{__version__}"}
    assert f"image: tproxy:{__version__}\n" in yaml.safe_dump(injection(find(objects, "ConfigMap", "tproxy-control")))
