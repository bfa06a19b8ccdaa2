"""One rank of a distributed program: sets the rendezvous of torch.distributed from what Slurm tells, and becomes it.

    srun python -m hpc.batch.rank -- my_train.py --flags        (sbatch/train.sbatch does this)
    srun python -m hpc.batch.rank -- -m package.module --flags

MASTER_ADDR is the first node of the job; MASTER_PORT follows from the numbers of the job and of its step, unless it is
set already. All GPUs of the node stay visible to each rank, as under torchrun: the program chooses by LOCAL_RANK.
"""

from __future__ import annotations

import os
import sys

from hpc.batch.heartbeat import NODE

FIRST_PORT, PORTS = 20000, 12000
"""Below those that Linux gives to connections (32768 and more): one of these may hold any number for a while."""
STEPS = 8
"""Of a job have ports of their own: ranks that start again there do not meet where something listens already."""


def port(job: int, step: int) -> int:
    """Where the ranks of a step meet; of 1,500 jobs in a row no two have the same."""
    return FIRST_PORT + (STEPS * job + step % STEPS) % PORTS


def main(arguments: list[str]) -> None:
    if arguments[:1] != ["--"] or len(arguments) < 2:
        sys.exit("usage: srun python -m hpc.batch.rank -- PROGRAM.py [flags]   or   -- -m PACKAGE.MODULE [flags]")
    if "SLURM_PROCID" not in os.environ:
        sys.exit("hpc.batch.rank: SLURM_PROCID is not set: this is not a step of a Slurm job; start it with srun")
    # of the step, which may take fewer nodes than the job has: submitit reads the job's
    for mine, whole in (("SLURM_STEP_NUM_NODES", "SLURM_JOB_NUM_NODES"), ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")):
        os.environ[whole] = os.environ.get(mine, os.environ[whole])
    ranks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_JOB_NUM_NODES"])
    if ranks % nodes:
        sys.exit(f"hpc.batch.rank: {ranks} ranks on {nodes} nodes: each node must have the same number of ranks; "
                 "give sbatch --nodes and --ntasks-per-node, not --ntasks")  # fmt: skip

    from submitit.helpers import TorchDistributedEnvironment

    os.environ.setdefault(NODE, os.environ.get("SLURMD_NODENAME", ""))
    job, step = (int(os.environ[f"SLURM_{name}"]) for name in ("JOB_ID", "STEP_ID"))
    os.environ.setdefault("MASTER_PORT", str(port(job, step)))
    os.environ["SUBMITIT_EXECUTOR"] = "slurm"  # by which submitit knows that Slurm's variables are the ones to read
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    os.execv(sys.executable, [sys.executable, *arguments[1:]])


if __name__ == "__main__":
    main(sys.argv[1:])
