"""Progress bars for a local run: one a stage, fed from the records; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hpc.batch import status
from hpc.batch.run import Attempt, Run


@contextmanager
def bars(run: Run, attempt: Attempt, quiet: bool) -> Iterator[Callable[[object], None]]:
    """Yields a function to call often. Reading the records takes at most a tenth of the time."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    if quiet:
        yield lambda tasks: None
        return
    console = Console(file=sys.stdout)
    columns = [TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("{task.fields[note]}", style="dim")]  # fmt: skip
    plan = attempt.plan()
    with Progress(*columns, console=console, refresh_per_second=4, disable=not console.is_terminal) as progress:
        rows = {s.name: progress.add_task(s.name, total=None, note="waits") for s in plan.stages}
        told: dict[str, int] = {}
        due = [0.0]

        def tick(tasks: object, last: bool = False) -> None:
            begun = time.monotonic()
            if begun < due[0] and not last:
                return
            gathered = status.gather(run, ask_slurm=False)
            for s in gathered.status.stages:
                fold = gathered.folds[s.stage]
                if s.shards == 0:
                    continue
                flying = [r for shard, (w, r) in fold.running.items() if (w.job, w.restart) not in fold.ended]
                note = next((r.detail for r in sorted(flying, key=lambda r: -r.t) if r.detail), "")
                note = note or ("done" if s.done == s.shards else "starting" if flying else "waits")
                progress.update(rows[s.stage], total=s.shards, completed=round(s.fraction * s.shards, 2), note=note)
                percent = int(s.fraction * 10) * 10
                if not console.is_terminal and percent > told.get(s.stage, -1) and (flying or s.done):
                    told[s.stage] = percent
                    console.print(f"{s.stage}: {s.done}/{s.shards} shards, {s.fraction:.0%} {note}", highlight=False)
            due[0] = time.monotonic() + max(0.5, 10 * (time.monotonic() - begun))

        yield tick
        tick(None, last=True)
