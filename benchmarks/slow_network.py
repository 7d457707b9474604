"""Machines on a slow, lossy network, as network namespaces of this one: each has a TUN device, and this process is the wire.

It reads the packets of each device and hands them to that of the receiver after the time that they take at the link's rate and
the delay; some it drops. Only root can. Nothing is left behind: devices and namespaces go when the block ends.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_TUNSETIFF = 0x400454CA
_TUN_WITHOUT_HEADER = 0x1001
_CLONE_NEWNET = 0x40000000
_LARGEST_PACKET = 65536
_QUEUE_SECONDS = 0.5
"""What a link keeps at most, in seconds of its rate; packets beyond are dropped."""

DEVICE = "slow0"


def is_possible() -> str | None:
    """None, or why there can be no such network here."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    name = f"fl-probe-{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return None if done.returncode == 0 else f"`ip netns add` says: {done.stderr.strip()}"


@dataclass(frozen=True, kw_only=True)
class Link:
    """What all links are like.

    Args:
        rate: bit/s, each way.
        round_trip: seconds between any two machines.
        loss: share of the packets that are dropped.
        seed: of which.
    """

    rate: float = 1e6
    round_trip: float = 0.1
    loss: float = 0.01
    seed: int = 0


@dataclass
class Traffic:
    """IP bytes and packets of a machine, as counted on the wire; what was dropped was sent."""

    sent: int = 0
    received: int = 0
    packets: int = 0
    dropped: int = 0


@dataclass
class Network:
    """Machines with addresses 10.77.0.1, 10.77.0.2, ...

    Attributes:
        link: of all.
        names: of the namespaces.
        traffic: of each machine.
        cut: machines whose packets all get lost.
    """

    link: Link
    names: Sequence[str]
    devices: Sequence[int]
    traffic: list[Traffic] = field(init=False)
    cut: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.traffic = [Traffic() for _ in self.names]
        self._draw = random.Random(self.link.seed)
        self._free = [[0.0, 0.0] for _ in self.names]
        self._flying: list[tuple[float, int, int, bytes]] = []
        self._count = 0
        self._over = threading.Event()

    def address(self, number: int) -> str:
        """Of a machine."""
        return f"10.77.0.{number + 1}"

    def start(self, number: int, work: Callable[[], None]) -> int:
        """Forks a process on a machine; returns its id. It ends with code 1 where `work` raises."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            for one in (signal.SIGINT, signal.SIGTERM):
                signal.signal(one, signal.SIG_DFL)
            enter(self.names[number])
            work()
            code = 0
        except BaseException as error:
            os.write(2, f"machine {number}: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)

    def carry(self) -> None:
        """Carries packets until the network is taken down."""
        while not self._over.is_set():
            now = time.monotonic()
            while self._flying and self._flying[0][0] <= now:
                _, _, receiver, packet = heapq.heappop(self._flying)
                self.traffic[receiver].received += len(packet)
                with suppress(OSError):
                    os.write(self.devices[receiver], packet)
            wait = min(0.05, self._flying[0][0] - time.monotonic()) if self._flying else 0.05
            for device in select.select(self.devices, [], [], max(0.0, wait))[0]:
                self._take(self.devices.index(device))

    def stop(self) -> None:
        """Ends `carry`."""
        self._over.set()

    def _take(self, sender: int) -> None:
        try:
            packet = os.read(self.devices[sender], _LARGEST_PACKET)
        except BlockingIOError:
            return
        if packet[0] >> 4 != 4 or packet[16:19] != bytes((10, 77, 0)):
            return
        receiver = packet[19] - 1
        if not 0 <= receiver < len(self.names):
            return
        mine = self.traffic[sender]
        mine.sent += len(packet)
        mine.packets += 1
        arrives = self._arrival(sender, receiver, 8 * len(packet) / self.link.rate)
        if arrives is None or self._draw.random() < self.link.loss or self.cut & {sender, receiver}:
            mine.dropped += 1
            return
        self._count += 1
        heapq.heappush(self._flying, (arrives, self._count, receiver, packet))

    def _arrival(self, sender: int, receiver: int, seconds: float) -> float | None:
        """When a packet is there that takes so many seconds on a link; None where the sender's queue is full."""
        now = time.monotonic()
        up, down = self._free[sender], self._free[receiver]
        if up[0] - now > _QUEUE_SECONDS:
            return None
        up[0] = max(now, up[0]) + seconds
        down[1] = max(up[0] + self.link.round_trip / 2, down[1]) + seconds
        return down[1]


@contextmanager
def network(machines: int, link: Link) -> Iterator[Network]:
    """So many machines, and a thread that is the wire; all is taken down in the end, after Ctrl-C or SIGTERM too."""
    names = [f"fl-{os.getpid()}-{number}" for number in range(machines)]
    devices: list[int] = []
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for number, name in enumerate(names):
            _ip("netns", "add", name)
            devices.append(_device(name))
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "address", "add", f"10.77.0.{number + 1}/24", "dev", DEVICE)
            _ip("-n", name, "link", "set", DEVICE, "up")
        made = Network(link, names, devices)
        wire = threading.Thread(target=made.carry, daemon=True)
        wire.start()
        try:
            yield made
        finally:
            made.stop()
            wire.join()
    finally:
        for device in devices:
            os.close(device)
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        signal.signal(signal.SIGTERM, before)


def enter(name: str) -> None:
    """Puts the calling thread into a namespace."""
    with open(f"/run/netns/{name}") as file:
        _set_namespace(file.fileno())


def _device(name: str) -> int:
    """A TUN device in a namespace; goes when its descriptor is closed."""
    with open("/proc/self/ns/net") as own:
        enter(name)
        try:
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _TUN_WITHOUT_HEADER))
        finally:
            _set_namespace(own.fileno())
    return device


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns refused")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
