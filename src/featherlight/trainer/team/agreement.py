"""Whether all processes hold the same weights, and the one clock they go by."""

from collections import Counter
from collections.abc import Mapping

from featherlight.optim.zeroth_order import RecordedOptimizer
from featherlight.trainer.digests import weights_digest

DIGEST_BYTES = 8


def digest_of(optimizer: RecordedOptimizer) -> bytes:
    """First bytes of the digest of the trained weights."""
    digest = weights_digest({target.name: target.parameter for target in optimizer.targets})
    return bytes.fromhex(digest)[:DIGEST_BYTES]


def require_agreement(digests: Mapping[int, bytes], steps: int, every: int) -> None:
    """Looks whether processes hold the same weights.

    Args:
        digests: by the number of the process.
        steps: done so far.
        every: how many steps ago it was looked last.

    Raises:
        ValueError: they do not; with three or more, the odd ones are named.
    """
    (common, votes), *others = Counter(digests.values()).most_common()
    if not others:
        return
    span = f"between step {max(0, steps - every)} and step {steps}"
    seen = ", ".join(f"process {number} has {digest.hex()}" for number, digest in sorted(digests.items()))
    if votes > len(digests) / 2:
        odd = [str(number) for number, digest in sorted(digests.items()) if digest != common]
        who = f"process {' and '.join(odd)} came to other weights than the {votes} that agree"
    else:
        who = "the processes came to different weights, and there is no majority that would tell which is wrong"
    raise ValueError(
        f"{who}, {span} ({seen}). Its memory, or a version of torch, may be at fault: replay the journal on each machine "
        "(`featherlight replay`), leave the odd one out, and go on with the same command."
    )


class Pace:
    """The seconds and signals of several processes, which travel with the messages of their steps.

    The clock of all shows the seconds of one of them, as it told them with the last step.

    Args:
        seconds: that are on the clock.

    Attributes:
        seconds: spent by this process.
        signalled: whether this process was asked to stop.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = self._shown = self._told = seconds
        self.signalled = False
        self._stop = False

    def hear(self, *, signalled: bool, seconds: float) -> None:
        """What the last step told: whether any was asked to stop, and the seconds of the one that leads."""
        self._stop = signalled
        self._told = seconds

    def agree(self, signalled: bool, seconds: float) -> tuple[bool, float]:
        """For `Clock.agree`, which hands over the seconds that it shows with those of the last step added."""
        self.signalled = signalled
        self.seconds += seconds - self._shown
        self._shown = self._told
        return self._stop, self._shown
