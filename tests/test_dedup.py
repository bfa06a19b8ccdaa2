"""The parts of the dedup, one after the other as their barriers plan them, against all pairs by brute force."""

from __future__ import annotations

import csv
import importlib
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pyarrow.parquet as pq
import pytest
import torch
from dedups import Upstream, decided, embedded, run

from hpc.curate import clips, embed, shard
from hpc.curate.dedup import assign, fit, pairs, prune, sphere, tables
from hpc.curate.settings import Clips, Dedup, Embed, Encode, Shard, Split
from hpc.data import layers, storage
from hpc.data.units import Seconds
from hpc.data.work import Item, Work

TRAILER = Path(__file__).parents[1] / "jobs" / "quickstart" / "trailer_bbb.mp4"


def near(rng: np.random.Generator, rows: int, dim: int, spread: float) -> np.ndarray:
    """Rows around rows / 3 points, some nearer, some farther."""
    points = rng.normal(size=(max(1, rows // 3), dim))
    noise = rng.normal(size=(rows, dim)) * spread * rng.random((rows, 1))
    return (points[rng.integers(len(points), size=rows)] + noise).astype(np.float32)


def names(count: int) -> list[str]:
    return [f"clip-{number:05}" for number in range(count)]


def brute(folder: Path, vectors: np.ndarray, uuids: Sequence[str]) -> dict[str, tuple[float, set[str]]]:
    """uuid -> (largest cosine to a row before it, the rows of which it is that): all pairs, in the dedup's order."""
    centroids = np.load(folder / "clustering_results" / "kmeans_centroids.npy").astype(np.float64)
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    order = np.lexsort((uuids, (unit @ centroids.T).max(1).round(9)))
    cosines = np.where(np.tri(len(unit), k=-1, dtype=bool), unit[order] @ unit[order].T, -2.0)
    ids = np.array(uuids)[order]
    return {ids[row]: (float(line.max()), set(ids[line >= line.max() - 1e-5])) for row, line in enumerate(cosines)}


@pytest.mark.parametrize(("dim", "k", "eps", "spread"), [(16, 12, 0.01, 0.05), (8, 30, 0.02, 0.3), (64, 7, 0.1, 0.2),
                                                         (24, 20, 0.5, 1.0), (12, 1, 0.05, 0.1)])  # fmt: skip
def test_no_pair_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dim: int, k: int, eps: float, spread: float
) -> None:
    """Every row's nearest one before it, found by brute force, within eps: over the borders of clusters, too."""
    for on in sphere.TILE:
        monkeypatch.setitem(sphere.TILE, on, (16, 64))  # so that there are many tiles
    vectors, uuids = near(np.random.default_rng(k), 1200, dim, spread), names(1200)
    settings = Dedup(eps=eps, sweep=(), n_clusters=k, pairs=0)
    out = run(tmp_path, settings, embedded(tmp_path / "in", vectors, uuids, 3))
    gone, truth = decided(out), brute(out, vectors, uuids)
    for uuid, (score, twins) in truth.items():
        if abs(score - (1 - eps)) > 3e-6:
            assert (uuid in gone) == (score >= 1 - eps), f"{uuid}: {score}"
        if uuid in gone:
            assert abs(gone[uuid][1] - score) < 3e-6 and gone[uuid][0] in twins and gone[uuid][2] == "semantic"
    assert 0 < len(gone) < 1200


def test_pairs_over_borders_are_there_and_each_side_sends_half() -> None:
    """The data that the test above rests on has such pairs; and of two clusters exactly one sends."""
    x, _ = sphere.unit(near(np.random.default_rng(30), 1200, 8, 0.3))
    centroids, _ = sphere.kmeans(x, 30, 100, 42, sphere.Tiles())
    home = (x @ centroids.T).argmax(1)
    pairs = np.argwhere(np.tril(x @ x.T >= 0.98, -1))
    assert (home[pairs[:, 0]] != home[pairs[:, 1]]).sum() > 10
    each, other = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    sends = sphere.sends(each, other)
    assert ((sends ^ sends.T) | (each == other)).all() and set(sends.sum(1).tolist()) == {4}


def test_shards_and_their_order_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, uuids = near(np.random.default_rng(5), 900, 16, 0.1), names(900)
    vectors[100:130] = np.random.default_rng(0).normal(size=16)  # thirty that are the same
    settings = Dedup(eps=0.01, sweep=(0.05,), pairs=0)
    one = run(tmp_path / "one", settings, embedded(tmp_path / "one" / "in", vectors, uuids, 1))
    monkeypatch.setattr(assign, "SHARD_BYTES", 100 * 64)
    monkeypatch.setattr(prune, "SHARD_BYTES", 200 * 64)
    shuffled = np.random.default_rng(1).permutation(900)
    inputs = embedded(tmp_path / "two" / "in", vectors[shuffled], [uuids[row] for row in shuffled], 7)
    two = run(tmp_path / "two", settings, inputs)
    assert len(list(two.glob("*.parquet"))) > 5 and decided(one) == decided(two)
    tables = [{str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*")
               if path.is_file() and path.parent != out}
              for out in (one, two)]  # fmt: skip
    assert tables[0] == tables[1] and len(tables[0]) > 40
    gone = decided(one)
    same = [uuid for uuid in uuids[100:130] if uuid not in gone]
    assert len(same) == 1 and {gone[uuid][0] for uuid in uuids[100:130] if uuid in gone} == set(same)


def test_tables_of_the_reference_and_a_sweep(tmp_path: Path) -> None:
    vectors, uuids = near(np.random.default_rng(9), 400, 12, 0.1), names(400)
    settings = Dedup(eps=0.01, sweep=(0.001, 0.05), n_clusters=9, pairs=0)
    out = run(tmp_path, settings, embedded(tmp_path / "in", vectors, uuids, 2))
    centroids = np.load(out / "clustering_results" / "kmeans_centroids.npy")
    assert centroids.shape == (9, 12) and centroids.dtype == np.float32
    total: dict[str, float] = {}
    for path in (out / "extraction" / "semdedup_pruning_tables").iterdir():
        pruned = pq.read_table(path)
        assert pruned.schema.names == ["id", "max_id", "cosine_sim_score"]
        assert str(pruned.schema.field("cosine_sim_score").type) == "float"
        nearest = pq.read_table(
            out / "clustering_results" / "embs_by_nearest_center" / path.stem.replace("cluster_", "nearest_cent_")
            / "actor_0.parquet"
        )  # fmt: skip
        assert nearest.schema.names == ["id", "embedding", "cosine_dist_to_cent"]
        assert nearest["id"].to_pylist() == pruned["id"].to_pylist()
        distance = nearest["cosine_dist_to_cent"].to_numpy()
        assert (np.diff(distance) <= 0).all()
        cells = np.stack(nearest["embedding"].to_numpy())
        own = centroids[int(path.stem.removeprefix("cluster_"))]
        assert np.allclose(1 - cells @ own, distance, atol=1e-6) and np.allclose(np.linalg.norm(cells, axis=1), 1)
        first = pruned.slice(0, 1).to_pylist()[0]
        if first["max_id"] == first["id"]:  # none before it, here or over the border
            assert first["cosine_sim_score"] == 0
        total |= dict(zip(pruned["id"].to_pylist(), pruned["cosine_sim_score"].to_pylist(), strict=True))
    assert set(total) == set(uuids)
    for eps in (0.001, 0.01, 0.05):
        [row] = csv.DictReader((out / "extraction" / f"dedup_summary_{eps}.csv").open())
        gone = {uuid for uuid, score in total.items() if score >= 1 - eps}
        assert row == {"eps": str(eps), "kept": str(400 - len(gone)), "removed": str(len(gone)), "total": "400"}
    assert set(decided(out)) == {uuid for uuid, score in total.items() if score >= 0.99}


def clip_rows(rows: list[dict[str, Any]], path: Path) -> dict[str, str]:
    """A clips stage's shard, with the columns that matter."""
    full = [
        {"verdict": "keep", "source": "a.mp4", "etag": "1", "member": "", "start_seconds": 0.0, "end_seconds": 1.0}
        | row
        for row in rows
    ]
    layers.write_table(path.with_suffix(".parquet"), full, {}, clips.SCHEMA)
    path.with_suffix(".tar").write_bytes(b"")
    return {".parquet": str(path.with_suffix(".parquet")), ".tar": str(path.with_suffix(".tar"))}


def test_copies_by_digest(tmp_path: Path) -> None:
    """Of copies the first in the order of the shards stays; what a verdict or a new input drops takes none along."""
    shards = [
        [
            {"uuid": "old", "digest": "00aa", "etag": "0"},
            {"uuid": "one", "digest": "00aa", "cameras": [{"source": "b.mp4", "etag": "0", "digest": ""}]},
            {"uuid": "a", "digest": "00aa"},
            {"uuid": "b", "digest": "ff"},
        ],
        [{"uuid": "c", "digest": "00aa"}, {"uuid": "judged", "digest": "ee"}, {"uuid": "black", "verdict": "black"}],
        [{"uuid": "d", "digest": "ee"}, {"uuid": "e", "digest": "ee"}, {"uuid": "b", "digest": "ff"}, {"uuid": "none"}],
        [{"uuid": "rig", "digest": "ee", "cameras": [{"camera": "left", "digest": "01"}]}],
    ]
    folder = tmp_path / "in"
    folder.mkdir()
    upstream: Upstream = {"clips": [], "judge": []}
    for number, rows in enumerate(shards):
        upstream["clips"].append((f"{number:06}", clip_rows(rows, folder / f"{number:06}")))
        layers.write_table(folder / f"v{number}.parquet", [{"uuid": "judged", "verdict": "text"}], {})
        upstream["judge"].append((f"{number:06}", {".parquet": str(folder / f"v{number}.parquet")}))
    out = run(tmp_path, Dedup(pairs=10), upstream, {("a.mp4", "0"), ("b.mp4", "0")})
    assert decided(out) == {"c": ("a", 1.0, "exact"), "e": ("d", 1.0, "exact")}
    [row] = csv.DictReader((out / "extraction" / "dedup_summary_0.01.csv").open())
    assert (row["removed"], row["kept"], row["total"]) == ("2", "5", "7")
    exact = pq.read_table(out / "extraction/semdedup_pruning_tables/exact.parquet")
    assert exact["id"].to_pylist() == ["c", "e"]


def test_pictures_are_looked_for_until_all_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = []
    for number in range(60):
        files = clip_rows([{"uuid": f"{number}a"}, {"uuid": f"{number}b"}], tmp_path / f"{number:06}")
        sources.append(tables.Source(f"{number:06}", "", files[".parquet"], files[".tar"], []))
    read: list[str] = []
    monkeypatch.setattr(pairs, "table", lambda uri, columns: read.append(uri) or tables.table(uri, columns))
    found = pairs._clips([pairs.Pair("0b", "0a", 1.0), pairs.Pair("2b", "2a", 1.0)], sources, lambda: None)
    assert sorted(found) == ["0a", "0b", "2a", "2b"] and found["2a"]["tar"] == sources[2].tar
    assert len(read) < 40


def test_copies_and_near_ones_together(tmp_path: Path) -> None:
    """A copy is not compared, a clip that is there twice is one clip, vectors without a direction are left alone."""
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(60, 16)).astype(np.float32)
    vectors[40:] = vectors[:20] + 0.001 * rng.normal(size=(20, 16))  # 40 to 59 are near 0 to 19
    vectors[39], vectors[38] = np.nan, 0
    uuids = names(60)
    uuids[30] = uuids[10]  # the same clip in two shards
    upstream = embedded(tmp_path / "in", vectors, uuids, 3)
    rows = [{"uuid": uuid, "digest": f"{number % 59:032x}"} for number, uuid in enumerate(uuids)]  # 0 and 59 are copies
    upstream["clips"] = [(f"{n:06}", clip_rows(rows[20 * n : 20 * n + 20], tmp_path / f"c{n}")) for n in range(3)]
    out = run(tmp_path, Dedup(pairs=30), upstream)
    gone = decided(out)
    assert gone.pop("clip-00059") == ("clip-00000", 1.0, "exact")
    assert len(gone) == 19 and {len({a, b} & set(gone)) for a, b in zip(uuids[:19], uuids[40:59], strict=True)} == {1}
    for uuid, (other, score, why) in gone.items():
        assert abs(int(uuid[-5:]) - int(other[-5:])) == 40 and score > 0.999 and why == "semantic"


def fitted(folder: Path) -> tuple[dict[str, Any], np.ndarray]:
    """What the first part says of itself, and its centroids."""
    with (folder / "dedup-fit/000000.copies.parquet").open("rb") as file:
        return layers.read_meta(file), np.load(folder / "dedup-fit/000000.centroids.npy")


def test_vectors_of_some_shards_tell_where_clusters_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pair is missed, whatever the centroids are of; of the other shards no vectors are read for them."""
    vectors, uuids = near(np.random.default_rng(2), 1200, 16, 0.1), names(1200)
    inputs = embedded(tmp_path / "in", vectors, uuids, 12)
    read: list[tuple[str, bool]] = []
    whole = tables.read
    monkeypatch.setattr(tables, "read", lambda one, gone, vectors=True: read.append((one.shard, vectors)) or
                        whole(one, gone, vectors))  # fmt: skip
    unit, _ = sphere.unit(vectors)
    looked = []
    for number, settings in enumerate((Dedup(), Dedup(sample=300), Dedup(sample=300, seed=7), Dedup(sample=1))):
        out = run(tmp_path / f"{number}", settings, inputs)
        gone = decided(out)
        meta, centroids = fitted(tmp_path / f"{number}")
        assert len(centroids) >= 1 and meta["vectors"] == meta["clips"] == 1200
        looked.append((meta["read"], meta["sample"]))
        of_fit, read[:] = read[:12], []
        shards = {shard for shard, vectors in of_fit if vectors}
        assert {shard for shard, _ in of_fit} == {f"{i:06}" for i in range(12)}
        assert len(shards) == {0: 12, 1: 3, 2: 3, 3: 1}[number]
        looked[-1] += (shards,)
        stay = unit[[row for row, uuid in enumerate(uuids) if uuid not in gone]]
        assert np.tril(stay @ stay.T, -1).max() < 0.99 + 3e-6 and len(gone) > 700
        for uuid, (other, score, _) in gone.items():
            assert score > 0.99 - 3e-6 and abs(unit[uuids.index(uuid)] @ unit[uuids.index(other)] - score) < 3e-6
    assert [one[:2] for one in looked] == [(1200, 1200), (300, 300), (300, 300), (100, 100)]
    assert looked[1][2] != looked[2][2], "chance chooses, and the seed"


def test_copies_among_many_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against all of them in memory; in several turns, since so many may be copies."""
    rng = np.random.default_rng(4)
    monkeypatch.setattr(fit, "COPIES_AT_ONCE", 70)
    upstream: Upstream = {"clips": []}
    first: dict[str, str] = {}
    expected, there = {}, set()
    for number in range(9):
        rows = []
        for _ in range(60):
            uuid, digest = f"{rng.integers(400):03}", f"{rng.integers(300):032x}" if rng.random() < 0.9 else None
            rows.append({"uuid": uuid, "digest": digest})
            if uuid in there:
                continue
            there.add(uuid)
            if digest and first.setdefault(digest, uuid) != uuid:
                expected[uuid] = (first[digest], 1.0, "exact")
        upstream["clips"].append((f"{number:06}", clip_rows(rows, tmp_path / f"{number:06}")))
    out = run(tmp_path / "run", Dedup(pairs=0), upstream)
    assert decided(out) == expected and len(expected) > 50
    meta, centroids = fitted(tmp_path / "run")
    assert meta["clips"] == len(there) and centroids.shape == (0, 0)


def test_it_says_what_it_needs(tmp_path: Path) -> None:
    part = Dedup().parts()["fit"].settings
    freeze = importlib.import_module(part.CODE).freeze
    layers.write_table(tmp_path / "c.parquet", [{"uuid": "a", "caption": "x"}], {})
    with pytest.raises(ValueError, match="must name a stage that makes embeddings"):
        list(freeze(part, {"caption": [("000000", {".parquet": str(tmp_path / "c.parquet")})]}, set()))
    upstream = embedded(tmp_path / "in", np.ones((2, 4), np.float32), ["a", "b"], 1)
    with pytest.raises(ValueError, match="inputs were replaced since; add the clips stage"):
        list(freeze(part, upstream, {("a.mp4", "0")}))
    with pytest.raises(ValueError, match="two stages that make embeddings; again is one"):
        list(freeze(part, {**upstream, "again": upstream["embed"]}, set()))
    other = embedded(tmp_path / "other", np.ones((2, 5), np.float32), ["c", "d"], 1)["embed"][0][1]
    with pytest.raises(ValueError, match="embeddings have 4, 5 dimensions"):
        run(tmp_path / "run", Dedup(), {"embed": [*upstream["embed"], ("000001", other)]})


def test_planted_copies_of_the_trailer_are_found(tmp_path: Path) -> None:
    """Its shots are the hard negatives."""
    split = Split(detector="content", min_clip=Seconds(1.0), min_frames=24, crop=Seconds(0.1))
    small = ["-t", "46", "-an", "-vf", "scale=480:270", "-preset", "ultrafast", "-crf", "20", tmp_path / "small.mp4"]
    subprocess.run(["ffmpeg", "-v", "error", "-i", TRAILER, *small], check=True)
    shots = planted.cut(tmp_path / "small.mp4", tmp_path / "cut", split)
    assert len(shots) >= 8, len(shots)
    found = planted.vectors(list(shots.values()))
    for kind in ("1.25 times as fast", "mirrored, cropped, 360p"):
        [cell] = planted.measure(tmp_path, shots, found, kind, (0.05,))
        assert cell["recall"] >= 0.9 and cell["precision"] == 1.0, f"{kind}: {cell}"


def test_a_film_its_copy_and_its_mirror_image_leave_one_of_each(tmp_path: Path) -> None:
    """From videos to what the data set takes: every stage, as the worker calls it."""
    (tmp_path / "in").mkdir()
    encode = ["ffmpeg", "-v", "error", "-y", "-ss", "10", "-t", "16", "-i", TRAILER, "-an", "-crf", "20", "-preset",
              "ultrafast", "-vf"]  # fmt: skip
    subprocess.run([*encode, "scale=256:144", tmp_path / "in" / "a.mp4"], check=True)
    subprocess.run([*encode, "scale=256:144,hflip", tmp_path / "in" / "c.mp4"], check=True)
    again = ["ffmpeg", "-v", "error", "-y", "-i", tmp_path / "in" / "a.mp4", "-c", "copy", tmp_path / "in" / "b.mov"]
    subprocess.run(again, check=True)
    split = Split(detector="stride", stride=Seconds(4.0), min_clip=Seconds(1.0))
    cutting = clips.start(Clips(split=split, encode=Encode(preset="ultrafast", crf=23.0)))
    embedding = embed.start(Embed(model="perceptual"))
    made: Upstream = {"clips": [], "embed": []}
    for number, one in enumerate(storage.listing(str(tmp_path / "in"))):
        for stage, process in (("clips", cutting), ("embed", embedding)):
            scratch, before = (
                tmp_path / stage / f"{number}",
                {name: shards[-1][1] for name, shards in made.items() if shards},
            )
            scratch.mkdir(parents=True)
            items = [Item(one.uri, one.size, one.etag)] if stage == "clips" else []
            done = process(Work("000000", items, [], before, scratch, "f", lambda: None, lambda share, words: None))
            made[stage].append((f"{number:06}", {path.suffix: str(path) for path in done.objects}))
    out = run(tmp_path, Dedup(eps=0.05, sweep=(0.001, 0.1)), made)

    table = [row for _, files in made["clips"] for row in pq.read_table(files[".parquet"]).to_pylist()]
    source = {row["uuid"]: (Path(row["source"]).stem, row["start_frame"]) for row in table}
    digests = {source[row["uuid"]]: row["digest"] for row in table}
    times = {at for _, at in source.values()}
    assert len(times) == 4 and len(table) == 12 and len(set(digests.values())) == 8
    assert all(digests["a", at] == digests["b", at] != digests["c", at] for at in times)
    gone = {source[uuid]: (source[other], why) for uuid, (other, _, why) in decided(out).items()}
    assert {gone["b", at] for at in times} == {(("a", at), "exact") for at in times}
    for at in times:  # of the film and its mirror image
        [(one, (other, why))] = [(one, two) for one, two in gone.items() if one[1] == at and one[0] != "b"]
        assert {one, other} == {("a", at), ("c", at)} and why == "semantic"

    decisions = [(path.stem, {".parquet": str(path)}) for path in sorted(out.glob("*.parquet"))]
    upstream = {"clips": made["clips"], "dedup": decisions}
    (told, *_), *tars = shard.freeze(Shard(max_clips=1), upstream, set())
    assert len(tars) == 3 and list(told) == ["left_out"], "four clips, each in a tar"
    page = (out / "pairs.html").read_text()
    assert page.count("data:image/webp;base64,") == 2 * page.count("class=pair>") == 16
    for words in ("<h2>Copies", "4 clips, the same coded pictures", "a.mp4", "0.00 to 4.00 s", "two videos"):
        assert words in page, words
