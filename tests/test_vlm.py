"""Vision-language models on this machine: what they are given, what they answer, and what becomes of what is wrong.

The models are tiny and random, of transformers' own classes, saved and loaded as published ones are.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from hpc.models import decode, hub, qwen_vl, vlm, vlm_local
from hpc.models.vlm import Answer, Request

VISION = {"qwen2_5_vl": tiny_models.qwen2_5_vl, "qwen3_vl": tiny_models.qwen3_vl}
LAYOUTS = {
    "qwen2_5_vl": qwen_vl.Layout(14, 2, 2, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), False),
    "qwen3_vl": qwen_vl.Layout(16, 2, 2, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), True),
}
TRANSFORMERS = {
    "qwen2_5_vl": "3aec77057880be8a",
    "qwen3_vl": "bd89a90a2eb44d09",
}
"""Digests of all that transformers 5.23's own processors (with torchvision 0.28) make of `asked`."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    made = {name: make(place / name, likely_end=1.0) for name, make in VISION.items()}
    return {**made, "qwen2": tiny_models.qwen2(place / "qwen2")}


def opened(folder: Path, batch: int = 4, tokens: int = 10) -> vlm_local.Local:
    return vlm_local.Local(*vlm_local.load(folder, "cpu"), batch, tokens, frame_tokens=256)


def frames(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def asked(layout: qwen_vl.Layout) -> list[Request]:
    """Videos of several shapes, as large as the model looks at them."""
    found = []
    for count, height, width, fps in ((4, 300, 400, 2.0), (7, 300, 400, 1.5), (5, 420, 200, 2.0)):
        size = qwen_vl.frame_size(count, height, width, layout.patch * layout.merge, 256)
        found.append(Request(frames(count, *size), fps, "What is it?", "be nice"))
    return found


MIXED = [
    Request(frames(4, 300, 400, 1), 2.0, "What?"),
    Request(frames(7, 300, 400, 2), 2.0, "Describe the video."),
    Request(None, 0.0, "A question without frames"),
    Request(frames(2, 320, 320, 3), 1.0, "And this one?", "be nice"),
    Request(frames(5, 64, 64, 4), 2.0, "hm"),
    Request(None, 0.0, "Another one", "be nice"),
]


def digest(inputs: dict[str, Any]) -> str:
    whole = hashlib.sha256()
    for name in sorted(inputs):
        values = torch.as_tensor(inputs[name])
        values = (values * 1e4).round() if values.is_floating_point() else values
        whole.update(f"{name} {list(values.shape)}".encode() + values.to(torch.int64).numpy().tobytes())
    return whole.hexdigest()[:16]


# --- what the model is given


@pytest.mark.parametrize("name", VISION)
def test_inputs_are_those_of_transformers_own_processors(folders: dict[str, Path], name: str) -> None:
    engine = opened(folders[name])
    assert engine.layout == LAYOUTS[name]
    inputs = engine.inputs([engine.prepare(request) for request in asked(LAYOUTS[name])])
    assert digest(inputs) == TRANSFORMERS[name]


def test_patches_are_those_of_transformers_for_pictures() -> None:
    """Its processor for pictures shows each twice, and runs without torchvision."""
    import transformers

    layout = LAYOUTS["qwen2_5_vl"]
    one, other = frames(2, 56, 84)
    whole = transformers.Qwen2VLImageProcessorPil(do_resize=False, image_mean=layout.mean, image_std=layout.std)
    expected = torch.cat([whole(picture, return_tensors="pt")["pixel_values"] for picture in (one, other)])
    made = qwen_vl.patches(torch.from_numpy(np.stack([one, one, other])), layout)  # the last one is repeated
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)
    assert qwen_vl.grid_of(3, 56, 84, layout) == (2, 4, 6)


def test_sizes_are_those_of_transformers() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    for count, height, width in itertools.product((4, 12, 64, 380), (48, 240, 720, 1081), (64, 640, 1920)):
        most = max(min(768 * 784, int(24576 * 784 / count * 2)), int(128 * 784 * 1.05))
        assert qwen_vl.frame_size(count, height, width, 28) == smart_resize(height, width, 28, 128 * 784, most)
    assert qwen_vl.frame_size(10, 720, 1280, 28) == (560, 1008)
    assert qwen_vl.frame_size(10, 720, 1280, 28, 256) == (336, 588)
    with pytest.raises(ValueError, match="3000x10 is too narrow"):
        qwen_vl.frame_size(4, 10, 3000, 28)


def test_times_between_frames_are_those_of_transformers() -> None:
    import transformers

    layout = LAYOUTS["qwen3_vl"]
    whole = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2), video_token="V", vision_start_token="S",
        vision_end_token="E",
        _calculate_timestamps=lambda *a: transformers.Qwen3VLProcessor._calculate_timestamps(None, *a),
    )  # fmt: skip
    for count, fps in ((4, 2.0), (7, 1.5), (1, 30.0)):
        grid = torch.tensor([qwen_vl.grid_of(count, 64, 96, layout)])
        metadata = SimpleNamespace(fps=fps, frames_indices=list(range(count)))
        given = {"video_grid_thw": grid, "video_metadata": [metadata]}
        expected = transformers.Qwen3VLProcessor.replace_video_token(whole, given, 0)
        assert qwen_vl.placeholder(count, 64, 96, fps, layout, "V", "S", "E") == expected


@pytest.mark.parametrize("name", VISION)
def test_chunks_attend_together_as_one_by_one(folders: dict[str, Path], name: str) -> None:
    """Windows of 8x8 patches and smaller ones at the borders, in frames of several sizes."""
    engine = opened(folders[name])
    inputs = engine.inputs([engine.prepare(request) for request in asked(LAYOUTS[name])])
    found, lengths = [], []
    for use in (False, True):
        qwen_vl.use_together(engine.network, use)
        tower = engine.network.model.visual
        for block in tower.blocks:
            block.attn.register_forward_pre_hook(
                lambda module, args, kwargs: lengths.append(kwargs["cu_seqlens"].diff().unique().numel()),
                with_kwargs=True,
            )
        with torch.inference_mode():
            found.append(tower(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"]).pooler_output)
    torch.testing.assert_close(found[0], found[1])
    assert found[0].std() > 0.01 and max(lengths) > 1


def test_frames_of_other_sizes_are_resized(folders: dict[str, Path]) -> None:
    engine = opened(folders["qwen2_5_vl"])
    flat = np.full((3, 500, 900, 3), (200, 100, 50), np.uint8)
    made = engine.prepare(Request(flat, 2.0, "x")).frames
    assert made is not None and tuple(made.shape) == (3, *engine.size(3, 500, 900), 3)
    assert made.flatten(0, 2).unique(dim=0).tolist() == [[200, 100, 50]]


def test_old_templates_of_processors_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["qwen2_5_vl"], tmp_path / "old")
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": tiny_models.TEMPLATE}))
    one, other = (opened(place).prepare(MIXED[0]).ids for place in (folder, folders["qwen2_5_vl"]))
    assert one == other
    (folder / "chat_template.json").unlink()
    with pytest.raises(RuntimeError, match="no chat template"):
        opened(folder)


# --- what it answers


@pytest.mark.parametrize("name", [*VISION, "qwen2"])
def test_batches_answer_like_single_requests_and_like_transformers(folders: dict[str, Path], name: str) -> None:
    engine = opened(folders[name])
    requests = [request for request in MIXED if request.frames is None or name in VISION]
    together = engine(requests)
    assert together == [engine([request])[0] for request in requests]
    if name in VISION:
        qwen_vl.use_together(engine.network, False)
    assert len({answer.text for answer in together}) > 1
    for request, answer in zip(requests, together, strict=True):
        inputs = engine.inputs([engine.prepare(request)])
        out = engine.network.generate(**inputs, max_new_tokens=10, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        words = engine.tokenizer.decode(out, skip_special_tokens=True).strip()
        assert (answer.text, answer.output_tokens) == (words, len(out))
        assert answer.prompt_tokens == inputs["input_ids"].shape[1]
        ended = out[-1] == engine.tokenizer.eos_token_id
        assert answer.status == ("success" if ended else "truncated") and answer.detail == ""
    assert engine.spent["caption_seconds"] > engine.spent["data_wait_seconds"] > 0


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl_moe", "qwen3_5"])
def test_the_relatives_of_these_models(tmp_path: Path, name: str) -> None:
    """Those with layers of another kind are left to generate."""
    engine = opened(tiny_models.relative(tmp_path / name, name))
    assert engine.fast is (name != "qwen3_5") and engine.record is (name != "qwen3_vl_moe")
    together = engine(MIXED)
    for request, answer in zip(MIXED, together, strict=True):
        inputs = engine.inputs([engine.prepare(request)])
        out = engine.network.generate(**inputs, max_new_tokens=10, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answer.text == engine.tokenizer.decode(out, skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", [*VISION, "qwen2"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_steps_are_those_of_generate(folders: dict[str, Path], name: str, penalty: float) -> None:
    """Longer answers, some of which end long before others, and tokens that were said before made less likely."""
    engine = opened(folders[name], tokens=70)
    chosen = [one for one in MIXED if (one.frames is not None) == (name in VISION)]
    inputs = engine.inputs([engine.prepare(request) for request in chosen])
    length, pad = inputs["input_ids"].shape[1], engine.generation.pad_token_id
    expected = engine.network.generate(**inputs, max_new_tokens=70, do_sample=False, repetition_penalty=penalty)
    checks: list[int] = []
    found = decode.greedy(
        engine.network, inputs, 70, sorted(engine.ends), pad, penalty, lambda: checks.append(1), record=True
    )
    said = min(found.shape[1], expected.shape[1] - length)
    assert torch.equal(found[:, :said], expected[:, length : length + said])
    assert (found[:, said:] == pad).all() and said > 10  # all had ended
    assert len(checks) == found.shape[1] - 1
    ended = (found == engine.tokenizer.eos_token_id).any(1)
    assert found.shape[1] == 70 or ended.all()


def test_attention_in_pieces_is_attention() -> None:
    """Also where whole pieces are padding, and where scores are so large that only differences may be exponentiated."""
    made = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, heads, places, 16, generator=made, dtype=torch.float64)
                         for heads, places in ((6, 1), (2, 3 * decode.PIECE), (2, 3 * decode.PIECE)))  # fmt: skip
    seen = torch.rand(3, 1, 1, 3 * decode.PIECE, generator=made) < 0.5
    seen[1, ..., : decode.PIECE + 9] = False
    seen[2, ..., :-1], seen[2, ..., -1] = False, True
    for scale in (None, 0.5, 1000.0):
        expected = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, seen, scale=scale, enable_gqa=True
        )
        found, _ = decode.attend(torch.nn.Module(), query, key, value, seen, scaling=scale)
        torch.testing.assert_close(found, expected.transpose(1, 2))


def test_what_only_generate_can_do_is_left_to_it(folders: dict[str, Path]) -> None:
    model = vlm_local.load(folders["qwen2"], "cpu")[0]
    assert decode.suits(model)
    model.generation_config.no_repeat_ngram_size = 3
    assert not decode.suits(model)
    model.generation_config.no_repeat_ngram_size = 0
    model.config.layer_types = ["full_attention", "sliding_attention"]
    assert not decode.suits(model)


def test_a_temperature_samples_and_can_be_repeated(folders: dict[str, Path]) -> None:
    parts = vlm_local.load(folders["qwen2_5_vl"], "cpu")
    cold, warm = (vlm_local.Local(*parts, 4, 10, temperature, 256)(MIXED[:2]) for temperature in (0.0, 5.0))
    assert cold != warm == vlm_local.Local(*parts, 4, 10, 5.0, 256)(MIXED[:2])


def test_a_second_question_about_the_same_frames(folders: dict[str, Path]) -> None:
    engine = opened(folders["qwen2_5_vl"], batch=2)

    def then(request: Request, answer: Answer) -> Request | None:
        return None if request.prompt == "hm" else request._replace(prompt=f"Refine {answer.prompt_tokens}")

    found = list(engine.stream(MIXED, then=then))
    for request, (first, *second) in zip(MIXED, found, strict=True):
        assert first == engine([request])[0]
        expected = [] if request.prompt == "hm" else engine([then(request, first)])
        assert second == expected


def test_what_is_said_of_an_answer() -> None:
    assert vlm.judged(" A cat sits. \n", True, 5, 4) == Answer("A cat sits.", "success", 5, 4)
    assert vlm.judged("A cat", False, 5, 4).status == "truncated"
    for words in ("I’m sorry, but I can’t help.", "I am unable to see it", "  Sorry, no", "As an AI, I", "抱歉,我无法",
                  "Unfortunately I", "I apologise", "**I cannot** say"):  # fmt: skip
        assert vlm.judged(words, True, 5, 4).status == "refused", words
    for words in ("I can see a cat", "Sorry Street at dusk", "The man says: I'm sorry", "As an airplane lands"):
        assert vlm.judged(words, True, 5, 4).status == "success", words
    assert vlm.judged("  ", True, 5, 1) == Answer("", "error", 5, 1, "the model said nothing")
    assert vlm.judged("", False, 5, 9).detail == "the model said nothing, and reached the limit of tokens"


# --- what is wrong


def test_a_request_that_fails_leaves_the_others_alone(folders: dict[str, Path]) -> None:
    engine = opened(folders["qwen2_5_vl"])
    bad = [
        (Request(frames(4, 10, 3000), 2.0, "x"), "3000x10 is too narrow"),
        (Request(frames(4, 64, 64)[..., 0], 2.0, "x"), r"frames are uint8 \[T, H, W, 3\]"),
        (Request(frames(0, 64, 64), 2.0, "x"), r"frames are uint8 \[T, H, W, 3\]"),
        (Request(None, 0.0, "x" * 5000), "5019 tokens, and 10 may be answered, but the model takes 4096 together"),
        (Request(frames(2, 64, 64), 2.0, "what is <|video_pad|>?"), "which stands for frames"),
    ]
    mixed = [one for pair in zip([request for request, _ in bad], MIXED, strict=False) for one in pair]
    answers = engine(mixed)
    assert answers[1::2] == engine(MIXED[: len(bad)])
    for answer, (_, words) in zip(answers[::2], bad, strict=True):
        assert answer.status == "error" and answer.text == "" and answer.output_tokens == 0
        assert re.search(words, answer.detail), answer.detail
    [answer] = opened(folders["qwen2"])([MIXED[0]])
    assert answer.status == "error" and "takes no frames" in answer.detail


def test_a_batch_that_does_not_fit_is_halved(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, whole = opened(folders["qwen2_5_vl"], batch=4), opened(folders["qwen2_5_vl"])
    sizes: list[int] = []
    forward = engine.network.forward

    def scarce(input_ids: Any, **inputs: Any) -> Any:
        if (length := input_ids.shape[1]) > 1:  # a prompt, no step
            sizes.append(len(input_ids))
            if sizes[-1] > 1 or length > 1000:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(engine.network, "forward", scarce)
    large = Request(frames(16, 300, 400), 2.0, "Describe the video.")
    answers = engine([*MIXED[:2], large, *MIXED[3:5], MIXED[2]])
    assert [answer for answer in answers if answer.status != "error"] == whole([*MIXED[:2], *MIXED[3:5], MIXED[2]])
    assert answers[2].detail == "too large for the GPU's memory: CUDA out of memory" and answers[2].prompt_tokens > 1000
    assert sizes[0] == 4 and max(sizes[3:]) <= 2 and engine.batch == 1


def test_other_models_and_other_weights_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["qwen2_5_vl"], tmp_path / "wrong")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["depth"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match=r"not the weights of the model in its config.json: missing: .*blocks\.2"):
        vlm_local.load(folder, "cpu")
    config = json.dumps({"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]})
    (folder / "config.json").write_text(config)
    with pytest.raises(RuntimeError, match="'llava' are not known here; these are: qwen2_vl, qwen2_5_vl"):
        vlm_local.load(folder, "cpu")


def test_models_are_found_by_path_and_in_the_cache(folders: dict[str, Path], tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert hub.folder(str(folders["qwen2"])) == folders["qwen2"]
    commit = "cc594898137f460bfe9f0759e9844b3ce807cfb5"
    repository = tmp_path / "hub" / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = shutil.copytree(folders["qwen2"], repository / "snapshots" / commit)
    settings = SimpleNamespace(model="owner/tiny", batch=2, max_tokens=5, temperature=0.0, frame_tokens=768,
                               endpoint=None, serve=None)  # fmt: skip
    made = vlm.engine(settings)
    assert (made.model, made.revision) == ("owner/tiny", commit)
    assert made(MIXED[2:3])[0].output_tokens == 5
    assert hub.folder(f"owner/tiny@{commit}") == snapshot
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"owner/tiny@cc59.* is not in the cache"):
        hub.folder(f"owner/tiny@{commit}")
    with pytest.raises(FileNotFoundError, match=r"there is no .*model\.safetensors on this machine"):
        hub.folder(str(snapshot))
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert hub.absent(snapshot) == str(snapshot / "model-1.safetensors")


def test_configs_as_the_hub_has_them(folders: dict[str, Path], tmp_path: Path) -> None:
    """Qwen2.5-VL's are of 2025: flat, and with names that transformers has changed since."""
    folder = shutil.copytree(folders["qwen2_5_vl"], tmp_path / "published")
    config = json.loads((folder / "config.json").read_text())
    text, end, pad = config["text_config"], config["text_config"]["eos_token_id"], config["text_config"]["pad_token_id"]
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "max_position_embeddings", "vocab_size", "rms_norm_eps", "eos_token_id")  # fmt: skip
    vision = ("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "fullatt_block_indexes",
              "tokens_per_second", "window_size", "temporal_patch_size", "patch_size",
              "spatial_merge_size")  # fmt: skip
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "torch_dtype": "bfloat16",
        "hidden_act": "silu", "max_window_layers": 2, "sliding_window": 32768, "use_sliding_window": False,
        "tie_word_embeddings": False, "rope_theta": 10000.0, "transformers_version": "4.41.2",
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        **{key: text[key] for key in kept},
        **{key: value for key, value in config.items() if key.endswith("_token_id")},
        "vision_config": {"in_chans": 3, "spatial_patch_size": 14, "hidden_act": "silu",
                          **{key: config["vision_config"][key] for key in vision}},
    }))  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28],
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
    }))  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps({
        "pad_token_id": pad, "eos_token_id": [end, pad], "do_sample": True, "repetition_penalty": 1.05,
        "temperature": 0.000001,
    }))  # fmt: skip
    engine, new = opened(folder), opened(folders["qwen2_5_vl"])
    assert engine.fast and engine.layout == new.layout and engine.ends == {end, pad}
    assert engine.generation.repetition_penalty == 1.05
    engine.generation.repetition_penalty, engine.ends = 1.0, new.ends
    engine.generation.eos_token_id = new.generation.eos_token_id
    assert engine(MIXED) == new(MIXED)


# --- on time


class Stop(Exception):
    pass


def test_work_can_be_stopped_at_any_token(folders: dict[str, Path]) -> None:
    engine = opened(folders["qwen2_5_vl"], batch=2, tokens=200)
    calls = itertools.count()

    def check() -> None:
        if next(calls) == 5:
            raise Stop

    before = threading.active_count()
    began = time.monotonic()
    with pytest.raises(Stop):
        list(engine.stream(itertools.cycle(MIXED[:2]), check))
    assert time.monotonic() - began < 20 and threading.active_count() == before


def test_things_are_taken_ahead_in_order_and_not_too_far() -> None:
    taken: list[int] = []

    def count(until: int) -> Iterator[int]:
        try:
            for i in range(until):
                taken.append(i)
                yield i
        finally:
            taken.append(-1)

    assert list(vlm.ahead(count(20), 3)) == list(range(20)) and taken[-1] == -1
    taken.clear()
    some = vlm.ahead(count(1000), 3)
    assert [next(some), next(some)] == [0, 1]
    wait(lambda: len(taken) == 6)
    time.sleep(0.05)
    assert taken == [0, 1, 2, 3, 4, 5]  # two given, three waiting, one in hand
    some.close()
    assert taken[-1] == -1 and threading.active_count() == len(threading.enumerate())

    def broken() -> Iterator[int]:
        yield 1
        raise Stop("in the thread")

    found = vlm.ahead(broken(), 1)
    assert next(found) == 1
    with pytest.raises(Stop, match="in the thread"):
        next(found)


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_text_for_everything() -> None:
    assert vlm.Fixed("Traffic.")(MIXED[:2]) == [Answer("Traffic.", "success")] * 2
