"""Stages in containers: the golden flags of pyxis, what is refused before submission, and the scripts around."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import runs
import yaml

from hpc.batch import container, gang, launch
from hpc.batch.cluster import load_cluster
from hpc.batch.run import StagePlan
from hpc.batch.spec import Resources, SpecErrors, load, text

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden" / "container.flags.txt"
RANKS = {"kind": "stages:Gang", "needs": "echo", "resources": {"nodes": 2, "workers": 2, "cpus": 1, "gpus": 1}}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runs.Slurm:
    fake = runs.Slurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", fake.path)
    for name in ("NCCL_DEBUG", "HF_HOME"):  # planning declares them in this very process: put back afterwards
        monkeypatch.setenv(name, "")
    return fake


def image(folder: Path, name: str = "curate.sqsh") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"hsqs" + bytes(92))
    return folder / name


def site(folder: Path, **changes: Any) -> dict[str, Any]:
    """A preset whose containers can start."""
    made: dict[str, Any] = {
        "partition": "main", "scratch": "/scratch", "image": str(image(folder / "images")),
        "mounts": [str(folder), f"{folder}/images:/models:ro"],
        "env": {"NCCL_DEBUG": "WARN", "HF_HOME": "/models/hf"},
    }  # fmt: skip
    return made | changes


def spec(folder: Path, preset: dict[str, Any], stages: dict[str, Any] | None = None, **more: Any) -> Path:
    (folder / "clusters").mkdir(parents=True, exist_ok=True)
    (folder / "clusters/site.yaml").write_text(yaml.safe_dump(preset))
    return runs.spec(folder, runs.numbered(2), stages or {"echo": runs.ECHO}, **more)


def planned(file: Path, base: Path | None = None, dry: bool = False) -> Path:
    """The path of submit.sh."""
    [one] = load(file, (), "site")
    made = launch.plan(one, load_cluster("site", file), base or file.parent / "runs", on_slurm=True, command=["test"],
                       dry=dry)  # fmt: skip
    assert made.attempt
    return made.attempt.submit


def refusal(file: Path, base: Path | None = None) -> str:
    with pytest.raises(ValueError, match="would not start") as error:
        planned(file, base)
    assert not list((base or file.parent / "runs").glob("*")), "nothing is written for what cannot start"
    return str(error.value)


def test_golden_flags(tmp_path: Path, slurm: runs.Slurm) -> None:
    """Of every job of a run: a stage with the preset's image, one with its own and a GPU, one without, ranks."""
    folder = tmp_path / "a"
    own = image(folder / "images", "own.sqsh")
    stages = {"echo": runs.ECHO, "note": runs.NOTE | {"image": str(own), "resources": {"gpus": 1, "workers": 2}},
              "plain": runs.NOTE | {"image": "none"}, "join": runs.JOIN, "train": RANKS}  # fmt: skip
    override = {"stages:Gang": {"mounts": [f"{folder}/images:/root/.aws:ro"], "image": str(own)}}
    script = planned(spec(folder, site(folder, stages=override), stages, secrets=["TOKEN"]))
    subprocess.run(["bash", script], env=runs.environment(TOKEN="secret"), check=True, capture_output=True, timeout=180)
    run = script.parents[1]
    said = ""
    for call in slurm.calls("sbatch"):
        place = next(i for i, word in enumerate(call["argv"]) if word.endswith(".sbatch"))
        kept = [w for w in call["argv"][:place] if w.startswith(("--job-name", "--export", "--signal"))]
        words = [*kept, *call["argv"][place:], f"({call['env']['NVIDIA_DRIVER_CAPABILITIES']})"]
        said += "\n    ".join(words).replace(str(run), "RUN").replace(run.name, "NAME") + "\n"
    said = said.replace(str(tmp_path), "/TMP")
    assert "secret" not in said
    if os.environ.get("HPC_TEST_ACCEPT"):
        GOLDEN.write_text(said)
    assert GOLDEN.exists() and GOLDEN.read_text() == said, (
        "the flags of containers have changed. If they should: HPC_TEST_ACCEPT=1 pytest tests/test_container.py"
    )
    facts = json.loads((script.parent / "provenance.json").read_text())["images"]
    assert facts["note"] == {"image": str(own), "bytes": 96, "source": ""} and "plain" not in facts


def test_a_spec_without_containers_says_nothing_of_them(tmp_path: Path, slurm: runs.Slurm) -> None:
    script = planned(spec(tmp_path / "a", {"partition": "main", "mounts": ["/nowhere"]})).read_text()
    assert "--container-" not in script and "container.sbatch" not in script and "NVIDIA" not in script


def test_an_image_does_not_change_what_a_run_without_one_is_called(tmp_path: Path) -> None:
    file = spec(tmp_path, site(tmp_path))
    [without] = load(file)
    [given] = load(file, ["stages.echo.image=/a.sqsh"])
    assert "image" not in yaml.safe_load(text(without))["stages"]["echo"] and given.hash != without.hash
    assert yaml.safe_load(text(given))["stages"]["echo"]["image"] == "/a.sqsh"


@pytest.mark.parametrize(("change", "said"), [
    ({"image": "/nowhere/x.sqsh"}, ["image /nowhere/x.sqsh: there is no such file", "sbatch sbatch/image.sbatch NAME"]),
    ({"image": "TEXT"}, ["not a squashfs image", "sbatch sbatch/image.sbatch"]),
    ({"mounts": ["FOLDER", "/nowhere:/data:ro"]}, ["mount /nowhere: there is no such file or folder", "site.yaml"]),
    ({"mounts": []}, ["output FOLDER/out: not seen inside", "inputs.0 FOLDER/in: not seen", "`mounts`"]),
    ({"mounts": ["FOLDER:/elsewhere"]}, ["output FOLDER/out: not seen inside"]),
    ({"mounts": ["FOLDER:FOLDER:ro"]}, ["output FOLDER/out: its mount FOLDER is read-only"]),
])  # fmt: skip
def test_what_cannot_start_is_refused_before_anything_is_written(
    tmp_path: Path, slurm: runs.Slurm, change: dict[str, Any], said: list[str]
) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "text").write_text("text, and no image")
    given = json.loads(json.dumps(change).replace("FOLDER", str(folder)).replace("TEXT", f"{folder}/text"))
    file = spec(folder, site(folder, **given))
    words = refusal(file)
    for part in said:
        assert part.replace("FOLDER", str(folder)) in words
    assert not slurm.calls("sbatch")
    (folder / "runs").mkdir(exist_ok=True)
    checked = runs.hpc("check", file, "--cluster", "site", code=2, env=runs.environment(PATH=slurm.path))
    assert said[0].replace("FOLDER", str(folder)) in checked.stderr and "Traceback" not in checked.stderr


def test_a_dry_run_is_written_where_images_are_not(
    tmp_path: Path, slurm: runs.Slurm, capsys: pytest.CaptureFixture
) -> None:
    script = planned(spec(tmp_path / "a", site(tmp_path / "a", image="/nowhere/x.sqsh")), dry=True)
    assert "--container-image=/nowhere/x.sqsh" in script.read_text()
    assert "image /nowhere/x.sqsh: there is no such file" in capsys.readouterr().err


def test_run_folders_that_pyxis_could_not_mount(tmp_path: Path, slurm: runs.Slurm) -> None:
    words = refusal(spec(tmp_path / "a", site(tmp_path / "a")), tmp_path / "my runs")
    assert "cannot mount paths with spaces, colons or commas" in words


def test_a_deeper_mount_may_make_the_output_writable(tmp_path: Path, slurm: runs.Slurm) -> None:
    folder = tmp_path / "a"
    (folder / "out").mkdir(parents=True)
    planned(spec(folder, site(folder, mounts=[f"{folder}:{folder}:ro", f"{folder}/out"])))


@pytest.mark.parametrize("given", ["relative.sqsh", "docker://ubuntu", "/a b.sqsh", "/a,b", ""])
def test_images_are_absolute_paths(tmp_path: Path, given: str) -> None:
    file = spec(tmp_path, site(tmp_path, image=given))
    with pytest.raises(SpecErrors, match="absolute path of an image"):
        load_cluster("site", file)


@pytest.mark.parametrize("given", ["data", "/a b", "/a:b", "/a:/b:ro,rw", "/a:/b:/c"])
def test_mounts_are_absolute_paths(tmp_path: Path, given: str) -> None:
    with pytest.raises(SpecErrors, match="SRC:DST"):
        load_cluster("site", spec(tmp_path, site(tmp_path, mounts=[given])))


def test_pyxis_options_cannot_be_given_beside_image(tmp_path: Path) -> None:
    with pytest.raises(SpecErrors, match="give `image` and `mounts`"):
        load_cluster("site", spec(tmp_path, site(tmp_path, sbatch={"container-image": "x"})))


def test_ranks_start_with_the_images_python() -> None:
    stage = StagePlan("t", "k", {}, "", "", (), ("barrier", "gang"), (), "t",
                      Resources(nodes=2, workers=4, cpus=3), 1.0, None)  # fmt: skip
    flags = ["--container-image=/x.sqsh", "--container-env=NCCL_DEBUG"]
    words = gang.command(stage, True, flags)
    assert words[0] == "srun" and words[words.index("python3") - 2 :][:5] == [*flags, "python3", "-m", "hpc.batch.rank"]
    assert "--ntasks=8" in words and "--export=ALL" in words


# sbatch/container.sbatch, with an srun and a scontrol that write down what they are told

TOLD = """#!/bin/bash
printf '%s\\n' "$0 $*" HPC_PYTHON="$HPC_PYTHON" HPC_CONTAINED="$HPC_CONTAINED" >>"$LOG"
exit ${STATUS:-0}
"""


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (143, False), (144, True), (140, True)])
@pytest.mark.parametrize("array", [True, False])
def test_requeue_happens_outside(tmp_path: Path, status: int, requeued: bool, array: bool) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "run").mkdir()
    slept = '#!/bin/sh\necho slept >>"$LOG"\n'
    for name, body in (("srun", TOLD), ("scontrol", TOLD.replace("${STATUS:-0}", "0")), ("sleep", slept)):
        (folder / name).write_text(body)
        (folder / name).chmod(0o755)
    env = {"PATH": f"{folder}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"), "STATUS": str(status),
           "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "3", "HPC_PYTHON": "/outside/python"}  # fmt: skip
    if array:
        env |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    words = [str(tmp_path / "run"), "echo", "4", "10", "--container-image=/x.sqsh", "--no-container-mount-home"]
    done = subprocess.run(["bash", ROOT / "sbatch/container.sbatch", *words], env=env, timeout=180)
    assert done.returncode == status
    said = (tmp_path / "log").read_text().splitlines()
    run = tmp_path / "run"
    assert said[0] == (
        f"{folder}/srun --nodes=1 --ntasks=1 --cpus-per-task=3 --export=ALL --container-image=/x.sqsh "
        f"--no-container-mount-home bash {run}/attempt-4/code/hpc/sbatch/array.sbatch {run} echo 4 10"
    )
    assert said[1:3] == ["HPC_PYTHON=python3", "HPC_CONTAINED=1"]
    assert (said[-1] == "slept") == (status in (140, 143, 144)), "Slurm is to find it"
    told = [line for line in said if "scontrol" in line]
    assert told == ([f"{folder}/scontrol requeue {'7_2' if array else '7'}"] if requeued else [])


def test_the_script_says_how_to_use_it(tmp_path: Path) -> None:
    done = subprocess.run(["bash", ROOT / "sbatch/container.sbatch", tmp_path, "echo", "1", "0"], capture_output=True,
                          text=True, timeout=180)  # fmt: skip
    assert done.returncode == 2 and "sbatch --array=0-9 sbatch/container.sbatch RUN" in done.stderr


def test_visible_gpus() -> None:
    assert container.visible_gpus(0.25).endswith("=all") and container.visible_gpus(0).endswith("=void")
