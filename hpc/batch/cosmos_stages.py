"""What the arguments of Cosmos-Curate's pipelines are in a spec, stage by stage; see cosmos.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpc.batch.cosmos_args import TEXT_DO, TEXT_RULE, Args, Block
from hpc.curate import settings as curate
from hpc.curate.settings import filters
from hpc.curate.settings.caption import Enhance
from hpc.curate.settings.judge import Classify, Semantic
from hpc.data.units import Bytes, Seconds
from hpc.data.vlm import Remote, Serve

WHOLE = 100_000
"""Seconds: fixed strides from here on mean that each input is one clip, which is how existing clips are captioned."""
MBITPS = 4.0
"""libopenh264's bitrate for clips (video/clipping/clip_extraction_stages.py)."""
YEAR = Seconds(365 * 86400)
MODELS = {
    "qwen": "Qwen/Qwen2.5-VL-7B-Instruct@cc594898137f460bfe9f0759e9844b3ce807cfb5",
    "qwen3_vl_30b": "Qwen/Qwen3-VL-30B-A3B-Instruct@4b184fbdab8886057d8d80c09f35bcfc65fe640e",
    "qwen3_vl_30b_fp8": "Qwen/Qwen3-VL-30B-A3B-Instruct-FP8@d9748a51ae66354c4dad665aab2c71f26cf2c8cd",
    "qwen3_vl_235b": "Qwen/Qwen3-VL-235B-A22B-Instruct@326b2e35ea25798d32df16d16d0dba461959e931",
    "qwen3_vl_235b_fp8": "Qwen/Qwen3-VL-235B-A22B-Instruct-FP8@7fbcd8c9e2ad011808ed8a57d64c462605c3e381",
    "qwen3_5_27b": "Qwen/Qwen3.5-27B-FP8@97f5941bf617e31c5e237364a8602ce3f03a551a",
    "cosmos_r1": "nvidia/Cosmos-Reason1-7B@0caf724f837efea5e25bf6d5818dcdeec0a36604",
    "cosmos_r2": "nvidia/Cosmos-Reason2-8B@b9806227bdb6f9dce8d0fb9d832718dd8b5efdf5",
    "nemotron": "nvidia/NVIDIA-Nemotron-Nano-12B-v2-VL-BF16@5f7b7fac031d1eb7b8b8f2266c305b3f2fcc6ff4",
    "qwen_lm": "Qwen/Qwen2.5-14B-Instruct@cf98f3b3bbb457ad9e2bb7baf9a0125b6b88caa8",
    "gpt_oss_20b": "openai/gpt-oss-20b@6cee5e81ee83917806bbde320786a8fb61efebee",
}
"""Its names of models -> the repositories and revisions that it pins (configs/all_models.json)."""
IN_WORKER = ("qwen", "qwen3_vl_30b", "cosmos_r1", "cosmos_r2", "qwen_lm", "gpt_oss_20b")
"""Those that fit one GPU and that transformers runs; others go to a vLLM server that the stage starts beside itself."""
GEMINI = "https://generativelanguage.googleapis.com/v1beta/openai"
ELSEWHERE = "http://localhost:8000/v1"


def whole(args: Args) -> bool:
    """Is each input one clip?"""
    return args.splitting_algorithm != "transnetv2" and args.fixed_stride_split_duration >= WHOLE


def inputs(args: Args) -> Any:
    block = Block({"uri": profiled(place(args.input_video_path), args.input_s3_profile_name)})
    if listed := args.input_video_list_json_path:
        block["uri"] = place(listed.removesuffix(".json") + ".txt")
        named = Path(listed).name
        words = f"jq -r '.[]' {named} > {Path(named).stem}.txt makes it, of Cosmos-Curate's list, which is JSON."
        block.say("uri", words)
    if args.limit:
        block["limit"] = args.limit
        block.say("limit", "Cosmos-Curate counts videos that are new; this is the first ones by name.")
    if args.multi_cam:
        block["group_by"] = "{session}/{camera}"
    if str(block["uri"]).startswith("/config/"):
        block.say("uri", "/config is a path inside Cosmos-Curate's container; here it is one of the nodes.")
    return block if len(block) > 1 or block.words else block["uri"]


def place(uri: str) -> str:
    """Paths count from the working directory there, and from the spec's folder here."""
    return uri if "://" in uri else str(Path(uri).absolute())


def profiled(uri: str, profile: str) -> str:
    """An S3 address with the profile of the credentials for it."""
    return uri.replace("s3://", f"s3://{profile}@", 1) if profile != "default" else uri


def clips(args: Args) -> Block:
    block = Block({"kind": curate.Clips.KIND, "split": split(args), "encode": encode(args)})
    if found := filtered(args):
        block["filter"] = found
    if args.generate_previews:
        block["preview"] = args.filled(
            curate.Preview,
            {
                "window": ("captioning_window_size", args.captioning_window_size),
                "fps": ("preview_target_fps", args.preview_target_fps),
                "height": ("preview_target_height", args.preview_target_height),
            },
        )
    if args.multi_cam:
        block["camera"] = args.primary_camera_keyword
        block.say("camera", "The name of the camera; Cosmos-Curate has a word that is somewhere in the path.")
    if args.limit_clips:
        block["limit_clips"] = args.limit_clips
    return block


def split(args: Args) -> Block:
    if args.splitting_algorithm != "transnetv2":
        found = args.filled(
            curate.Split,
            {
                "stride": ("fixed_stride_split_duration", Seconds(args.fixed_stride_split_duration)),
                "min_clip": ("fixed_stride_min_clip_length_s", Seconds(args.fixed_stride_min_clip_length_s)),
            },
        )
        return Block({"detector": "stride", **found})
    found = args.filled(
        curate.Split,
        {
            "threshold": ("transnetv2_threshold", args.transnetv2_threshold),
            "min_clip": ("transnetv2_min_length_s", Seconds(args.transnetv2_min_length_s or 0)),
            "min_frames": ("transnetv2_min_length_frames", args.transnetv2_min_length_frames or 1),
            "max_clip": ("transnetv2_max_length_s", Seconds(args.transnetv2_max_length_s or YEAR)),
            "long_shots": ("transnetv2_max_length_mode", args.transnetv2_max_length_mode),
            "crop": ("transnetv2_crop_s", Seconds(args.transnetv2_crop_s or 0)),
        },
    )
    if found.get("threshold") == curate.Split.THRESHOLDS["transnetv2"].usual:
        del found["threshold"]  # null, the default, says the same
    return Block({"detector": "transnetv2", **found})


def encode(args: Args) -> Block:
    if whole(args):
        for key in ("transcode_encoder", "transcode_use_input_video_bit_rate", "transcode_max_output_frames"):
            args.read.add(key)
        block = Block({"encoder": "copy", "audio": "keep"})
        block.say("encoder", "Clips stay as they are, byte for byte of their pictures (Cosmos-Curate encodes them "
                             "anew, at 4 Mbit/s).")  # fmt: skip
        return block
    block = Block({"encoder": "libx264", "bitrate_mbps": MBITPS, "audio": "keep"})
    if args.transcode_encoder == "h264_nvenc":
        block = Block({"encoder": "h264_nvenc", "crf": 21, "audio": "keep"})
        block.say("encoder", "A100, H100 and H200 have none.")
    else:
        block.say("encoder", "libopenh264 there, at the same bitrate; leave bitrate_mbps out for constant quality.")
    if args.transcode_use_input_video_bit_rate:
        block.pop("bitrate_mbps", None)
        block.pop("crf", None)
        why = "a bitrate is not taken from the input; the clips have constant quality"
        args.lose("transcode_use_input_video_bit_rate", why, "set encode.crf or encode.bitrate_mbps")
    if args.transcode_max_output_frames is not None:
        why = "the frame rate does not depend on a clip's length"
        args.lose("transcode_max_output_frames", why, "set encode.fps, or split.max_clip, so that clips have no more")
    return block


def filtered(args: Args) -> Block:
    """Of the filters that measure pictures; those that ask a model are stages of their own."""
    block = Block()
    if args.motion_filter != "disable":
        block["motion"] = args.filled(
            filters.Motion,
            {
                "mode": ("motion_filter", args.motion_filter),
                "min_vectors_global": ("motion_global_mean_threshold", args.motion_global_mean_threshold),
                "min_vectors_patch": ("motion_per_patch_min_256_threshold", args.motion_per_patch_min_256_threshold),
            },
        )
        words = ("Vectors of the source, not of the clip (Cosmos-Curate's); the pictures' motion where a source has "
                 "none. `mode: score-only` and `hpc calibrate RUN` show where to cut.")  # fmt: skip
        block.say("motion", words)
    if args.aesthetic_threshold is not None:
        block["aesthetic"] = args.filled(
            filters.Aesthetic,
            {
                "min": ("aesthetic_threshold", args.aesthetic_threshold),
                "reduce": ("aesthetic_reduction", args.aesthetic_reduction),
            },
        )
    if args.artificial_text_filter != "disable":
        block["text"] = Block({"mode": "enable"})
        args.lose("artificial_text_filter", TEXT_RULE, TEXT_DO)
    return block


# Stages that ask a model


def asked(args: Args, field: str, variant: str, gpus: int, fp8: bool = False, vllm: bool = False) -> Block:
    """Which model: in the worker, or from a server beside it. field: the argument that names it."""
    if variant not in MODELS and "/" not in variant:
        known = ", ".join(MODELS)
        raise ValueError(f"{args.file}: {field}: {variant!r} is no model that is known: {known}, or owner/name")
    named = MODELS.get(variant, variant)
    block = Block({"model": named})
    if variant not in IN_WORKER or gpus > 1 or fp8 or vllm:
        more = ["--quantization", "fp8"] * fp8 + ["--tensor-parallel-size", str(gpus)] * (gpus > 1)
        block["serve"] = Block({"send": "video"})
        if more:
            block["serve"]["command"] = [*Serve().command, *more]
        block.say("serve", "vLLM, which has to be installed on the nodes; Cosmos-Curate runs it in its own process.")
    return block


def remote(args: Args, field: str, where: str, name: str, retries: int) -> Block:
    """A server that is there already: where is "openai" or "gemini". Its address is no argument of Cosmos-Curate."""
    key = "GEMINI_API_KEY" if where == "gemini" else "OPENAI_API_KEY"
    block = Block({"model": name.removeprefix("models/")})
    block["endpoint"] = Block({"url": GEMINI if where == "gemini" else ELSEWHERE, "key": key, "retries": retries})
    if where == "openai":
        why = "the address of the server stands in ~/.config/cosmos_curate/config.yaml (openai: base_url)"
        args.lose(field, why, f"put it in place of {ELSEWHERE}, and take `key` away where none is needed")
    if name == "auto":
        block.say("model", "The name that the server knows it by: curl URL/models shows it.")
    return block


def told(args: Args, block: Block, tokens: int) -> Block:
    """How the model is asked, alike for captions, filter and classifier."""
    block["max_tokens"] = tokens if tokens > 0 else 8192
    if args.captioning_window_size != 256:
        block["window"] = args.captioning_window_size
    if args.captioning_sampling_fps != 2:
        block["fps"] = args.captioning_sampling_fps
    if args.captioning_remainder_threshold != args.captioning_window_size // 2:
        why = "what is left at a clip's end is a window of its own from half a window on"
        args.lose("captioning_remainder_threshold", why, "nothing, or choose captioning_window_size accordingly")
    return block


def semantic(args: Args, needs: list[str]) -> Block:
    name = (args.vlm_filter_openai_model_name if args.vlm_filter_endpoint == "openai"
            else args.vlm_filter_gemini_model_name)  # fmt: skip
    block = Block({"kind": Semantic.KIND, "needs": needs})
    if args.vlm_filter_endpoint == "local":
        gpus = args.vlm_filter_num_gpus
        engine = asked(args, "vlm_filter_model_variant", args.vlm_filter_model_variant, gpus,
                       args.vlm_filter_fp8_enable)  # fmt: skip
        block["resources"] = worker(gpus)
    else:
        engine = remote(args, "vlm_filter_endpoint", args.vlm_filter_endpoint, name, args.vlm_filter_openai_retries)
    join(block, told(args, engine, args.vlm_filter_max_output_tokens))
    if args.vlm_filter == "score-only":
        block["mode"] = "score-only"
    else:
        block["unparsable"] = "drop"
    if categories := args.vlm_filter_categories:
        block["criteria"] = [word.strip() for word in categories.split(",") if word.strip()]
    if args.vlm_filter_rejection_threshold != Semantic().max_share:
        block["max_share"] = args.vlm_filter_rejection_threshold
    return block


def classify(args: Args, needs: list[str]) -> Block:
    name = (args.video_classifier_openai_model_name if args.video_classifier_endpoint == "openai"
            else args.video_classifier_gemini_model_name)  # fmt: skip
    block = Block({"kind": Classify.KIND, "needs": needs})
    if args.video_classifier_endpoint == "local":
        gpus = args.video_classifier_num_gpus
        engine = asked(args, "video_classifier_model_variant", args.video_classifier_model_variant, gpus,
                       args.video_classifier_fp8_enable)  # fmt: skip
        block["resources"] = worker(gpus)
    else:
        where, retries = args.video_classifier_endpoint, args.video_classifier_openai_retries
        engine = remote(args, "video_classifier_endpoint", where, name, retries)
    join(block, told(args, engine, args.video_classifier_max_output_tokens))
    lists = {
        "allow": (args.video_classifier_allow, args.video_classifier_allow_file),
        "block": (args.video_classifier_block, args.video_classifier_block_file),
    }
    known: list[str] = []
    for field, (given, file) in lists.items():
        words = [given] if isinstance(given, str) else given or []
        found = [word.strip().replace(" ", "_") for one in words for word in one.split(",") if word.strip()]
        if found:
            block[field] = found
        elif file:
            block[field] = {"file": file}
        known += found
    files = args.video_classifier_allow_file or args.video_classifier_block_file
    if files and not known:
        block["labels"] = {"file": files}
    elif args.video_classifier_use_custom_categories or files:
        block["labels"] = sorted(set(known))
    if args.video_classifier_allow_file and args.video_classifier_block_file:
        why = "the kinds to choose from are those of one file"
        args.lose("video_classifier_block_file", why, "write all kinds into one, and give it as labels: {file: ...}")
    if block.get("allow"):
        block["unparsable"] = "drop"
    if args.video_classifier_rejection_threshold != Classify().max_share:
        block["max_share"] = args.video_classifier_rejection_threshold
    return block


def caption(args: Args, needs: list[str]) -> Block:
    variant = args.captioning_algorithm.lower()
    block = Block({"kind": curate.Caption.KIND, "needs": needs})
    if variant in ("openai", "gemini"):
        names = {"openai": args.openai_model_name, "gemini": args.gemini_model_name}
        engine = remote(args, "captioning_algorithm", variant, names[variant], args.openai_caption_retries)
        if args.api_caption_batch_size != Remote().concurrency:
            engine["endpoint"]["concurrency"] = args.api_caption_batch_size
    elif variant == "vllm_async":
        gpus = int(args.given.get("vllm_async_num_gpus", 1))
        args.read.add("vllm_async_num_gpus")
        engine = asked(args, "vllm_async_model_name", args.vllm_async_model_name, gpus, vllm=True)
        block["resources"] = worker(gpus)
    else:
        gpus = args.qwen_num_gpus_per_worker
        engine = asked(args, "captioning_algorithm", variant, gpus, args.qwen_use_fp8_weights and variant == "qwen")
        if args.qwen_batch_size != curate.Caption().batch and "serve" not in engine:
            engine["batch"] = args.qwen_batch_size
        block["resources"] = worker(gpus)
    join(block, told(args, engine, args.captioning_max_output_tokens))
    block["prompt"] = args.captioning_prompt_text or args.captioning_prompt_variant
    args.read.add("captioning_prompt_variant")
    if not args.captioning_prompt_text:
        block.say("prompt", "A prompt of this name; its words are not Cosmos-Curate's.")
    if args.qwen_stage2_caption or args.nemotron_stage2_caption or args.vllm_async_stage2_caption:
        block["second"] = args.qwen_stage2_prompt_text or args.vllm_async_stage2_prompt_text or "default"
    block |= sampled(args, block)
    if args.enhance_captions:
        block["enhance"] = enhance(args)
        if "serve" in block and "endpoint" not in block["enhance"]:  # the GPU is for both
            command = block["serve"].setdefault("command", [*Serve().command])
            command += ["--gpu-memory-utilization", "0.5"]
    return block


def caption_import(args: Args, needs: list[str]) -> Block:
    """args: of the shard pipeline, when the split is not given: what that wrote is read."""
    source = profiled(place(args.input_clip_path), args.input_s3_profile_name).rstrip("/")
    block = Block({"kind": curate.CaptionImport.KIND, "needs": needs})
    block["folder"] = f"{source}/metas/{args.annotation_version}"
    if args.captioning_algorithm != "qwen":
        block["name"] = args.captioning_algorithm
    block.say("kind", "The captions that the split wrote, as they are; metas_jsonl is not read.")
    return block


def sampled(args: Args, block: Block) -> dict[str, float]:
    """Cosmos-Curate's temperature of 0.1 with a top_p of 0.001 is the likeliest token each time, our default."""
    greedy = args.vllm_sampling_top_p <= 0.01 or args.vllm_sampling_top_k == 1 or not args.vllm_sampling_temperature
    ours = {"top_p": 1.0, "top_k": 0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_p": 0.0}
    for name, usual in ours.items():
        key = f"vllm_sampling_{name}"
        if getattr(args, key) != usual and not (greedy and name in ("top_p", "top_k", "min_p")):
            args.lose(key, "of sampling there is the temperature alone", "set temperature")
    for key, usual in (("vllm_sampling_repetition_penalty", 1.05), ("vllm_sampling_min_tokens", 16)):
        if getattr(args, key) != usual:
            args.lose(key, "of sampling there is the temperature alone", "nothing; curate.caption_qa finds loops")
    return {} if greedy else {"temperature": args.vllm_sampling_temperature}


def enhance(args: Args) -> Block:
    variant = args.enhance_captions_lm_variant
    if variant == "openai":
        block = remote(args, "enhance_captions_lm_variant", variant, args.enhance_captions_openai_model, 3)
    else:
        block = Block({"model": MODELS[variant]})
    usual = Enhance()
    if args.enhance_captions_max_output_tokens != usual.max_tokens:
        block["max_tokens"] = args.enhance_captions_max_output_tokens
    if args.enhance_captions_batch_size != usual.batch:
        block["batch"] = args.enhance_captions_batch_size
    prompt = args.enhance_captions_prompt_text or args.enhance_captions_prompt_variant
    args.read.add("enhance_captions_prompt_variant")
    block["prompt"] = "default" if prompt == "av" else prompt
    return block


def embed(args: Args, needs: list[str]) -> Block:
    name = args.embedding_algorithm
    block = Block({"kind": curate.Embed.KIND, "needs": needs, "resources": worker(args.embedding_gpus_per_worker, 16)})
    block["model"] = name if name.startswith("cosmos-embed1") else "cosmos-embed1-224p"
    if name == "internvideo2":
        why = "its InternVideo2 is a checkpoint without code; embeddings are Cosmos-Embed1's"
        args.lose("embedding_algorithm", why, "name an InternVideo2 with code of its own: model: owner/name@revision, "
                                              "trust_remote_code: true")  # fmt: skip
    elif name == "openai":
        args.lose("embedding_algorithm", "embeddings are not asked of a server; they are Cosmos-Embed1's", "nothing")
    return block


def text_embed(caption: str) -> Block:
    return Block({"kind": curate.TextEmbed.KIND, "needs": [caption], "resources": worker(1), "field": "caption"})


def worker(gpus: float, memory: int = 64) -> Block:
    """What a stage with a model asks of a node."""
    if gpus >= 1:
        return Block({"gpus": int(gpus), "cpus": 8, "memory": f"{memory}GiB"})
    workers = max(1, round(1 / gpus)) if gpus else 1  # as many as share a GPU there
    share = round(1 / workers, 3) if gpus else 0
    return Block({"workers": workers, "gpus": share, "cpus": 4, "memory": f"{memory}GiB"})


def join(block: Block, more: Block) -> None:
    block |= more
    block.words |= more.words


# Dedup and shard


def dedup(args: Args, needs: list[str], eps: float | None = None) -> Block:
    """eps: of the shard pipeline, which is the one that decides there."""
    block = Block({"kind": curate.Dedup.KIND, "needs": needs, "resources": worker(1, 32)})
    found = args.filled(
        curate.Dedup,
        {
            "eps": ("eps_to_extract", args.eps_to_extract if eps is None else eps),
            "max_iter": ("max_iter", args.max_iter),
            "seed": ("random_state", args.random_state),
        },
    )
    if "n_clusters" in args.given:
        found["n_clusters"] = args.n_clusters
    args.read.add("n_clusters")
    block |= found
    block.say("kind", "Clips in different clusters are compared too, so n_clusters (4 there) decides on speed alone.")
    return block


def shard(args: Args, needs: list[str]) -> Block:
    block = Block({"kind": curate.Shard.KIND, "needs": needs, "layout": "cosmos", "field": "caption"})
    block["shuffle"] = False
    block.say("shuffle", "Cosmos-Curate writes clips in the order of their videos; shuffled tars train better.")
    tar = Bytes(args.target_tar_size_mb * 1024**2)
    join(block, args.filled(
        curate.Shard,
        {"tar": ("target_tar_size_mb", tar), "caption_name": ("captioning_algorithm", args.captioning_algorithm)},
    ))  # fmt: skip
    fixed = {
        "annotation_version": ("v0", "the folder of the data set is v0"),
        "max_tars_per_part": (100, "a part has 100 tars"),
        "drop_small_shards": (False, "the last tar of a bin is kept, whatever it holds"),
    }
    for key, (usual, why) in fixed.items():
        if getattr(args, key) != usual:
            args.lose(key, why, "rename or remove it afterwards")
    return block


def predict2(args: Args, needs: list[str]) -> Block:
    block = Block({"kind": curate.Shard.KIND, "needs": needs, "layout": "predict2", "field": "caption"})
    words = ("The folder cosmos_predict2_video2world_dataset. Windows of fewer than 94 frames, which its loader cannot "
             "take, are left out and named; Cosmos-Curate writes them (min_frames: 1).")  # fmt: skip
    block.say("layout", words)
    return block
