# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""The compiled relay: reactor.py, legs.py and pump.py once more, with system calls and OpenSSL called from C.

What it does and in which order is theirs, line by line; the same tests run on both. OpenSSL is not linked: its
functions are called by the addresses that ``bind`` was given, in the library that made the connections.
"""

import asyncio
import os

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from tproxy.core.record import Outcome
from tproxy.kernel.sock import UNSENT as _UNSENT, bound_receive_buffer, reset_on_close
from tproxy.kernel.sockmap import STEP as _STEP
from tproxy.proxy.legs import BOUND_AT as _BOUND_AT, RECEIVE_LIMIT, TruncatedError
from tproxy.proxy.pump import Moved
from tproxy.proxy.transport import HIGH as _HIGH, LINGER, LOW as _LOW, NOBODY, Base

cdef extern from "sys/socket.h" nogil:
    ssize_t recv(int fd, void *buffer, size_t length, int flags)
    ssize_t send(int fd, const void *buffer, size_t length, int flags)
    int shutdown(int fd, int how)
    int setsockopt(int fd, int level, int name, const void *value, unsigned int length)
    enum: MSG_NOSIGNAL, SHUT_WR

cdef extern from "netinet/tcp.h" nogil:
    enum: SOL_TCP, TCP_NOTSENT_LOWAT

cdef extern from "unistd.h" nogil:
    int close(int fd)

cdef extern from "fcntl.h" nogil:
    ssize_t splice(int source, void *a, int target, void *b, size_t length, unsigned int flags)
    int pipe2(int *ends, int flags)
    int fcntl(int fd, int command, ...)
    enum: SPLICE_F_MOVE, SPLICE_F_NONBLOCK, O_CLOEXEC, O_NONBLOCK, F_SETPIPE_SZ

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        void *ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_ctl(int epoll, int op, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int maximum, int timeout)
    int epoll_create1(int flags)
    enum: EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLL_CLOEXEC

cdef enum:
    CHUNK = 262144  # bytes read at once
    RECORD = 16384  # plaintext of one TLS record
    ROOM = CHUNK + 2 * RECORD  # a chunk, what was left of the record before it, and the overhead of its records
    FULL = CHUNK - 2 * RECORD  # a read of this much was bulk
    PIPE = 1 << 20  # bytes that a pipe holds, if we may have so many (pipe(7))
    PIPES = 64  # of one reactor; the others copy
    SPARE = 4  # kept for the next bulk
    UNSENT_BULK = 2 << 20  # bytes not sent yet that a socket with a pipe may hold: with less the pipe is not emptied at once
    BULK = 2  # full reads in a row that make a direction bulk
    BULKY = 32768  # a read of this much may be the beginning of bulk
    TURNS = 4  # reads in a row of one direction
    BATCH = 128  # events taken at once
    ROUNDS = 8  # batches before the rest of the loop gets its turn
    NOTHING = -1
    BROKEN = -2

cdef uint64_t BOUND_AT = _BOUND_AT
cdef uint64_t STEP = _STEP
cdef size_t HIGH = _HIGH
cdef size_t LOW = _LOW
cdef int UNSENT = _UNSENT

cdef struct Library:
    int (*SSL_read)(void *, void *, int) noexcept nogil
    int (*SSL_write)(void *, const void *, int) noexcept nogil
    int (*SSL_do_handshake)(void *) noexcept nogil
    int (*SSL_get_error)(const void *, int) noexcept nogil
    int (*SSL_shutdown)(void *) noexcept nogil
    int (*BIO_read)(void *, void *, int) noexcept nogil
    int (*BIO_write)(void *, const void *, int) noexcept nogil
    void (*ERR_clear_error)() noexcept nogil

cdef Library library
NEEDED = (
    "SSL_do_handshake", "SSL_read", "SSL_write", "SSL_get_error", "SSL_shutdown", "BIO_read", "BIO_write", "ERR_clear_error"
)


def bind(addresses):
    """Where OpenSSL's functions are, by name."""
    library.SSL_read = <int (*)(void *, void *, int) noexcept nogil><uintptr_t>addresses["SSL_read"]
    library.SSL_write = <int (*)(void *, const void *, int) noexcept nogil><uintptr_t>addresses["SSL_write"]
    library.SSL_do_handshake = <int (*)(void *) noexcept nogil><uintptr_t>addresses["SSL_do_handshake"]
    library.SSL_get_error = <int (*)(const void *, int) noexcept nogil><uintptr_t>addresses["SSL_get_error"]
    library.SSL_shutdown = <int (*)(void *) noexcept nogil><uintptr_t>addresses["SSL_shutdown"]
    library.BIO_read = <int (*)(void *, void *, int) noexcept nogil><uintptr_t>addresses["BIO_read"]
    library.BIO_write = <int (*)(void *, const void *, int) noexcept nogil><uintptr_t>addresses["BIO_write"]
    library.ERR_clear_error = <void (*)() noexcept nogil><uintptr_t>addresses["ERR_clear_error"]


cdef class Watched:
    """What the reactor calls back: a descriptor, and what is waited for."""

    cdef int fd
    cdef uint32_t mask

    cdef void ready(self, uint32_t seen) noexcept:
        pass


cdef class Leg(Watched):
    """One side: a descriptor, and OpenSSL's objects if it speaks TLS."""

    cdef object leg, error, flow
    cdef Pair pair
    cdef uint64_t received, sent, report_received, report_sent
    cdef void *ssl
    cdef void *incoming
    cdef void *outgoing
    cdef unsigned char *held
    cdef size_t start, end
    cdef size_t answered  # bytes of what is held that answer KeyUpdates
    cdef uint64_t moved
    cdef bint eof, done, waiting, ending, unread, is_up
    cdef int full  # reads in a row that filled the buffer
    cdef int pipe[2]  # what is spliced towards this leg, or -1
    cdef size_t piped

    def __cinit__(self, leg, bint is_up):
        self.leg, self.is_up = leg, is_up
        self.fd = leg.sock.fileno()
        self.pipe[0] = self.pipe[1] = -1
        self.flow = getattr(leg, "flow", None)
        self.report_received = self.report_sent = STEP
        tls = getattr(leg, "tls", None)
        if tls is not None:
            self.unread = True
            ssl, incoming, outgoing = tls.addresses()
            self.ssl, self.incoming, self.outgoing = (
                <void *><uintptr_t>ssl, <void *><uintptr_t>incoming, <void *><uintptr_t>outgoing
            )

    def __dealloc__(self):
        free(self.held)

    cdef void took(self, ssize_t count) noexcept:
        """So many bytes more were received."""
        self.moved += count
        if self.moved >= BOUND_AT > self.moved - count:
            bound_receive_buffer(self.leg.sock, RECEIVE_LIMIT)

    cdef void ready(self, uint32_t seen) noexcept:
        if seen & (EPOLLIN | EPOLLERR | EPOLLHUP) and self.mask & EPOLLIN:
            self.pair.readable(self)
        if seen & (EPOLLOUT | EPOLLERR | EPOLLHUP) and self.mask & EPOLLOUT:
            self.pair.writable(self)

    cdef ssize_t broke(self, error) noexcept:
        self.error = error
        return BROKEN

    cdef ssize_t failed(self) noexcept:
        if errno == EAGAIN or errno == EINTR:
            return NOTHING
        return self.broke(OSError(errno, os.strerror(errno)))

    cdef ssize_t read(self, unsigned char *wire, unsigned char *plain) noexcept:
        """Bytes now in ``plain``; 0 with ``eof``; NOTHING yet; BROKEN with ``error``."""
        cdef ssize_t count
        if self.ssl != NULL:
            return self.read_tls(wire, plain)
        count = recv(self.fd, plain, CHUNK, 0)
        if count < 0:
            return self.failed()
        self.eof = count == 0
        if self.flow is not None:
            self.received += count
            if self.received >= self.report_received:
                self.report_received = self.received + STEP
                self.flow.received(self.received)
        return count

    cdef ssize_t read_tls(self, unsigned char *wire, unsigned char *plain) noexcept:
        cdef ssize_t count, total = 0
        cdef size_t held
        cdef int code
        if not self.unread:
            count = recv(self.fd, wire, CHUNK, 0)
            if count < 0:
                return self.failed()
            if count == 0:
                return self.broke(TruncatedError("the peer closed without close_notify"))
            if library.BIO_write(self.incoming, wire, <int>count) != count:
                return self.broke(MemoryError("OpenSSL has no memory"))
        self.unread = False
        library.ERR_clear_error()  # SSL_get_error(3) looks at the whole queue
        while ROOM - total >= RECORD:
            count = library.SSL_read(self.ssl, plain + total, <int>(ROOM - total))
            if count > 0:
                total += count
                continue
            code = library.SSL_get_error(self.ssl, <int>count)
            if code == 6:  # SSL_ERROR_ZERO_RETURN
                self.eof = True
            elif code != 2:  # SSL_ERROR_WANT_READ
                return self.broke(self.leg.tls.failure())
            break
        held = self.end
        if self.send_records(wire) == BROKEN:  # answers to KeyUpdates
            return BROKEN
        self.answered = self.answered + self.end - held if self.held != NULL else 0
        if self.answered > 2 * ROOM:
            return self.broke(ConnectionAbortedError("the peer asks for new keys and reads nothing"))
        return total if total or self.eof else NOTHING

    cdef ssize_t write(self, unsigned char *data, size_t length, unsigned char *wire) noexcept:
        """Take all; 1 if the kernel has it, 0 if ``flush`` must be called when writable, or BROKEN."""
        cdef size_t done = 0
        cdef int count
        if self.ssl == NULL:
            if self.flow is not None:
                self.sent += length
                if self.sent >= self.report_sent:
                    self.report_sent = self.sent + STEP
                    self.flow.sent(self.sent)
            return self.push(data, length)
        while done < length:
            count = library.SSL_write(self.ssl, data + done, <int>(length - done))
            if count <= 0:
                return self.broke(self.leg.tls.failure())
            done += count
        return self.send_records(wire)

    cdef ssize_t send_records(self, unsigned char *wire) noexcept:
        cdef int count
        while True:
            count = library.BIO_read(self.outgoing, wire, ROOM)
            if count <= 0:
                return self.held == NULL
            if self.push(wire, count) == BROKEN:
                return BROKEN

    cdef ssize_t push(self, unsigned char *data, size_t length) noexcept:
        """Send, and hold what the kernel does not take: 1, 0 or BROKEN."""
        cdef ssize_t sent = 0
        cdef unsigned char *room
        if self.held == NULL:
            sent = send(self.fd, data, length, MSG_NOSIGNAL)
            if sent == <ssize_t>length:
                return 1
            if sent < 0:
                if self.failed() == BROKEN:
                    return BROKEN
                sent = 0
        room = <unsigned char *>realloc(self.held, self.end + length - sent)
        if room == NULL:
            return self.broke(MemoryError("no memory for what the peer does not read"))
        memcpy(room + self.end, data + sent, length - sent)
        self.held, self.end = room, self.end + length - sent
        return 0

    cdef ssize_t flush(self, unsigned char *wire) noexcept:
        """1 when nothing is left, 0 or BROKEN."""
        cdef ssize_t sent
        if self.held != NULL:
            sent = send(self.fd, self.held + self.start, self.end - self.start, MSG_NOSIGNAL)
            if sent < 0:
                return 0 if self.failed() == NOTHING else BROKEN
            self.start += sent
            if self.start < self.end:
                return 0
            free(self.held)
            self.held, self.start, self.end = NULL, 0, 0
        while self.piped:
            sent = splice(self.pipe[0], NULL, self.fd, NULL, self.piped, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
            if sent < 0:
                return 0 if self.failed() == NOTHING else BROKEN
            self.piped -= sent
        if self.ending:
            self.ending = False
            return self.end_direction(wire)
        return 1

    cdef void may_hold(self, int unsent) noexcept:
        """Bytes that TCP has not sent yet. On a socket that is gone it fails, and nothing follows from it."""
        setsockopt(self.fd, SOL_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof(unsent))

    cdef ssize_t finish(self, unsigned char *wire) noexcept:
        self.ending = True
        return self.flush(wire)

    cdef ssize_t end_direction(self, unsigned char *wire) noexcept:
        if self.ssl == NULL:
            if shutdown(self.fd, SHUT_WR) < 0:
                return self.broke(OSError(errno, os.strerror(errno)))
            return 1
        if library.SSL_shutdown(self.ssl) < 0:
            return self.broke(self.leg.tls.failure())
        return self.send_records(wire)


cdef class Pair:
    """Both directions of one connection; ended exactly once."""

    cdef Reactor reactor
    cdef Leg down, up
    cdef readonly object ended
    cdef str last

    def __cinit__(self, Reactor reactor, down, up):
        self.reactor, self.last = reactor, ""
        self.down, self.up = Leg(down, False), Leg(up, True)
        self.down.pair = self.up.pair = self
        self.ended = reactor.loop.create_future()

    def start(self):
        """Both directions; what arrived before we looked (behind a handshake, say) is carried first."""
        cdef Leg leg
        self.reactor.watch(self.down, EPOLLIN)
        self.reactor.watch(self.up, EPOLLIN)
        for leg in sorted((self.down, self.up), key=lambda leg: not (<Leg>leg).unread):
            if leg.mask & EPOLLIN:
                self.readable(leg)

    cdef Leg other(self, Leg leg):
        return self.down if leg.is_up else self.up

    cdef void readable(self, Leg source) noexcept:
        """Once; bulk, which fills the buffer, gets a few more turns before others do."""
        cdef int turn
        for turn in range(TURNS):
            if not self.once(source):
                return

    cdef bint once(self, Leg source) noexcept:
        """Carry what there is; whether there is likely more, and both sides are willing."""
        cdef Leg target = self.other(source)
        cdef unsigned char *wire = self.reactor.wire
        cdef ssize_t count, sent = 1
        cdef bint spliced = source.full >= BULK and self.may_splice(source, target)
        count = self.splice_in(source, target) if spliced else source.read(wire, self.reactor.plain)
        if count == NOTHING:
            return False
        if count == BROKEN:
            self.broke(source)
            return False
        if count:
            source.took(count)
            source.full = source.full + 1 if count >= (RECORD if spliced else BULKY) else 0
            sent = target.flush(wire) if spliced else target.write(self.reactor.plain, count, wire)
            if target.pipe[0] >= 0 and not target.piped and not source.full:
                self.reactor.give_back(target)
        if source.eof and sent != BROKEN:
            source.done = True
            self.reactor.watch(source, source.mask & ~<uint32_t>EPOLLIN)
            sent = target.finish(wire)
        if sent == BROKEN:
            self.broke(target)
        elif sent == 0:
            source.waiting = True
            self.reactor.watch(source, source.mask & ~<uint32_t>EPOLLIN)
            self.reactor.watch(target, target.mask | EPOLLOUT)
        elif source.done:
            self.direction_ended(source)
        return sent == 1 and count >= FULL and source.mask & EPOLLIN != 0

    cdef bint may_splice(self, Leg source, Leg target) noexcept:
        """Both plain, neither in the short cut, whose queue splice(2) does not see, and a pipe to be had."""
        if target.pipe[0] >= 0:
            return True
        if not self.reactor.splicing or source.ssl != NULL or target.ssl != NULL or target.held != NULL:
            return False
        if source.flow is not None or target.flow is not None:
            return False  # torture: bytes were lost where a spliced leg had been in the short cut
        return self.reactor.take_pipe(target)

    cdef ssize_t splice_in(self, Leg source, Leg target) noexcept:
        cdef ssize_t count = splice(
            source.fd, NULL, target.pipe[1], NULL, PIPE, SPLICE_F_MOVE | SPLICE_F_NONBLOCK
        )
        if count < 0:
            return source.failed()
        target.piped += count
        source.eof = count == 0
        return count

    cdef void writable(self, Leg target) noexcept:
        cdef Leg source = self.other(target)
        cdef ssize_t sent = target.flush(self.reactor.wire)
        if sent == 0:
            return
        if sent == BROKEN:
            self.broke(target)
            return
        source.waiting = False
        self.reactor.watch(target, target.mask & ~<uint32_t>EPOLLOUT)
        if source.done:
            self.direction_ended(source)
        else:
            self.reactor.watch(source, source.mask | EPOLLIN)
            self.readable(source)

    cdef void direction_ended(self, Leg source) noexcept:
        self.last = self.last or ("target" if source.is_up else "source")
        if self.down.done and self.up.done and not (self.down.waiting or self.up.waiting):
            self.finish(Outcome.CLOSED, self.last, None)

    cdef void broke(self, Leg leg) noexcept:
        error, leg.error = leg.error, None
        outcome = Outcome.TRUNCATED if isinstance(error, TruncatedError) else Outcome.RESET
        self.finish(outcome, "target" if leg.is_up else "source", error)

    cdef void finish(self, outcome, str end, error) noexcept:
        self.detach()
        if not self.ended.done():
            self.ended.set_result(Moved(self.down.moved, self.up.moved, outcome, end, error))

    cpdef detach(self):
        """Watch neither socket any more."""
        self.reactor.watch(self.down, 0)
        self.reactor.watch(self.up, 0)
        self.reactor.give_back(self.down)
        self.reactor.give_back(self.up)

    def cut(self):
        """Ended by us: what was carried until now."""
        self.detach()
        return Moved(self.down.moved, self.up.moved, Outcome.CUT, "sidecar")

    def forget(self):
        """Break the circle of references, so that a connection's memory goes with it and not at the next collection."""
        self.down.pair = self.up.pair = None


cdef class Line(Watched):
    """A leg as an asyncio transport; transport.py is its twin, and says what each method means."""

    cdef Reactor reactor
    cdef Leg leg
    cdef object told, protocol, loop, failure, timer
    cdef size_t high, low
    cdef bint reading, closing, ended, lost, paused

    def __cinit__(self, Reactor reactor, leg, protocol, told):
        self.reactor, self.leg, self.protocol, self.told = reactor, Leg(leg, False), protocol, told
        self.fd, self.loop = self.leg.fd, reactor.loop
        self.high, self.low = HIGH, LOW
        self.reading = True

    def start(self):
        self.reactor.lines.add(self)
        self.call(self.protocol.connection_made, self)
        self.again()

    cdef bint call(self, function, argument=None) noexcept:
        """What a protocol raises ends its connection, and nobody else's."""
        try:
            function() if argument is None else function(argument)
            return True
        except Exception as error:
            Base.defect(error)
            self.end(error)
            return False

    cdef void again(self) noexcept:
        """Wait for what is wanted now."""
        cdef uint32_t wanted = 0
        if self.lost:
            return
        if self.reading and not self.closing and not self.leg.eof:
            wanted = EPOLLIN
            if self.leg.unread:
                self.loop.call_soon(self.kick)
        if self.leg.held != NULL:
            wanted |= EPOLLOUT
        self.reactor.watch(self, wanted)

    def kick(self):
        """Read what came with the handshake."""
        if self.leg.unread and self.reading and not self.closing and not self.lost:
            self.readable()

    cdef void ready(self, uint32_t seen) noexcept:
        cdef ssize_t count
        if self.lost:  # lingering
            count = recv(self.fd, self.reactor.wire, CHUNK, 0)
            if count == 0 or (count < 0 and errno != EAGAIN):
                self.release()
            return
        if seen & (EPOLLIN | EPOLLERR | EPOLLHUP) and self.mask & EPOLLIN:
            self.readable()
        if seen & (EPOLLOUT | EPOLLERR | EPOLLHUP) and self.mask & EPOLLOUT:
            self.writable()

    cdef void readable(self) noexcept:
        cdef Leg leg = self.leg
        cdef ssize_t count = leg.read(self.reactor.wire, self.reactor.plain)
        if count == NOTHING:
            return
        if count == BROKEN:
            self.broke()
            return
        leg.took(count)
        if count and not self.call(
            self.protocol.data_received, PyBytes_FromStringAndSize(<char *>self.reactor.plain, count)
        ):
            return
        if leg.eof and not self.lost:
            self.again()
            try:
                keep = self.protocol.eof_received()
            except Exception as error:
                Base.defect(error)
                self.end(error)
                return
            if not keep:
                self.close()

    cdef void writable(self) noexcept:
        cdef ssize_t sent = self.leg.flush(self.reactor.wire)
        if sent == BROKEN:
            self.broke()
            return
        self.again()
        self.eased()

    cdef void eased(self) noexcept:
        if self.paused and self.leg.end - self.leg.start <= self.low:
            self.paused = False
            self.call(self.protocol.resume_writing)
        if self.closing and self.leg.held == NULL:
            self.finish()

    cdef void broke(self) noexcept:
        error, self.leg.error = self.leg.error, None
        self.end(error)

    def write(self, data):
        cdef const unsigned char[:] view
        if self.lost or self.ended or not len(data):
            return
        view = data
        self.wrote(self.leg.write(<unsigned char *>&view[0], view.shape[0], self.reactor.wire))

    cdef void wrote(self, ssize_t sent) noexcept:
        if sent == BROKEN:
            self.broke()
        elif sent == 0:
            self.again()
            if not self.paused and self.leg.end - self.leg.start > self.high:
                self.paused = True
                self.call(self.protocol.pause_writing)

    def writelines(self, lines):
        self.write(b"".join(lines))

    def can_write_eof(self):
        return True

    def write_eof(self):
        if not self.ended and not self.lost:
            self.ended = True
            self.wrote(self.leg.finish(self.reactor.wire))

    def pause_reading(self):
        self.reading = False
        self.again()

    def resume_reading(self):
        self.reading = True
        self.again()

    def is_reading(self):
        return self.reading and not self.closing

    def set_write_buffer_limits(self, high=None, low=None):
        self.high, self.low = Base.limits(high, low)

    def get_write_buffer_limits(self):
        return self.low, self.high

    def get_write_buffer_size(self):
        return self.leg.end - self.leg.start

    def get_extra_info(self, name, default=None):
        return Base.extra(self.leg.leg, self.told, name, default)

    def set_protocol(self, protocol):
        self.protocol = protocol

    def get_protocol(self):
        return self.protocol

    def is_closing(self):
        return self.closing or self.lost

    def close(self):
        if not self.closing and not self.lost:
            self.closing = True
            self.again()
            if self.leg.held == NULL:
                self.finish()

    def abort(self):
        self.end(None)

    cdef void finish(self) noexcept:
        """All is sent: our end, and a while in which the peer may read it without a reset from what it still sends."""
        if not self.ended:
            self.ended = True
            if self.leg.finish(self.reactor.wire) == BROKEN:
                self.broke()
                return
            if self.leg.held != NULL:
                self.again()
                return
        self.lost = True
        Base.ended(self.leg.leg.sock)
        if self.leg.eof:
            self.release()
        else:
            self.reactor.watch(self, EPOLLIN)
            self.timer = self.loop.call_later(LINGER, self.release)
        self.loop.call_soon(self.gone, None)

    cdef void end(self, error) noexcept:
        """At once, with a reset."""
        if not self.lost:
            self.lost = True
            reset_on_close(self.leg.leg.sock, True)
            self.release()
            self.loop.call_soon(self.gone, error)

    cpdef release(self):
        """The socket goes; not before the events of this turn have been looked at, which may still point here."""
        self.reactor.watch(self, 0)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.leg.leg.sock.close()
        self.loop.call_soon(self.reactor.lines.discard, self)

    def gone(self, error):
        protocol, self.protocol = self.protocol, NOBODY  # each holds the other
        protocol.connection_lost(error)


cdef class Wait(Watched):
    """Waiting for one socket, once."""

    cdef Reactor reactor
    cdef object future

    def __cinit__(self, Reactor reactor, sock):
        self.reactor, self.fd, self.future = reactor, sock.fileno(), reactor.loop.create_future()

    cdef void ready(self, uint32_t seen) noexcept:
        self.reactor.watch(self, 0)  # readiness is level-triggered, and the task that waits has its turn later
        if not self.future.done():
            self.future.set_result(None)


cdef class Shake(Watched):
    """A handshake: flights back and forth until OpenSSL is content."""

    cdef Reactor reactor
    cdef Leg leg
    cdef object tls, future
    cdef size_t limit

    def __cinit__(self, Reactor reactor, leg, size_t limit):
        self.reactor, self.tls, self.limit = reactor, leg.tls, limit
        self.leg = Leg(leg, False)
        self.fd = self.leg.fd
        self.future = reactor.loop.create_future()

    cdef void ready(self, uint32_t seen) noexcept:
        if not self.future.done():
            self.step(seen)

    cdef void step(self, uint32_t seen) noexcept:
        """What can be done now, and what to wait for before the next step."""
        cdef Leg leg = self.leg
        cdef unsigned char *wire = self.reactor.wire
        cdef ssize_t sent, count
        cdef int code
        if leg.held != NULL:
            sent = leg.flush(wire)
            if sent == BROKEN:
                self.future.set_exception(leg.error)
            if sent != 1:
                return
        while True:
            library.ERR_clear_error()
            code = library.SSL_do_handshake(leg.ssl)
            if code != 1 and library.SSL_get_error(leg.ssl, code) != 2:  # SSL_ERROR_WANT_READ
                self.future.set_exception(self.tls.failure())
                return
            sent = leg.send_records(wire)
            if sent == BROKEN:
                self.future.set_exception(leg.error)
                return
            if code == 1 and sent == 1:
                self.future.set_result(None)
                return
            if sent == 0:
                self.reactor.watch(self, EPOLLOUT)
                return
            count = recv(leg.fd, wire, CHUNK, 0)
            if count < 0:
                if leg.failed() == BROKEN:
                    self.future.set_exception(leg.error)
                else:
                    self.reactor.watch(self, EPOLLIN)
                return
            if count == 0 or <size_t>count > self.limit:
                self.future.set_exception(ConnectionResetError("closed" if count == 0 else "too long a handshake"))
                return
            self.limit -= count
            if library.BIO_write(leg.incoming, wire, <int>count) != count:
                self.future.set_exception(OSError("OpenSSL has no memory"))
                return


cdef class Reactor:
    """One a loop: two buffers, and an epoll of our own, nested in the loop's (epoll(7))."""

    cdef object loop
    cdef set lines  # transports live as long as they are in it
    cdef bint splicing
    cdef int pipes[SPARE][2]  # not in use, and empty
    cdef int spare, made
    cdef int epoll
    cdef unsigned char *wire
    cdef unsigned char *plain

    def __cinit__(self, bint splicing=True):
        self.epoll, self.splicing, self.lines = -1, splicing, set()
        self.wire = <unsigned char *>malloc(ROOM)
        self.plain = <unsigned char *>malloc(ROOM)
        if self.wire == NULL or self.plain == NULL:
            raise MemoryError
        self.loop = asyncio.get_running_loop()
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, os.strerror(errno))
        self.loop.add_reader(self.epoll, self.serve)

    def __dealloc__(self):
        free(self.wire)
        free(self.plain)
        if self.epoll >= 0:
            close(self.epoll)
        while self.spare:
            self.spare -= 1
            close(self.pipes[self.spare][0])
            close(self.pipes[self.spare][1])

    cdef bint take_pipe(self, Leg target) noexcept:
        if self.spare:
            self.spare -= 1
            target.pipe[0], target.pipe[1] = self.pipes[self.spare][0], self.pipes[self.spare][1]
        elif self.made == PIPES or pipe2(target.pipe, O_CLOEXEC | O_NONBLOCK) < 0:
            return False
        else:
            fcntl(target.pipe[1], F_SETPIPE_SZ, PIPE)  # a smaller one does too
            self.made += 1
        target.may_hold(UNSENT_BULK)
        return True

    cdef void give_back(self, Leg target) noexcept:
        if target.pipe[0] < 0:
            return
        if target.piped or self.spare == SPARE:  # of a connection that broke, or one too many
            close(target.pipe[0])
            close(target.pipe[1])
            target.piped = 0
            self.made -= 1
        else:
            self.pipes[self.spare][0], self.pipes[self.spare][1] = target.pipe[0], target.pipe[1]
            self.spare += 1
        target.pipe[0] = target.pipe[1] = -1
        target.may_hold(UNSENT)

    def close(self):
        """Watch nothing any more; what lingers goes."""
        for line in list(self.lines):
            (<Line>line).release()
        self.loop.remove_reader(self.epoll)
        close(self.epoll)
        self.epoll = -1

    def join(self, down, up):
        """The two directions between two legs, not started yet."""
        return Pair(self, down, up)

    def attach(self, leg, protocol, told=None):
        """The leg is the protocol's from now on, through a transport."""
        cdef Line line = Line(self, leg, protocol, told)
        line.start()
        return line

    async def readable(self, sock):
        """Until there is something to read, an end, or an error."""
        await self.wait(sock, EPOLLIN)

    async def writable(self, sock):
        """Until there is room to write, or an error."""
        await self.wait(sock, EPOLLOUT)

    async def wait(self, sock, uint32_t wanted):
        """Until one of these events, or an error."""
        cdef Wait job = Wait(self, sock)
        self.watch(job, wanted)
        try:
            await job.future
        finally:
            self.watch(job, 0)

    async def shake(self, leg, size_t limit):
        """A handshake of at most ``limit`` bytes from the peer. TlsError, or OSError when the peer breaks it off."""
        cdef Shake job = Shake(self, leg, limit)
        try:
            job.step(0)
            await job.future
        finally:
            self.watch(job, 0)

    cdef void watch(self, Watched watched, uint32_t wanted) noexcept:
        cdef epoll_event event
        cdef int op
        if wanted == watched.mask:
            return
        op = EPOLL_CTL_DEL if wanted == 0 else EPOLL_CTL_MOD if watched.mask else EPOLL_CTL_ADD
        event.events, event.data.ptr = wanted, <void *>watched
        watched.mask = wanted
        epoll_ctl(self.epoll, op, watched.fd, &event)

    def serve(self):
        """Every ready socket, until none is or others have waited long enough."""
        cdef epoll_event events[BATCH]
        cdef int count, index, turn
        cdef Watched watched
        for turn in range(ROUNDS):
            count = epoll_wait(self.epoll, events, BATCH, 0)
            for index in range(count):
                watched = <Watched>events[index].data.ptr
                if watched.mask:  # else an earlier one of this batch has ended it
                    watched.ready(events[index].events)
            if count < BATCH // 4:
                break
