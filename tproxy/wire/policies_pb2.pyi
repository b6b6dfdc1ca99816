from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class PoliciesRequest(_message.Message):
    __slots__ = ("have",)
    HAVE_FIELD_NUMBER: _ClassVar[int]
    have: str
    def __init__(self, have: _Optional[str] = ...) -> None: ...

class PolicySet(_message.Message):
    __slots__ = ("version", "unchanged", "namespace", "root", "objects", "more")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    version: str
    unchanged: bool
    namespace: str
    root: str
    objects: _containers.RepeatedScalarFieldContainer[bytes]
    more: bool
    def __init__(self, version: _Optional[str] = ..., unchanged: bool = ..., namespace: _Optional[str] = ..., root: _Optional[str] = ..., objects: _Optional[_Iterable[bytes]] = ..., more: bool = ...) -> None: ...
