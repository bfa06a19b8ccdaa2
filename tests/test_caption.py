"""Captions: windows of clips, second questions, enhancement, what cannot be captioned, and captioning again."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import msgspec
import numpy as np
import pytest
import runs
import specs
import tiny_models
import torch
import yaml

from hpc.batch.spec import fingerprint, load, text
from hpc.curate import caption, prompts
from hpc.curate.settings import Caption
from hpc.curate.settings.caption import ENHANCE_PROMPTS, PROMPTS, Enhance
from hpc.curate.windows import samples, windows
from hpc.data import layers
from hpc.data.work import Made, Stopped, Work
from hpc.models import vlm
from hpc.models.vlm import Answer, Request

CLIPS = {"a": 400, "b": 3, "c": 60, "d": 30, "e": 30, "f": 20}
"""Frames. d is no video, e was dropped."""
WINDOWS = [("a", 0, 0, 255), ("a", 1, 256, 399), ("c", 0, 0, 59), ("d", 0, 0, 29), ("f", 0, 0, 19)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def film(path: Path, frames: int, fps: int = 24) -> Path:
    """Frame i is a plain grey of i % 256, so that pictures tell their number."""
    with contextlib.closing(av.open(str(path), "w")) as out:
        stream = out.add_stream("libx264", fps, options={"preset": "ultrafast", "crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for grey in range(frames):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 96, 3), grey % 256, np.uint8), "rgb24")))
        out.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, rows = tmp_path_factory.mktemp("clips"), []
    with layers.TarWriter(folder / "000000.tar") as tar:
        for uuid, frames in CLIPS.items():
            row = {"uuid": uuid, "verdict": "keep", "num_frames": frames, "fps": 24.0, "width": 96, "height": 64,
                   "mp4_offset": None, "mp4_size": None}  # fmt: skip
            if uuid == "e":
                row["verdict"] = "black"
            else:
                data = b"no video" if uuid == "d" else film(folder / "x.mp4", frames).read_bytes()
                row["mp4_offset"], row["mp4_size"] = tar.add(uuid, {".mp4": data}).members[".mp4"]
            rows.append(row)
    layers.write_table(folder / "000000.parquet", rows, {})
    return {suffix: str(folder / f"000000{suffix}") for suffix in (".tar", ".parquet")}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("models")
    tiny_models.qwen2_5_vl(place / "vlm")
    tiny_models.qwen2(place / "llm")
    return {name: str(place / name) for name in ("vlm", "llm")}


def work(clips: dict[str, str], scratch: Path, told: list[tuple[float, str]] | None = None, check: Any = None) -> Work:
    scratch.mkdir(exist_ok=True)
    said = told if told is not None else []
    return Work("000000", [], [], {"clips": clips}, scratch, "f00d", check or (lambda: None),
                lambda share, words: said.append((share, words)))  # fmt: skip


def table(made: Made) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    [path] = made.objects
    assert layers.read_table(path).schema.remove_metadata() == caption.SCHEMA
    return layers.read_table(path).to_pylist(), layers.read_meta(path)


class Spy(vlm.Engine):
    """Answers with what it was asked; some in another way."""

    model, revision = "spy", "1"

    def __init__(self, **answers: Answer) -> None:
        super().__init__()
        self.answers, self.asked = answers, []

    def stream(self, requests: Iterable[Request], check: Any = lambda: None, then: Any = None) -> Iterator[Any]:
        for number, request in enumerate(requests):
            check()
            self.asked.append(request)
            self.spent["caption_seconds"] += 1
            first = self.answers.get(f"q{number}", Answer(f"answer {number}", "success", 10, 3))
            again = then(request, first) if then else None
            if again:
                self.asked.append(again)
            yield [first, self.answers.get(f"s{number}", Answer(again.prompt, "success", 20, 4))] if again else [first]


# --- a layer


@pytest.mark.parametrize("batch", [1, 3])
def test_a_row_for_each_window_by_a_real_model(
    clips: dict[str, str], models: dict[str, str], tmp_path: Path, batch: int
) -> None:
    settings = Caption(model=models["vlm"], max_tokens=6, batch=batch, frame_tokens=160, prompt="What is it?")
    told: list[tuple[float, str]] = []
    made = caption.start(settings)(work(clips, tmp_path / "s", told))
    rows, meta = table(made)
    assert [(r["uuid"], r["window"], r["start_frame"], r["end_frame"]) for r in rows] == WINDOWS
    for row in rows:
        if row["uuid"] == "d":
            assert row["status"] == "error" and row["caption"] == "" and row["output_tokens"] == 0
            assert row["detail"].startswith("BadInput: "), row["detail"]
        else:
            assert row["status"] in ("success", "truncated") and row["caption"] and row["detail"] == ""
            assert row["output_tokens"] <= 6 and row["prompt_tokens"] > 100
        assert row["enhanced"] is row["enhanced_status"] is None
    counts = made.counts
    assert {k: counts[k] for k in ("clips", "windows", "clips_without_window", "errors")} == {
        "clips": 5, "windows": 5, "clips_without_window": 1, "errors": 1,
    }  # fmt: skip
    assert counts["prompt_tokens"] == sum(r["prompt_tokens"] for r in rows)
    assert counts["output_tokens"] == sum(r["output_tokens"] for r in rows) > 0
    assert counts["caption_seconds"] > 0 and counts["data_wait_seconds"] > 0
    assert meta["stage"] == "curate.caption" and meta["model"] == models["vlm"] and meta["fingerprint"] == "f00d"
    assert (meta["variant"], meta["prompt"], meta["without_window"]) == ("", "What is it?", ["b"])
    assert told[-1] == (0.8, "4 of 5 windows")


def test_batches_do_not_change_captions(clips: dict[str, str], models: dict[str, str], tmp_path: Path) -> None:
    """Nor does what is in the shard besides."""
    found = []
    for batch in (1, 2, 8):
        settings = Caption(model=models["vlm"], max_tokens=8, batch=batch, frame_tokens=160)
        found.append(table(caption.start(settings)(work(clips, tmp_path / str(batch)))))
    assert found[0] == found[1] == found[2]
    assert found[0][1]["variant"] == "default" and found[0][1]["prompt"] == prompts.CAPTION["default"]


def test_what_the_model_is_shown(clips: dict[str, str], tmp_path: Path) -> None:
    """Two frames a second, spread over the window, and how far they are apart."""
    spy = Spy()
    caption.process(Caption(), spy, None, work(clips, tmp_path / "s"))
    assert [len(request.frames) for request in spy.asked] == [22, 12, 4, 4]  # a, a, c, f; d is no video
    for request, (_, _, first, last) in zip(spy.asked, [w for w in WINDOWS if w[0] != "d"], strict=True):
        greys = request.frames.mean((1, 2, 3))
        expected = np.array([n % 256 for n in samples(first, last, 24.0, 2.0)])
        assert request.frames.shape[1:] == (64, 96, 3) and np.abs(greys - expected).max() < 4
        assert request.fps == pytest.approx(24 / np.diff(samples(first, last, 24.0, 2.0)).mean())
        assert request.prompt == prompts.CAPTION["default"] and request.system == ""


def test_samples_are_those_of_the_published_rule() -> None:
    """smart_nframes and linspace of qwen-vl-utils."""
    for (first, last), fps in itertools.product([(0, 3), (0, 4), (5, 11), (0, 255), (256, 638)], (10.0, 23.976, 60.0)):
        frames = last + 1 - first
        count = round(min(max(frames / fps * 2.0, 4), min(768, frames) // 2 * 2) / 2) * 2
        assert samples(first, last, fps, 2.0) == torch.linspace(first, last, count).round().long().tolist()
    assert len(samples(0, 99_999, 24.0, 2.0)) == 768 and len(samples(0, 9, 0.0, 2.0)) == 10
    assert windows(3) == []


def test_one_text_for_everything_needs_no_model_and_no_video(clips: dict[str, str], tmp_path: Path) -> None:
    made = caption.start(Caption(text="Traffic in a city."))(work(clips, tmp_path / "s"))
    rows, meta = table(made)
    assert [(r["uuid"], r["caption"], r["status"]) for r in rows] == [
        (uuid, "Traffic in a city.", "success") for uuid, *_ in WINDOWS
    ]
    assert meta["model"] == meta["prompt"] == "" and made.counts["windows"] == 5


def test_a_model_without_eyes_is_refused_at_once(models: dict[str, str]) -> None:
    with pytest.raises(RuntimeError, match="is a language model, which takes no frames"):
        caption.start(Caption(model=models["llm"]))


# --- more than one question


def test_a_second_question_quotes_the_first_answer(clips: dict[str, str], tmp_path: Path) -> None:
    spy = Spy(q1=Answer("", "error", 10, 1, "the model said nothing"), s2=Answer("I can't", "refused", 7, 2),
              q3=Answer("I'm sorry", "refused", 10, 2))  # fmt: skip
    settings = Caption(second="Make this better: {caption}!")
    rows, meta = table(caption.process(settings, spy, None, work(clips, tmp_path / "s")))
    made = {(r["uuid"], r["window"]): r for r in rows}
    first = made["a", 0]
    assert (first["caption"], first["status"]) == ("Make this better: answer 0!", "success")
    assert (first["prompt_tokens"], first["output_tokens"]) == (30, 7)
    assert (made["a", 1]["status"], made["a", 1]["prompt_tokens"]) == ("error", 10)
    kept = made["c", 0]  # refused the second time: the first caption stays
    assert (kept["caption"], kept["status"]) == ("answer 2", "success")
    assert kept["detail"] == "second question: refused: I can't"
    assert made["f", 0]["status"] == "refused"
    assert spy.asked[1].frames is spy.asked[0].frames
    assert meta["second"] == settings.second
    assert prompts.second("Again.", "x") == "Again.\n\nx"
    assert prompts.second(prompts.SECOND["default"], "x {caption}").endswith("\n\nx {caption}")


def test_captions_are_written_out_by_a_language_model(
    clips: dict[str, str], models: dict[str, str], tmp_path: Path
) -> None:
    settings = Caption(text="Cars wait.", enhance=Enhance(model=models["llm"], max_tokens=12, batch=2))
    made = caption.start(settings)(work(clips, tmp_path / "s"))
    rows, meta = table(made)
    assert {r["caption"] for r in rows} == {"Cars wait."}
    assert len({(r["enhanced"], r["enhanced_status"]) for r in rows}) == 1 and rows[0]["enhanced"]
    alone = vlm.engine(settings.enhance)([Request(None, 0.0, "Cars wait.", prompts.ENHANCE["default"])])[0]
    assert (rows[0]["enhanced"], rows[0]["enhanced_status"]) == (alone.text, alone.status)
    assert made.counts["enhance_output_tokens"] == 5 * alone.output_tokens
    assert meta["enhance"] == {"model": models["llm"], "revision": "", "prompt": prompts.ENHANCE["default"]}


def test_only_captions_are_written_out(clips: dict[str, str], tmp_path: Path) -> None:
    spy, enhancer = Spy(q1=Answer("I'm sorry", "refused", 10, 2)), Spy(q0=Answer("", "error", detail="no"))
    settings = Caption(enhance=Enhance(prompt="Write it out"))
    made = caption.process(settings, spy, enhancer, work(clips, tmp_path / "s"))
    rows, _ = table(made)
    assert [(r["uuid"], r["enhanced"], r["enhanced_status"]) for r in rows] == [
        ("a", "", "error"), ("a", None, None), ("c", "answer 1", "success"), ("d", None, None),
        ("f", "answer 2", "success"),
    ]  # fmt: skip
    assert [(one.prompt, one.system) for one in enhancer.asked] == [
        (text, "Write it out") for text in ("answer 0", "answer 2", "answer 3")
    ]
    assert made.counts["enhance_failures"] == 1 and made.counts["refused"] == 1


def test_no_clips_no_captions(clips: dict[str, str], tmp_path: Path) -> None:
    rows = layers.read_table(clips[".parquet"]).to_pylist()
    layers.write_table(tmp_path / "000000.parquet", [row for row in rows if row["uuid"] in "be"], {})
    few = {**clips, ".parquet": str(tmp_path / "000000.parquet")}
    made = caption.process(Caption(), Spy(), None, work(few, tmp_path / "s"))
    rows, meta = table(made)
    assert rows == [] and meta["without_window"] == ["b"] and made.counts["clips_without_window"] == 1


def test_work_that_is_to_end_ends(clips: dict[str, str], models: dict[str, str], tmp_path: Path) -> None:
    calls = itertools.count()

    def check() -> None:
        if next(calls) > 6:
            raise Stopped

    settings = Caption(model=models["vlm"], max_tokens=1000, frame_tokens=160)
    with pytest.raises(Stopped):
        caption.start(settings)(work(clips, tmp_path / "s", check=check))


# --- what a spec may say


def test_settings_that_cannot_be() -> None:
    for wrong, words in (
        ({"prompt": "av-surveilance"}, "no prompt: did you mean av-surveillance"),
        ({"prompt": "x"}, "Give one of default, av, av-surveillance, or a prompt's words"),
        ({"second": "again"}, "second: 'again' is no prompt"),
        ({"model": "qwen"}, "neither a path that begins with / or ~ nor a model"),
        ({"endpoint": {"url": "http://a/v1"}, "serve": {}}, "give one of the two"),
        ({"endpoint": {"url": "ftp://a/v1"}}, "url"),
        ({"endpoint": {"url": "https://user:secret@a/v1"}}, "url"),
        ({"endpoint": {"url": "http://a/v1", "key": "sk-123"}}, "key"),
    ):
        with pytest.raises(msgspec.ValidationError, match=words):
            msgspec.convert(wrong, Caption)
    for right in ({"prompt": "av"}, {"prompt": "Two words"}, {"model": "Qwen/Qwen3-VL-8B-Instruct"}, {"serve": {}},
                  {"model": "gpt-5", "endpoint": {"url": "https://api.example.org/v1", "key": "API_KEY"}}):  # fmt: skip
        msgspec.convert(right, Caption)


def test_prompts_by_name_have_words() -> None:
    assert (tuple(prompts.CAPTION), tuple(prompts.ENHANCE)) == (PROMPTS, ENHANCE_PROMPTS)
    assert all(len(words.split()) > 20 for words in (*prompts.CAPTION.values(), *prompts.ENHANCE.values()))


def test_models_that_are_to_be_fetched() -> None:
    default, llm = Caption().model, Enhance().model
    assert Caption().models() == {default: ()}
    assert Caption(text="x", enhance=Enhance()).models() == {llm: ()}
    assert msgspec.convert({"endpoint": {"url": "http://a/v1"}}, Caption).models() == {}


SPEC = """\
name: t
inputs: in
output: out
stages:
  clips: {kind: curate.clips}
  caption: {kind: curate.caption, needs: clips, MORE}
"""


def test_prompts_come_from_files_beside_the_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.md").write_text("\nWhat do the\ncars do? ä\n", "utf-8")
    more = "prompt: {file: words/a.md}, second: {file: words/a.md}, enhance: {prompt: {file: words/a.md}}"
    one = specs.one(tmp_path, SPEC.replace("MORE", more))
    settings = one.stages["caption"].settings
    assert settings.prompt == settings.second == settings.enhance.prompt == "What do the\ncars do? ä"
    again = specs.one(tmp_path, SPEC.replace("MORE", more))
    assert fingerprint(again, "caption") == fingerprint(one, "caption")
    (tmp_path / "words" / "a.md").write_text("What do the trucks do?")
    other = specs.one(tmp_path, SPEC.replace("MORE", more))
    assert fingerprint(other, "caption") != fingerprint(one, "caption")
    assert fingerprint(other, "clips") == fingerprint(one, "clips")
    resolved = tmp_path / "resolved.yaml"  # the record of a run has the words, whatever became of the file
    resolved.write_text(text(one), "utf-8")
    (tmp_path / "words" / "a.md").unlink()
    [kept] = load(resolved)
    assert kept.hash == one.hash and kept.stages["caption"].settings == settings
    (tmp_path / "here.md").write_text("From the command line")
    monkeypatch.chdir(tmp_path)
    given = specs.one(tmp_path, SPEC.replace("MORE", ""), "stages.caption.prompt={file: here.md}")
    assert given.stages["caption"].settings.prompt == "From the command line"


def test_prompt_files_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "empty.md").write_text(" \n")
    (tmp_path / "one.md").write_text("surveillance\n")
    (tmp_path / "bytes.md").write_bytes(b"\xff\xfe\x00")
    for more, words in (
        ("prompt: {file: none.md}", "x.yaml:6: stages.caption.prompt.file: 'none.md' cannot be read: "),
        ("prompt: {file: empty.md}", "'empty.md' is empty"),
        ("prompt: {file: bytes.md}", "'bytes.md' cannot be read"),
        ("prompt: {file: one.md}", "'surveillance' is no prompt"),
        ("prompt: {path: one.md}", "a mapping is not text: give text, or {file: PATH}"),
        ("second: {file: none.md}", "stages.caption.second.file: 'none.md' cannot be read"),
        ("prompt: 5", 'put it in quotes, "5"'),
        ("text: {file: one.md}", "stages.caption.text: a mapping is not"),
    ):
        assert words in specs.errors(tmp_path, SPEC.replace("MORE", more)), more


def test_the_key_of_an_endpoint_is_a_secret_by_name(tmp_path: Path) -> None:
    more = "endpoint: {url: 'http://a/v1', key: MY_KEI}, enhance: {serve: {key: OTHER}}"
    words = specs.errors(tmp_path, SPEC.replace("MORE", more) + "secrets: [MY_KEY]\n")
    assert "x.yaml:6: stages.caption.endpoint.key: no such secret: did you mean MY_KEY?" in words
    assert "stages.caption.enhance.serve.key: no such secret\n    valid secrets: MY_KEY" in words
    specs.one(tmp_path, SPEC.replace("MORE", more) + "secrets: [MY_KEI, OTHER]\n")
    wrong = SPEC.replace("MORE", "endpoint: {url: 'http://a/v1', key: sk-123}")
    assert "'sk-123' is not the name of one of the spec's secrets" in specs.errors(tmp_path, wrong)


def test_neutral_settings_caption_nothing_again(tmp_path: Path) -> None:
    prints = {
        more: fingerprint(specs.one(tmp_path, SPEC.replace("MORE", more)), "caption")
        for more in ("", "batch: 2", "fps: 1", "serve: {}", "serve: {concurrency: 2, start: 1m}", "enhance: {}",
                     "enhance: {batch: 1}", "prompt: av")
    }  # fmt: skip
    moved = [
        fingerprint(specs.one(tmp_path, SPEC.replace("MORE", f"endpoint: {{url: 'http://{node}/v1'}}")), "caption")
        for node in ("node1:8000", "node2:9000")
    ]
    assert moved[0] == moved[1], "the same model on another node"
    assert prints[""] == prints["batch: 2"] and prints["enhance: {}"] == prints["enhance: {batch: 1}"]
    assert prints["serve: {}"] == prints["serve: {concurrency: 2, start: 1m}"]
    assert len(set(prints.values())) == 5


# --- again


def test_a_new_prompt_makes_a_new_layer_and_nothing_else(models: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    film(tmp_path / "in" / "a.mp4", 100)
    (tmp_path / "ask.txt").write_text("What happens here?")
    cpus = {"cpus": 1}
    stages = {
        "clips": {"kind": "curate.clips", "split": {"detector": "stride", "stride": "2s"}, "resources": cpus,
                  "encode": {"preset": "ultrafast"}},
        "caption": {"kind": "curate.caption", "needs": "clips", "model": models["vlm"], "prompt": {"file": "ask.txt"},
                    "max_tokens": 4, "frame_tokens": 160, "resources": cpus},
    }  # fmt: skip
    spec = tmp_path / "t.yaml"
    spec.write_text(yaml.safe_dump({"name": "t", "inputs": "in", "output": "out", "stages": stages}, sort_keys=False))
    runs.go(spec)
    before = runs.objects(tmp_path / "out")
    times = {path: (tmp_path / "out" / path).stat().st_mtime_ns for path in before}
    assert {Path(path).parts[0] for path in before} == {"clips@v1", "caption@v1"}
    assert runs.go(spec).attempt is None  # nothing to do
    (tmp_path / "ask.txt").write_text("What happens there?")
    runs.go(spec)
    after = runs.objects(tmp_path / "out")
    assert {path: after[path] for path in before} == before
    assert all((tmp_path / "out" / path).stat().st_mtime_ns == times[path] for path in before)
    assert {Path(path).parts[0] for path in after} == {"clips@v1", "caption@v1", "caption@v2"}
    for version, words in (("caption@v1", "here"), ("caption@v2", "there")):
        [path] = (tmp_path / "out" / version).glob("*.parquet")
        assert layers.read_meta(path)["prompt"] == f"What happens {words}?"
        assert len(layers.read_table(path)) >= 2
        stage = json.loads((tmp_path / "out" / version / "_stage.json").read_text())
        assert f"What happens {words}?" in json.dumps(stage)
