"""Kubernetes objects out of YAML, with the line of every field, so that an error can name it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

from tproxy.core.fields import ConfigError, Fields

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOST = 2_000_000  # nodes of a file, aliases counted as often as they are used
_DEEPEST = 60  # dots in an annotation's name count, too
_CLUSTER = ("GatewayClass", "Namespace", "CustomResourceDefinition")  # kinds without a namespace
_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float")}


@dataclass(frozen=True, slots=True)
class Object:
    """One object: who it is, what it says, and where that is written."""

    group: str
    version: str
    kind: str
    namespace: str
    name: str
    created: str  # RFC 3339 as in the file; orders what is otherwise equal
    generation: int
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    body: Mapping[str, Any] = field(repr=False)  # a Secret's, too
    where: str
    lines: Mapping[str, int]

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.namespace, self.name

    @property
    def age(self) -> tuple[str, str]:
        """The oldest first; those without a time after those with one, by name."""
        return self.created or "~", f"{self.namespace}/{self.name}"

    def fields(self, name: str = "") -> Fields:
        """The object, or one of its top fields, to be read."""
        return Fields(self.body.get(name) if name else self.body, self.where, name, self.lines)

    def error(self, field: str, why: str, value: object = None) -> ConfigError:
        """An error about a field of it."""
        return self.fields().error(field, f"{self}: {why}" if value is None else why, value)

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


def parse(text: str, where: str) -> Iterator[Object | ConfigError]:
    """Every object in a file; a fault takes its document only, or, if it is YAML's, the rest of the file."""
    documents = yaml.compose_all(text, Loader=_Loader)
    if line := _too_deep(text):
        yield ConfigError(f"{where}:{line}", "", "is nested too deep")
        return
    while True:
        try:
            node = next(documents)
        except StopIteration:
            return
        except yaml.YAMLError as error:
            yield _broken(error, where)
            return
        yield from _objects(node, where)


def from_document(document: Mapping[str, Any], where: str) -> Object:
    """What came as JSON, of which no lines are known. ConfigError for what is no object."""
    return _object(Fields(document, where), {})


def _too_deep(text: str) -> int:
    """The line where nesting passes all bounds, or 0: what composes nodes recurs, in C, until the stack is gone."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > _DEEPEST:
                    return event.start_mark.line + 1 if event.start_mark else 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
    except yaml.YAMLError:
        pass  # whoever composes will meet it, too
    return 0


def _broken(error: yaml.YAMLError, where: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    place = f"{where}:{mark.line + 1}" if mark else where
    return ConfigError(place, "", f"is not YAML: {getattr(error, 'problem', None) or 'unreadable'}")


def _objects(node: yaml.Node | None, where: str) -> Iterator[Object | ConfigError]:
    if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
        return
    for item in _items(node):
        try:
            lines: dict[str, int] = {}
            yield _object(Fields(_Reader(where, lines).plain(item, ""), where, "", lines), lines)
        except ConfigError as error:
            yield error


def _items(node: yaml.Node) -> list[yaml.Node]:
    """What ``kubectl get -o yaml`` wraps in a List, or the object itself."""
    if isinstance(node, yaml.MappingNode):
        values = {key.value: value for key, value in node.value if isinstance(key, yaml.ScalarNode)}
        kind, items = values.get("kind"), values.get("items")
        if isinstance(kind, yaml.ScalarNode) and kind.value.endswith("List") and isinstance(items, yaml.SequenceNode):
            return list(items.value)
    return [node]


def _object(top: Fields, lines: Mapping[str, int]) -> Object:
    meta = top.inner("metadata")
    group, _, version = top.text("apiVersion").rpartition("/")
    kind, name = top.text("kind"), meta.text("name")
    for fields, key, value in ((top, "kind", kind), (top, "apiVersion", version), (meta, "name", name)):
        if not value:
            raise fields.error(key, "is missing")
    return Object(
        group=group,
        version=version,
        kind=kind,
        namespace="" if kind in _CLUSTER else meta.text("namespace") or "default",
        name=name,
        created=meta.text("creationTimestamp"),
        generation=meta.integer("generation", 1, 0, 2**53),
        labels=_texts(meta, "labels"),
        annotations=_texts(meta, "annotations"),
        body=top.data,
        where=top.where,
        lines=lines,
    )


def _texts(meta: Fields, key: str) -> dict[str, str]:
    return {str(name): str(value) for name, value in meta.inner(key).data.items()}


class _Reader:
    """Nodes to plain values; scalars are what JSON has, so a date stays text."""

    def __init__(self, where: str, lines: dict[str, int]) -> None:
        self._where, self._lines, self._left = where, lines, _MOST
        self._scalars = SafeConstructor()

    def plain(self, node: yaml.Node, path: str) -> Any:
        """The value; its line, and those of all below it, are noted."""
        self._left -= 1
        if self._left < 0 or path.count(".") + path.count("[") > _DEEPEST:
            raise self._error(node, path[:80], "is too large or too deep")
        self._lines[path] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, f"{path}[{index}]") for index, item in enumerate(node.value)]
        if node.tag not in _SCALARS:
            return node.value
        try:
            return self._scalars.construct_object(node)
        except ValueError as error:
            raise self._error(node, path, "expected a value") from error

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                raise self._error(key, path, "expected plain keys; a template has to be rendered first")
            name = f"{path}.{key.value}" if path else str(key.value)
            if key.value in found:
                raise self._error(key, name, "stands here twice")
            found[key.value] = self.plain(value, name)
            self._lines[name] = key.start_mark.line + 1
        return found

    def _error(self, node: yaml.Node, path: str, why: str) -> ConfigError:
        return ConfigError(f"{self._where}:{node.start_mark.line + 1}", path, why)
