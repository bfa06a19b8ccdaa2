"""What `inputs` mean, on disk and on S3: folders, globs, lists, tars, earlier outputs; and what is said if none is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3

from hpc.batch import inputs, ledger
from hpc.batch.inputs import InputError
from hpc.batch.spec import Inputs
from hpc.data import storage

FILES = {"a/1.mp4": 3, "a/2.MP4": 4, "a/notes.md": 1, "a/README": 1, "a/deep/er/3.mp4": 5, "b/1.mp4": 6, "b/[x].mp4": 7,
         "b/x.mp4": 8, "top.mp4": 9, "list.csv": 1, "a/.hidden.mp4": 1, "c/it's \"ünï\" $(x).mp4": 10}  # fmt: skip
SUFFIXES = (".mp4", ".tar")


@pytest.fixture(scope="module")
def moto() -> Iterator[s3.Server]:
    with s3.moto() as server:
        yield server


@pytest.fixture(params=["local", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with FILES."""
    if request.param == "local":
        place = str(tmp_path / "in put")
    else:
        for name, value in request.getfixturevalue("moto").env.items():
            monkeypatch.setenv(name, value)
        place = f"s3://bucket/{request.node.originalname}/in put"
    for name, size in FILES.items():
        storage.put(storage.join(place, name), b"x" * size)
    return place


def found(base: str, *given: Inputs) -> list[str]:
    """Their names, shortened."""
    return [e.uri.removeprefix(base + "/") for e in inputs.resolve(given, SUFFIXES).entries]


def one(uri: str, **more) -> Inputs:
    return Inputs(uri=uri, **more)


ALL = ["a/1.mp4", "a/2.MP4", "a/deep/er/3.mp4", "b/1.mp4", "b/[x].mp4", "b/x.mp4", "c/it's \"ünï\" $(x).mp4", "top.mp4"]


def test_a_folder(base: str) -> None:
    listing = inputs.resolve([one(base)], SUFFIXES)
    assert [e.uri.removeprefix(base + "/") for e in listing.entries] == ALL
    assert {e.uri.removeprefix(base + "/"): e.size for e in listing.entries} == {name: FILES[name] for name in ALL}
    assert all(e.etag for e in listing.entries) and not listing.weights
    assert listing.ignored == {"(none)": 1, ".csv": 1, ".md": 1}
    read_too = inputs.resolve([one(base)], SUFFIXES, beside=(".md",))
    assert read_too.ignored == {"(none)": 1, ".csv": 1} and read_too.entries == listing.entries
    assert found(base, one(base + "/")) == ALL


def test_one_file(base: str) -> None:
    assert found(base, one(f"{base}/top.mp4")) == ["top.mp4"]
    assert found(base, one(f"{base}/list.csv")) == ["list.csv"], "a file that is named is taken, whatever it is called"
    assert found(base, one(f"{base}/b/[x].mp4")) == ["b/[x].mp4"], "a file of this very name goes before a pattern"


def test_several_places_each_input_once(base: str) -> None:
    assert found(base, one(f"{base}/b"), one(f"{base}/a/1.mp4"), one(f"{base}/b/1.mp4")) == [
        "a/1.mp4", "b/1.mp4", "b/[x].mp4", "b/x.mp4"]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.mp4", ["top.mp4"]),
        ("*/1.mp4", ["a/1.mp4", "b/1.mp4"]),
        ("**/1.mp4", ["a/1.mp4", "b/1.mp4"]),
        ("**/*.mp4", [n for n in ALL if n != "a/2.MP4"]),
        ("a/**", ["a/1.mp4", "a/2.MP4", "a/deep/er/3.mp4"]),
        ("a/**/3.mp4", ["a/deep/er/3.mp4"]),
        ("?/[0-9].mp4", ["a/1.mp4", "b/1.mp4"]),
        ("b/[!0-9].mp4", ["b/x.mp4"]),
        ("b/[[]x].mp4", ["b/[x].mp4"]),
        ("b/[^x].mp4", ["b/x.mp4"]),
        ("c/it's*$(x).mp4", ["c/it's \"ünï\" $(x).mp4"]),
        ("[ab]/?.mp4", ["a/1.mp4", "b/1.mp4", "b/x.mp4"]),
    ],
)
def test_a_glob(base: str, pattern: str, names: list[str]) -> None:
    assert found(base, one(f"{base}/{pattern}")) == names


def test_names_that_look_like_patterns(base: str) -> None:
    storage.put(f"{base}/d[1]*/x.mp4", b"1")
    storage.put(f"{base}/d[1]*/list[.txt", b"x.mp4" if base[0] == "/" else f"{base}/d[1]*/x.mp4".encode())
    assert found(base, one(f"{base}/d[1]*")) == found(base, one(f"{base}/d[1]*/")) == ["d[1]*/x.mp4"]
    assert found(base, one(f"{base}/d[1]*/list[.txt")) == ["d[1]*/x.mp4"]
    assert found(base, one(f"{base}/d[1]*", match="x*")) == ["d[1]*/x.mp4"]


@pytest.mark.parametrize("pattern", ["[z-a].mp4", "[a-\\]*"])
def test_no_pattern(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(InputError, match=r"not a pattern: bad character range"):
        inputs.resolve([one(f"{tmp_path}/{pattern}")], SUFFIXES)


def test_a_whole_bucket(moto: s3.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in moto.env.items():
        monkeypatch.setenv(name, value)
    storage.put("s3://bucket/zzz/whole.mkv", b"1")
    for uri in ("s3://bucket", "s3://bucket/", "s3://bucket/**/whole.*"):
        assert [e.uri for e in inputs.resolve([one(uri)], (".mkv",)).entries] == ["s3://bucket/zzz/whole.mkv"]


def test_a_glob_of_text_files(base: str) -> None:
    """A pattern that ends like a list file is no list file."""
    for name in ("t/a.txt", "t/b.jsonl"):
        storage.put(f"{base}/{name}", b"no path")
    assert [e.uri for e in inputs.resolve([one(f"{base}/t/*.txt")], (".txt",)).entries] == [f"{base}/t/a.txt"]
    assert [e.uri for e in inputs.resolve([one(f"{base}/t/*.jsonl")], (".jsonl",)).entries] == [f"{base}/t/b.jsonl"]


def test_limit_takes_the_first_by_name(base: str) -> None:
    assert found(base, one(base, limit=2)) == ALL[:2]
    assert found(base, one(f"{base}/b", limit=1), one(f"{base}/a", limit=1)) == ["a/1.mp4", "b/1.mp4"]


def test_match_goes_by_the_path_below_the_folder(base: str) -> None:
    assert found(base, one(base, match="a/*")) == ["a/1.mp4", "a/2.MP4", "a/README", "a/deep/er/3.mp4", "a/notes.md"]
    assert found(base, one(base, match="*.csv")) == ["list.csv"], "what is matched is taken, whatever its suffix"
    assert found(base, one(f"{base}/a/", match="[12].*", limit=1)) == ["a/1.mp4"]
    assert found(base, one(f"{base}/*/1.mp4", match="b/*")) == ["b/1.mp4"]
    assert found(base, one(f"{base}/top.mp4", match="*.mp4")) == ["top.mp4"]


def test_match_in_a_list(base: str) -> None:
    storage.put(f"{base}/list.txt", b"b/1.mp4\na/1.mp4\ntop.mp4\n" if base[0] == "/" else
                f"{base}/b/1.mp4\n{base}/a/1.mp4\n{base}/top.mp4\n".encode())  # fmt: skip
    assert found(base, one(f"{base}/list.txt", match="b/*")) == ["b/1.mp4"]
    assert found(base, one(f"{base}/list.txt", match="*.mp4", limit=2)) == ["a/1.mp4", "b/1.mp4"]


def test_a_text_list(base: str, tmp_path: Path) -> None:
    (tmp_path / "near.mp4").write_bytes(b"1234")
    (tmp_path / "# odd.mp4").write_bytes(b"1")
    lines = ["# a comment", "", f"{base}/b/1.mp4", "near.mp4", f"  {base}/c/it's \"ünï\" $(x).mp4", "./# odd.mp4"]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    listed = inputs.resolve([one(str(tmp_path / "list.txt"))], SUFFIXES).entries
    assert {Path(e.uri).name: e.size for e in listed} == {
        "1.mp4": 6, "near.mp4": 4, "it's \"ünï\" $(x).mp4": 10, "# odd.mp4": 1}  # fmt: skip
    assert str(tmp_path / "near.mp4") in [e.uri for e in listed], "relative paths count from the list"


def test_a_json_list(base: str, tmp_path: Path) -> None:
    known = {"uri": f"{base}/never looked at.mp4", "size": 77, "etag": "abc", "seconds": 10}
    lines = [json.dumps({"uri": f"{base}/b/1.mp4", "seconds": 2.5}), json.dumps(known)]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    listing = inputs.resolve([one(str(tmp_path / "list.jsonl"))], SUFFIXES)
    assert storage.Entry(known["uri"], 77, "abc") in listing.entries and len(listing.entries) == 2
    assert listing.weights == {f"{base}/b/1.mp4": 2.5 * 2**20, known["uri"]: 10 * 2**20}


def test_a_list_of_prompts(base: str, tmp_path: Path) -> None:
    """As Cosmos' autoregressive models have it. An input with another prompt is another input."""
    file = tmp_path / "list.jsonl"
    file.write_text(json.dumps({"prompt": "a cat", "visual_input": f"{base}/b/1.mp4"}))
    listing = inputs.resolve([one(str(file))], SUFFIXES)
    [item] = ledger.assign(ledger.Ledger([], 0), listing.entries, 1, 9**9, captions=listing.captions)[0].items
    plain = storage.stat(f"{base}/b/1.mp4")
    assert plain and (item.caption, item.version) == ("a cat", plain.etag) and item.etag != plain.etag
    file.write_text(json.dumps({"prompt": "a dog", "visual_input": f"{base}/b/1.mp4"}))
    assert inputs.resolve([one(str(file))], SUFFIXES).entries[0].etag not in (item.etag, plain.etag)
    file.write_text(json.dumps({"visual_input": f"{base}/b/1.mp4"}))
    assert inputs.resolve([one(str(file))], SUFFIXES).entries == [plain]
    lines = [{"visual_input": f"{base}/b/1.mp4", "prompt": words} for words in ("x", "y")] + [{"prompt": "x"}]
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(InputError, match=r"(?s):2: .*another prompt in a line before.*:3: it names no file"):
        inputs.resolve([one(str(file))], SUFFIXES)


def test_mistakes_in_a_list_are_all_told_by_line(base: str, tmp_path: Path) -> None:
    file = tmp_path / "list.jsonl"
    file.write_text(f'{{"uri": "{base}/b/1.mp4"}}\n{{"url": "x"}}\nb/1.mp4\n\n{{"uri": "{base}/gone.mp4"}}\n')
    with pytest.raises(InputError) as caught:
        inputs.resolve([one(str(file))], SUFFIXES)
    told = str(caught.value).split("\n")
    assert len(told) == 3 and [line.removeprefix(f"{file}:")[0] for line in told] == ["2", "3", "5"]
    assert '{"uri": ..., "seconds"?, "size"?, "etag"?}' in told[0]
    assert told[2] == f"{file}:5: {base}/gone.mp4: no such file or object"
    file.write_text("nonsense\n" * 50)
    with pytest.raises(InputError, match=r"(?s):20: .*\.\.\. and 30 more$"):
        inputs.resolve([one(str(file))], SUFFIXES)
    (tmp_path / "l.txt").write_text("gone.mp4\n")
    with pytest.raises(InputError, match=f"l.txt:1: {tmp_path}/gone.mp4: no such file or object"):
        inputs.resolve([one(str(tmp_path / "l.txt"))], SUFFIXES)


def test_a_list_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match=r"l\.txt: not a list of paths: .*utf-8"):
        inputs.resolve([one(str(tmp_path / "l.txt"))], SUFFIXES)


def test_tars_are_inputs_as_they_are(base: str) -> None:
    for name in ("w/000.tar", "w/001.tar"):
        storage.put(f"{base}/{name}", b"tar")
    assert found(base, one(f"{base}/w")) == ["w/000.tar", "w/001.tar"]


def test_an_earlier_output_gives_its_whole_shards(base: str) -> None:
    """Of each shard the first object; shards whose objects are not all there were never finished."""
    folder = f"{base}/clips@v1"
    info = ledger.StageInfo("clips", "curate.clips", "f", {}, (".tar", ".parquet"))
    ledger.claim(folder, info)
    for name in ("0.tar", "0.parquet", "1.tar", "2.parquet", "3.tar", "3.parquet", "x.txt"):
        storage.put(f"{folder}/00000{name}", b"1")
    for given in (folder, folder + "/"):
        assert found(folder, one(given)) == ["000000.tar", "000003.tar"]


@pytest.mark.parametrize("name", ["gone", "gone.mp4", "gone.txt", "gone/*.mp4", "a/*.mkv"])
def test_nothing_found(base: str, name: str) -> None:
    with pytest.raises((InputError, FileNotFoundError)) as caught:
        inputs.resolve([one(f"{base}/{name}")], SUFFIXES)
    assert f"{base}/{name}" in str(caught.value)


def test_nothing_of_use_found(base: str) -> None:
    storage.put(f"{base}/d/x.doc", b"1")
    storage.put(f"{base}/d/y.doc", b"1")
    with pytest.raises(InputError) as caught:
        inputs.resolve([one(f"{base}/d")], SUFFIXES)
    assert str(caught.value) == f"no inputs found in {base}/d; ignored 2 x .doc. Files are taken by suffix: .mp4 .tar"
    with pytest.raises(InputError, match="no inputs found"):
        inputs.resolve([one(f"{base}/d", match="*.mp4")], SUFFIXES)


def test_a_run_folder_is_no_input(tmp_path: Path) -> None:
    run = tmp_path / "t-12345678"
    for name in ("spec.yaml", "attempt-1/provenance.json", "attempt-1/plan.json"):
        storage.put(f"{run}/{name}", b"{}")
    with pytest.raises(InputError, match=r"is a run folder: name one of its outputs instead, .* <output>/clips@v1"):
        inputs.resolve([one(str(run))], SUFFIXES)


def cameras(base: str, *names: str, **more) -> list[str]:
    """session/camera of each file, as found."""
    for name in names:
        storage.put(storage.join(base, "rig", name), b"x")
    listing = inputs.resolve([one(f"{base}/rig", **more)], SUFFIXES)
    assert listing.sessions.keys() == {e.uri for e in listing.entries}
    return [" ".join(listing.sessions[e.uri]).removeprefix(f"{base}/rig/") for e in listing.entries]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{session}/{camera}.mp4", ["day 1/s1/front.mp4", "day 1/s1/rear left.MP4", "day 1/s2/front.mp4"]),
        ("{session}/{camera}", ["day 1/s1/front.mp4", "day 1/s1/rear left.mp4", "day 1/s2/front.mp4"]),
        ("{camera}/{session}", ["front/day 1/s1.mp4", "front/day 1/s2.mp4", "rear left/day 1/s1.mp4"]),
        ("{session}.{camera}", ["day 1/s1.front.mp4", "day 1/s1.rear left.MP4", "day 1/s2.front.mp4"]),
        ("raw/{camera}_{session}", ["raw/front_day 1/s1.mp4", "raw/front_day 1/s2.mp4", "raw/rear left_day 1/s1.mp4"]),
    ],
)
def test_sessions(base: str, pattern: str, names: list[str]) -> None:
    base += pattern.translate(dict.fromkeys(map(ord, "{}/")))
    expected = ["day 1/s1 front", "day 1/s1 rear left", "day 1/s2 front"]
    assert sorted(cameras(base, *names, group_by=pattern)) == expected
    assert sorted(cameras(base, group_by=pattern, limit=1)) == expected[:2]


def test_files_that_are_in_no_session_or_twice(base: str) -> None:
    with pytest.raises(inputs.InputError, match=r"1 files do not fit group_by: '{session}/{camera}', e.g. stray.mp4"):
        cameras(base, "s1/front.mp4", "stray.mp4", group_by="{session}/{camera}")
    with pytest.raises(inputs.InputError, match="are the same camera of the same session"):
        cameras(base, "s1/front.tar", group_by="{session}/{camera}", match="s1/*")
    with pytest.raises(inputs.InputError, match=r"1 files do not fit .*/{camera}.mp4', e.g. s1/front.tar"):
        cameras(base, group_by="{session}/{camera}.mp4", match="s1/*")
    for wrong in ("{session}", "{camera}/{camera}", "{session}/{camera}/{lens}", ""):
        with pytest.raises(ValueError, match="once each"):
            one(base, group_by=wrong)
