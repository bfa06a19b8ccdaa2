"""The engine on this machine: a vision-language model of the Qwen family, or a language model, by transformers.

Requests are tokenized and their frames brought to size by a thread while the model works on the batch before. Of what
was taken ahead, requests of about the same length make a batch; shorter ones are padded on the left, and masked, so
that an answer depends on the others of its batch by rounding alone. A batch that does not fit into the GPU's memory is
halved, and those after it are no larger.
"""

from __future__ import annotations

import copy
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from hpc.models import decode, hub, qwen_vl
from hpc.models.vlm import Answer, Engine, Request, Then, ahead, failed, judged

log = logging.getLogger(__name__)

AHEAD = 2  # batches that are sorted by length together
LARGE = 0.5  # billions of weights
TEXT_ONLY = "this model takes no frames"


class Prepared(NamedTuple):
    """A request as the model takes it, or the answer that it is not put to the model for."""

    request: Request
    ids: list[int]
    frames: Tensor | None
    """uint8 [T, height, width, 3], of a size that the model takes; in pinned memory if a GPU waits for it."""
    answer: Answer | None = None


def open_local(settings: Any) -> Local:
    """Load what the settings (hpc.data.vlm.Engine) name onto this machine's GPU, or CPUs without one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = hub.folder(settings.model)
    model, tokenizer, layout = load(folder, device)
    made = Local(model, tokenizer, layout, settings.batch, settings.max_tokens, settings.temperature,
                 settings.frame_tokens)  # fmt: skip
    made.model = settings.model
    made.revision = folder.name if folder.parent.name == "snapshots" else ""
    return made


def load(folder: Path, device: str) -> tuple[Any, Any, qwen_vl.Layout | None]:
    """The model, ready for inference (in bfloat16 on a GPU), its tokenizer, and how it cuts frames (None: it takes
    none). Raises ModuleNotFoundError without transformers, RuntimeError for another kind of model or other weights."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"captions by a model need {error.name}, which is not installed here: pip install 'hpc[curate-models]'"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what it would warn of is checked here
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    sees = hasattr(config, "vision_config")
    if sees and config.model_type not in qwen_vl.FAMILIES:
        raise RuntimeError(
            f"{folder}: models of the type {config.model_type!r} are not known here; these are: "
            f"{', '.join(qwen_vl.FAMILIES)}. Others can be served beside the stage, e.g. by vLLM: see `serve`"
        )
    kind = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
    model, found = kind.from_pretrained(
        folder,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        dtype=torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32,
    )
    hub.accounted(folder, found)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.padding_side = "left"
    if (template := folder / "chat_template.json").is_file():  # of a processor, from before templates had files
        tokenizer.chat_template = json.loads(template.read_bytes())["chat_template"]
    if not tokenizer.chat_template:
        raise RuntimeError(f"{folder}: the model has no chat template: it was not made to follow instructions")
    billions = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    if device == "cpu" and billions > LARGE:
        log.warning("no GPU: %.1f billion weights on CPUs take minutes an answer; `resources: {gpus: 1}`", billions)
    model = model.eval().requires_grad_(False).to(device)
    return model, tokenizer, layout_of(config, folder) if sees else None


def layout_of(config: Any, folder: Path) -> qwen_vl.Layout:
    """Of a model's config and its preprocessor's."""
    from transformers import Qwen2VLImageProcessorPil

    vision, pictures = config.vision_config, Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
    return qwen_vl.Layout(
        vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size, tuple(pictures.image_mean),
        tuple(pictures.image_std), qwen_vl.FAMILIES[config.model_type],
    )  # fmt: skip


class Local(Engine):
    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        layout: qwen_vl.Layout | None,
        batch: int,
        max_tokens: int,
        temperature: float = 0.0,
        frame_tokens: int = qwen_vl.MOST,
    ) -> None:
        """model, tokenizer, layout: as `load` returns them. batch: requests at most that the model works on together;
        max_tokens: of an answer. temperature: 0 for the likeliest token each time."""
        super().__init__()
        self.network, self.tokenizer, self.layout = model, tokenizer, layout
        self.sees = layout is not None
        if layout is not None:
            qwen_vl.use_together(model)
        self.batch, self.frame_tokens = batch, frame_tokens
        self.longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31
        config = self.generation = copy.deepcopy(model.generation_config)
        config.max_new_tokens, config.max_length, config.do_sample = max_tokens, None, temperature > 0
        config.temperature = temperature or 1.0
        if not config.do_sample:
            config.top_p = config.top_k = None
        ends = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])
        config.eos_token_id = sorted(self.ends)
        config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self.ends)
        self.fast = not config.do_sample and decode.suits(model)
        self.record = "moe" not in model.config.model_type  # which experts work is asked in the middle of a step

    def size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        if self.layout is None:
            raise ValueError(TEXT_ONLY)
        return qwen_vl.frame_size(frames, height, width, self.layout.patch * self.layout.merge, self.frame_tokens)

    def stream(
        self, requests: Iterable[Request], check: Callable[[], None] = lambda: None, then: Then | None = None
    ) -> Iterator[list[Answer]]:
        def groups() -> Iterator[list[Prepared]]:
            prepared = map(self.prepare, requests)
            while group := list(itertools.islice(prepared, AHEAD * self.batch)):
                yield group

        waited = time.monotonic()
        for group in ahead(groups(), 1):
            self.spent["data_wait_seconds"] += time.monotonic() - waited
            began = time.monotonic()
            answers = self._answer_all(group, check)
            out = [[answer] for answer in answers]
            if then is not None:
                asked = [then(one.request, answer) for one, answer in zip(group, answers, strict=True)]
                both = zip(group, asked, strict=True)
                again = [self.prepare(request, one.frames) for one, request in both if request]
                second = iter(self._answer_all(again, check))
                out = [[first, next(second)] if request else [first]
                       for first, request in zip(answers, asked, strict=True)]  # fmt: skip
            self.spent["caption_seconds"] += time.monotonic() - began
            yield from out
            waited = time.monotonic()

    def prepare(self, request: Request, frames: Tensor | None = None) -> Prepared:
        """frames: those of the request, if they are prepared already. Whatever is wrong with it becomes its answer."""
        try:
            if request.frames is not None and frames is None:
                frames = self._frames(request)
            ids = self.tokenizer(self.words(request, frames), add_special_tokens=False)["input_ids"]
            if len(ids) + self.generation.max_new_tokens > self.longest:
                raise ValueError(
                    f"the prompt has {len(ids)} tokens, and {self.generation.max_new_tokens} may be answered, but the "
                    f"model takes {self.longest} together: lower frame_tokens or the window"
                )
        except (ValueError, TypeError, MemoryError) as error:
            return Prepared(request, [], None, failed(error))
        return Prepared(request, ids, frames)

    def _frames(self, request: Request) -> Tensor:
        frames = request.frames
        if frames is None or frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not frames.size:
            shown = None if frames is None else (frames.dtype, frames.shape)
            raise ValueError(f"frames are uint8 [T, H, W, 3], not {shown}")
        height, width = self.size(*frames.shape[:3])
        if frames.shape[1:3] != (height, width):
            frames = np.stack([
                np.asarray(PIL.Image.fromarray(one).resize((width, height), PIL.Image.Resampling.BICUBIC))
                for one in frames
            ])  # fmt: skip
        made = torch.from_numpy(np.ascontiguousarray(frames))
        return made.pin_memory() if self.network.device.type == "cuda" else made

    def words(self, request: Request, frames: Tensor | None) -> str:
        """The prompt as the model reads it, placeholders for the frames in it."""
        parts = [{"type": "video"}] if frames is not None else []
        content = [*parts, {"type": "text", "text": request.prompt}] if self.layout else request.prompt
        messages = [{"role": "system", "content": request.system}] if request.system else []
        messages.append({"role": "user", "content": content})
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if frames is None or self.layout is None:
            return text
        token, config = self.tokenizer.convert_ids_to_tokens, self.network.config
        video = token(config.video_token_id)
        before, found, after = text.partition(video)
        if not found:
            raise ValueError(f"the model's chat template puts no {video} where the frames belong")
        if video in after:
            raise ValueError(f"the prompt has {video} in it, which stands for frames: leave it out")
        return before + qwen_vl.placeholder(
            *frames.shape[:3], request.fps, self.layout, video, token(config.vision_start_token_id),
            token(config.vision_end_token_id),
        ) + after  # fmt: skip

    def _answer_all(self, group: Sequence[Prepared], check: Callable[[], None]) -> list[Answer]:
        """In batches of about the same length, those with frames apart from those without."""
        answers = {i: one.answer for i, one in enumerate(group) if one.answer}
        left = sorted(set(range(len(group))) - set(answers), key=lambda i: (group[i].frames is None, len(group[i].ids)))
        while left:
            alike = [i for i in left if (group[i].frames is None) == (group[left[0]].frames is None)][: self.batch]
            answers.update(zip(alike, self._fitting([group[i] for i in alike], check), strict=True))
            left = [i for i in left if i not in answers]
        return [answers[i] for i in range(len(group))]

    def _fitting(self, batch: Sequence[Prepared], check: Callable[[], None]) -> list[Answer]:
        """By halves where the batch does not fit into the GPU's memory."""
        try:
            return self.generate(batch, check)
        except torch.OutOfMemoryError as error:
            words = str(error)
        if self.network.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(batch) == 1:
            return [Answer("", "error", len(batch[0].ids), 0, f"too large for the GPU's memory: {words}"[:2000])]
        middle = len(batch) // 2
        if len(batch) - middle < self.batch:
            self.batch = len(batch) - middle
            log.warning("out of GPU memory: from here on batches of %d", self.batch)
        return [*self._fitting(batch[:middle], check), *self._fitting(batch[middle:], check)]

    @torch.inference_mode()
    def generate(self, batch: Sequence[Prepared], check: Callable[[], None] = lambda: None) -> list[Answer]:
        """All with frames, or none. Raises torch.OutOfMemoryError."""
        inputs = self.inputs(batch)
        config = self.generation
        if self.fast:
            out = decode.greedy(self.network, inputs, config.max_new_tokens, config.eos_token_id, config.pad_token_id,
                                config.repetition_penalty or 1.0, check, self.record)  # fmt: skip
        else:
            torch.manual_seed(0)  # the same shard in the same batches gives the same words
            whole = self.network.generate(**inputs, generation_config=config, stopping_criteria=[checking(check)])
            out = whole[:, inputs["input_ids"].shape[1] :]
        answers = []
        for one, tokens in zip(batch, out.tolist(), strict=True):
            end = next((i for i, token in enumerate(tokens) if token in self.ends), len(tokens))
            text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
            answers.append(judged(text, end < len(tokens), len(one.ids), min(end + 1, len(tokens))))
        return answers

    def inputs(self, batch: Sequence[Prepared]) -> dict[str, Tensor]:
        """What `generate` of transformers takes, on the model's device."""
        device = self.network.device
        length = max(len(one.ids) for one in batch)
        pad = self.generation.pad_token_id
        ids = torch.tensor([[pad] * (length - len(one.ids)) + one.ids for one in batch], device=device)
        there = torch.tensor([[0] * (length - len(one.ids)) + [1] * len(one.ids) for one in batch], device=device)
        inputs = {"input_ids": ids, "attention_mask": there}
        if self.layout is None or batch[0].frames is None:
            return inputs
        videos = [one.frames.to(device, non_blocking=True) for one in batch if one.frames is not None]
        inputs["pixel_values_videos"] = torch.cat([qwen_vl.patches(video, self.layout) for video in videos])
        grids = [qwen_vl.grid_of(*video.shape[:3], self.layout) for video in videos]
        inputs["video_grid_thw"] = torch.tensor(grids, device=device)
        inputs["mm_token_type_ids"] = torch.where((ids == self.network.config.video_token_id) & (there == 1), 2, 0)
        if self.network.config.model_type == "qwen2_5_vl":
            seconds = [self.layout.temporal / one.request.fps for one in batch]
            inputs["second_per_grid_ts"] = torch.tensor(seconds, device=device)
        return inputs


def checking(check: Callable[[], None]) -> Callable[..., Tensor]:
    """A criterion that never stops the model itself: check() may raise, at each token."""

    def criterion(ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        check()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    return criterion
