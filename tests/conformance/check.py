"""Whether statuses are what a test expects, line by line (see ``statuses.py``); and whether they are well formed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import jsonschema
import yaml

from tests.conformance.certificates import INFRA
from tests.conformance.statuses import ACCEPTED, ALL, STATUSES
from tests.conformance.world import SUITE, World

Statuses = Mapping[str, Mapping[str, Any]]
# tests that look at a Gateway which never becomes ready, and so do not wait for it
_NOT_AWAITED = {
    *("GatewaySecretInvalidReferenceGrant", "GatewaySecretMissingReferenceGrant"),
    *("TLSRouteListenerTerminateNotSupported", "TLSRouteListenerMixedTerminationNotSupported"),
}


def faults(test: str, world: World, statuses: Statuses) -> list[str]:
    """What is not as the test wants it."""
    found = [] if test in _NOT_AWAITED else list(_unready(world, statuses))
    wanted = STATUSES.get(test, [])
    lines = [line for line in wanted if line != ALL]
    if ALL in wanted:
        said = {line.split()[1] for line in lines}
        for kind, namespace, name in world.routes():
            if name not in said:
                lines.append(f"{kind} {namespace}/{name} {ACCEPTED}")
    for line in lines:
        found += checked(line, statuses)
    return found + list(malformed(world, statuses))


def checked(line: str, statuses: Statuses) -> list[str]:
    """Faults of one line."""
    kind, name, *words = line.split()
    title = f"{kind} {name if '/' in name else f'{INFRA}/{name}'}" if kind != "GatewayClass" else f"{kind} {name}"
    status = statuses.get(title)
    if status is None:
        return [f"{title}: has no status"]
    found: list[str] = []
    parts = _parts(status)
    for word in words:
        if word.startswith("#"):
            parts = [each for each in status.get("listeners", []) if each["name"] == word[1:]]
        elif word.startswith("@"):
            parts = [each for each in parts if _parent(each) == word[1:]]
        elif not parts:
            return [f"{title}: nothing there for {line}"]
        else:
            found += [f"{title}: {fault}" for part in parts for fault in _word(word, part, status)]
    return found


def _parts(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What has conditions in it: parents, ancestors, or the object itself."""
    return list(status.get("parents") or status.get("ancestors") or [status])


def _parent(part: Mapping[str, Any]) -> str:
    return str((part.get("parentRef") or part.get("ancestorRef") or {}).get("name", ""))


def _word(word: str, part: Mapping[str, Any], status: Mapping[str, Any]) -> Iterator[str]:
    key, _, wanted = word.partition("=")
    conditions = {each["type"]: each for each in part.get("conditions", [])}
    match key:
        case "kinds":
            have = ",".join(each["kind"] for each in part["supportedKinds"])
        case "routes":
            have = str(part["attachedRoutes"])
        case "sets":
            have = str(status.get("attachedListenerSets", 0))
        case "parents":
            have = str(len(status["parents"]))
        case "without":
            have = wanted if wanted not in conditions else f"{wanted} is there"
        case _:
            there = conditions.get(key, {"status": "missing", "reason": "", "message": ""})
            reason = there["reason"] if ":" in wanted else ""
            have = f"{there['status']}:{reason}" if reason else there["status"]
            if have != wanted:
                have += f" ({there['reason']} {there['message']})"
    if have != wanted:
        where = _parent(part) or part.get("name", "")
        yield f"{where}: {key} is {have}, not {wanted}".removeprefix(": ")


def _unready(world: World, statuses: Statuses) -> Iterator[str]:
    for name in world.to_be_ready():
        yield from checked(f"Gateway {name} Accepted=True Programmed=True", statuses)


def malformed(world: World, statuses: Statuses) -> Iterator[str]:
    """What the CRD's schema would refuse, or a generation that is not the object's."""
    for title, status in statuses.items():
        kind, _, name = title.partition(" ")
        if kind not in schemas():
            continue
        try:
            jsonschema.validate(stamped(status), schemas()[kind])
        except jsonschema.ValidationError as error:
            yield f"{title}: {error.message} at {error.json_path}"
        namespace, _, bare = name.rpartition("/")
        document = world.objects.get((kind, namespace, bare)) or world.objects[kind, "", bare]
        for condition in conditions_of(status):
            if condition.get("observedGeneration") != document["metadata"]["generation"]:
                yield f"{title}: {condition['type']} is of generation {condition.get('observedGeneration')}"


def stamped(status: Any) -> Any:
    """With the times that whoever writes it adds."""
    if isinstance(status, list):
        return [stamped(each) for each in status]
    if not isinstance(status, Mapping):
        return status
    made = {key: stamped(value) for key, value in status.items()}
    return {"lastTransitionTime": "2026-01-01T00:00:00Z", **made} if "reason" in made else made


def conditions_of(status: Any) -> Iterator[Mapping[str, Any]]:
    """All of them, wherever they stand."""
    if isinstance(status, Mapping):
        yield from status.get("conditions", ())
        for value in status.values():
            yield from conditions_of(value)
    elif isinstance(status, list):
        for each in status:
            yield from conditions_of(each)


@cache
def schemas() -> dict[str, Any]:
    """The status of each kind, as its CRD wants it."""
    found = {}
    for path in sorted((SUITE / "crds").glob("*.yaml")):
        for crd in yaml.load_all(
            path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        ):
            if crd and crd["kind"] == "CustomResourceDefinition":
                version = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
                if "status" in version:
                    found[crd["spec"]["names"]["kind"]] = version["status"]
    return found
