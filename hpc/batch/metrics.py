"""A run's figures in Prometheus' text format, for node_exporter's textfile collector and for `hpc exporter`.

Names begin with hpc_; Slurm's own exporters have slurm_. Labels stay few: cluster, run, stage, state, and a word where
there are several of a kind (class of failure, verdict). No job id, shard or node is ever one of them: a site's series
must not grow with the width of arrays. Counters end with _total; times are in seconds, shares are ratios.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from hpc.batch import counts

if TYPE_CHECKING:
    from hpc.batch.report import Report

ABOUT = {
    "run_info": "What the run is.",
    "run_state": "1 for the state that the run is in: done, running, waiting, failed, incomplete.",
    "run_attempts": "Attempts planned: the first, and a further one for each retry.",
    "run_started_timestamp_seconds": "Time of the first record.",
    "run_shards": "Shards by state.",
    "run_failed_shards": "Shards that failed, by class of failure.",
    "run_tasks": "Array tasks by Slurm state.",
    "run_pending_tasks": "Pending array tasks by Slurm's reason.",
    "run_progress_ratio": "Share of the shards that is done, with the parts of those in flight.",
    "run_eta_seconds": "Seconds until the stage is done, by what shards took so far.",
    "run_quarantined_inputs": "Inputs that can never work.",
    "run_gpu_seconds_total": "GPU time held.",
    "run_cpu_seconds_total": "CPU time held.",
    "run_gpu_utilization_ratio": "Share of the time in which a kernel ran on the GPUs, as NVML says.",
    "run_gpu_energy_joules_total": "Energy of the GPUs held, by their mean power while they were looked at.",
    "run_memory_peak_bytes": "The most that one worker process held.",
    "run_memory_requested_bytes": "What one worker process was given.",
    "run_cost_total": "What the run has cost, at the rates of the cluster preset, in their currency.",
    "run_clips": "Clips by verdict.",
    "run_limit_keeps_ratio": "Share of the measured clips that a filter's limit keeps.",
    "run_frames_total": "Frames gone through.",
    "run_video_seconds_total": "Video gone through.",
    "run_bytes_written_total": "Bytes of published objects.",
    "run_last_progress_timestamp_seconds": "Time of the last record.",
    "run_spent_seconds_total": "Workers' time by what it was spent on.",
    "train_step": "Steps done.",
    "train_steps": "Steps at which the training ends.",
    "train_loss": "Loss of the last step.",
    "train_validation_loss": "Loss on held-out samples, when it was last measured.",
    "train_grad_norm": "Norm of the gradient of the last step.",
    "train_learning_rate": "Learning rate of the last step.",
    "train_tokens_per_second": "Tokens of all ranks, waiting included.",
    "train_samples_per_second": "Samples of all ranks, waiting included.",
    "train_step_seconds": "Time of a step, waiting included.",
    "train_data_wait_ratio": "Share of the time in which ranks waited for data.",
    "train_checkpoint_stall_ratio": "Share of the time in which checkpoints held training up.",
    "train_tokens_per_second_per_gpu": "Tokens of one GPU, waiting included.",
    "train_tflops_per_gpu": "TFLOP/s of one GPU by the model's own arithmetic, waiting included.",
    "train_z_loss": "Z-loss of the last step, with its weight.",
    "train_gpu_seconds_total": "Seconds of GPUs that the training has had so far, lost steps included.",
    "train_mfu_ratio": "Share of the GPUs' dense bfloat16 peak that the model's own arithmetic takes.",
    "train_skipped_steps_total": "Steps whose gradients were not finite.",
    "train_own_seconds": "Time of a step that a rank does not wait for others: of ranks the median, and the slowest.",
    "train_memory_peak_bytes": "The most that a rank held on its GPU.",
    "exporter_runs": "Runs whose figures are here.",
    "exporter_unreadable_runs": "Run folders that could not be read.",
    "exporter_read_runs": "Runs read anew for these figures.",
    "exporter_read_seconds": "Seconds that reading took.",
    "exporter_last_read_timestamp_seconds": "Time of these figures.",
    "exporter_slurm_up": "1 if Slurm answered last, 0 if it did not or was not asked.",
}


class Family(msgspec.Struct):
    """All samples of one name: they must stand together."""

    name: str
    kind: str
    about: str
    samples: list[str]


def escape(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def number(value: float) -> str:
    if math.isfinite(value):
        return f"{value:.15g}"
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


class Families:
    """Samples by name."""

    def __init__(self, **labels: object) -> None:
        """labels: of every sample."""
        self.found: dict[str, Family] = {}
        self.labels = labels

    def add(self, name: str, value: float | None, **labels: object) -> None:
        """None is left out. name: of ABOUT."""
        if value is None:
            return
        kind = "counter" if name.endswith("_total") else "gauge"
        family = self.found.setdefault(name, Family(f"hpc_{name}", kind, ABOUT[name], []))
        inside = ",".join(f'{k}="{escape(v)}"' for k, v in (self.labels | labels).items())
        family.samples.append(f"hpc_{name}{{{inside}}} {number(value)}" if inside else f"hpc_{name} {number(value)}")


def of(report: Report) -> dict[str, Family]:
    """The families of one run."""
    s, p = report.status, report.provenance
    out = Families(cluster=report.cluster, run=s.run)
    out.add("run_info", 1, spec=p.get("spec_hash", ""), git_sha=p.get("git", {}).get("sha", ""),
            user=report.account.user, account=report.account.account)  # fmt: skip
    out.add("run_state", 1, state=s.state)
    out.add("run_attempts", report.attempts)
    out.add("run_started_timestamp_seconds", report.started or None)
    out.add("run_cost_total", report.account.cost)
    for r in s.stages:
        at = {"stage": r.stage}
        for state in ("done", "failed", "running", "missing"):
            out.add("run_shards", getattr(r, state), **at, state=state)
        for why, n in r.failures.items():
            out.add("run_failed_shards", n, **at, **{"class": why})
        for word, n in r.tasks.items():
            out.add("run_tasks", n, **at, state=word.lower())
        for why, n in r.reasons.items():
            out.add("run_pending_tasks", n, **at, reason=why)
        out.add("run_progress_ratio", r.fraction, **at)
        out.add("run_eta_seconds", r.eta_seconds or None, **at)
        out.add("run_quarantined_inputs", r.quarantined, **at)
        out.add("run_gpu_seconds_total", r.gpu_seconds, **at)
        out.add("run_cpu_seconds_total", r.cpu_seconds_held, **at)
        if "dropped" in r.counts:
            for why, clips in {"keep": r.counts.get("clips", 0.0), **counts.group(r.counts, "dropped")}.items():
                out.add("run_clips", clips, **at, verdict=why)
        for h in report.scores[r.stage].histograms if r.stage in report.scores else ():
            for limit in h.limits:
                if limit.now is not None:
                    out.add("run_limit_keeps_ratio", limit.keeps, **at, score=h.column, limit=limit.side)
        out.add("run_frames_total", r.counts.get("frames"), **at)
        out.add("run_video_seconds_total", r.counts.get("video_seconds"), **at)
        out.add("run_bytes_written_total", r.bytes_written, **at)
        out.add("run_last_progress_timestamp_seconds", r.last, **at)
    for u in report.account.stages:
        out.add("run_gpu_utilization_ratio", u.gpu_utilization, stage=u.stage)
        out.add("run_gpu_energy_joules_total", u.energy_kwh and u.energy_kwh * 3.6e6, stage=u.stage)
        out.add("run_memory_peak_bytes", u.used_memory or None, stage=u.stage)
        out.add("run_memory_requested_bytes", u.requested_memory or None, stage=u.stage)
    for t in report.times:
        spent = {"start": t.start, **(t.spent or {"work": t.work}), "publish": t.publish, "rest": t.rest}
        for on, value in spent.items() if t.shards else ():
            out.add("run_spent_seconds_total", value, stage=t.stage, on=on)
    for one in report.trainings:
        said: dict[str, float | None] = {
            "step": one.step, "steps": one.steps, "loss": one.loss, "validation_loss": one.validation_loss,
            "grad_norm": one.grad_norm, "learning_rate": one.learning_rate, "mfu_ratio": one.mfu,
            "tokens_per_second": one.tokens_per_second, "samples_per_second": one.samples_per_second,
            "step_seconds": one.step_seconds, "data_wait_ratio": one.data_wait, "skipped_steps_total": one.skipped,
            "memory_peak_bytes": one.memory or None, "checkpoint_stall_ratio": one.checkpoint_stall,
            "tokens_per_second_per_gpu": one.tokens_per_second_per_gpu, "tflops_per_gpu": one.tflops,
            "z_loss": one.z_loss, "gpu_seconds_total": one.gpu_hours and 3600 * one.gpu_hours,
        }  # fmt: skip
        for name, now in said.items():
            out.add(f"train_{name}", now, stage=one.stage)
        if one.slow:
            out.add("train_own_seconds", one.slow.median, stage=one.stage, of="median")
            out.add("train_own_seconds", one.slow.slowest, stage=one.stage, of="slowest")
    return out.found


def text(runs: Iterable[dict[str, Family]]) -> str:
    """Of one run or of many: each name once, with its samples under it."""
    whole: dict[str, Family] = {}
    for families in runs:
        for name, one in families.items():
            if name in whole:
                whole[name].samples += one.samples
            else:
                whole[name] = msgspec.structs.replace(one, samples=list(one.samples))
    out = []
    for one in whole.values():
        out += [f"# HELP {one.name} {one.about}", f"# TYPE {one.name} {one.kind}", *one.samples]
    return "".join(line + "\n" for line in out)
