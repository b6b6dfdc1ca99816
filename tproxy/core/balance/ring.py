"""From keys to endpoints so that few keys move when an endpoint comes or goes: a ring of points, or Maglev's table.

PURE. Points are BLAKE2b of ``address:port_number``, so every replica and every start makes the same ring. An endpoint
has as many points whoever else is there: when it goes only its own keys move. Sources: Karger and others, Consistent
Hashing (1997); Eisenbud and others, Maglev (NSDI 2016), 3.4; Envoy's load balancers of these names.

>>> made = ring(tuple(map(Endpoint.parse, ("10.0.0.1:80", "10.0.0.2:80"))))
>>> made.first(digest(b"alice")) == made.first(digest(b"alice"))
True
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Container, Iterator
from hashlib import blake2b
from weakref import WeakValueDictionary

from tproxy.core.address import Endpoint

RING = 1024  # points of a ring at least, as in Envoy
MAGLEV = 65_537  # places of a table, as in Envoy; a prime
MOST = 65_537  # of either: more costs memory and time, and makes shares no more even that anybody could tell
_HALF = 2  # endpoints that are enough for the least size


def digest(key: bytes) -> int:
    """64 bits of a key."""
    return int.from_bytes(blake2b(key, digest_size=8).digest())


_Make = Callable[[tuple[Endpoint, ...], tuple[int, ...], int], "Ring"]
_Key = tuple[_Make, tuple[Endpoint, ...], tuple[int, ...], int]


class Ring:
    """Endpoints by position; with ``points`` a key's place is found on the ring, else it is an index of the table."""

    __slots__ = ("__weakref__", "_owners", "_points", "endpoints")

    def __init__(self, endpoints: tuple[Endpoint, ...], owners: array[int], points: array[int] | None) -> None:
        self.endpoints, self._owners, self._points = endpoints, owners, points

    @property
    def is_ring(self) -> bool:
        """Else it is a table."""
        return self._points is not None

    def first(self, key: int) -> Endpoint:
        """The key's endpoint."""
        return self.endpoints[self._owners[self._place(key)]]

    def among(self, key: int, left: Container[Endpoint]) -> Endpoint | None:
        """The first of the key's endpoints that is left: those of others stay where they are."""
        return next((endpoint for endpoint in self.walk(key) if endpoint in left), None)

    def walk(self, key: int) -> Iterator[Endpoint]:
        """All of them once, in the key's own order."""
        owners, seen = self._owners, set[int]()
        at = self._place(key)
        for step in range(len(owners)):
            owner = owners[(at + step) % len(owners)]
            if owner not in seen:
                seen.add(owner)
                yield self.endpoints[owner]
                if len(seen) == len(self.endpoints):
                    return

    def _place(self, key: int) -> int:
        if self._points is None:
            return key % len(self._owners)
        return bisect_left(self._points, key) % len(self._owners)


_MADE: WeakValueDictionary[_Key, Ring] = WeakValueDictionary()  # those in use: the next table's are mostly the same


def ring(endpoints: tuple[Endpoint, ...], weights: tuple[int, ...] = (), least: int = RING) -> Ring:
    """``least`` points for two endpoints, and as many for each that joins them; weights are 1 or more, none: equal."""
    return _made(_ring, endpoints, weights, least)


def maglev(endpoints: tuple[Endpoint, ...], weights: tuple[int, ...] = (), size: int = MAGLEV) -> Ring:
    """A table of ``size`` places (a prime): shares that differ by one place at most, where weights are equal."""
    return _made(_maglev, endpoints, weights, size)


def _made(make: _Make, endpoints: tuple[Endpoint, ...], weights: tuple[int, ...], size: int) -> Ring:
    """In an order of their own: replicas list endpoints as they came to know them."""
    order = sorted(range(len(endpoints)), key=lambda index: str(endpoints[index]))
    key = (
        make,
        tuple(endpoints[index] for index in order),
        tuple(weights[index] for index in order) if weights else (),
        size,
    )
    if (made := _MADE.get(key)) is None:
        made = _MADE[key] = make(*key[1:])
    return made


def _ring(endpoints: tuple[Endpoint, ...], weights: tuple[int, ...], least: int) -> Ring:
    numbers = _points(len(endpoints), weights, max(1, min(least, MOST) // _HALF))
    found = sorted(
        (digest(f"{endpoint}_{number}".encode()), index)
        for index, endpoint in enumerate(endpoints)
        for number in range(numbers[index])
    )
    return Ring(endpoints, array("H", (index for _, index in found)), array("Q", (point for point, _ in found)))


def _points(count: int, weights: tuple[int, ...], each: int) -> list[int]:
    """Points of each endpoint: ``each``, times its weight over the least one's; halved until all are few enough."""
    if not weights:
        weights = (1,) * count
    unit = min(weights, default=1)
    while each > 1 and sum(each * weight // unit for weight in weights) > MOST:
        each //= 2
    total = sum(weights)
    if total // unit <= MOST:
        return [each * weight // unit for weight in weights]
    return [max(1, weight * MOST // total) for weight in weights]  # ratios that no ring can show


def _maglev(endpoints: tuple[Endpoint, ...], weights: tuple[int, ...], size: int) -> Ring:
    most = max(weights, default=1)
    offsets = [digest(f"{endpoint}_offset".encode()) % size for endpoint in endpoints]
    skips = [digest(f"{endpoint}_skip".encode()) % (size - 1) + 1 for endpoint in endpoints]
    owners, taken, left = array("H", bytes(2 * size)), bytearray(size), size
    wanted = [0] * len(endpoints)
    while left:
        for index, place in enumerate(offsets):
            wanted[index] += weights[index] if weights else most
            if wanted[index] < most:  # its turn is not yet
                continue
            wanted[index] -= most
            free = place
            while taken[free]:
                free = (free + skips[index]) % size
            offsets[index] = free
            taken[free], owners[free] = 1, index
            left -= 1
            if not left:
                break
    return Ring(endpoints, owners, None)
