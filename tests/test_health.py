"""What sbatch/health.sh finds wrong with a node, with commands that answer as those of broken GPUs do; and what follows
for the tasks of a run. Slurm's own part is in tests/cluster/test_health_cluster.py."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import runs

from hpc.batch import health, report, status
from hpc.batch.cluster import Cluster
from hpc.batch.health import Health
from hpc.batch.run import Run

SCRIPT = Path(__file__).parents[1] / "sbatch" / "health.sh"
WELL = "0, 0, No, 0\n1, 0, No, 0\n"


class Node:
    """Commands in a folder of their own, before all others."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()

    def command(self, name: str, text: str, status: int = 0) -> None:
        (self.bin / f"{name}.says").write_text(text)
        (self.bin / name).write_text(f'#!/bin/bash\necho "$@" >>"$0.calls"\ncat "$0.says"\nexit {status}\n')
        (self.bin / name).chmod(0o755)

    def look(self, **env: Any) -> tuple[int, str]:
        path = {"PATH": f"{self.bin}:{os.environ['PATH']}", "TMPDIR": str(self.folder)}
        more = {name: str(value) for name, value in env.items()}
        env = runs.environment(**path | more)
        done = subprocess.run(["bash", str(SCRIPT)], env=env, capture_output=True, text=True, timeout=180)
        assert not done.stderr, done.stderr
        return done.returncode, done.stdout


@pytest.fixture
def node(tmp_path: Path) -> Node:
    made = Node(tmp_path)
    made.command("logger", "")
    made.command("dmesg", "")
    return made


def test_a_node_that_is_well_has_nothing_to_say(node: Node) -> None:
    assert node.look() == (0, "")
    node.command("nvidia-smi", WELL)
    assert node.look(HPC_HEALTH_GPUS=2, HPC_HEALTH_CLOCK=node.folder) == (0, "")
    assert not list(node.folder.glob(".hpc-health-*"))


@pytest.mark.parametrize(("says", "status", "words"), [
    ("0, 0, No, 0\n1, 3, No, 0\n", 0, "GPU 1: 3 uncorrected memory errors"),
    ("0, 0, Yes, 0\n1, [N/A], [N/A], [N/A]\n", 0, "GPU 0: memory pages wait to be retired: it must be reset"),
    ("0, 0, No, 1\n1, 0, No, 0\n", 0, "GPU 0: rows of memory could not be remapped"),
    ("0, 0, No, 0\n", 0, "GPU: 1 answer, 2 are expected"),
    ("Unable to determine the device handle for GPU0: GPU is lost.\n", 0, "GPU is lost"),
    ("NVIDIA-SMI has failed because it couldn't communicate with the driver.\n", 9, "GPU: NVIDIA-SMI has failed"),
])  # fmt: skip
def test_what_gpus_say(node: Node, says: str, status: int, words: str) -> None:
    node.command("nvidia-smi", says, status)
    code, said = node.look(HPC_HEALTH_GPUS=2)
    assert code == 1 and words in said and len(said.splitlines()) == 1


def test_a_driver_that_does_not_know_all_fields(node: Node) -> None:
    (node.bin / "nvidia-smi").write_text(
        '#!/bin/bash\ncase $* in *remapped*) echo "Field \\"remapped_rows.failure\\" is not a valid field to query."; '
        'exit 2;; esac\nprintf "0, 0, No\\n1, 7, No\\n"\n'
    )
    (node.bin / "nvidia-smi").chmod(0o755)
    assert node.look() == (1, "GPU 1: 7 uncorrected memory errors\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone reads the kernel's log")
def test_what_the_kernel_says(node: Node) -> None:
    up = float(Path("/proc/uptime").read_text().split()[0])
    xid = "[{:>12.6f}] NVRM: Xid (PCI:0000:3b:00): {}, pid=1234, name=python, {}\n"
    old, own = xid.format(up - 4000, 79, "GPU has fallen off the bus."), xid.format(up - 60, 31, "MMU Fault")
    node.command("dmesg", old + own)
    assert node.look() == (0, ""), "one is old, the other a program's own"
    node.command("dmesg", xid.format(up - 60, 79, "GPU has fallen off the bus."))
    code, said = node.look()
    assert code == 1 and said.startswith("GPU: the kernel says Xid 79: ") and "fallen off the bus" in said


def test_folders_and_clocks(node: Node) -> None:
    code, said = node.look(HPC_HEALTH_FOLDERS=f"/proc:{node.folder}", HPC_HEALTH_FREE=10**8)
    first, second = said.splitlines()
    assert code == 1 and first.startswith("/proc: cannot be written to: ") and second.startswith(f"{node.folder}: ")
    assert "MiB free, 100000000 are needed" in second
    node.command("stat", f"{time.time() - 3600:.0f}")
    assert node.look(HPC_HEALTH_CLOCK=node.folder)[1].startswith("the clock is 3")


def test_slurmd_is_told_to_drain_the_node(node: Node) -> None:
    node.command("scontrol", "")
    node.command("nvidia-smi", "0, 5, No, 0\n")
    assert node.look(SLURMD_NODENAME="n7")[0] == 1
    call = (node.bin / "scontrol.calls").read_text()
    assert call == "update nodename=n7 state=drain reason=hpc health: GPU 0: 5 uncorrected memory errors\n"
    assert node.look(SLURMD_NODENAME="n7", SLURM_JOB_ID="8")[0] == 1
    assert (node.bin / "scontrol.calls").read_text() == call, "as a Prolog, Slurm does that by itself"


def test_nodes_that_the_next_attempt_keeps_away_from(tmp_path: Path) -> None:
    file = runs.spec(tmp_path, {"a.txt": "fail", "b.txt": "fine"})
    made = runs.go(file)
    limits = Health(exclude=2)
    health.note(made.run, {"n3": ["GPU 1: 3 uncorrected memory errors"]}, "7_0")
    assert runs.planned(file).excluded == {"echo": ["n3"]}
    health.note(made.run, {"n1": ["full"], "n3": ["again"]}, "7_1")
    said = report.build(made.run, status.gather(made.run, ask_slurm=False)).advice
    assert "n1 is not fit for work: full" in said and "n3 is not fit for work: again" in said
    assert health.shunned(made.run, limits) == {"n1", "n3"} and health.told(made.run, limits)["n3"].words == ["again"]
    health.note(made.run, {"n2": ["full"]}, "7_2")
    assert health.shunned(made.run, limits) == set(), "so many: it is something else"
    assert health.shunned(made.run, Health(forget=Cluster().health.forget.__class__(0))) == set()
    assert health.shunned(Run(tmp_path / "none"), limits) == set()


def test_this_node_is_asked_and_its_all_reduce_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                       capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    common: dict[str, Any] = {"nodes": 1, "gpus": 2, "clock": tmp_path, "name": "n9"}
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    assert health.look(scratch=str(tmp_path), health=Health(), **common) == {}
    assert list(health.look(scratch=str(tmp_path / "none"), health=Health(), **common)) == ["n9"]
    fast = health.look(scratch=str(tmp_path), health=Health(all_reduce=0.001), all_reduce=True, **common)
    assert fast == {}, capfd.readouterr()
    [slow] = health.look(scratch=str(tmp_path), health=Health(all_reduce=5000), all_reduce=True, **common)["n9"]
    assert slow.startswith("all-reduce over its 2 GPUs: ") and slow.endswith("GB/s, 5000 are expected")
