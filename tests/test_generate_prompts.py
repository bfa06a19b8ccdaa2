"""The file that `prompts` names: every line that is wrong is told at once, before anything is started. Where it came
later, the others are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import runs
from test_generate import film, picture, work

from hpc.batch import preflight_prompts
from hpc.batch.kinds import settings_of
from hpc.batch.spec import load
from hpc.data import layers
from hpc.data.work import BadInput
from hpc.generate import ar, diffusion, media, prompts
from hpc.generate.settings import Ar, Diffusion

JOBS = Path(__file__).parents[1] / "jobs"
LINES = {
    '{"visual_input": "a.png"}': "",
    '{"visual_inputs": "a.png"}': "line 2: unknown: visual_inputs (did you mean visual_input?); known are ",
    '{"visual_input": "gone.png"}': "missing-media: line 3: there is no ",
    '{"visual_input": "notes.txt"}': "missing-media: line 4: ",
    '{"visual_input": "a.png", "seed": "three"}': 'line 5: seed: "three": expected int, got str',
    '{"visual_input": "a.png"': "no-json: line 6: ",
    '{"visual_input": "a.png", "name": "Ein Weg/zwei — \\u65e5"}': "",
}


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """A file with five bad lines of seven."""
    (tmp_path / "in").mkdir()
    picture(tmp_path / "in/a.png")
    film(tmp_path / "in/b.mp4")
    (tmp_path / "in/notes.txt").write_text("words")
    path = tmp_path / "in/list.jsonl"
    path.write_text("\n".join(LINES))
    return path


def job(folder: Path, place: Path, **more: str) -> list[str]:
    values = {"inputs": f"{folder}/in", "output": f"{folder}/out", "stages.videos.prompts": str(place)} | more
    return [str(JOBS / "autoregressive.yaml"), *(f"{key}={value}" for key, value in values.items())]


def test_every_bad_line_is_told_before_anything_is_started(tmp_path: Path, asked: Path) -> None:
    cluster = ("--cluster", str(JOBS / "clusters/h100.yaml"))
    checked = runs.hpc("check", *job(tmp_path, asked), *cluster, cwd=tmp_path, code=1).stdout
    assert "BAD     videos: prompts" in checked and f"{asked}: 5 of 7 cannot be made:" in checked
    submitted = runs.hpc("submit", *job(tmp_path, asked), *cluster, cwd=tmp_path, code=2).stderr
    ran = runs.hpc("run", *job(tmp_path, asked), cwd=tmp_path, code=2).stderr
    for words in filter(None, LINES.values()):
        assert words in checked and words in submitted and words in ran, words
    assert not (tmp_path / "out").exists()
    asked.unlink()
    assert (
        f"there is no {asked} yet: it must be there when this stage begins"
        in runs.hpc("check", *job(tmp_path, asked), *cluster, cwd=tmp_path, code=None).stdout
    )


def test_files_that_are_inputs_are_told_too(tmp_path: Path, asked: Path) -> None:
    """Of these the others are made: `hpc check` warns, unless nothing is left."""
    stage = {"kind": "generate.ar", "model": "ar-tiny", "weights": "/x/model.pt", "tokenizer": "/y"}
    spec = tmp_path / "g.yaml"
    spec.write_text(json.dumps({"name": "g", "inputs": "in/*.jsonl", "output": "out", "stages": {"videos": stage}}))
    [found] = load(spec, ())
    entry = lambda: [type("Entry", (), {"uri": str(asked)})]
    [row] = preflight_prompts.examine(found, entry())
    assert (row.what, row.verdict) == ("videos-prompts: prompts", "warn") and "the others are made" in row.next
    preflight_prompts.refuse(found)
    asked.write_text('{"promt": "Fog."}')
    [row] = preflight_prompts.examine(found, entry())
    assert row.verdict == "bad" and "did you mean prompt?" in row.found
    asked.write_text("")
    [row] = preflight_prompts.examine(found, entry())
    assert row.found == f"{asked} has not one prompt in it"


@pytest.mark.parametrize(("module", "settings"), [
    (ar, Ar(model="ar-tiny", weights="/x/model.pt", tokenizer="/y", per_shard=3)),
    (diffusion, Diffusion(model="tiny-predict2.5", weights="/x", tokenizer="/y", text_encoder="none", per_shard=3)),
])  # fmt: skip
def test_a_bad_line_is_a_video_that_could_not_be_made(module: Any, settings: Any, asked: Path, tmp_path: Path) -> None:
    """The file came later: its name stays when it is mended."""
    changed = {f: getattr(settings, f) for f in settings.__struct_fields__} | {"prompts": str(asked)}
    planned = list(module.freeze(type(settings)(**changed), {}, set()))
    rows = [row for rows in planned for row in rows]
    assert [row["name"] for row in rows] == ["list_000001", "list_000002", "list_000003", "list_000004", "list_000005",
                                             "list_000006", "Ein_Weg_zwei_日"]  # fmt: skip
    assert [row["name"] for row in rows if "why" in row] == [f"list_{i:06}" for i in range(2, 7)]
    some = type(settings)(**changed | {"limit": 1})
    [one, *others] = [row for rows in module.freeze(some, {}, set()) for row in rows]
    assert one["name"] == "list_000001" and len(others) == 5 and all("why" in row for row in others)


def test_the_others_are_made(asked: Path, tmp_path: Path) -> None:
    """A line that is wrong is recorded as an input that can never work, with a row that says why."""

    class Maker(ar.Maker):  # the model is of no matter here: what it makes are ids of nothing
        def __init__(self) -> None:
            self.settings = settings_of("generate.ar", {"model": "ar-tiny", "weights": "/x", "tokenizer": "/y"})
            self.ranks = ar.Ranks(False)
            self.weights, self.named, self.shape = "/x", "/y", (33, 128, 128)

        def begin(self, one: prompts.Request) -> Any:
            return ar.Prompt(ar.torch.zeros(0, dtype=ar.torch.long), 1, None, None)

        def ids(self, begun: Any, check: Any) -> Any:
            return [ar.torch.zeros(5 * 8 * 8, dtype=ar.torch.long) for _ in begun]

        def frames(self, ids: Any) -> Any:
            return ar.np.zeros((9, 128, 128, 3), ar.np.uint8)

    maker = Maker()
    settings = Ar(model="ar-tiny", weights="/x", tokenizer="/y", prompts=str(asked))
    [rows] = ar.freeze(settings, {}, set())
    made = ar.process(maker, work(tmp_path / "w", rows=rows))
    assert made.counts["videos"] == 2
    assert [(bad.reason, bad.detail[:6]) for bad in made.bad] == [
        ("no-prompt", "line 2"), ("missing-media", "line 3"), ("missing-media", "line 4"), ("no-prompt", "line 5"),
        ("no-json", "line 6")]  # fmt: skip
    table = layers.read_table(made.objects[1]).to_pylist()
    assert [row["why"] for row in table] == [None, "no-prompt", "missing-media", "missing-media", "no-prompt",
                                             "no-json", None]  # fmt: skip


def test_nothing_that_can_be_made(asked: Path) -> None:
    asked.write_text('{"promt": "a"}\n' * 150)
    with pytest.raises(ValueError, match=r"150 of 150 cannot be made:\n  line 1: unknown: promt .*(?s:.*)and 50 more"):
        prompts.of_file(str(asked))


def test_a_mended_file_makes_another_version(tmp_path: Path) -> None:
    """...and nothing else does."""
    list_ = tmp_path / "list.txt"
    list_.write_text("one")
    join = runs.JOIN | {"files": [str(list_)]}
    spec = runs.spec(tmp_path, runs.numbered(2), stages={"echo": runs.ECHO, "join": join})
    runs.hpc("run", spec)
    assert "nothing to do" in runs.hpc("run", spec).stdout
    list_.write_text("another")
    assert "nothing to do" not in runs.hpc("run", spec).stdout
    assert (tmp_path / "out/join@v2/000000.txt").is_file()
    assert "nothing to do" in runs.hpc("run", spec).stdout


@pytest.mark.parametrize(("values", "words"), [
    ({"visual_input": ["a.png"]}, 'visual_input: ["a.png"]: text is expected and one path'),
    ({"prompt": ["a", "b"]}, 'prompt: ["a", "b"]: text is expected'),
    ({"visual_input": "http://host/a.png"}, "http://host/a.png: a path, or s3://bucket/key: ~ and other addresses"),
    ({"visual_input": "~/a.png"}, "~/a.png: a path, or s3://bucket/key: ~ and other addresses are not followed"),
    ({"visual_input": "s3://"}, "s3://: a path, or s3://bucket/key"),
    ({"visual_input": "a.png", "input_path": "b.mp4"}, "input_path and visual_input: one of them is gone on from"),
    ({"visual_input": "a.png", "name": "x" * 300}, "300 characters; a file's name may have 120"),
    ({"visual_input": "a.png", "name": 7}, "name: 7: expected str, got int"),
    ({"visual_input": "a.png", "seed": True}, "seed: true: expected int, got bool"),
    ({"visual_input": "a.png", "resolution": [704, 1280]}, "resolution: [704, 1280]; write height and width, "),
])  # fmt: skip
def test_what_a_line_cannot_say(values: dict[str, Any], words: str, asked: Path) -> None:
    [one] = prompts.requests(json.dumps(values).encode(), str(asked), "e", True)
    assert one.why is not None and words in one.why.detail, one.why


def test_media_that_cannot_be_read_are_named(asked: Path) -> None:
    """One pixel is a picture; what has another ending than its bytes is told with them, and where it lies."""
    folder = asked.parent
    PIL.Image.new("RGB", (1, 1)).save(folder / "one.png")
    (folder / "words.png").write_text("no picture")
    (folder / "empty.mp4").touch()
    (folder / "renamed.mp4").write_bytes((folder / "one.png").read_bytes())
    of = lambda name: prompts.Request(name="n", prompt="", source="s", etag="", media=str(folder / name), given=1)
    assert media.frames(of("one.png"), 2, 64, 48).shape == (2, 48, 64, 3)
    for name, words in (("words.png", "n: 10 bytes that begin with b'no picture' are no picture"),
                        ("empty.mp4", "n: 0 bytes"), ("renamed.mp4", "n: it begins with b'\\x89PNG")):  # fmt: skip
        with pytest.raises(BadInput) as told:
            media.frames(of(name), 2, 64, 48)
        assert told.value.bad.uri == str(folder / name) and told.value.bad.detail.startswith(words), told.value
