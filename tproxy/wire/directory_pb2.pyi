from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POD: _ClassVar[Kind]
    SERVICE: _ClassVar[Kind]
POD: Kind
SERVICE: Kind

class Version(_message.Message):
    __slots__ = ("epoch", "number")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    number: int
    def __init__(self, epoch: _Optional[str] = ..., number: _Optional[int] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("address", "kind", "ids", "name", "mixed")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MIXED_FIELD_NUMBER: _ClassVar[int]
    address: bytes
    kind: Kind
    ids: _containers.RepeatedScalarFieldContainer[str]
    name: str
    mixed: bool
    def __init__(self, address: _Optional[bytes] = ..., kind: _Optional[_Union[Kind, str]] = ..., ids: _Optional[_Iterable[str]] = ..., name: _Optional[str] = ..., mixed: bool = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("have",)
    HAVE_FIELD_NUMBER: _ClassVar[int]
    have: Version
    def __init__(self, have: _Optional[_Union[Version, _Mapping]] = ...) -> None: ...

class Update(_message.Message):
    __slots__ = ("version", "snapshot", "set", "removed", "more")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    SET_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    version: Version
    snapshot: bool
    set: _containers.RepeatedCompositeFieldContainer[Entry]
    removed: _containers.RepeatedScalarFieldContainer[bytes]
    more: bool
    def __init__(self, version: _Optional[_Union[Version, _Mapping]] = ..., snapshot: bool = ..., set: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ..., removed: _Optional[_Iterable[bytes]] = ..., more: bool = ...) -> None: ...
