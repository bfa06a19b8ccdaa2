from __future__ import annotations

from pathlib import Path

import jsonschema
import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.batch import check
from hpc.batch.cluster import LOCAL, OWN, Cluster, Override, cluster_schema, load_cluster
from hpc.batch.spec import Resources, SpecErrors, Stage
from hpc.curate.settings import Clips
from hpc.data.units import Bytes, Seconds
from hpc.train.settings import TrainTokenizer
from hpc.train.settings.data import Shape
from hpc.train.settings.tokenizer import Sizes

CLUSTERS = Path(__file__).parent.parent / "jobs" / "clusters"
TRAINING = TrainTokenizer(tokenizer=Sizes(family="wan"), steps=2000,
                          shapes=(Shape(frames=5, height=64, width=64, batch=6),))  # fmt: skip


def stage(name: str = "clips", kind: str = "curate.clips", **resources: object) -> Stage:
    return Stage(name=name, kind=kind, resources=Resources(**resources), settings=Clips())  # type: ignore[arg-type]


def preset(folder: Path, content: str) -> Cluster:
    (folder / "c.yaml").write_text(content)
    return load_cluster("c.yaml", folder / "x.yaml")


def errors(folder: Path, content: str) -> list[str]:
    with pytest.raises(SpecErrors) as caught:
        preset(folder, content)
    return str(caught.value).replace(str(folder), "DIR").splitlines()


def test_local_is_built_in() -> None:
    assert load_cluster("local", "/nowhere/x.yaml") is LOCAL
    wanted = stage(cpus=3)
    assert LOCAL.resources(wanted) == wanted.resources


@pytest.mark.parametrize("file", sorted(CLUSTERS.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_presets_are_right(file: Path) -> None:
    cluster = load_cluster(file.stem, CLUSTERS.parent / "quickstart.yaml")
    assert (cluster.name, cluster.path) == (file.stem, str(file))
    jsonschema.Draft202012Validator(cluster_schema()).validate(yaml.safe_load(file.read_text()))


def test_h100_nodes_are_shared_and_have_nccl_set() -> None:
    h100 = load_cluster("h100", CLUSTERS.parent / "x.yaml")
    assert (h100.gpus_per_node, h100.whole_nodes) == (8, False)
    assert h100.env["NCCL_IB_TIMEOUT"] == "22"
    assert h100.for_stage("report", "report").partition == "cpu"
    assert h100.for_stage("clips", "curate.clips").partition == "gpu"


def test_whole_nodes_are_filled_with_workers() -> None:
    whole = load_cluster("whole-node", CLUSTERS.parent / "x.yaml")  # 128 cores, 500 GiB; for clips 64 cores, 4 GPUs
    assert whole.resources(stage(cpus=2)).workers == 32
    assert whole.resources(stage(cpus=20)).workers == 3
    assert whole.resources(stage(gpus=1, cpus=30)).workers == 4, "one per GPU, though cores are short"
    assert whole.resources(stage(gpus=2)).workers == 2
    shared = whole.resources(stage(gpus=0.5))
    assert (shared.workers, shared.gpus_of(shared.workers), shared.gpus_of(3)) == (8, 4, 2)
    assert whole.resources(stage("x", "curate.shard", cpus=2, memory=Bytes(100 << 30))).workers == 5, "memory is short"
    with pytest.raises(ValueError) as caught:
        whole.resources(stage(gpus=8))
    assert str(caught.value) == ("stages.clips.resources.gpus: a worker asks for 8, a node of cluster whole-node has 4 "
                                 f"(gpus_per_node in {CLUSTERS}/whole-node.yaml)")  # fmt: skip
    ranks = msgspec.structs.replace(stage(workers=3, gpus=1, cpus=8), settings=TRAINING)
    assert whole.resources(ranks).workers == 3, "a training's batch is made for its ranks"
    ranks = msgspec.structs.replace(ranks, resources=Resources(workers=6, cpus=8, gpus=1))
    with pytest.raises(ValueError, match=r"6 ranks a node; a node of cluster whole-node has room for 4 \(gpus"):
        whole.resources(ranks)
    ranks = msgspec.structs.replace(ranks, resources=Resources(workers=4, cpus=8, gpus=1))
    with pytest.raises(ValueError, match=r"clips.shapes: 0.batch: 6 samples cannot be shared by 4 ranks"):
        whole.resources(ranks)
    with pytest.raises(ValueError, match=r"gpus: 0.4 is neither a whole number nor a share of one GPU: 0.5, 0.25"):
        stage(gpus=0.4)
    with pytest.raises(ValueError, match="asks for 1TiB, a node of cluster whole-node has 500GiB"):
        whole.resources(stage(memory=Bytes(1 << 40)))


def test_changes_for_stages_by_kind_and_by_name(tmp_path: Path) -> None:
    cluster = preset(tmp_path, """\
partition: gpu
account: a
sbatch: {nice: "100", contiguous: true}
stages:
  curate.clips: {partition: cpu, cpus: 4, memory: 8GiB, sbatch: {contiguous: false, licenses: fs}}
  clips: {cpus: 6, time: 1h, account: b}
""")
    there = cluster.for_stage("clips", "curate.clips")
    assert (there.partition, there.account, there.name) == ("cpu", "b", "c")
    assert there.sbatch == {"nice": "100", "contiguous": False, "licenses": "fs"}
    assert cluster.for_stage("other", "curate.clips").account == "a"
    assert cluster.for_stage("other", "curate.shard") == cluster
    wanted = Resources(cpus=6, memory=Bytes(8 << 30), time=Seconds(3600))
    assert cluster.resources(stage()) == wanted
    assert cluster.resources(stage("other", "curate.shard", cpus=3)) == Resources(cpus=3)


def test_changes_for_a_stage_are_for_its_parts_too(tmp_path: Path) -> None:
    cluster = preset(tmp_path, """\
partition: main
stages:
  curate.clips: {partition: gpu, account: a}
  twins: {account: b}
  twins-prune: {account: c}
""")
    kinds = {"twins-fit": "curate.clips-fit", "twins-prune": "curate.clips-prune", "twins": "curate.clips-merge"}
    there = [cluster.for_stage(name, kind) for name, kind in kinds.items()]
    assert [(one.partition, one.account) for one in there] == [("gpu", "b"), ("gpu", "c"), ("gpu", "b")]


def test_presets_are_looked_for_in_three_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, site, beside = tmp_path / "home/.config/hpc/clusters", tmp_path / "site", tmp_path / "jobs/clusters"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HPC_CLUSTERS", raising=False)
    for folder, partition in ((home, "h"), (site, "s"), (beside, "b")):
        folder.mkdir(parents=True)
        (folder / "big.yaml").write_text(f"partition: {partition}")
    spec = tmp_path / "jobs/x.yaml"
    assert load_cluster("big", spec).partition == "b"
    (beside / "big.yaml").rename(beside / "small.yaml")
    assert load_cluster("big", spec).partition == "h"
    monkeypatch.setenv("HPC_CLUSTERS", str(site))
    assert load_cluster("big", spec).partition == "s"
    assert load_cluster(str(home / "big.yaml"), spec).partition == "h"
    with pytest.raises(SpecErrors) as caught:
        load_cluster("bigg", spec)
    assert str(caught.value).replace(str(tmp_path), "DIR") == """\
DIR/jobs/x.yaml: cluster: 'bigg': no such cluster: did you mean big?
    valid clusters: local, big, small
    looked for bigg.yaml in DIR/jobs/clusters, DIR/site, DIR/home/.config/hpc/clusters"""
    for name in ("../x", "", "a b", "x" * 300):
        with pytest.raises(SpecErrors, match="no such cluster"):
            load_cluster(name, spec)
    with pytest.raises(SpecErrors, match=r"none\.yaml: cannot be read: No such file"):
        load_cluster("none.yaml", spec)


MISTAKES = """\
partion: gpu
account: my project
whole_nodes: yes
memory_per_node: 500
env: {OMP_NUM_THREADS: 8}
sbatch:
  array: 0-9
  depend: afterok:1
  mem: "4G"
  nice: 100
  --licenses: fs
python: python3
stages:
  curate.clips: {gpu: 1, sbatch: {exclusive: true}}
"""
ALL_AT_ONCE = [
    "DIR/c.yaml:1: partion: no such key: did you mean partition?",
    f"    valid keys: {', '.join(Cluster.__struct_fields__[:-2])}",
    "DIR/c.yaml:2: account: 'my project' is not a name without spaces",
    "DIR/c.yaml:3: whole_nodes: 'yes' is not true or false: write true",
    'DIR/c.yaml:4: memory_per_node: 500 is not a size: write "512MiB" or "64GiB" '
    "(units: B, KiB, KB, MiB, MB, GiB, GB, TiB, TB, PiB, PB)",
    'DIR/c.yaml:5: env.OMP_NUM_THREADS: 8 is not text: put it in quotes, "8"',
    "DIR/c.yaml:7: sbatch.array: sbatch's --array can't be given here: hpc decides on this itself",
    "DIR/c.yaml:8: sbatch.depend: sbatch's --dependency can't be given here: hpc decides on this itself",
    "DIR/c.yaml:9: sbatch.mem: sbatch's --mem can't be given here: give it in the stage's `resources`, or under "
    "`stages` in the preset",
    'DIR/c.yaml:10: sbatch.nice: 100 is not text or true or false: put it in quotes, "100"',
    "DIR/c.yaml:11: sbatch.--licenses: '--licenses' is not a long option of sbatch without the dashes, "
    "e.g. `licenses`",
    "DIR/c.yaml:12: python: 'python3' is not an absolute path",
    "DIR/c.yaml:14: stages.curate.clips.gpu: no such key: did you mean gpus?",
    f"    valid keys: {', '.join(Override.__struct_fields__)}",
    "DIR/c.yaml:14: stages.curate.clips.sbatch.exclusive: sbatch's --exclusive can't be given here: give "
    "`whole_nodes: true`, so that the node is filled with workers",
]  # fmt: skip


def test_mistakes_are_all_reported_at_once(tmp_path: Path) -> None:
    assert errors(tmp_path, MISTAKES) == ALL_AT_ONCE


def test_what_does_not_go_together(tmp_path: Path) -> None:
    message = "cpus_per_node: needed with whole_nodes: true, to know how many workers fit on a node"
    assert errors(tmp_path, "whole_nodes: true") == [f"DIR/c.yaml:1: {message}"]
    assert errors(tmp_path, "stages:\n  clips: {whole_nodes: true}") == [f"DIR/c.yaml:2: stages.clips: {message}"]
    assert "no such kind: did you mean curate.clips?" in errors(tmp_path, "stages: {curate.clip: {cpus: 1}}")[0]
    assert errors(tmp_path, "[]")[0] == "DIR/c.yaml:1: a list is not a mapping of keys to values"
    assert errors(tmp_path, "sbatch: 3\nstages: [1]") == [
        "DIR/c.yaml:1: sbatch: 3 is not a mapping of keys to values",
        "DIR/c.yaml:2: stages: a list is not a mapping of keys to values",
    ]


def test_options_of_our_own_have_a_reason() -> None:
    assert {"array", "dependency", "export", "output", "job-name", "time", "mem", "partition"} <= OWN.keys()
    assert all(OWN.values())


def test_a_preset_survives_as_a_record() -> None:
    cluster = load_cluster("whole-node", CLUSTERS.parent / "x.yaml")
    data = msgspec.json.encode(cluster, enc_hook=check.plain)
    assert msgspec.json.decode(data, type=Cluster, dec_hook=check.unit) == cluster


KEYS = st.sampled_from([*Cluster.__struct_fields__, "exclusive", "nice", "curate.clips", "<<", "0"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["gpu", "8GiB", "2h", "", "/x"]) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_preset_is_right_or_explained(tmp_path_factory: pytest.TempPathFactory, document: dict) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        cluster = preset(folder, yaml.safe_dump(document))
    except SpecErrors as caught:
        assert caught.errors and str(caught).encode()
    else:
        assert cluster.for_stage("clips", "curate.clips")
