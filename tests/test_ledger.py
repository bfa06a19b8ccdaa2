"""Which shard holds which input: balanced, the same from any listing, and never changed once it is published."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import s3
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.batch import ledger
from hpc.batch.ledger import Conflict, Ledger, Shard, StageInfo
from hpc.data import storage
from hpc.data.storage import Entry
from hpc.data.work import Item

MIB = 1 << 20
ODD = ["a b.mp4", "ünï-日本.mp4", "-rf", "--", "it's.mp4", '"q".mp4', "a/same.mp4", "b/same.mp4", "$(x).mp4",
       "a\\b.mp4", "line\nbreak.mp4", "%41.mp4", "#1?.mp4", "*.mp4", ".."]  # fmt: skip
EMPTY = Ledger([], 0)
URIS = st.sampled_from(ODD) | st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)


def entries(sizes: list[int], prefix: str = "/in") -> list[Entry]:
    return [Entry(f"{prefix}/{i:05}.mp4", size, f"e{i}") for i, size in enumerate(sizes)]


def assign(known: list[Shard], listed: list[Entry], size: int = 8 * MIB, above: int = 64 * MIB, **more) -> list[Shard]:
    return ledger.assign(Ledger(known, 1 if known else 0), listed, size, above, **more)


def flat(shards: list[Shard]) -> list[Item]:
    return [item for shard in shards for item in shard.items]


@settings(deadline=None)
@given(st.dictionaries(URIS, st.integers(0, 1 << 25), max_size=80), st.randoms(use_true_random=False))
def test_assign(sizes: dict[str, int], shuffled: random.Random) -> None:
    listed = [Entry(f"/in/{uri}", size, f"{size:x}") for uri, size in sizes.items()]
    made = assign([], listed)
    assert [shard.id for shard in made] == [f"{i:06}" for i in range(len(made))]
    assert sorted((i.uri, i.size, i.etag) for i in flat(made)) == sorted((e.uri, e.size, e.etag) for e in listed)
    assert all(shard.items for shard in made)
    if made:
        total = [sum(max(item.size, 1) for item in shard.items) for shard in made]
        assert max(total) - min(total) <= max(max(e.size for e in listed), 1), "not balanced"
        assert len(made) == min(len(listed), max(1, round(sum(sizes.values()) / (8 * MIB))))
    shuffled.shuffle(listed)
    assert assign([], listed) == made, "the order of the listing shows"
    assert ledger._line.decode_lines(ledger.encode(made)) == made


@settings(deadline=None)
@given(st.data())
def test_growth(data: st.DataObject) -> None:
    """Whatever is added, changed or taken away: published shards stay as they are, and each input stands once."""
    known: list[Shard] = []
    inputs: dict[str, Entry] = {}
    for step in range(data.draw(st.integers(1, 4))):
        for uri, size in data.draw(st.dictionaries(URIS, st.integers(0, 1 << 28), max_size=12)).items():
            inputs[uri] = Entry(f"/in/{uri}", size, f"{step}")
        for uri in data.draw(st.lists(st.sampled_from(sorted(inputs)), max_size=2)) if inputs else ():
            inputs.pop(uri, None)
        fresh = assign(known, list(inputs.values()))
        assert [int(s.id) for s in fresh] == list(range(len(known), len(known) + len(fresh)))
        known = known + fresh
        assert assign(known, list(inputs.values())) == []
        spans = [(i.uri, i.etag, i.part) for i in flat(known)]
        assert len(set(spans)) == len(spans), "an input stands in two shards"
        assert {(e.uri, e.etag) for e in inputs.values()} <= {(i.uri, i.etag) for i in flat(known)}


def test_a_long_input_becomes_spans() -> None:
    listed = [Entry("/in/long", 100 * MIB, "e"), Entry("/in/short", 1 * MIB, "e"), Entry("/in/just", 64 * MIB, "e")]
    made = assign([], listed)
    assert [[i.uri for i in shard.items] for shard in made[:2]] == [["/in/just"], ["/in/short"]]
    assert [(i.uri, i.part, i.parts) for i in flat(made[2:])] == [("/in/long", part, 13) for part in range(13)]
    assert {len(shard.items) for shard in made[2:]} == {1}
    assert sum(item.size / item.parts for item in flat(made[2:])) == pytest.approx(100 * MIB)


def test_known_lengths_count_instead_of_bytes() -> None:
    listed = entries([1, 1, 1, 1])
    assert len(assign([], listed)) == 1
    weights = {listed[0].uri: 24.0 * MIB, listed[1].uri: 200.0 * MIB}
    made = assign([], listed, weights=weights)
    assert [i.uri[-5] for s in made[:-25] for i in s.items] == ["0", "2", "3"] and len(made) == 3 + 25
    assert made[-1].items == [Item(listed[1].uri, 1, "e1", 24, 25)]


@pytest.mark.parametrize("heavy", [0, 1])
def test_no_shard_has_too_many_inputs(heavy: int) -> None:
    """Also where one heavy input would leave all of the small ones to the others."""
    listed = entries([MIB] * heavy + [1] * 20_001)
    made = assign([], listed)
    assert len(made) == 3
    assert max(len(shard.items) for shard in made) <= ledger.MAX_ITEMS
    assert len({i.uri for i in flat(made)}) == len(listed)


def test_a_changed_input_is_a_new_one_and_the_old_one_is_superseded() -> None:
    before = assign([], entries([MIB] * 4))
    changed = [Entry("/in/00002.mp4", MIB, "new")]
    fresh = assign(before, [*entries([MIB] * 2), *changed])
    assert [(s.id, s.items) for s in fresh] == [("000001", [Item("/in/00002.mp4", MIB, "new")])]
    listed = {(f"/in/{i:05}.mp4", f"e{i}") for i in range(4)}
    assert ledger.superseded(before, listed) == set()
    old, new = ("/in/00002.mp4", "e2"), ("/in/00002.mp4", "new")
    assert ledger.superseded(before + fresh, listed - {old} | {new}) == {old}
    assert assign(before + fresh, [Entry(*old[:1], MIB, "e2")]) == [], "an input that came back is known"
    assert ledger.superseded(before + fresh, listed) == {new}, "and counts again"
    assert ledger.superseded(before, listed - {old}) == {old}, "so is one that was deleted, or left out by a limit"


# Published: the same on both kinds of storage


def test_a_session_stays_together_however_large() -> None:
    listed = [Entry(f"/in/{s}/{camera}.mp4", 30 * MIB, "e") for s in range(6) for camera in ("front", "left", "rear")]
    sessions = {e.uri: (e.uri.rpartition("/")[0], e.uri.rpartition("/")[2][:-4]) for e in listed}
    alone = Entry("/in/alone.mp4", 100 * MIB, "e")
    made = assign([], [*listed, alone], size=180 * MIB, above=60 * MIB + 120 * MIB, sessions=sessions)
    assert [len(shard.items) for shard in made] == [6, 6, 6, 1]
    for shard in made[:3]:
        assert [(i.uri, i.session, i.camera, i.parts) for i in shard.items] == [
            (i.uri, *sessions[i.uri], 1) for i in sorted(shard.items, key=lambda i: i.uri)
        ]
    assert made[3].items == [Item(alone.uri, alone.size, alone.etag)]
    assert assign(made, [*listed, alone], sessions=sessions) == []
    assert msgspec.json.decode(ledger.encode(made).splitlines()[0], type=Shard) == made[0]

    late = Entry("/in/3/right.mp4", MIB, "e")
    with pytest.raises(ledger.Grown, match=r"/in/3: /in/3/right.mp4 is new or was replaced"):
        assign(made, [*listed, late], sessions=sessions | {late.uri: ("/in/3", "right")})
    new = Entry("/in/9/front.mp4", MIB, "e")
    [more] = assign(made, [*listed, new], sessions=sessions | {new.uri: ("/in/9", "front")})
    assert (more.id, more.items[0].session) == ("000004", "/in/9")


@pytest.fixture(scope="module")
def moto() -> object:
    with s3.moto() as server:
        yield server


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "out put")
    for name, value in request.getfixturevalue("moto").env.items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{request.node.originalname}/out put"


def publish(output: str, generation: int, shards: list[Shard], file: Path) -> None:
    file.write_bytes(ledger.encode(shards))
    ledger.commit(output, generation, file)


def test_generations(output: str, tmp_path: Path) -> None:
    assert ledger.load(output) == EMPTY
    first = assign([], [Entry(f"/in/{uri}", 20 * MIB, "é") for uri in ODD])
    publish(output, 1, first, tmp_path / "1")
    assert ledger.load(output) == Ledger(first, 1)
    second = assign(first, [Entry("/in/late", 1, "e")])
    publish(output, 2, second, tmp_path / "2")
    assert ledger.load(output) == Ledger(first + second, 2)
    publish(output, 2, second, tmp_path / "2")  # the same plan submitted again
    with pytest.raises(Conflict, match=r"000002\.jsonl was published by another plan in between: run the same"):
        publish(output, 2, assign(first, [Entry("/in/other", 1, "e")]), tmp_path / "3")
    assert ledger.load(output) == Ledger(first + second, 2)


def test_of_planners_at_once_one_wins(output: str, tmp_path: Path) -> None:
    def plan(n: int) -> bool:
        try:
            publish(output, 1, assign([], [Entry(f"/in/{n}", n, "e")]), tmp_path / str(n))
            return True
        except Conflict:
            return False

    with ThreadPoolExecutor(8) as pool:
        won = [n for n, ok in enumerate(pool.map(plan, range(8))) if ok]
    assert len(won) == 1
    assert [i.uri for i in flat(ledger.load(output).shards)] == [f"/in/{won[0]}"]


def info(fingerprint: str, frozen: str = "") -> StageInfo:
    return StageInfo("clips", "curate.clips", fingerprint, {"split": {"min_clip": "2s"}}, (".tar", ".parquet"), frozen)


def test_versions(output: str) -> None:
    folder, exists = ledger.version(output, "clips", "aaa")
    assert (folder, exists) == (f"{output}/clips@v1", False)
    ledger.claim(folder, info("aaa"))
    ledger.claim(folder, info("aaa"))  # its own again
    assert ledger.info_of(folder) == info("aaa")
    assert ledger.version(output, "clips", "aaa") == (folder, True)
    assert ledger.version(output, "clips", "bbb") == (f"{output}/clips@v2", False)
    with pytest.raises(Conflict, match="clips@v1 was begun with other settings by another run in between: try again"):
        ledger.claim(folder, info("bbb"))
    ledger.claim(f"{output}/clips@v2", info("bbb", "digest"))
    assert ledger.version(output, "clips", "bbb") == (f"{output}/clips@v2", True)
    assert ledger.version(output, "clips", "aaa") == (folder, True)
    assert ledger.version(output, "clip", "aaa") == (f"{output}/clip@v1", False)
    storage.delete(f"{output}/clips@v1/_stage.json")  # somebody took an old version away: its number is not used again
    assert ledger.version(output, "clips", "bbb") == (f"{output}/clips@v2", True)
    assert ledger.version(output, "clips", "ccc") == (f"{output}/clips@v3", False)


def test_runs_are_found_by_their_folders(output: str, tmp_path: Path) -> None:
    assert ledger.runs(output) == ([], [])
    folders = [tmp_path / "runs" / name for name in ("a-1", "b-2", "gone-3")] + [tmp_path / "elsewhere" / "a-1"]
    for folder in folders:
        folder.mkdir(parents=True)
        ledger.register(output, folder)
    ledger.register(output, folders[0])
    folders[2].rmdir()
    here, gone = ledger.runs(output)
    assert here == sorted([folders[0], folders[1], folders[3]]), "two folders of one run are two"
    assert gone == [folders[2]]
