"""`hpc report --since`: what all runs under a folder took and cost, by run, user and account.

A run counts whole if anything of it was done since then. Slurm is asked once, for all of them: one squeue, one sacct.
"""

from __future__ import annotations

import datetime
import html
import sys
import time
from pathlib import Path

import msgspec

from hpc.batch import accounting, charts, exporter, page, slurm, status
from hpc.batch.accounting import Account, Total
from hpc.batch.run import Run
from hpc.data.units import Seconds


class Overview(msgspec.Struct):
    since: float
    runs: list[Account]
    by_user: list[Total]
    by_account: list[Total]
    unreadable: list[str]
    """Run folders that could not be read."""


def parse(text: str) -> float:
    """ "7d", "36h", "2026-11-01", "2026-11-01T08:00" -> seconds since 1970. Raises ValueError."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        pass
    try:
        return time.time() - Seconds.parse(text)
    except ValueError:
        allowed = "a duration (7d, 36h) or a date (2026-11-01, 2026-11-01T08:00)"
        raise ValueError(f"--since {text}: give {allowed}") from None


def build(folder: Path, since: float) -> Overview:
    """Of the runs in `folder`. Raises FileNotFoundError."""
    found: list[Run] = []
    for path in sorted(folder.iterdir()):
        marks = exporter.changes(Run(path), []) if path.is_dir() else ()
        if marks and marks[-1] / 1e9 >= since:
            found.append(Run(path))
    runs, unreadable, jobs, created = [], [], [], time.time()
    for run in found:
        try:
            numbers = run.attempts()
            jobs += [job for number in numbers for job in run.attempt(number).jobs()]
            created = min([created, *((run.attempt(n).folder / "plan.json").stat().st_mtime for n in numbers[:1])])
        except Exception as error:  # one damaged run is no reason to account for none
            print(f"{run.folder}: {error}", file=sys.stderr)
            unreadable.append(str(run.folder))
            continue
        runs.append(run)
    # hours of older jobs than fit on a command line are those of the records
    told = status.Told()
    try:
        told = status.slurm_tasks(sorted(jobs, key=lambda j: int(j.job))[-exporter.MOST_JOBS :], created, history=True)
    except slurm.SlurmError as error:
        print(f"without Slurm: {error}", file=sys.stderr)
    accounts = []
    for run in runs:
        try:
            with exporter.own_environment():
                gathered = status.gather(run, history=True, told=told)
                path = gathered.attempt.folder / "provenance.json"
                provenance = msgspec.json.decode(path.read_bytes()) if path.exists() else {}
                made = accounting.of(gathered, provenance, run)
        except Exception as error:
            print(f"{run.folder}: {error}", file=sys.stderr)
            unreadable.append(str(run.folder))
            continue
        if made.ended >= since:
            accounts.append(made)
    accounts.sort(key=lambda a: a.ended)
    return Overview(since, accounts, accounting.totals(accounts, "user"), accounting.totals(accounts, "account"),
                    unreadable)  # fmt: skip


def _day(t: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(t)) if t else "-"


def text(o: Overview) -> list[str]:
    """For a terminal."""
    out = [f"{len(o.runs)} runs with anything done since {_day(o.since)}"]
    for a in o.runs:
        out.append(f"  {_day(a.ended)}  {a.run:<28} {a.state:<10} {a.user or '-':<10} {a.account or '-':<10} "
                   f"{a.done:,}/{a.shards:,} shards, {accounting.hours(a)}")  # fmt: skip
    for by, totals in (("user", o.by_user), ("account", o.by_account)):
        out.append(f"by {by}:")
        out += [f"  {t.who:<16} {t.runs:>4} runs, {t.shards:,} shards, {accounting.hours(t)}" for t in totals]
    wanted = [f"  {a.run} stages.{u.stage}.resources: {u.words()}" for a in o.runs for u in a.stages if u.words()]
    return out + (["ask next time for:", *wanted] if wanted else [])


def html_page(o: Overview) -> str:
    e = lambda v: html.escape(str(v))
    numbers = ("CPU-hours", "GPU-hours", "GPUs busy", "kWh", "cost")

    def cells(a: Account | Total) -> str:
        said = [f"{a.cpu_hours:,.2f}", f"{a.gpu_hours:,.2f}"]
        said.append("" if a.gpu_utilization is None else charts.percent(a.gpu_utilization))
        said.append("" if a.energy_kwh is None else f"{a.energy_kwh:,.2f}")
        said.append("" if a.cost is None else f"{a.cost:,.2f} {a.currency}")
        return "".join(f"<td class=n>{e(v)}" for v in said)

    heads = "".join(f"<th class=n>{c}" for c in numbers)
    out = [page.head("hpc: what runs took"), "<h1>What runs took</h1>",
           f"<p class=dim>{len(o.runs)} runs with anything done since {_day(o.since)}, each counted whole; written "
           f"{_day(time.time())}</p>"]  # fmt: skip
    for by, totals in (("user", o.by_user), ("account", o.by_account)):
        out.append(f"<h2>By {by}</h2><div class=scroll><table><tr><th>{by}<th class=n>runs<th class=n>shards{heads}"
                   "</tr>")  # fmt: skip
        out += [f"<tr><td>{e(t.who)}<td class=n>{t.runs}<td class=n>{t.shards:,}{cells(t)}</tr>" for t in totals]
        out.append("</table></div>")
    out.append("<h2>Runs</h2><div class=scroll><table><tr><th>run<th>state<th>last record<th>user<th>account<th>code"
               f"<th>spec<th class=n>shards{heads}</tr>")  # fmt: skip
    for a in reversed(o.runs):
        out.append(f"<tr><td>{e(a.run)}<td><span class='state {e(a.state)}'>{e(a.state)}</span><td>{_day(a.ended)}"
                   f"<td>{e(a.user)}<td>{e(a.account)}<td><code>{e(a.git)}</code><td><code>{e(a.spec)}</code>"
                   f"<td class=n>{a.done:,}/{a.shards:,}{cells(a)}</tr>")  # fmt: skip
    out.append("</table></div>")
    for a in reversed(o.runs):
        out += page.account(a, a.run)
    out += [f"<p class=dim>could not be read: <code>{e(path)}</code></p>" for path in o.unreadable]
    return "\n".join(out) + "\n"
