"""The semantic filter and the classifier: a real server answers as told about the pictures that it is shown, and the
tables say which clips go, why, and what could not be understood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import told
import torch

from hpc.batch.spec import SpecErrors, load
from hpc.curate import classify, judge, semantic
from hpc.curate.settings.judge import CRITERIA, LABELS, Classify, Semantic, listed
from hpc.data import layers, upstream
from hpc.data.vlm import Endpoint
from hpc.data.work import Made, Work

CLIPS = {"a": [20], "b": [50, 80, 110], "c": [140, 170], "d": [200], "short": [], "broken": [0]}
"""Windows of 16 frames by their grey: the server knows them by it. `broken` is no video, `short` has 3 frames."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, rows = tmp_path_factory.mktemp("clips"), []
    with layers.TarWriter(folder / "000000.tar") as tar:
        for uuid, greys in CLIPS.items():
            data = b"no video" if uuid == "broken" else told.film(folder / "x.mp4", greys)
            offset, size = tar.add(uuid, {".mp4": data}).members[".mp4"]
            rows.append({"uuid": uuid, "verdict": "keep", "num_frames": 16 * len(greys) or 3, "fps": 8.0, "width": 96,
                         "height": 64, "mp4_offset": offset, "mp4_size": size})  # fmt: skip
    layers.write_table(folder / "000000.parquet", rows, {})
    return {suffix: str(folder / f"000000{suffix}") for suffix in (".tar", ".parquet")}


def work(place: Path, **needs: dict[str, str]) -> Work:
    return Work("000000", [], [], dict(needs), place, "f", lambda: None, lambda share, words: None)


def made(place: Path, clips: dict[str, str], answers: dict[int, str], kind: type = Semantic, **settings: Any
         ) -> tuple[dict[str, dict[str, Any]], Made, told.Server]:  # fmt: skip
    place.mkdir(exist_ok=True)
    with told.server(answers) as there:
        chosen = kind(model="told", endpoint=Endpoint(url=there.url, retries=0), window=16, **settings)
        code = semantic if kind is Semantic else classify
        done = code.start(chosen)(work(place, clips=clips))
    rows = layers.read_table(done.objects[0]).to_pylist()
    return {row["uuid"]: row for row in rows}, done, there


def yes(*names: str) -> str:
    """As models answer: everything, in a fence."""
    return "```json\n" + json.dumps({name: "yes" if name in names else "no" for name in CRITERIA}) + "\n```"


ANSWERS = {20: yes(), 50: yes("fast zoom"), 80: yes("fast zoom", "slideshow"), 110: yes(), 140: yes("slideshow"),
           170: yes(), 200: "I like this video."}  # fmt: skip


def test_clips_with_too_many_windows_that_have_something_against_them_go(
    tmp_path: Path, clips: dict[str, str]
) -> None:
    rows, done, there = made(tmp_path, clips, ANSWERS)
    assert {uuid: row["verdict"] for uuid, row in rows.items()} == {
        "a": "keep", "b": "semantic", "c": "keep", "d": "keep", "short": "keep", "broken": "keep"
    }  # fmt: skip
    assert rows["b"]["reasons"] == ["fast zoom", "slideshow"] and rows["b"]["share"] == pytest.approx(2 / 3)
    assert rows["c"]["reasons"] == [] and rows["c"]["share"] == 0.5, "half of the windows are not more than half"
    assert rows["c"]["criteria"] == ["slideshow"] and rows["a"]["criteria"] == []
    assert [rows[uuid]["reasons"] for uuid in ("d", "short", "broken")] == [["unparsable"]] * 3
    assert [(one["start_frame"], one["end_frame"], one["status"], one["yes"]) for one in rows["b"]["seen"]] == [
        (0, 15, "parsed", ["fast zoom"]), (16, 31, "parsed", ["slideshow", "fast zoom"]), (32, 47, "parsed", [])
    ]  # fmt: skip
    assert rows["a"]["seen"][0]["answer"] == ANSWERS[20].strip()
    assert rows["d"]["seen"][0]["status"] == "unparsed" and rows["d"]["seen"][0]["answer"] == "I like this video."
    assert rows["broken"]["seen"][0]["status"] == "error" and "BadInput" in rows["broken"]["seen"][0]["answer"]
    expected = {"clips": 5, "dropped": 1, "dropped_fast zoom": 1, "windows": 8, "unparsed_windows": 1, "errors": 1,
                "refused": 0, "clips_not_judged": 3, "prompt_tokens": 49, "output_tokens": 21}  # fmt: skip
    assert {key: done.counts[key] for key in expected} == expected
    [prompt] = there.prompts
    assert all(f"{name}: {question}" in prompt for name, question in CRITERIA.items())
    assert upstream.dropped(str(done.objects[0])) == {"b"}
    meta = layers.read_meta(done.objects[0])
    assert meta["stage"] == "curate.semantic" and meta["model"] == "told" and meta["names"] == list(CRITERIA)


def test_policies(tmp_path: Path, clips: dict[str, str]) -> None:
    rows, done, _ = made(tmp_path / "drop", clips, ANSWERS, unparsable="drop", max_share=0.0)
    assert {uuid for uuid, row in rows.items() if row["verdict"] == "semantic"} == {"b", "c", "d", "short", "broken"}
    assert done.counts["dropped_unparsable"] == 3
    rows, done, _ = made(tmp_path / "score", clips, ANSWERS, unparsable="drop", mode="score-only")
    assert {row["verdict"] for row in rows.values()} == {"keep"} and done.counts["dropped"] == 0
    assert rows["b"]["reasons"] == ["fast zoom", "slideshow"], "what would be dropped is told"


def test_criteria_of_ones_own(tmp_path: Path, clips: dict[str, str]) -> None:
    answers = dict.fromkeys(ANSWERS, "No") | {20: "Yes, a cat sleeps on the sofa."}
    rows, _, there = made(tmp_path, clips, answers, criteria={"cat": "Is there a cat?"})
    assert {uuid for uuid, row in rows.items() if row["reasons"] == ["cat"]} == {"a"}
    assert "1. cat: Is there a cat?" in there.prompts.pop()
    assert Semantic(criteria=("a boat", "slideshow")).questions() == {
        "a boat": "Is there a boat in it?", "slideshow": CRITERIA["slideshow"]
    }  # fmt: skip


KINDS = {
    20: '{"cooking": "yes", "food/drink": "yes"}', 50: '["animation"]', 80: '["animation", "pets"]', 110: '["pets"]',
    140: '{"sports/exercise": "yes", "other": "no"}', 170: '["pets"]', 200: "Who knows.",
}  # fmt: skip


def test_kinds_of_video(tmp_path: Path, clips: dict[str, str]) -> None:
    rows, done, there = made(tmp_path / "all", clips, KINDS, Classify)
    assert {row["verdict"] for row in rows.values()} == {"keep"} and done.counts["dropped"] == 0
    assert rows["a"]["labels"] == ["food/drink", "cooking"] or rows["a"]["labels"] == ["cooking", "food/drink"]
    assert rows["b"]["labels"] == ["animation", "pets"] and rows["d"]["labels"] == []
    assert all(label in next(iter(there.prompts)) for label in LABELS) and len(LABELS) == 27


def test_kinds_that_are_wanted_and_kinds_that_are_not(tmp_path: Path, clips: dict[str, str]) -> None:
    rows, done, _ = made(tmp_path / "allow", clips, KINDS, Classify, allow=("pets",))
    assert {uuid for uuid, row in rows.items() if row["verdict"] == "classify"} == {"a"}, "one window is enough to stay"
    assert rows["a"]["reasons"] == ["none of the allowed kinds"] and rows["d"]["reasons"] == ["unparsable"]
    rows, done, _ = made(tmp_path / "block", clips, KINDS, Classify, block=("animation", "sports/exercise"))
    assert {uuid: row["reasons"] for uuid, row in rows.items() if row["verdict"] == "classify"} == {"b": ["animation"]}
    assert done.counts["dropped_animation"] == 1 and rows["c"]["share"] == 0.5
    rows, _, _ = made(tmp_path / "both", clips, KINDS, Classify, allow=("pets",), block="animation, cooking",
                      mode="score-only")  # fmt: skip
    assert {row["verdict"] for row in rows.values()} == {"keep"} and rows["b"]["reasons"] == ["animation"]


def test_a_real_model_with_random_weights_is_not_understood(tmp_path: Path, clips: dict[str, str]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tiny_models.qwen2_5_vl(tmp_path / "vlm")
    done = classify.start(Classify(model=str(folder), window=16, max_tokens=8, labels=("pets", "other")))(
        work(tmp_path, clips=clips)
    )
    torch.set_num_threads(threads)
    rows = layers.read_table(done.objects[0]).to_pylist()
    assert done.counts["windows"] == 8 and done.counts["unparsed_windows"] + done.counts["errors"] == 8
    assert {row["verdict"] for row in rows} == {"keep"}
    assert layers.read_table(done.objects[0]).schema.remove_metadata().names == [
        field.replace("found", "labels") for field in judge.SCHEMA.names
    ]


SPEC = """
name: x
inputs: in
output: out
stages:
  clips: {kind: curate.clips}
  classify: {kind: curate.classify, needs: clips, LISTS}
"""


def spec(place: Path, lists: str) -> Any:
    (place / "x.yaml").write_text(SPEC.replace("LISTS", lists))
    return load(place / "x.yaml", check_paths=False)[0].stages["classify"].settings


def test_lists_may_stand_in_files(tmp_path: Path) -> None:
    (tmp_path / "kinds.txt").write_text("rain\nsnow, sun\n\nrain\n")
    found = spec(tmp_path, "labels: {file: kinds.txt}, block: [snow]")
    assert listed(found.labels) == ("rain", "snow", "sun") and found.block == ("snow",)
    with pytest.raises(SpecErrors, match="did you mean pets"):
        spec(tmp_path, "allow: [pet]")
    with pytest.raises(SpecErrors, match="none; give one at least"):
        spec(tmp_path, "labels: []")
