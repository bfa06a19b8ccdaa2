"""What captions cost on one GPU.   python tests/bench_caption.py [--windows 16] [--batch 8] [--tokens 256] [--tiny]

First the stage on clips of the quickstart's trailer with a tiny model: is the GPU ever without data? Then a random
model of the shape of Qwen2.5-VL-7B on windows of 256 frames at 24 per second: the engine beside transformers' plain
generate loop, on the same requests in the same run. --tiny: the second part in a tiny shape, to try the script without
a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tiny_models
import torch

from hpc.curate.windows import samples
from hpc.models import decode, qwen_vl, vlm_local
from hpc.models.vlm import Request

TRAILER = Path(__file__).parent.parent / "jobs" / "quickstart" / "trailer_bbb.mp4"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEIGHT, WIDTH, FPS = 720, 1280, 24.0
PROMPT = "Describe this video in detail, in one or two paragraphs of plain prose."
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "7B": {  # the config of Qwen/Qwen2.5-VL-7B-Instruct
        "text": {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                 "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 128000,
                 "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
                 "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}},
        "vision": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
                   "out_hidden_size": 3584, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2},
    },
    "tiny": {
        "text": {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                 "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128000,
                 "tie_word_embeddings": False,
                 "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        "vision": {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
                   "fullatt_block_indexes": [1], "tokens_per_second": 2},
    },
}  # fmt: skip


def model_of(shape: str) -> tuple[Any, Any, qwen_vl.Layout]:
    """A random model, made where it runs, that never ends an answer by itself; its tokenizer and layout."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    words = tiny_models.tokenizer()
    sizes = SHAPES[shape]
    ends = {"bos_token_id": None, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**sizes["text"], **ends}, vision_config=sizes["vision"], **tiny_models.tokens(words)
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if DEVICE == "cuda" else torch.float32)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = transformers.Qwen2_5_VLForConditionalGeneration(config).eval().requires_grad_(False)
    torch.set_default_dtype(before)
    model.lm_head.weight[words.eos_token_id] = 0.0
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = words.eos_token_id, words.pad_token_id
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return model, words, qwen_vl.Layout(14, 2, 2, mean, std, False)


def requests(engine: vlm_local.Local, count: int, frame_tokens: int) -> list[Request]:
    """Windows of noise, as large as the model looks at them."""
    numbers = samples(0, 255, FPS, 2.0)
    height, width = qwen_vl.frame_size(len(numbers), HEIGHT, WIDTH, 28, frame_tokens)
    noise = np.random.default_rng(0).integers(0, 256, (len(numbers), height, width, 3), dtype=np.uint8)
    return [Request(np.roll(noise, i, 2), 2.0, PROMPT) for i in range(count)]


def plain(engine: vlm_local.Local, asked: list[Request], batch: int) -> tuple[int, int]:
    """The loop that one writes first: prepare a batch, generate, decode, one after the other."""
    prompt = said = 0
    for at in range(0, len(asked), batch):
        inputs = engine.inputs([engine.prepare(request) for request in asked[at : at + batch]])
        with torch.inference_mode():
            tokens = engine.generation.max_new_tokens
            out = engine.network.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        new = out[:, inputs["input_ids"].shape[1] :]
        engine.tokenizer.batch_decode(new, skip_special_tokens=True)
        prompt, said = prompt + int(inputs["attention_mask"].sum()), said + new.numel()
    return prompt, said


def ours(engine: vlm_local.Local, asked: list[Request], batch: int) -> tuple[int, int]:
    engine.batch = batch
    answers = engine(asked)
    assert not [answer for answer in answers if answer.prompt_tokens == 0], answers
    return sum(answer.prompt_tokens for answer in answers), sum(answer.output_tokens for answer in answers)


def compared(shape: str, windows: int, batch: int, tokens: int, frame_tokens: int) -> None:
    model, words, layout = model_of(shape)
    engine = vlm_local.Local(model, words, layout, batch, tokens, frame_tokens=frame_tokens)
    asked = requests(engine, windows, frame_tokens)
    assert decode.suits(model)
    weights = sum(parameter.numel() for parameter in model.parameters())
    one = engine.prepare(asked[0])
    print(f"\nQwen2.5-VL in the shape {shape}, random, {weights / 1e9:.2f} billion weights, {model.dtype}; {windows} "
          f"windows of {len(asked[0].frames)} frames at {one.frames.shape[2]}x{one.frames.shape[1]}, {len(one.ids)} "
          f"tokens each, {tokens} tokens answered")  # fmt: skip
    rows = [
        ("plain generate loop", 1, plain, True, tokens),
        ("plain generate loop", batch, plain, True, tokens),
        ("engine, prompts alone", batch, ours, True, 1),
        ("engine, steps not recorded", batch, ours, False, tokens),
        ("engine", batch, ours, True, tokens),
        ("engine", 2 * batch, ours, True, tokens),
    ]
    base = 0.0
    for name, size, run, record, said in rows:
        engine.record, engine.generation.max_new_tokens = record, said
        qwen_vl.use_together(model, run is ours)
        some = asked[: max(1, windows // 4)] if size == 1 else asked  # the slow one on fewer
        run(engine, asked[:size], size)  # warm up: kernels are chosen, memory is taken
        if DEVICE == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        waited, began = engine.spent["data_wait_seconds"], time.perf_counter()
        prompt, said = run(engine, some, size)
        seconds = time.perf_counter() - began
        base = base or said / seconds
        memory = f"  {torch.cuda.max_memory_allocated() / 2**30:5.1f} GiB" if DEVICE == "cuda" else ""
        wait = engine.spent["data_wait_seconds"] - waited
        print(f"{name:28s} batch {size:3d}  {said / seconds:8.1f} tokens/s out  {prompt / seconds:9.0f} in  "
              f"{seconds / len(some):7.3f} s a window  waits {wait / seconds:5.1%}  x {said / seconds / base:.2f}"
              f"{memory}", flush=True)  # fmt: skip


def shard(folder: Path, copies: int) -> dict[str, str]:
    """Clips of 4 s of copies of the trailer, cut at key frames, as curate.clips makes them."""
    from hpc.curate import clips
    from hpc.curate.settings import Clips
    from hpc.curate.settings.encode import Encode
    from hpc.curate.settings.split import Split
    from hpc.data import storage
    from hpc.data.units import Seconds
    from hpc.data.work import Item, Work

    settings = Clips(split=Split(detector="stride", stride=Seconds(4.0)), encode=Encode(encoder="copy"))
    entry = storage.stat(str(TRAILER))
    links = [folder / f"{number}.mp4" for number in range(copies)]
    for link in links:
        link.symlink_to(TRAILER)
    items = [Item(str(link), entry.size, entry.etag) for link in links]
    made = clips.start(settings)(Work("000000", items, [], {}, folder, "", lambda: None, lambda *a: None))
    return {path.suffix: str(path) for path in made.objects}


def stage(copies: int, batch: int, tokens: int) -> None:
    from hpc.curate import caption, show
    from hpc.curate.settings import Caption
    from hpc.data import upstream
    from hpc.data.work import Work

    with tempfile.TemporaryDirectory() as name:
        model = tiny_models.qwen2_5_vl(Path(name) / "model", positions=65536)
        (clips := Path(name) / "clips").mkdir()
        objects = shard(clips, copies)
        process = caption.start(Caption(model=str(model), batch=batch, max_tokens=tokens))
        for number in range(2):  # the first one warms up
            (scratch := Path(name) / str(number)).mkdir()
            work = Work("000000", [], [], {"clips": objects}, scratch, "", lambda: None, lambda *a: None)
            began = time.perf_counter()
            counts = process(work).counts
            seconds = time.perf_counter() - began
        assert counts["errors"] <= counts["windows"] / 2, counts
        engine = process.args[1]
        planned = show.plan(upstream.clips(work, ("num_frames", "fps", "width", "height")), 256)
        began = time.perf_counter()
        shown = sum(1 for _ in show.shown(engine, planned, 2.0, {}, work))
        alone = shown / (time.perf_counter() - began)
    wait, busy = counts["data_wait_seconds"], counts["caption_seconds"]
    print(f"stage with a tiny model: {counts['windows']:.0f} windows of clips of 4 s, 1280x720, in {seconds:.1f} s: "
          f"{counts['windows'] / seconds:.1f} windows/s, {counts['output_tokens'] / seconds:.0f} tokens/s out, "
          f"{counts['prompt_tokens'] / seconds:.0f} in; waited for data {wait:.2f} s, {wait / (wait + busy):.1%}; "
          f"without a model the data would come at {alone:.1f} windows/s", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--copies", type=int, default=16, help="of the trailer, 6 clips each, for the stage")
    parser.add_argument("--frame-tokens", type=int, default=768)
    parser.add_argument("--tiny", action="store_true", help="the second part in a tiny shape")
    parser.add_argument("--only", choices=("stage", "model"))
    given = parser.parse_args()
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "no GPU"
    print(f"{name}, {os.cpu_count()} CPUs, torch {torch.__version__}, Python {sys.version.split()[0]}")
    if given.only != "model":
        stage(given.copies, given.batch, given.tokens)
    if given.only != "stage":
        shape = "tiny" if given.tiny else "7B"
        compared(shape, given.windows, given.batch, given.tokens, given.frame_tokens)


if __name__ == "__main__":
    main()
