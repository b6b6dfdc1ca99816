"""JSON Patch (RFC 6902): the difference of two documents, as small as its readers like it, and its application.

Lists whose items have unique names (containers, volumes, env) are compared by name, so that one more container is one
operation and not a new list.

>>> diff({"a": [1]}, {"a": [1, 2], "b/c": True})
[{'op': 'add', 'path': '/a/1', 'value': 2}, {'op': 'add', 'path': '/b~1c', 'value': True}]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

Operation: TypeAlias = dict[str, Any]
_SCALARS = frozenset((str, int, float, bool, type(None)))


def pointer(parts: Iterable[str | int]) -> str:
    """RFC 6901: ``~`` and ``/`` are escaped."""
    return "".join(map(_step, parts))


def _step(part: str | int) -> str:
    return "/" + str(part).replace("~", "~0").replace("/", "~1")


def diff(old: Any, new: Any) -> list[Operation]:
    """What makes ``new`` of ``old``; applied in order."""
    found: list[Operation] = []
    _diff(old, new, "", found)
    return found


def _diff(old: Any, new: Any, at: str, found: list[Operation]) -> None:
    if isinstance(old, dict) and isinstance(new, dict):
        found += [{"op": "remove", "path": at + _step(key)} for key in old if key not in new]
        for key, value in new.items():
            if key not in old:
                found.append({"op": "add", "path": at + _step(key), "value": value})
            elif old[key] is not value:  # a draft shares most of a pod
                _diff(old[key], value, at + _step(key), found)
    elif isinstance(old, list) and isinstance(new, list):
        _lists(old, new, at, found)
    elif not same(old, new):
        found.append({"op": "replace", "path": at, "value": new})


def _lists(old: list[Any], new: list[Any], at: str, found: list[Operation]) -> None:
    before, after = _names(old), _names(new)
    if before is None or after is None:
        _unnamed(old, new, at, found)
        return
    places, stays = {name: index for index, name in enumerate(before)}, set(after)
    if [name for name in before if name in stays] != [name for name in after if name in places]:
        found.append({"op": "replace", "path": at, "value": new})  # in another order
        return
    for index in reversed(range(len(old))):
        if before[index] not in stays:
            found.append({"op": "remove", "path": f"{at}/{index}"})
    for index, item in enumerate(new):
        if after[index] not in places:
            found.append({"op": "add", "path": f"{at}/{index}", "value": item})
        elif (earlier := old[places[after[index]]]) is not item:
            _diff(earlier, item, f"{at}/{index}", found)


def _unnamed(old: list[Any], new: list[Any], at: str, found: list[Operation]) -> None:
    """What is alike at the beginning stays; what follows is changed, cut or appended."""
    shared = min(len(old), len(new))
    for index in range(shared):
        if old[index] is not new[index]:
            _diff(old[index], new[index], f"{at}/{index}", found)
    found += [{"op": "remove", "path": f"{at}/{index}"} for index in reversed(range(shared, len(old)))]
    found += [{"op": "add", "path": f"{at}/{index}", "value": new[index]} for index in range(shared, len(new))]


def _names(items: Sequence[Any]) -> list[str] | None:
    """The items' names if each has one of its own."""
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        return None
    return names  # type: ignore[return-value] # all are str


def same(one: Any, other: Any) -> bool:
    """Equality of JSON, where true is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def copied(value: Any) -> Any:
    """A copy in which nothing is shared, as after a journey through JSON, so that a change has one place."""
    if isinstance(value, dict):
        return {key: item if item.__class__ in _SCALARS else copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def apply(document: Any, operations: Iterable[Operation]) -> Any:
    """Add, remove and replace, in place where there is a place; LookupError if there is none."""
    for operation in operations:
        *way, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]] or [""]
        if not operation["path"]:
            document = copied(operation["value"])
            continue
        place = document
        for part in way:
            place = place[int(part) if isinstance(place, list) else part]
        _change(place, last, operation)
    return document


def _change(place: Any, last: str, operation: Operation) -> None:
    key: Any = int(last) if isinstance(place, list) else last
    if operation["op"] == "remove":
        del place[key]
    elif operation["op"] == "add" and isinstance(place, list):
        place.insert(key, copied(operation["value"]))
    else:
        place[key] = copied(operation["value"])
