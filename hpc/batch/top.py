"""`hpc top`: all runs under a folder in a terminal, live, by plain ANSI: over ssh, in tmux, in any size.

    j k or arrows  move        enter  open a run        esc or left  back        /  filter        q  leave

The figures are the dashboard's (hpc.batch.watch). A run's page has its stages, and the chosen one's shards as an array:
a character stands for some neighbouring shards, and shows the worst of them. Where the output is no terminal, the list
is printed once.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import signal
import sys
import termios
import threading
import time
import tty
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from hpc.batch import jsons
from hpc.batch.watch import STATES, Watch
from hpc.data.units import seconds

COLOURS = {"done": "34", "running": "33", "failed": "1;31", "incomplete": "31", "waiting": "2", "queued": "2",
           "stopped": "35", "lost": "35", "dim": "2", "bold": "1", "head": "7"}  # fmt: skip
MARKS = {"f": "x", "l": "?", "r": "o", "s": "-", "q": ":", "w": ".", "d": "#"}
"""A shard's state as a character, the worst first."""
BLOCKS = {"d": "█", "r": "▒", "q": "░", "w": "·", "f": "×"}
"""...where the terminal has more than ASCII."""
ARRAY_ROWS = 8
KEYS = {"\x1b[A": "up", "\x1bOA": "up", "k": "up", "\x1b[B": "down", "\x1bOB": "down", "j": "down", "\r": "enter",
        "\n": "enter", "\x1b[C": "enter", "\x1bOC": "enter", "\x1b[D": "back", "\x1bOD": "back", "\x1b": "back",
        "\x7f": "back", "\x1b[5~": "pageup", "\x1b[6~": "pagedown", "\x1b[H": "first", "\x1b[F": "last", "g": "first",
        "G": "last", "/": "filter", "q": "leave", "\x03": "leave"}  # fmt: skip
KEY = re.compile(r"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Za-z])?|.", re.DOTALL)


class Screen(msgspec.Struct):
    """What is being looked at."""

    run: str = ""
    """"": the list."""
    at: int = 0
    """Chosen row of the list."""
    stage: int = 0
    top: int = 0
    """First row of the list that is shown."""
    filter: str = ""
    typing: bool = False
    unicode: bool = True
    colour: bool = True
    said: list[str] = []
    """What reading complained of last: nobody else may write to this screen."""


class Said(io.TextIOBase):
    """Stands in for stderr."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen

    def write(self, text: str) -> int:
        new = [line for line in text.splitlines() if line.strip()]
        self.screen.said = list(dict.fromkeys([*self.screen.said, *new]))[-2:]
        return len(text)


def show(folder: Path, every: float, as_json: bool) -> int:
    """The command. Returns its exit status."""
    watch = Watch(folder)
    if as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        watch.read()
        if as_json:
            print(jsons.pretty(watch.runs()).decode(), end="")
        else:
            plain = Screen(unicode=False, colour=False)
            print("\n".join(line.rstrip() for line in listed(watch.runs(), plain, 160, 1 << 30)))
        return 0
    encoding = (sys.stdout.encoding or "").lower()
    screen = Screen(unicode=encoding.startswith("utf"), colour=not os.environ.get("NO_COLOR"))
    with terminal() as (read, write), contextlib.redirect_stderr(Said(screen)):  # type: ignore[type-var]
        threading.Thread(target=watch.work, daemon=True).start()
        loop(watch, screen, max(1.0, every), read, write)
    return 0


def loop(watch: Watch, screen: Screen, every: float, read: Callable[[float], list[str] | None],
         write: Callable[[list[str]], None]) -> None:  # fmt: skip
    """Look, draw, wait for a key or for news, until q."""
    due = 0.0
    while True:
        now = time.monotonic()
        if now >= due:
            watch.fresh.clear()
            watch.wanted.set()
            watch.fresh.wait(0.3)
            due = now + (every if watch.read_at else 0.5)
        size = os.get_terminal_size(sys.stdout.fileno())
        write(draw(watch, screen, size.columns, size.lines))
        for key in read(max(0.05, due - time.monotonic())) or ():
            if not press(watch, screen, key, size.lines):
                return


def press(watch: Watch, screen: Screen, key: str, height: int) -> bool:
    """What a key does; False: leave."""
    if screen.typing:
        if key in ("\r", "\n", "\x1b"):
            screen.typing, screen.filter = False, "" if key == "\x1b" else screen.filter
        elif key in ("\x7f", "\b"):
            screen.filter = screen.filter[:-1]
        elif len(key) == 1 and key.isprintable():
            screen.filter += key
        screen.at = screen.top = 0
        return True
    what = KEYS.get(key, "")
    rows = chosen(watch.runs(), screen)
    step = {"up": -1, "down": 1, "pageup": 8 - height, "pagedown": height - 8, "first": -1 << 30, "last": 1 << 30}
    if what == "leave":
        return False
    if what == "filter" and not screen.run:
        screen.typing, screen.filter = True, ""
    elif what in step:
        if screen.run:
            known = watch.known.get(screen.run)
            most = len(known.detail["stages"]) - 1 if known else 0
            screen.stage = max(0, min(most, screen.stage + step[what]))
        else:
            screen.at = max(0, min(len(rows) - 1, screen.at + step[what]))
    elif what == "enter" and not screen.run and rows:
        screen.run = rows[screen.at]["run"]
        stages = rows[screen.at]["stages"]
        screen.stage = next((i for i, s in enumerate(stages) if s["running"]), 0)
    elif what == "back":
        screen.run, screen.filter = "", screen.filter if screen.run else ""
    return True


def chosen(runs: dict[str, Any], screen: Screen) -> list[dict[str, Any]]:
    words = screen.filter.casefold().split()
    return [r for r in runs["runs"]
            if all(w in f"{r['run']} {r['user']} {r['state']} {r['cluster']}".casefold() for w in words)]  # fmt: skip


def draw(watch: Watch, screen: Screen, width: int, height: int) -> list[str]:
    """The lines of the whole screen, as many as it is high."""
    if screen.run and screen.run in watch.known:
        lines = page(watch.known[screen.run].detail, screen, width, height - 1)
        keys = "q leave  esc back  j k stage"
    else:
        screen.run = ""
        lines = listed(watch.runs(), screen, width, height - 1)
        if not watch.read_at:
            lines.append(ink(screen, "dim", "reading..."))
        keys = "q leave  j k move  enter open  / filter  esc all"
    foot = f"/{screen.filter}_" if screen.typing else f"filter: {screen.filter}  {keys}" if screen.filter else keys
    lines = lines[: height - 1] + [""] * (height - 1 - len(lines))
    clock = time.strftime("%H:%M:%S")
    return [*lines, ink(screen, "dim", cut(foot, width - 10).ljust(max(0, width - 9)) + clock if width > 40 else foot)]


def listed(runs: dict[str, Any], screen: Screen, width: int, height: int) -> list[str]:
    """The list of runs."""
    totals, rows = runs["totals"], chosen(runs, screen)
    states = ", ".join(f"{n:,} {word}" for word, n in sorted(totals["states"].items(), key=lambda p: -p[1]))
    held = f"{totals['gpus']:,} GPUs, {totals['cpus']:,} CPUs held; {totals['running']:,} shards in flight"
    why = ", ".join(f"{why} {n:,}" for why, n in totals["reasons"].items())
    held += f"; {totals['pending']:,} tasks pending: {why}" if totals["pending"] else ""
    lines = [ink(screen, "bold", cut(f"hpc  {clean(runs['folder'])}  {states}", width)), cut(held, width)]
    lines += [ink(screen, "incomplete", cut(clean(line), width)) for line in screen.said]
    lines += [ink(screen, "incomplete", cut(clean(f"cannot read {p['run']}: {p['why']}"), width))
              for p in runs["problems"][:2]]  # fmt: skip
    space = height - len(lines) - 1
    screen.at = max(0, min(screen.at, len(rows) - 1))
    screen.top = max(min(screen.top, screen.at, max(0, len(rows) - space)), screen.at - space + 1, 0)
    name = max([20, *(len(r["run"]) for r in rows)])
    name = min(name, max(12, width - 56), 44)
    bar = max(0, min(30, width - name - 60))
    wide = width >= name + bar + 75
    head = f"{'STATE':<11}{'RUN':<{name}} {'PROGRESS':<{bar + 6}}{'SHARDS':>15} {'FAILED':>6}"
    head += f"{'SH/H':>8}{'ENDS IN':>11}{'GPUS':>6}" if wide else f"{'ENDS IN':>11}"
    head += f"{'LAST':>9}"
    lines.append(ink(screen, "head", cut(head, width).ljust(width)))
    for number, r in enumerate(rows[screen.top : screen.top + space], screen.top):
        marker = ">" if number == screen.at and screen.unicode else " "
        left = f"{marker}{r['state']:<10}"
        title = cut(clean(r["run"]), name)
        mid = f"{title}{' ' * (name - breadth(title))} "
        right = f"{r['fraction']:>5.0%} {r['done']:>7,}/{r['shards']:<7,}"
        bad = f" {r['failed'] or '':>6}"
        eta = seconds(r["eta"]) if r["eta"] and r["state"] == "running" else ""
        rate = f"{r['rate']:,.0f}" if r["rate"] else ""
        end = f"{rate:>8}{eta:>11}{r['gpus'] or '':>6}" if wide else f"{eta:>11}"
        end += f"{age(r['last'] or r['created']):>9}"
        line = [(r["state"], left), ("bold" if number == screen.at else "", mid), *meter(screen, r, bar), ("", right),
                ("failed" if r["failed"] else "", bad), ("", end)]  # fmt: skip
        lines.append(joined(screen, line, width, reverse=number == screen.at and screen.colour))
    if not rows:
        lines.append(ink(screen, "dim", "no run is like that" if runs["runs"] else "no runs here yet"))
    return lines


def page(d: dict[str, Any], screen: Screen, width: int, height: int) -> list[str]:
    """One run."""
    live = d["state"] in ("running", "waiting")
    took = time.time() - d["started"] if live and d["started"] else d["wall"]
    said = [f"attempt {d['attempt']}", f"{'for' if live else 'took'} {seconds(took)}"]
    said += [f"{d['rate']:,.0f} shards/h"] if d["rate"] else []
    said += [f"ends in {seconds(d['eta'])}"] if d["eta"] and live else []
    said += [f"{d['gpus']:,} GPUs" + (f" busy {d['gpu_busy']:.0%}" if d["gpu_busy"] is not None else "")] \
        if d["gpus"] else []  # fmt: skip
    lines = [joined(screen, [("bold", clean(d["run"]) + "  "), (d["state"], d["state"]), ("", "  " + ", ".join(said))],
                    width), ink(screen, "dim", cut(clean(d["folder"]), width)), ""]  # fmt: skip
    name = min(max([8, *(len(s["stage"]) for s in d["stages"])]), 20)
    bar = max(6, min(40, width - name - 50))
    head = f" {'STAGE':<{name}} {'PROGRESS':<{bar + 6}}{'SHARDS':>15} {'FAILED':>6}{'SH/H':>8}{'ENDS IN':>11}"
    lines.append(ink(screen, "head", cut(head, width).ljust(width)))
    screen.stage = min(screen.stage, max(0, len(d["stages"]) - 1))
    for number, s in enumerate(d["stages"]):
        eta = seconds(s["eta"]) if s["eta"] and live else ""
        total = f"{s['shards']:<7,}" if s["planned"] else f"{'?':<7}"
        rate = f"{s['flow']['rate']:,.0f}" if s["flow"]["rate"] else ""
        line = [("bold", f"{'>' if number == screen.stage else ' '}{cut(clean(s['stage']), name):<{name}} "),
                *meter(screen, s, bar), ("", f"{s['fraction']:>5.0%} {s['done']:>7,}/{total}"),
                ("failed" if s["failed"] else "", f" {s['failed'] or '':>6}"), ("", f"{rate:>8}{eta:>11}")]  # fmt: skip
        lines.append(joined(screen, line, width))
    if not d["stages"]:
        return lines
    s = d["stages"][screen.stage]
    lines += ["", *array(screen, s, width)]
    if s["tasks"]:
        lines.append("tasks: " + ", ".join(f"{word.lower()} {n:,}" for word, n in s["tasks"].items()))
    if s["reasons"]:
        lines.append("pending for: " + ", ".join(f"{clean(why)} {n:,}" for why, n in s["reasons"].items()))
    if s["training"]:
        lines.append("training: " + clean(s["training"]["words"]))
    if s["made"]:
        lines.append("made: " + clean(", ".join(s["made"])))
    for group in d["failed_shards"]:
        lines.append(joined(screen, [("failed", f"{group['count']:>6,} {group['class']}"), ("", f" in "
                     f"{clean(group['stage'])}: {clean(group['remedy'])}")], width))  # fmt: skip
        lines += [ink(screen, "dim", cut(clean(f"       {one['shard']} {one['node']}: {one['detail']}"), width))
                  for one in group["shards"][:2]]  # fmt: skip
    lines += [f"{group['count']:>6,} inputs quarantined: {clean(group['reason'])}" for group in d["quarantine"]]
    lines += ["", *(clean(a) for a in d["advice"] if a.startswith("next:"))]
    return [line if "\x1b" in line else cut(line, width) for line in lines[:height]]


def array(screen: Screen, stage: dict[str, Any], width: int) -> list[str]:
    """The shards of a stage: a character stands for as many neighbours as make it fit, and shows the worst of them."""
    states = stage["cells"]["state"]
    if not states:
        return []
    each = max(1, -(-len(states) // (width * ARRAY_ROWS)))
    cells = [states[i : i + each] for i in range(0, len(states), each)]
    worst = [next(code for code in MARKS if code in cell) for cell in cells]
    marks = MARKS | BLOCKS if screen.unicode else MARKS
    counts = {code: states.count(code) for code in MARKS if code in states}
    legend = [(STATES[code], f"{marks[code]} {STATES[code]} {n:,}  ") for code, n in counts.items()]
    means = f"each mark the worst of {each} shards" if each > 1 else "each mark a shard"
    title = f"{clean(stage['stage'])}: {means}"
    lines = [joined(screen, [("bold", title + "   "), *legend], width)]
    for first in range(0, len(worst), width):
        parts: list[tuple[str, str]] = []
        for code in worst[first : first + width]:
            if parts and parts[-1][0] == STATES[code]:
                parts[-1] = (STATES[code], parts[-1][1] + marks[code])
            else:
                parts.append((STATES[code], marks[code]))
        lines.append(joined(screen, parts, width))
    return lines


def meter(screen: Screen, row: dict[str, Any], width: int) -> list[tuple[str, str]]:
    """done, running and failed of all shards, as one bar; what is there at all is seen."""
    if not width or not row["shards"]:
        return [("dim", " " * width)]
    part = {key: row[key] * width / row["shards"] for key in ("done", "failed", "running")}
    cells = {key: max(1, round(v)) if v else 0 for key, v in part.items()}
    cells["done"] = max(0, min(cells["done"], width - cells["failed"] - cells["running"]))
    marks = {"done": "█", "running": "▒", "failed": "×"} if screen.unicode else \
        {"done": "#", "running": "o", "failed": "x"}  # fmt: skip
    left = max(0, width - sum(cells.values()))
    return [(key, marks[key] * cells[key]) for key in ("done", "running", "failed")] + [
        ("dim", ("·" if screen.unicode else ".") * left)]  # fmt: skip


def joined(screen: Screen, parts: list[tuple[str, str]], width: int, reverse: bool = False) -> str:
    """Parts of a line in their colours, cut at the width."""
    out, left = [], width
    for kind, text in parts:
        text = cut(text, left)
        left -= breadth(text)
        out.append(ink(screen, kind, text) if not reverse else text)
    return ink(screen, "head", "".join(out) + " " * left) if reverse else "".join(out)


def ink(screen: Screen, kind: str, text: str) -> str:
    code = COLOURS.get(kind, "")
    return f"\x1b[{code}m{text}\x1b[0m" if code and text and screen.colour else text


def clean(text: str) -> str:
    """Names and errors are not the terminal's: nothing in them moves its cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)


def breadth(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def cut(text: str, width: int) -> str:
    if len(text) <= width and breadth(text) <= width:
        return text
    out, left = "", width
    for c in text:
        if (left := left - breadth(c)) < 0:
            break
        out += c
    return out


def age(t: float) -> str:
    s = max(0, int(time.time() - t)) if t else -1
    units = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
    return next((f"{s // size}{unit}" for size, unit in units if s >= size), "now" if s == 0 else "")


@contextlib.contextmanager
def terminal() -> Iterator[tuple[Callable[[float], list[str] | None], Callable[[list[str]], None]]]:
    """(read, write): keys within some seconds, None if the terminal was resized; and the lines of a screen. Whatever
    ends it, the terminal is as it was."""
    inside, out = sys.stdin.fileno(), sys.stdout.fileno()
    before = termios.tcgetattr(inside)
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    drawn: list[str] = []
    stale = [True]

    def enter() -> None:
        tty.setcbreak(inside)
        os.write(out, b"\x1b[?1049h\x1b[?25l\x1b[?7l")
        stale[0] = True

    def leave() -> None:
        os.write(out, b"\x1b[?7h\x1b[?25h\x1b[?1049l")
        termios.tcsetattr(inside, termios.TCSADRAIN, before)

    def resized(number: int, frame: FrameType | None) -> None:
        stale[0] = True  # also of what is being written just now
        with contextlib.suppress(BlockingIOError):
            os.write(waker, b"!")

    def stopped(number: int, frame: FrameType | None) -> None:  # ctrl-z, and back
        leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        enter()
        resized(number, frame)

    def ended(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def read(timeout: float) -> list[str] | None:
        ready, _, _ = select.select([inside, wake], [], [], timeout)
        if wake in ready:
            os.read(wake, 64)
            return None
        if inside not in ready:
            return None
        data = os.read(inside, 1024)
        if not data:
            raise SystemExit(0)  # the terminal is gone
        if data == b"\x1b" and select.select([inside], [], [], 0.05)[0]:  # the rest of an arrow, over a slow line
            data += os.read(inside, 1024)
        return KEY.findall(data.decode(errors="replace"))

    def write(lines: list[str]) -> None:
        """What differs from the screen's lines: little goes over a slow line."""
        if stale[0] or len(drawn) != len(lines):
            stale[0] = False
            drawn[:] = ["\0"] * len(lines)
            os.write(out, b"\x1b[2J")
        pieces = [f"\x1b[{i + 1};1H{line}\x1b[K" for i, (line, old) in enumerate(zip(lines, drawn, strict=True))
                  if line != old]  # fmt: skip
        drawn[:] = lines
        data = "".join(pieces).encode(errors="replace")
        while data:
            data = data[os.write(out, data) :]

    handlers = {signal.SIGWINCH: resized, signal.SIGTSTP: stopped, signal.SIGTERM: ended, signal.SIGHUP: ended}
    old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        enter()
        yield read, write
    finally:
        with contextlib.suppress(OSError):
            leave()
        for number, handler in old.items():
            signal.signal(number, handler)
        os.close(wake)
        os.close(waker)
