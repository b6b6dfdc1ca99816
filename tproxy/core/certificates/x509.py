"""The few facts of a leaf certificate that Python's ssl module does not give: URI SANs, CA, key usages, validity.

OpenSSL HAS VERIFIED THE CHAIN BEFORE ANYTHING HERE IS CALLED. No signature, name, time or unknown critical
extension is judged here, so never take these facts from a certificate that nobody verified. This reads a serial,
two dates and four extensions, so that a sidecar need not load a library of 10 MiB for them.

PURE and strict: DER only (X.690), no recursion, and no bytes make it raise; what is odd is Malformed, and a caller
that cannot read a certificate refuses its peer. Sources: RFC 5280 sections 4.1 and 4.2.1, X.690 sections 8 and 10.

>>> leaf_facts(b"0\\x80")
Malformed(why='the certificate has an indefinite length, which DER forbids')
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

# X.680 tags
_BOOLEAN, _INTEGER, _BITS, _OCTETS, _OID, _UTC_TIME, _TIME, _SEQUENCE = 1, 2, 3, 4, 6, 0x17, 0x18, 0x30
_VERSION, _ISSUER_ID, _SUBJECT_ID, _EXTENSIONS = 0xA0, 0x81, 0x82, 0xA3  # RFC 5280, 4.1: TBSCertificate's own
_URI, _LAST_NAME = 6, 8  # RFC 5280, 4.2.1.6: GeneralName
_KEY_USAGE, _SAN, _BASIC, _EKU = (bytes([0x55, 0x1D, arc]) for arc in (15, 17, 19, 37))  # id-ce
_KEY_USAGES = (  # RFC 5280, 4.2.1.3, from bit 0 on
    "digitalSignature",
    "nonRepudiation",
    "keyEncipherment",
    "dataEncipherment",
    "keyAgreement",
    "keyCertSign",
    "cRLSign",
    "encipherOnly",
    "decipherOnly",
)
_SERIAL_MAX = 21  # RFC 5280, 4.1.2.2: 20 octets; some count without the sign's
_OID_MAX = 64  # far above any in use; an unbounded number costs an unbounded time to print
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class LeafFacts:
    """What a verified leaf says about itself; dates are unix seconds, both included."""

    serial: int
    not_before: int
    not_after: int
    uris: tuple[str, ...]
    is_ca: bool
    key_usage: frozenset[str] | None
    eku: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Malformed:
    """Not a certificate that DER and RFC 5280 allow, or not one that we understand; ``why`` is a sentence."""

    why: str


def leaf_facts(der: bytes) -> LeafFacts | Malformed:
    """The facts of one certificate in DER."""
    try:
        return _certificate(der)
    except ValueError as error:
        return Malformed(str(error))


class _Reader:
    """Walks over the elements of one constructed value; ValueError if they are not what DER and we expect."""

    __slots__ = ("_at", "_data", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._what, self._at = data, what, 0

    def next_is(self, *tags: int) -> bool:
        """Whether the next element has one of the tags; without tags, whether there is one."""
        return self._at < len(self._data) and (not tags or self._data[self._at] in tags)

    def any(self) -> tuple[int, bytes]:
        """The next element's tag and contents (X.690, 8.1)."""
        data, start = self._data, self._at + 2
        if start > len(data):
            raise ValueError(f"{self._what} ends too early")
        tag, length = data[self._at], data[self._at + 1]
        if tag & 0x1F == 0x1F:
            raise ValueError(f"{self._what} has a tag of many bytes, which no certificate needs")
        if length >= 0x80:
            length, start = self._long(length & 0x7F, start)
        self._at = start + length
        if self._at > len(data):
            raise ValueError(f"{self._what} holds an element longer than itself")
        return tag, data[start : self._at]

    def _long(self, width: int, start: int) -> tuple[int, int]:
        """A length in the long form (X.690, 8.1.3.5), which DER allows only where the short one cannot do (10.1)."""
        if width == 0:
            raise ValueError(f"{self._what} has an indefinite length, which DER forbids")
        length = int.from_bytes(self._data[start : start + min(width, 4)])
        if width > 4 or start + width > len(self._data):
            raise ValueError(f"{self._what} holds an element longer than itself")
        if length < 0x80 or length >> 8 * (width - 1) == 0:
            raise ValueError(f"{self._what} has a length that is not minimal, which DER forbids")
        return length, start + width

    def take(self, tag: int) -> bytes:
        """The contents of the next element, which must have this tag."""
        if not self.next_is(tag):
            found = f"tag 0x{self._data[self._at]:02x}" if self.next_is() else "its end"
            raise ValueError(f"{self._what} has {found} where tag 0x{tag:02x} belongs")
        return self.any()[1]

    def done(self) -> None:
        """Nothing may be left."""
        if self.next_is():
            raise ValueError(f"{self._what} is followed by garbage")


def _certificate(der: bytes) -> LeafFacts:
    """RFC 5280, 4.1: the signature and its algorithm are passed over."""
    outer = _Reader(der, "the certificate")
    body = _Reader(outer.take(_SEQUENCE), "the certificate")
    outer.done()
    tbs = _Reader(body.take(_SEQUENCE), "the signed part")
    body.take(_SEQUENCE)
    body.take(_BITS)
    body.done()
    return _signed(tbs)


def _only(data: bytes, tag: int, what: str) -> bytes:
    """The contents of the one element that the data must be."""
    reader = _Reader(data, what)
    inner = reader.take(tag)
    reader.done()
    return inner


def _items(data: bytes, what: str) -> _Reader:
    """The one SEQUENCE SIZE (1..MAX) that the data must be."""
    items = _Reader(_only(data, _SEQUENCE, what), what)
    if not items.next_is():
        raise ValueError(f"{what} must not be empty")
    return items


def _signed(tbs: _Reader) -> LeafFacts:
    """RFC 5280, 4.1.2; the algorithm, both names and the public key are passed over."""
    version = _integer(_only(tbs.take(_VERSION), _INTEGER, "the version")) if tbs.next_is(_VERSION) else 0
    serial = _integer(tbs.take(_INTEGER))
    tbs.take(_SEQUENCE)
    tbs.take(_SEQUENCE)
    validity = _Reader(tbs.take(_SEQUENCE), "the validity")
    not_before, not_after = _time(validity), _time(validity)
    validity.done()
    tbs.take(_SEQUENCE)
    tbs.take(_SEQUENCE)
    for tag in (_ISSUER_ID, _SUBJECT_ID):
        if tbs.next_is(tag):
            tbs.take(tag)
    found = _extensions(tbs.take(_EXTENSIONS)) if tbs.next_is(_EXTENSIONS) else {}
    tbs.done()
    if version != 2 and (found or version not in (0, 1)):
        raise ValueError(f"certificate version {version + 1}: extensions need version 3")
    return LeafFacts(
        serial,
        not_before,
        not_after,
        _uris(found[_SAN]) if _SAN in found else (),
        _is_ca(found[_BASIC]) if _BASIC in found else False,
        _key_usage(found[_KEY_USAGE]) if _KEY_USAGE in found else None,
        _purposes(found[_EKU]) if _EKU in found else None,
    )


def _integer(data: bytes) -> int:
    """X.690, 8.3: the shortest two's complement."""
    if not 0 < len(data) <= _SERIAL_MAX:
        raise ValueError(f"an integer of {len(data)} bytes: it must have 1 to {_SERIAL_MAX}")
    if len(data) > 1 and (data[0] << 1 | data[1] >> 7) in (0, 0x1FF):
        raise ValueError("an integer is not minimal, which DER forbids")
    return int.from_bytes(data, signed=True)


def _boolean(data: bytes) -> bool:
    """X.690, 11.1. DER leaves a default FALSE out, yet common encoders write it; it cannot be mistaken."""
    if data not in (b"\x00", b"\xff"):
        raise ValueError("a boolean is neither 00 nor ff, which DER forbids")
    return data == b"\xff"


def _time(validity: _Reader) -> int:
    """RFC 5280, 4.1.2.5: YYMMDDHHMMSSZ means 1950 to 2049, YYYYMMDDHHMMSSZ any year; nothing else is allowed."""
    tag, data = validity.any()
    digits, size = data[:-1], {_UTC_TIME: 13, _TIME: 15}.get(tag)
    if len(data) != size or data[-1:] != b"Z" or not digits.isdigit():
        raise ValueError("a date is neither YYMMDDHHMMSSZ nor YYYYMMDDHHMMSSZ")
    if tag == _UTC_TIME:
        digits = (b"19" if digits >= b"50" else b"20") + digits
    month, day, hour, minute, second = (int(digits[at : at + 2]) for at in range(4, 14, 2))
    moment = datetime(int(digits[:4]), month, day, hour, minute, second, tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(seconds=1)


def _extensions(data: bytes) -> dict[bytes, bytes]:
    """RFC 5280, 4.2: all extensions by their encoded id, each at most once."""
    found: dict[bytes, bytes] = {}
    items = _items(data, "the list of extensions")
    while items.next_is():
        one = _Reader(items.take(_SEQUENCE), "an extension")
        name = one.take(_OID)
        if one.next_is(_BOOLEAN):
            _boolean(one.take(_BOOLEAN))
        if name in found:
            raise ValueError(f"extension {_dotted(name)} appears twice")
        found[name] = one.take(_OCTETS)
        one.done()
    return found


def _uris(data: bytes) -> tuple[str, ...]:
    """RFC 5280, 4.2.1.6: the URIs among the subject's other names."""
    names, uris = _items(data, "the subject alternative name"), []
    while names.next_is():
        tag, value = names.any()
        if tag & 0xC0 != 0x80 or tag & 0x1F > _LAST_NAME or tag == 0xA0 | _URI:
            raise ValueError(f"a subject alternative name has tag 0x{tag:02x}, which no kind of name has")
        if tag == 0x80 | _URI:
            if not value.isascii():
                raise ValueError("a URI in the subject alternative name is not ASCII")
            uris.append(value.decode("ascii"))
    return tuple(uris)


def _is_ca(data: bytes) -> bool:
    """RFC 5280, 4.2.1.9."""
    basic = _Reader(_only(data, _SEQUENCE, "basic constraints"), "basic constraints")
    is_ca = _boolean(basic.take(_BOOLEAN)) if basic.next_is(_BOOLEAN) else False
    if basic.next_is(_INTEGER):
        _integer(basic.take(_INTEGER))
    basic.done()
    return is_ca


def _key_usage(data: bytes) -> frozenset[str]:
    """RFC 5280, 4.2.1.3: a bit string whose first byte counts the unused bits at its end (X.690, 8.6)."""
    bits = _only(data, _BITS, "the key usage")
    number = int.from_bytes(bits[1:])
    if not 1 <= len(bits) <= 3 or bits[0] > 7 or (len(bits) == 1 and bits[0]) or number & (1 << bits[0]) - 1:
        raise ValueError("the key usage is not a proper bit string")
    text = f"{number:0{8 * len(bits) - 8}b}" if number else ""
    if "1" in text[len(_KEY_USAGES) :]:
        raise ValueError("the key usage has a bit that means nothing")
    return frozenset(name for name, bit in zip(_KEY_USAGES, text, strict=False) if bit == "1")


def _purposes(data: bytes) -> frozenset[str]:
    """RFC 5280, 4.2.1.12."""
    items, purposes = _items(data, "the extended key usage"), []
    while items.next_is():
        purposes.append(_dotted(items.take(_OID)))
    return frozenset(purposes)


def _dotted(data: bytes) -> str:
    """X.690, 8.19: base 128, the first number holds two."""
    if not 0 < len(data) <= _OID_MAX or data[-1] & 0x80:
        raise ValueError("an object identifier is empty, cut or too long")
    numbers, number = [], 0
    for byte in data:
        if number == 0 and byte == 0x80:
            raise ValueError("an object identifier is not minimal, which DER forbids")
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            numbers.append(number)
            number = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, [first, numbers[0] - 40 * first, *numbers[1:]]))
