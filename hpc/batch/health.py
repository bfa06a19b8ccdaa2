"""Are the nodes of a task fit for work? Asked when it starts; the next start, and the next attempt, go elsewhere.

    bad = look(nodes=2, gpus=8, scratch=..., clock=..., health=preset.health, name="n1")    # {"n2": ["GPU 3: ..."]}
    note(run, bad, job); ...; shunned(run, preset.health)

What is looked at is sbatch/health.sh's, which a site's Prolog or HealthCheckProgram may call as well. Where the preset
says what an all-reduce over the GPUs of one node reaches, it is measured (hpc.batch.probe).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from hpc.batch import probe, slurm
from hpc.batch.run import Run, sibling
from hpc.data.units import Bytes, Seconds

WORD = "HEALTH "
WRAP = f'said=$(bash "$1") || while IFS= read -r line; do echo "{WORD}${{SLURMD_NODENAME:-$2}} $line"; done <<<"$said"'
SHARE = 0.7
"""Of the all-reduce that the preset expects: below, a node is slow."""


class Health(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a node is not fit for work, and what follows."""

    check: bool = True
    """Look at each node when a task starts there: GPUs, scratch, clock. A task on a bad node is requeued to another."""
    scratch: Bytes = Bytes(2**30)
    """Room that there must be in `scratch`."""
    all_reduce: float | None = None
    """Bus bandwidth in GB/s that an all-reduce over the GPUs of one node reaches: measured before ranks start, which
    takes some seconds; a node with less than 70 % of it is bad. null: not measured."""
    exclude: int = 4
    """Bad nodes that the next attempt is kept away from, at most. Of more, it is something else that is wrong."""
    forget: Seconds = Seconds(24 * 3600)
    """After so long a node may be well again."""

    def __post_init__(self) -> None:
        if self.exclude < 0:
            raise ValueError(f"exclude: {self.exclude} must be 0 or more")


class Bad(msgspec.Struct):
    """A line of <run>/bad-nodes.jsonl."""

    t: float
    node: str
    job: str
    words: list[str]


def look(*, nodes: int, gpus: int, scratch: str, clock: Path, health: Health, name: str,
         all_reduce: bool = False) -> dict[str, list[str]]:  # fmt: skip
    """Node -> what is wrong with it, of those where something is. name: of this node; of several, they are asked in a
    step of this job. gpus: of each node. Raises nothing: who cannot be asked is taken to be well."""
    env = {"HPC_HEALTH_GPUS": str(gpus), "HPC_HEALTH_FOLDERS": scratch, "HPC_HEALTH_CLOCK": str(clock),
           "HPC_HEALTH_FREE": str(health.scratch // 2**20)}  # fmt: skip
    command = ["bash", "-c", WRAP, "bash", str(sibling("sbatch") / "health.sh"), name]
    said = _said(command, nodes, env)
    if all_reduce and health.all_reduce and gpus > 1:
        said += _said([sys.executable, "-m", "hpc.batch.health", str(gpus), str(health.all_reduce), name], nodes, {})
    bad: dict[str, list[str]] = {}
    for line in said.splitlines():
        if line.startswith(WORD):
            node, _, words = line.removeprefix(WORD).partition(" ")
            bad.setdefault(node, []).append(words)
    return bad


def _said(command: list[str], nodes: int, env: dict[str, str]) -> str:
    if nodes > 1:
        command = slurm.step(command, nodes=nodes, tasks_per_node=1, cpus_per_task=1)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | env)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"nodes were not looked at: {error}", file=sys.stderr)
        return ""
    sys.stderr.write(done.stderr if done.returncode else "")
    return done.stdout


def note(run: Run, bad: dict[str, list[str]], job: str) -> None:
    """For the next attempt."""
    with (run.folder / "bad-nodes.jsonl").open("ab") as out:
        for node, words in bad.items():
            out.write(msgspec.json.encode(Bad(time.time(), node, job, words)) + b"\n")


def told(run: Run, health: Health) -> dict[str, Bad]:
    """Node -> the last that was said of it, of late."""
    try:
        lines = (run.folder / "bad-nodes.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    found = [msgspec.json.decode(line, type=Bad) for line in lines]
    return {one.node: one for one in found if time.time() - one.t < health.forget}


def shunned(run: Run, health: Health) -> set[str]:
    """Nodes that the next attempt keeps away from."""
    nodes = set(told(run, health))
    return nodes if len(nodes) <= health.exclude else set()


def within(gpus: int, expected: float, node: str) -> None:
    """Measure the all-reduce of this node's GPUs, and say so if it is slow."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(gpus):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": gpus, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = os.environ | {name: str(value) for name, value in names.items()}
        command = [sys.executable, "-m", "hpc.batch.probe", "all-reduce", "256" if shutil.which("nvidia-smi") else "16"]
        ranks.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
    said = "".join(rank.communicate()[0] for rank in ranks)
    lines = probe.lines(said)
    if not lines or any(rank.returncode for rank in ranks):
        print(f"{WORD}{node} all-reduce over its {gpus} GPUs failed: see the log")
        return
    bandwidth = msgspec.json.decode(lines[0], type=probe.AllReduce).bandwidth / 1e9
    if bandwidth < SHARE * expected:
        print(f"{WORD}{node} all-reduce over its {gpus} GPUs: {bandwidth:.1f} GB/s, {expected:g} are expected")


if __name__ == "__main__":
    within(int(sys.argv[1]), float(sys.argv[2]), os.environ.get("SLURMD_NODENAME", sys.argv[3]))
