"""The configs of Cosmos-Curate's pipelines: its arguments with their names, choices and defaults; which were read.

cosmos_curate 29f1358: pipelines/video/splitting_pipeline.py, dedup_pipeline.py, shard_pipeline_settings.py,
pipelines/common_pipeline_settings.py; the defaults of sampling in video/utils/data_model.py. Its config files name the
arguments as the program does (`dest`), its command line with dashes; a few have a second name, or say the opposite.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from hpc.batch import check, yaml_lines
from hpc.batch.yaml_lines import Node, Problem

COMMIT = "29f1358"

Onoff = Literal["disable", "enable"]
Mode = Literal["disable", "enable", "score-only"]
Where = Literal["local", "openai", "gemini"]
Prompts = Literal["default", "av", "av-surveillance"]


class Common(msgspec.Struct, frozen=True, kw_only=True):
    limit: int = 0
    input_s3_profile_name: str = "default"
    output_s3_profile_name: str = "default"


class Split(Common, frozen=True, kw_only=True):
    input_video_path: str
    output_clip_path: str
    input_video_list_json_path: str | None = None
    limit_clips: int = 0
    multi_cam: bool = False
    primary_camera_keyword: str = "front"

    splitting_algorithm: Literal["transnetv2", "fixed-stride", "fixed_stride"] = "transnetv2"
    fixed_stride_split_duration: float = 10
    fixed_stride_min_clip_length_s: float = 2
    transnetv2_threshold: float = 0.4
    transnetv2_min_length_s: float | None = 2.0
    transnetv2_min_length_frames: int | None = 48
    transnetv2_max_length_s: float | None = 60.0
    transnetv2_max_length_mode: Literal["stride", "truncate"] = "stride"
    transnetv2_crop_s: float | None = 0.5
    transcode_encoder: Literal["libopenh264", "h264_nvenc"] = "libopenh264"
    transcode_use_input_video_bit_rate: bool = False
    transcode_max_output_frames: int | None = None

    motion_filter: Mode = "disable"
    motion_global_mean_threshold: float = 0.00098
    motion_per_patch_min_256_threshold: float = 1e-6
    aesthetic_threshold: float | None = None
    aesthetic_reduction: Literal["min", "mean"] = "min"
    artificial_text_filter: Onoff = "disable"

    vlm_filter: Mode = "disable"
    vlm_filter_categories: str | None = None
    vlm_filter_rejection_threshold: float = 0.5
    vlm_filter_model_variant: str = "qwen"
    vlm_filter_fp8_enable: bool = False
    vlm_filter_max_output_tokens: int = 8192
    vlm_filter_num_gpus: int = 1
    vlm_filter_endpoint: Where = "local"
    vlm_filter_openai_model_name: str = "auto"
    vlm_filter_openai_retries: int = 3
    vlm_filter_gemini_model_name: str = "models/gemini-2.5-pro"
    video_classifier: Onoff = "disable"
    video_classifier_rejection_threshold: float = 0.5
    video_classifier_use_custom_categories: bool = False
    video_classifier_allow: list[str] | str | None = None
    video_classifier_block: list[str] | str | None = None
    video_classifier_allow_file: str | None = None
    video_classifier_block_file: str | None = None
    video_classifier_model_variant: str = "qwen"
    video_classifier_fp8_enable: bool = False
    video_classifier_max_output_tokens: int = 8192
    video_classifier_num_gpus: int = 1
    video_classifier_endpoint: Where = "local"
    video_classifier_openai_model_name: str = "auto"
    video_classifier_openai_retries: int = 3
    video_classifier_gemini_model_name: str = "models/gemini-2.5-pro"

    generate_embeddings: bool = True
    embedding_algorithm: Literal[
        "internvideo2", "cosmos-embed1-224p", "cosmos-embed1-336p", "cosmos-embed1-448p", "openai"
    ] = "internvideo2"
    embedding_gpus_per_worker: float = 0.25

    generate_captions: bool = True
    captioning_algorithm: str = "qwen"
    captioning_window_size: int = 256
    captioning_remainder_threshold: int = 128
    captioning_prompt_variant: Prompts = "default"
    captioning_prompt_text: str | None = None
    captioning_sampling_fps: float = 2.0
    captioning_max_output_tokens: int = 8192
    qwen_stage2_caption: bool = False
    qwen_stage2_prompt_text: str | None = None
    nemotron_stage2_caption: bool = False
    vllm_async_stage2_caption: bool = False
    vllm_async_stage2_prompt_text: str | None = None
    vllm_async_model_name: str = "qwen"
    qwen_batch_size: int = 8
    api_caption_batch_size: int = 8
    qwen_use_fp8_weights: bool = False
    qwen_num_gpus_per_worker: int = 1
    openai_model_name: str = "auto"
    openai_caption_retries: int = 3
    gemini_model_name: str = "models/gemini-2.5-pro"
    vllm_sampling_temperature: float = 0.1
    vllm_sampling_top_p: float = 0.001
    vllm_sampling_top_k: int = 0
    vllm_sampling_repetition_penalty: float = 1.05
    vllm_sampling_presence_penalty: float = 0.0
    vllm_sampling_frequency_penalty: float = 0.0
    vllm_sampling_min_p: float = 0.0
    vllm_sampling_min_tokens: int = 16
    enhance_captions: bool = False
    enhance_captions_lm_variant: Literal["qwen_lm", "gpt_oss_20b", "openai"] = "qwen_lm"
    enhance_captions_openai_model: str = "auto"
    enhance_captions_prompt_variant: Prompts = "default"
    enhance_captions_prompt_text: str | None = None
    enhance_captions_max_output_tokens: int = 2048
    enhance_captions_batch_size: int = 32

    generate_previews: bool = False
    preview_target_fps: float = 1
    preview_target_height: int = 240
    generate_cosmos_predict_dataset: Literal["disable", "predict2"] = "disable"


class Dedup(Common, frozen=True, kw_only=True):
    input_embeddings_path: str
    output_path: str
    n_clusters: int = 4
    max_iter: int = 100
    random_state: int = 42
    eps_to_extract: float = 0.01


class Shard(Common, frozen=True, kw_only=True):
    input_clip_path: str
    output_dataset_path: str
    annotation_version: str = "v0"
    captioning_algorithm: str = "qwen"
    input_semantic_dedup_path: str | None = None
    input_semantic_dedup_s3_profile_name: str = "default"
    semantic_dedup_epsilon: float = 0.01
    max_tars_per_part: int = 100
    target_tar_size_mb: int = 500
    min_clips_per_tar: int = 1
    drop_small_shards: bool = False


PIPELINES: dict[str, type[Common]] = {"split": Split, "dedup": Dedup, "shard": Shard}

NEGATED = {
    "no_generate_embeddings": "generate_embeddings",
    "no_generate_captions": "generate_captions",
    "no_upload_clips": "upload_clips",
    "no_write_all_caption_json": "write_all_caption_json",
    "no_drop_small_shards": "drop_small_shards",
    "no_perf_profile": "perf_profile",
}
"""Switches of the command line that turn an argument off."""


ALIASES = [
    (r"^qwen_(filter|video_classifier)", r"vlm_\1"),
    (r"^vlm_(video_classifier)", r"\1"),
    (r"^upload_cvds_parquet$", "upload_cds_parquet"),
    (r"^ignore_artificial_text_corner_region$", "artificial_text_ignore_corner_region"),
    (r"^no_artificial_text_corner_detection$", "artificial_text_no_corner_detection"),
]


def named(key: str) -> tuple[str, bool]:
    """The argument that a key names, and whether it says the opposite of it.

    >>> named("--qwen-filter"), named("no-generate-embeddings")
    (('vlm_filter', False), ('generate_embeddings', True))
    """
    name = key.lstrip("-").replace("-", "_")
    for pattern, other in ALIASES:
        name = re.sub(pattern, other, name)
    return NEGATED.get(name, name), name in NEGATED


NOT_NEEDED: list[tuple[str, str, str]] = [
    (
        r".*_(cpus|gpus)_per_worker|.*_num_gpus|.*_batch_size|num_.*_workers_per_node|clip_re_chunk_size"
        r"|transcode_encoder_threads|execution_mode|transcode_ffmpeg_batch_size|vllm_async_(?!stage2|model_name).*"
        r"|vllm_(performance_mode|use_inflight_batching)|qwen_use_(vllm_mmcache|async_engine)|api_caption_batch_size"
        r"|openai_embedding_max_concurrent_requests",
        "how work is spread over a machine; the output is the same",
        "say it with `resources` of the stage and `shards`, if the defaults do not suit",
    ),
    (
        r"verbose|perf_profile|profile_.*|debug_save_vllm_frames",
        "logs, times and counts are always written",
        "hpc logs, hpc report",
    ),
    (r"stage_(save|replay|compare).*", "stages are versions of folders, and each can be run again alone", "hpc retry"),
    (
        r"model_weights_path|copy_weights_to",
        "weights come from the Hugging Face cache of the nodes, or from a folder",
        "set env: {HF_HOME: ...}, or give a folder as the model",
    ),
    (
        r"transnetv2_frame_decoder_mode|transnetv2_frame_decode_raise_on_pynvc_error|transcode_use_hwaccel"
        r"|clip_extraction_target_res|artificial_text_detection_use_cpu|qwen_preprocess_dtype"
        r"|qwen_model_does_preprocess|motion_decode_.*",
        "each input is decoded once, for all that looks at it; resources: {gpus: 1} decodes on a GPU",
        "nothing",
    ),
    (
        r"upload_clips|upload_clip_info_in_chunks|write_all_caption_json|dry_run",
        "clips are in tars and what is known of them in tables, a file each a shard; all captions are in one column",
        "hpc plan is the dry run; for the tree of files as Cosmos-Curate writes it add an export stage",
    ),
]
"""(keys, why the output is as it would be without them, what to do)."""

TEXT_RULE = "overlaid text is judged by the area under boxes that stay for about a second, not frame by frame"
TEXT_DO = "run with filter.text.mode: score-only, then `hpc calibrate RUN` proposes a max_area"
LOST: list[tuple[str, str, str]] = [
    (r"super_resolution|sr_.*", "there is no super-resolution", "enlarge the clips ahead, and give those as inputs"),
    (
        r"enable_sam3|sam3_.*|enable_event_captioning|event_caption_.*",
        "there is no object tracking, nor captions of single events",
        "a stage of your own (README: adding a stage) can read the clips and write a layer",
    ),
    (
        r"(input|output)_presigned_s3_url",
        "zip files behind presigned addresses are not read or written",
        "unpack the videos into a folder or bucket, and name that",
    ),
    (
        r"upload_clip_info_in_lance|upload_cds_parquet",
        "neither Lance nor CDS tables are written",
        "read the parquet files of the stages; Lance reads parquet",
    ),
    (
        r"artificial_text_.*",
        TEXT_RULE,
        TEXT_DO,
    ),
    (
        r"input_video_list_s3_profile_name",
        "the list is read with the profile of the inputs",
        "put the list beside the videos",
    ),
    (
        r".*_retry_delay_seconds|gemini_caption_retries|vllm_max_retries|.*_gemini_retries|gemini_max_inline_mb"
        r"|openai_embedding_retries",
        "the time between tries is the engine's own",
        "nothing, but where an endpoint asks for long pauses: lower the concurrency",
    ),
    (r"qwen_lm_use_fp8_weights", "weights are used as they are published", "name a model with fp8 weights"),
]
"""(keys, why they have no counterpart, what to do)."""


class Left(msgspec.Struct, frozen=True):
    """A key that says nothing in the spec."""

    file: str
    key: str
    value: Any
    why: str
    do: str
    lost: bool
    """False: the output is what it would be with it."""

    def __str__(self) -> str:
        value = json.dumps(self.value, ensure_ascii=False)
        return f"{self.key}: {value if len(value) < 60 else value[:56] + '...'}: {self.why}; to do: {self.do}"


class Block(dict[str, Any]):
    """A mapping of a spec, with comments above its keys."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        super().__init__(values or {})
        self.words: dict[str, str] = {}

    def say(self, key: str, words: str) -> None:
        self.words[key] = f"{self.words[key]} {words}" if key in self.words else words


class Args:
    """The arguments of one config. What is read counts as taken over, the rest is told."""

    def __init__(self, file: str, pipeline: str, values: Any, given: dict[str, Any]) -> None:
        self.file, self.pipeline, self.values, self.given = file, pipeline, values, given
        self.read: set[str] = set()
        self.left: list[Left] = []

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self.values, name)

    def lose(self, key: str, why: str, do: str) -> None:
        """Tell of a key that has no counterpart. One that was not given is told too: its default says something."""
        self.read.add(key)
        value = self.given.get(key, getattr(self.values, key, None))
        if all(one.key != key for one in self.left):
            self.left.append(Left(self.file, key, value, why, do, True))

    def filled(self, kind: type[msgspec.Struct], values: dict[str, tuple[str, Any]]) -> Block:
        """Settings of ours, as name -> (argument, value): those that were given, or whose default is another here."""
        usual = {field.name: field.default for field in msgspec.structs.fields(kind)}
        self.read |= {key for key, _ in values.values()}
        return Block({
            name: check.plain(value)
            for name, (key, value) in values.items()
            if key in self.given or value != usual[name]
        })  # fmt: skip


def read(file: str, problems: list[Problem]) -> Args | None:
    """One config. What is wrong with it goes to `problems`; keys that no pipeline has are told, not refused."""
    text, root = "", None
    try:
        text = Path(file).read_text(encoding="utf-8")
        root = _node(json.loads(text), file, text) if text.lstrip().startswith("{") else None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON ({error})"
        problems.append(Problem(file, 0, "", f"cannot be read: {reason}"))
        return None
    root = root or yaml_lines.parse(text, file, problems)
    if root is None or not isinstance(root.value, dict):
        problems.append(Problem(file, 1, "", 'not a pipeline config: {"pipeline": "split", "args": {...}}'))
        return None
    pipeline = root.below("pipeline")
    if pipeline.value not in PIPELINES:
        words = f"{pipeline.value!r} is none that can be taken over: {', '.join(PIPELINES)}"
        problems.append(pipeline.problem("pipeline", words))
        return None
    args = root.below("args") if "args" in root.value else root
    kind = PIPELINES[pipeline.value]
    keys = kind.__struct_encode_fields__
    known: dict[str, Node] = {}
    given: dict[str, Any] = {}
    for key, node in args.entries().items():
        name, opposite = named(key)
        if node.value is None or (args is root and key == "pipeline"):
            continue
        if opposite and isinstance(node.value, bool):
            node = Node(not node.value, node.file, node.line)
        if isinstance(node.value, str):  # specs take no other line breaks, nor control characters
            text = re.sub("\r\n?|[\x85\u2028\u2029]", "\n", node.value)
            node = Node(re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "", text), node.file, node.line)
        given[name] = node.plain()
        if name in keys:
            known[name] = node
    before = len(problems)
    values = check.fields(Node(known, file, args.line), [kind], "args" if args is not root else "", problems)
    return Args(file, pipeline.value, kind(**values), given) if len(problems) == before else None


def _node(value: Any, file: str, text: str, key: str = "") -> Node:
    """JSON's values with the lines on which their keys first stand."""
    line = text[: max(0, text.find(json.dumps(key)))].count("\n") + 1 if key else 1
    if isinstance(value, dict):
        return Node({name: _node(one, file, text, name) for name, one in value.items()}, file, line)
    if isinstance(value, list):
        return Node([_node(one, file, text, key) for one in value], file, line)
    return Node(value, file, line)


def left_over(args: Args) -> list[Left]:
    """What was given and says nothing in the spec."""
    keys = type(args.values).__struct_encode_fields__
    usual = {field.name: field.default for field in msgspec.structs.fields(type(args.values))}
    found = list(args.left)
    for key, value in args.given.items():
        if key in args.read or (key in keys and value == usual[key]):
            continue
        if key in keys:
            why, do, lost = "what it is about is not enabled here", "nothing", False
        elif rule := _rule(NOT_NEEDED, key):
            (why, do), lost = rule, False
        elif rule := _rule(LOST, key):
            if value is False:
                continue  # switched off, as it is here
            (why, do), lost = rule, True
        else:
            near = difflib.get_close_matches(key, keys, 1)
            do = f"did you mean {near[0]}?" if near else f"look it up in Cosmos-Curate: {COMMIT} has none"
            why, lost = f"no argument of Cosmos-Curate's {args.pipeline}", True
        found.append(Left(args.file, key, value, why, do, lost))
    return found


def _rule(rules: Sequence[tuple[str, str, str]], key: str) -> tuple[str, str] | None:
    return next(((why, do) for pattern, why, do in rules if re.fullmatch(pattern, key)), None)
