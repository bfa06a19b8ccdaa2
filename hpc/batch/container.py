"""Stages in containers of enroot and pyxis: which image a stage starts from, and the exact options that say so.

    image = image_of(stage, cluster)                   # the spec's, else the preset's, else ""
    words = options(run, attempt, image, ...)          # --container-image=..., as submit.sh has them
    container.check(spec, cluster, runs)               # raises ValueError: what is missing, and what to do

An image has no Slurm commands: barriers, reports and the launcher of ranks run outside of it, and so does the batch
script of every task, which requeues a task that is out of time (sbatch/container.sbatch). Seen inside are the run
folder, the attempt's code (read-only, and over the image's own copy too), the scratch folder, and the preset's mounts;
not the home. Variables that a job was given win over those that the image sets; others of the image stay.

The options are those of pyxis 0.24 (NVIDIA/pyxis 1075199: args.c).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from hpc.batch.cluster import Cluster
from hpc.batch.run import Attempt, Run
from hpc.batch.spec import NO_IMAGE, Spec, Stage

OWN_COPY = "/opt/hpc"
"""Where the images of containers/ have the suite; the attempt's code is mounted over it."""
HOST_ONLY = ("HOME", "USER", "LOGNAME", "PATH", "SLURM_CONF", "HPC_PYTHON")
"""Variables of jobs that mean something outside alone."""
GPU_VARIABLE = "NVIDIA_VISIBLE_DEVICES"
"""all: enroot brings the driver and the GPUs that Slurm gave; void: nothing of NVIDIA's, the node need not have it."""
DRIVER = {"NVIDIA_DRIVER_CAPABILITIES": "compute,utility,video"}
"""What of the driver comes into containers; `video` is what decodes and encodes."""
MAGIC = b"hsqs"
"""A squashfs image begins so."""


def image_of(stage: Stage, cluster: Cluster) -> str:
    """Path of the stage's image; "" if it runs outside of containers."""
    image = stage.image or cluster.for_stage(stage.name, stage.kind).image or NO_IMAGE
    return "" if image == NO_IMAGE else image


def visible_gpus(gpus: float) -> str:
    """What a job's --export adds."""
    return f"{GPU_VARIABLE}={'all' if gpus else 'void'}"


def options(run: Run, attempt: Attempt, image: str, here: Cluster, variables: Iterable[str]) -> list[str]:
    """srun's words. here: the preset for this stage. variables: names of what the job is given."""
    names = [name for name in variables if name not in HOST_ONLY]
    return [
        f"--container-image={image}",
        f"--container-mounts={','.join(mounts(run, attempt, here))}",
        f"--container-workdir={run.folder}",
        f"--container-env={','.join(dict.fromkeys([*names, GPU_VARIABLE]))}",
        "--no-container-mount-home",
    ]


def mounts(run: Run, attempt: Attempt, here: Cluster) -> list[str]:
    """SRC:DST[:FLAGS], the later ones over the earlier ones."""
    scratch = here.scratch or "/tmp"  # enroot's own /tmp is in memory  # noqa: S108  a path within containers
    out = [f"{run.folder}:{run.folder}", f"{scratch}:{scratch}", *(full(mount) for mount in here.mounts)]
    return [*out, f"{attempt.code}:{attempt.code}:ro", f"{attempt.code}:{OWN_COPY}:ro"]


def full(mount: str) -> str:
    """A mount with its destination: "/data" is "/data:/data"."""
    source, _, rest = mount.partition(":")
    return f"{source}:{rest or source}"


def check(spec: Spec, cluster: Cluster, base: Path) -> None:
    """Raise ValueError with everything that keeps the containers of a spec from starting, found without Slurm.

    base: the folder of run folders.
    """
    said: dict[str, None] = {}
    for stage in spec.stages.values():
        if image := image_of(stage, cluster):
            here = cluster.for_stage(stage.name, stage.kind)
            for problem in [*_image(image), *_mounts(here), *_covered(spec, stage, here), *_names(base)]:
                said[problem] = None
    if said:
        raise ValueError(f"the containers of {spec.name} would not start:\n  " + "\n  ".join(said))


def facts(spec: Spec, cluster: Cluster) -> dict[str, dict[str, object]]:
    """Stage -> its image, for the provenance: path, size, and what image.sbatch noted of where it came from."""
    out: dict[str, dict[str, object]] = {}
    for name, stage in spec.stages.items():
        if image := image_of(stage, cluster):
            note = Path(f"{image}.json")
            size = Path(image).stat().st_size if Path(image).exists() else None
            out[name] = {"image": image, "bytes": size, "source": note.read_text() if note.exists() else ""}
    return out


def _image(image: str) -> list[str]:
    path = Path(image)
    make = f"import it once: sbatch sbatch/image.sbatch NAME {path.parent} (NAME: an image in containers/images.lock)"
    try:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                return [f"image {image}: not a squashfs image: {make}"]
    except FileNotFoundError:
        return [f"image {image}: there is no such file: {make}"]
    except OSError as error:
        return [f"image {image}: cannot be read ({error.strerror}): ask its owner for `chmod a+r`, or {make}"]
    return []


def _mounts(here: Cluster) -> list[str]:
    sources = [mount.partition(":")[0] for mount in here.mounts]
    return [f"mount {source}: there is no such file or folder on this machine; make it, or take it out of `mounts` in "
            f"{here.path}" for source in sources if not Path(source).exists()]  # fmt: skip


def _covered(spec: Spec, stage: Stage, here: Cluster) -> list[str]:
    """Local inputs and outputs that no mount brings in under their own name."""
    seen = [here.scratch] if here.scratch else []
    read_only = []
    for mount in here.mounts:
        source, destination, *flags = full(mount).split(":")
        if source == destination:
            seen.append(source)
            if "ro" in "+".join(flags).split("+"):
                read_only.append(source)
    wanted = {"output": spec.output} | ({} if stage.needs else {f"inputs.{i}": one.uri for i, one in
                                                                enumerate(spec.inputs)})  # fmt: skip
    problems = []
    for what, uri in wanted.items():
        if "://" in uri:
            continue
        above = [folder for folder in seen if _inside(uri, folder)]
        if not above:
            top = "/" + uri.strip("/").partition("/")[0]
            problems.append(f"{what} {uri}: not seen inside of containers; put it, or a folder above it ({top}), into "
                            f"`mounts` in {here.path}")  # fmt: skip
        elif what == "output" and max(above, key=len) in read_only:
            problems.append(f"output {uri}: its mount {max(above, key=len)} is read-only; take `:ro` from it in "
                            f"{here.path}")  # fmt: skip
    return problems


def _names(base: Path) -> list[str]:
    folder = os.path.abspath(base)  # noqa: PTH100
    if re.search(r"[\s:,]", folder):
        return [f"run folder {folder}: pyxis cannot mount paths with spaces, colons or commas; give --runs"]
    return []


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
