"""How long a clip is."""

from __future__ import annotations

from hpc.curate.filters import EVERY_FRAME, Open
from hpc.curate.look import Look
from hpc.curate.settings.filters import Duration
from hpc.data.video import Video


def start(settings: Duration) -> Open:
    return Length


class Length:
    every = EVERY_FRAME

    def __init__(self, info: Video) -> None:
        self.time_base, self.seconds = info.time_base, 0.0

    def take(self, look: Look, seconds: float) -> None:
        self.seconds = seconds + float(look.duration * self.time_base)

    def scores(self) -> dict[str, float]:
        return {"duration_seconds": round(self.seconds, 2)}  # containers with milliseconds are off by up to two
