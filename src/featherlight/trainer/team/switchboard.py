"""Connections over TCP: one thread reads them all, says now and then that this process is alive, and notes who is gone."""

import contextlib
import queue
import selectors
import socket
import struct
import sys
import threading
import time
from typing import NamedTuple

from featherlight.trainer.team.messages import (
    FRAME,
    LARGEST_FRAME,
    LARGEST_OF_MEMBERS,
    Alive,
    Message,
    Step,
    Told,
    decode,
    encode,
)
from featherlight.trainer.team.protocol import Silence

PATIENCE = 8.0
"""Seconds after which somebody who was not heard of is taken to be gone."""

_PULSE = 2.0
_LOOK = 0.25
_CHUNK = 1 << 16
_LINEAR_TIMEOUTS = 16
"""TCP_THIN_LINEAR_TIMEOUTS: a small packet that is lost twice is not waited for twice as long."""


_ECHO = encode(Alive())
"""Follows what is waited for in a segment of its own: if the first is lost, TCP learns it from the second within a round trip
and not from a timer of three."""


class Heard(NamedTuple):
    """What a connection said; `message` is None when it is gone."""

    peer: int
    message: Message | None


class _Line:
    """A connection, and what came of an unfinished frame."""

    def __init__(self, connection: socket.socket, largest: int) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sys.platform == "linux":
            connection.setsockopt(socket.IPPROTO_TCP, _LINEAR_TIMEOUTS, 1)
        self.socket = connection
        self.largest = largest
        self.buffer = bytearray()
        self.lock = threading.Lock()
        self.sent_at = time.monotonic()

    def send(self, data: bytes) -> None:
        with self.lock:
            self.socket.sendall(data)
            self.sent_at = time.monotonic()

    def frames(self) -> list[Message]:
        """The messages that are complete; raises ValueError for bytes that are none."""
        found = []
        while len(self.buffer) >= FRAME.size:
            length, kind = FRAME.unpack_from(self.buffer)
            if length > self.largest:
                raise ValueError(f"a frame claims {length:,} bytes")
            end = FRAME.size + length
            if len(self.buffer) < end:
                break
            found.append(decode(kind, bytes(self.buffer[FRAME.size : end])))
            del self.buffer[:end]
        return found


class Switchboard:
    """All connections of a process.

    Args:
        listener: a socket that listens, of a host; None dials only.
        patience: seconds of silence after which a connection is given up.

    Attributes:
        bytes_sent: payload, frames included.
        bytes_received: payload, frames included.
    """

    def __init__(self, listener: socket.socket | None = None, *, patience: float = PATIENCE) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self._patience = patience
        self._silence = Silence(patience)
        self._lines: dict[int, _Line] = {}
        self._heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._listener = listener
        self._next = 0
        self._closed = threading.Event()
        self._guard = threading.Lock()
        if listener is not None:
            self._selector.register(listener, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._watch, name="team", daemon=True)
        self._thread.start()

    def dial(self, host: str, port: int) -> int:
        """Connects; raises OSError if nobody answers within the patience."""
        return self._add(socket.create_connection((host, port), timeout=self._patience), LARGEST_FRAME)

    def send(self, peer: int, message: Message) -> None:
        """Says something; to one that is gone, nothing."""
        line = self._lines.get(peer)
        if line is None:
            return
        data = encode(message)
        try:
            line.send(data)
            self.bytes_sent += len(data)
            if isinstance(message, (Told, Step)):
                line.send(_ECHO)
                self.bytes_sent += len(_ECHO)
        except OSError:
            self._shut(line)

    def receive(self, timeout: float | None) -> Heard | None:
        """What was said next; None if it was nothing for so many seconds (None waits on)."""
        try:
            return self._heard.get(timeout=timeout) if timeout != 0 else self._heard.get_nowait()
        except queue.Empty:
            return None

    def hang_up(self, peer: int) -> None:
        """Ends a connection behind what was said to it."""
        if (line := self._lines.get(peer)) is not None:
            with contextlib.suppress(OSError):
                line.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Ends all of them, when what was said has arrived or nobody takes it."""
        for peer in list(self._lines):
            self.hang_up(peer)
        until = time.monotonic() + self._patience / 4
        while self._lines and time.monotonic() < until:
            time.sleep(_LOOK / 10)
        self._closed.set()
        self._thread.join()
        if self._listener is not None:
            self._listener.close()
        for line in self._lines.values():
            self._shut(line)
            line.socket.close()
        self._lines.clear()
        self._selector.close()

    def _add(self, connection: socket.socket, largest: int) -> int:
        connection.settimeout(self._patience)
        with self._guard:
            peer, self._next = self._next, self._next + 1
            self._silence.hear(peer, time.monotonic())
            self._lines[peer] = _Line(connection, largest)
        self._selector.register(connection, selectors.EVENT_READ, peer)
        return peer

    def _watch(self) -> None:
        while not self._closed.is_set():
            for key, _ in self._selector.select(_LOOK):
                if key.data is None:
                    self._accept()
                else:
                    self._read(key.data)
            now = time.monotonic()
            with self._guard:
                silent, lines = self._silence.silent(now), dict(self._lines)
            for peer in silent:
                self._drop(peer)
            for peer, line in lines.items():
                if now - line.sent_at > _PULSE and peer not in silent:
                    self._pulse(line)

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            self._add(self._listener.accept()[0], LARGEST_OF_MEMBERS)

    def _read(self, peer: int) -> None:
        line = self._lines[peer]
        try:
            data = line.socket.recv(_CHUNK)
            line.buffer += data
            messages = line.frames()
        except (OSError, ValueError):
            data, messages = b"", []
        self.bytes_received += len(data)
        if data:
            with self._guard:
                self._silence.hear(peer, time.monotonic())
        for message in messages:
            if not isinstance(message, Alive):
                self._heard.put(Heard(peer, message))
        if not data:
            self._drop(peer)

    def _pulse(self, line: _Line) -> None:
        """Says that this process is there, unless it is saying something else."""
        if not line.lock.acquire(blocking=False):
            return
        try:
            line.socket.send(_ECHO)
            line.sent_at = time.monotonic()
        except OSError:
            self._shut(line)
        finally:
            line.lock.release()

    def _drop(self, peer: int) -> None:
        with self._guard:
            line = self._lines.pop(peer)
            self._silence.forget(peer)
        self._selector.unregister(line.socket)
        with contextlib.suppress(OSError):  # a reset, so that nothing that waits to be sent is kept
            line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line.socket.close()
        self._heard.put(Heard(peer, None))

    def _shut(self, line: _Line) -> None:
        with contextlib.suppress(OSError):
            line.socket.shutdown(socket.SHUT_RDWR)


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for members; raises ValueError where that is not possible."""
    try:
        return socket.create_server((host, port), backlog=64)
    except OSError as error:
        raise ValueError(
            f"this process cannot wait for others at {host or 'any address'}:{port} ({error.strerror}). Is another host of a "
            "team there? Choose another port."
        ) from None
