"""Embeddings of captions: what transformers' own encoder gives for each alone, in the reference's form."""

from __future__ import annotations

import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from hpc.curate import text_embed
from hpc.curate.caption import SCHEMA as CAPTIONS
from hpc.curate.settings.text_embed import TextEmbed
from hpc.data import layers, pickles, upstream
from hpc.data.work import Work
from hpc.models.t5 import batches, load_encoder

WORDS = ["a", "rabbit", "eats", "apples", "in", "the", "sun", "butterfly", "and", "sleeps"]
TINY = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "pad_token_id": 0,
        "eos_token_id": 1, "decoder_start_token_id": 0}  # fmt: skip


def tokenizer() -> Any:
    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS), "▁", *"abcdefghijklmnopqrstuvwxyz.,"]
    return transformers.T5Tokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)


def save(folder: Path, kind: str = "T5", **more: Any) -> Path:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(TINY | more))
    getattr(transformers, f"{kind}ForConditionalGeneration")(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny T5, decoder and all, as on the hub."""
    return save(tmp_path_factory.mktemp("t5"))


TEXTS = ["a rabbit", "the butterfly sleeps in the sun and a rabbit eats apples.", "  sun ", "zzz, qqq", "a " * 700]


def reference(folder: Path, text: str, max_length: int = 512) -> np.ndarray:
    """As the reference does it: padded to the longest length, cut to the attention mask, then float16."""
    words = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.T5EncoderModel.from_pretrained(folder).eval()
    batch = words([text.strip()], return_tensors="pt", truncation=True, padding="max_length", max_length=max_length)
    with torch.no_grad():
        states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    return states[0, : int(batch["attention_mask"].sum())].numpy().astype(np.float16)


def rows(*captions: tuple[str, str], enhanced: tuple[str | None, str | None] = (None, None)) -> list[dict[str, Any]]:
    return [{"uuid": f"clip-{i // 2}", "window": i % 2, "start_frame": 0, "end_frame": 9, "caption": caption,
             "status": status, "detail": "", "prompt_tokens": 1, "output_tokens": 1, "enhanced": enhanced[0],
             "enhanced_status": enhanced[1]} for i, (caption, status) in enumerate(captions)]  # fmt: skip


def work(folder: Path, captions: list[dict[str, Any]], gone: tuple[str, ...] = ()) -> Work:
    (folder / "made").mkdir(exist_ok=True)
    layers.write_table(folder / "captions.parquet", captions, {}, CAPTIONS)
    judged = [{"uuid": uuid, "verdict": "semantic"} for uuid in gone]
    layers.write_table(folder / "verdicts.parquet", judged or [{"uuid": "x", "verdict": "keep"}], {})
    needs = {"judge": {".parquet": str(folder / "verdicts.parquet")},
             "caption": {".parquet": str(folder / "captions.parquet")}}  # fmt: skip
    return Work("000003", [], [], needs, folder / "made", "f", lambda: None, lambda share, words: None)


def arrays(path: Path) -> dict[tuple[str, int], np.ndarray]:
    return {(row["uuid"], row["window"]): np.frombuffer(row["embedding"], "<f2").reshape(row["tokens"], -1)
            for row in layers.read_table(path).to_pylist()}  # fmt: skip


def test_embeddings_are_those_of_each_caption_alone(t5: Path, tmp_path: Path) -> None:
    captions = rows(*((text, "success") for text in TEXTS))
    made = text_embed.start(TextEmbed(model=str(t5)))(work(tmp_path, captions))
    [path] = made.objects
    assert path.name == "000003.parquet"
    found = arrays(path)
    assert list(found) == [(row["uuid"], row["window"]) for row in captions]
    for text, array in zip(TEXTS, found.values(), strict=True):
        expected = reference(t5, text)
        assert array.shape == expected.shape and array.dtype == "<f2"
        assert np.allclose(array, expected, rtol=2e-3, atol=2e-3)
    assert max(map(len, found.values())) == 512 and made.counts["cut"] == 1
    assert made.counts["tokens"] == sum(map(len, found.values())) and made.counts["embedded"] == 5
    assert layers.read_meta(path) == {"stage": "curate.text_embed", "fingerprint": "f", "model": str(t5),
                                      "revision": "", "dim": 32, "max_length": 512, "field": "best"}  # fmt: skip
    assert pickle.loads(pickles.dumps([array]))[0].tobytes() == array.tobytes()


def test_the_same_captions_give_the_same_bytes(t5: Path, tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        one = work(tmp_path / name, rows(*((text, "success") for text in TEXTS)))
        made.append(text_embed.start(TextEmbed(model=str(t5)))(one).objects[0].read_bytes())
    assert made[0] == made[1]


def test_a_shorter_limit(t5: Path, tmp_path: Path) -> None:
    made = text_embed.start(TextEmbed(model=str(t5), max_length=4))(work(tmp_path, rows((TEXTS[1], "success"))))
    [array] = arrays(made.objects[0]).values()
    assert np.allclose(array, reference(t5, TEXTS[1], 4), rtol=2e-3, atol=2e-3) and made.counts["cut"] == 1


def test_windows_without_a_caption_are_counted(t5: Path, tmp_path: Path) -> None:
    captions = rows(("a rabbit", "success"), ("I cannot", "refused"), ("the sun", "truncated"), ("", "error"))
    made = text_embed.start(TextEmbed(model=str(t5)))(work(tmp_path, captions))
    assert list(arrays(made.objects[0])) == [("clip-0", 0), ("clip-1", 0)]
    assert made.counts["windows"] == 4 and made.counts["without_caption"] == 2


@pytest.mark.parametrize(
    ("field", "status", "words"),
    [("best", "success", "a butterfly"), ("best", "refused", "a rabbit"), ("caption", "success", "a rabbit"),
     ("enhanced", "success", "a butterfly"), ("enhanced", "error", None), ("enhanced", None, None)],
)  # fmt: skip
def test_which_caption(t5: Path, tmp_path: Path, field: Any, status: str | None, words: str | None) -> None:
    captions = rows(("a rabbit", "success"), enhanced=("a butterfly" if status else None, status))
    made = text_embed.start(TextEmbed(model=str(t5), field=field))(work(tmp_path, captions))
    found = list(arrays(made.objects[0]).values())
    assert len(found) == (words is not None)
    assert words is None or np.allclose(found[0], reference(t5, words), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("caption", "enhanced", "field", "words"),
    [("a rabbit", " \n", "best", "a rabbit"), (" a rabbit\n", None, "best", "a rabbit"), ("a", " ", "enhanced", ""),
     (" ", "a butterfly ", "best", "a butterfly"), (" ", " ", "best", "")],
)  # fmt: skip
def test_blank_captions_are_none(caption: str, enhanced: str | None, field: str, words: str) -> None:
    [row] = rows((caption, "success"), enhanced=(enhanced, "success"))
    assert upstream.chosen(row, field) == words


def test_two_layers_of_captions_are_refused(tmp_path: Path) -> None:
    two = work(tmp_path, rows(("a rabbit", "success")))
    two.upstream["again"] = two.upstream["caption"]
    with pytest.raises(ValueError, match="names 2 stages that make captions: caption, again; keep one"):
        text_embed.captions(two.upstream)


def test_clips_that_another_stage_drops_are_left_out(t5: Path, tmp_path: Path) -> None:
    captions = rows(*((text, "success") for text in TEXTS))
    made = text_embed.start(TextEmbed(model=str(t5)))(work(tmp_path, captions, gone=("clip-0", "clip-2")))
    assert list(arrays(made.objects[0])) == [("clip-1", 0), ("clip-1", 1)]


def test_no_captions_at_all(t5: Path, tmp_path: Path) -> None:
    made = text_embed.start(TextEmbed(model=str(t5)))(work(tmp_path, []))
    assert layers.read_table(made.objects[0]).num_rows == 0
    lonely = work(tmp_path, [])
    del lonely.upstream["caption"]
    with pytest.raises(ValueError, match="add the stage that makes them to `needs`"):
        text_embed.start(TextEmbed(model=str(t5)))(lonely)


@pytest.mark.parametrize("kind", ["UMT5", "MT5"])
def test_others_of_the_family(kind: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", kind)
    encoder = load_encoder(str(folder), "float32")
    [(_, found)] = encoder.encode(encoder.tokens(["a rabbit sleeps"]))
    model = getattr(transformers, f"{kind}EncoderModel").from_pretrained(folder).eval()
    ids = torch.tensor(encoder.tokens(["a rabbit sleeps"]))
    with torch.no_grad():
        assert np.allclose(found, model(input_ids=ids).last_hidden_state[0].numpy(), rtol=2e-3, atol=2e-3)


def test_bfloat16_is_near(t5: Path) -> None:
    near, exact = (load_encoder(str(t5), precision) for precision in ("bfloat16", "float32"))
    assert next(near.model.parameters()).dtype == torch.bfloat16
    ids = exact.tokens(TEXTS[:2])
    for (_, one), (_, other) in zip(near.encode(ids), exact.encode(ids), strict=True):
        assert np.abs(one.astype(float) - other).max() < 0.1


def test_other_models_and_other_weights_are_refused(t5: Path, tmp_path: Path) -> None:
    bert = transformers.BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                                   intermediate_size=8)  # fmt: skip
    transformers.BertModel(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(RuntimeError, match="of the type 'bert'; encoders of t5, mt5, umt5"):
        load_encoder(str(tmp_path / "bert"), "float32")
    (tmp_path / "t5").mkdir()
    for path in t5.iterdir():
        (tmp_path / "t5" / path.name).write_bytes(path.read_bytes())
    state = load_file(t5 / "model.safetensors")
    gone = next(key for key in state if key.startswith("encoder.block.1"))
    save_file({key: value for key, value in state.items() if key != gone}, tmp_path / "t5" / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    with pytest.raises(RuntimeError, match=f"missing: {gone}"):
        load_encoder(str(tmp_path / "t5"), "float32")


def test_numbers_that_float16_cannot_hold(t5: Path) -> None:
    encoder = load_encoder(str(t5), "float32")
    encoder.model.encoder.final_layer_norm.weight.mul_(1e6)
    with pytest.raises(RuntimeError, match="float16 cannot hold"):
        list(encoder.encode(encoder.tokens(["a rabbit"])))


def test_batches_are_of_about_the_same_length() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 513, 300).tolist()
    found = batches(lengths)
    assert sorted(i for batch in found for i in batch) == list(range(300))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 8192 for batch in found)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in found)
    assert padded < 1.15 * sum(lengths)
    assert batches([9000, 3]) == [[1], [0]] and batches([]) == []


def test_a_wrong_name() -> None:
    with pytest.raises(ValueError, match="neither a path"):
        TextEmbed(model="t5-11b")
    assert list(TextEmbed().models()) == ["google-t5/t5-11b@90f37703b3334dfe9d2b009bfcbfbf1ac9d28ea3"]


def test_a_run_from_a_video_to_the_vectors_of_its_clips_and_words(t5: Path, tmp_path: Path) -> None:
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=320x180:rate=24:duration=6", "-c:v",
               "libx264", "-preset", "ultrafast"]  # fmt: skip
    subprocess.run([*command, tmp_path / "film.mp4"], check=True, timeout=180)
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump({
        "name": "all", "inputs": "film.mp4", "output": "out",
        "stages": {
            "clips": {"kind": "curate.clips", "split": {"detector": "stride", "stride": "2s"},
                      "encode": {"preset": "ultrafast"}},
            "look": {"kind": "curate.embed", "needs": "clips", "model": "perceptual"},
            "caption": {"kind": "curate.caption", "needs": "clips", "text": "the butterfly sleeps"},
            "words": {"kind": "curate.text_embed", "needs": "caption", "model": str(t5)},
        },
    }))  # fmt: skip
    runs.hpc("run", file)
    paths = (tmp_path / "out").rglob("*.parquet")
    tables = {path.parent.name.partition("@")[0]: layers.read_table(path) for path in paths}
    uuids = tables["clips"]["uuid"].to_pylist()
    assert len(uuids) == 3 and tables["look"]["uuid"].to_pylist() == uuids == tables["words"]["uuid"].to_pylist()
    vectors = np.array(tables["look"]["embedding"].to_pylist())
    assert vectors.shape[0] == 3 and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    [path] = (tmp_path / "out").glob("words@*/*.parquet")
    for array in arrays(path).values():
        assert np.allclose(array, reference(t5, "the butterfly sleeps"), rtol=2e-3, atol=2e-3)
