"""Signs of life of a long run: a bar by sample on a terminal, a line a minute elsewhere."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

EVERY = 60.0  # seconds between lines where there is no terminal


class Progress:
    """How many of a run's samples are done, and how long the rest will take."""

    def __init__(self, total: int, position: int = 0, clock: Callable[[], float] = time.monotonic):
        """Shows nothing done of `total` samples; `position` is the bar's line among processes."""
        self.total, self.done, self.clock = total, 0, clock
        self.start = self.last = clock()
        self._bar = tqdm(total=total, desc="samples", disable=None, position=position)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def tick(self, n_samples: int = 1) -> None:
        """Counts samples that are done."""
        self.done += n_samples
        self._bar.update(n_samples)
        now = self.clock()
        if self._bar.disable and now - self.last >= EVERY:
            self.last = now
            print(self.line(now), file=sys.stderr, flush=True)

    def line(self, now: float) -> str:
        """Done, of how many, and the time left at the pace so far."""
        left = (now - self.start) / max(self.done, 1) * (self.total - self.done)
        return (
            f"{self.done} of {self.total} samples, {span(now - self.start)} so far, about "
            f"{span(left)} left"
        )


def span(seconds: float) -> str:
    """Hours and minutes in words, or seconds below a minute."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
