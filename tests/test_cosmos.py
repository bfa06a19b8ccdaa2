"""Configs of Cosmos-Curate become specs that load, say what they said, and tell what of them was left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import runs
import yaml

from hpc.batch import cosmos, cosmos_args, cosmos_stages
from hpc.batch.prepare import domains
from hpc.batch.spec import Spec, load
from hpc.batch.yaml_lines import SpecErrors
from hpc.curate.settings import Clips
from hpc.data.vlm import Serve, Vlm

PROMPT = "You are a video captioning specialist.\n\nRequirements:\n- Camera:\n  * Begin with \"A CCTV camera\"."
SPLIT = {
    "input_video_path": "s3://your_bucket/your_dataset/raw_data",
    "output_clip_path": "s3://your_bucket/your_dataset/processed_data/v0",
    "generate_embeddings": True,
    "generate_previews": True,
    "generate_captions": True,
    "splitting_algorithm": "transnetv2",
    "captioning_algorithm": "qwen",
    "captioning_prompt_variant": "default",
    "captioning_prompt_text": PROMPT,
    "limit": 0,
    "limit_clips": 0,
}
AGAIN = SPLIT | {
    "input_video_path": "s3://your_bucket/your_dataset/processed_data/v0/clips",
    "output_clip_path": "s3://your_bucket/your_dataset/processed_data/v1",
    "generate_embeddings": False,
    "generate_previews": False,
    "splitting_algorithm": "fixed-stride",
    "fixed_stride_split_duration": 100000000,
    "captioning_prompt_text": "<your modified prompt here>",
}
SHARD = {
    "input_clip_path": "s3://your_bucket/your_dataset/processed_data/v0",
    "output_dataset_path": "s3://your_bucket/your_dataset/webdataset/v0",
    "annotation_version": "v0",
    "verbose": True,
    "perf_profile": False,
}
"""The three examples of NVIDIA's cookbook (core curation): split, captions again, shard."""
DEDUP = {"input_embeddings_path": SPLIT["output_clip_path"], "output_path": "s3://your_bucket/your_dataset/dedup"}
SMALL = {"input_video_path": "s3://b/raw", "output_clip_path": "s3://b/v0", "generate_embeddings": False,
         "generate_captions": False}  # fmt: skip


def imported(place: Path, *configs: tuple[str, dict[str, Any]]) -> tuple[Spec, cosmos.Imported]:
    files = []
    for number, (pipeline, args) in enumerate(configs):
        file = place / f"{number}-{pipeline}.json"
        file.write_text(json.dumps({"pipeline": pipeline, "args": args}, indent=4))
        files.append(str(file))
    made = cosmos.convert(files)
    (place / "spec.yaml").write_text(made.text)
    return load(place / "spec.yaml", check_paths=False)[0], made


def lost(made: cosmos.Imported) -> dict[str, str]:
    return {one.key: one.why for one in made.left if one.lost}


def test_the_first_example(tmp_path: Path) -> None:
    spec, made = imported(tmp_path, ("split", SPLIT))
    assert [one.uri for one in spec.inputs] == [SPLIT["input_video_path"]] and spec.output == SPLIT["output_clip_path"]
    assert spec.name == "processed_data-v0" and list(spec.stages) == ["clips", "embed", "caption"]
    clips, caption = spec.stages["clips"].settings, spec.stages["caption"].settings
    assert clips.split == Clips().split and clips.preview is not None and clips.limit_clips is None
    assert (clips.encode.encoder, clips.encode.bitrate_mbps, clips.encode.audio) == ("libx264", 4.0, "keep")
    assert caption.prompt == PROMPT and caption.max_tokens == 8192 and caption.model == Vlm().model
    assert spec.stages["caption"].resources.gpus == 1 and spec.inputs[0].limit is None
    assert lost(made).keys() == {"embedding_algorithm"}, "its InternVideo2, which nobody asked for by name"
    assert "Not taken over:\n# - 0-split.json: embedding_algorithm" in made.text and "|-\n" in made.text


def test_the_second_example_captions_clips_as_they_are(tmp_path: Path) -> None:
    spec, made = imported(tmp_path, ("split", AGAIN))
    clips = spec.stages["clips"].settings
    assert (clips.split.detector, clips.split.stride, clips.encode.encoder) == ("stride", 100000000.0, "copy")
    assert list(spec.stages) == ["clips", "caption"] and lost(made) == {}
    assert "change its caption.prompt and run it again" in made.text.replace("\n  # ", " ")


def test_captions_again_beside_the_split_that_made_the_clips(tmp_path: Path) -> None:
    """...are a further layer, whichever config comes first, and the data set has those that it asks for."""
    shard = SHARD | {"input_clip_path": f"{AGAIN['output_clip_path']}/"}
    for order in ((0, 1, 2), (2, 1, 0)):
        configs = [("split", SPLIT), ("split", AGAIN), ("shard", shard)]
        spec, _ = imported(tmp_path, *(configs[i] for i in order))
        assert spec.output == SPLIT["output_clip_path"]
        assert spec.stages["caption"].settings.prompt == PROMPT
        assert spec.stages["caption2"].settings.prompt == "<your modified prompt here>"
        assert spec.stages["clips"].settings.split.detector == "transnetv2"
        assert spec.stages["text_embed2"].needs[-1] == "caption2" and "text_embed" not in spec.stages
        members = spec.stages["shard-members"]
        assert {"clips", "caption2", "text_embed2"} <= {*members.needs} and "caption" not in members.needs
        assert domains(spec)


def test_the_third_example_alone(tmp_path: Path) -> None:
    spec, made = imported(tmp_path, ("shard", SHARD))
    assert spec.inputs[0].uri == "s3://your_bucket/your_dataset/processed_data/v0/clips"
    assert spec.stages["clips"].settings.encode.encoder == "copy" and spec.output == SHARD["output_dataset_path"]
    assert spec.stages["shard"].settings.layout == "cosmos" and spec.stages["clips"].settings.split.min_clip == 0
    caption = spec.stages["caption"]
    assert caption.kind == "curate.caption_import" and caption.settings.name == "qwen"
    assert caption.settings.folder == "s3://your_bucket/your_dataset/processed_data/v0/metas/v0"
    assert "text_embed" in spec.stages and lost(made) == {} and domains(spec)
    assert {one.key for one in made.left if not one.lost} == {"verbose", "perf_profile"}


def test_split_dedup_and_shard_become_one_spec(tmp_path: Path) -> None:
    shard = SHARD | {"input_semantic_dedup_path": DEDUP["output_path"], "semantic_dedup_epsilon": 0.02,
                     "target_tar_size_mb": 100}  # fmt: skip
    dedup = DEDUP | {"n_clusters": 50, "random_state": 7}
    spec, made = imported(tmp_path, ("split", SPLIT), ("dedup", dedup), ("shard", shard))
    whole = yaml.safe_load(made.text)["stages"]
    assert whole["shard"]["needs"] == ["clips", "dedup", "caption", "text_embed"]
    assert spec.stages["dedup"].settings.eps == 0.02, "the shard's, which decides"
    assert spec.stages["dedup-fit"].settings.n_clusters == 50 and spec.stages["dedup-fit"].settings.seed == 7
    assert spec.stages["shard"].settings.tar == 100 * 1024**2 and spec.stages["shard"].settings.shuffle is False
    assert domains(spec) and lost(made).keys() == {"embedding_algorithm"}


def test_dedup_alone(tmp_path: Path) -> None:
    args = DEDUP | {"input_embeddings_path": f"{DEDUP['input_embeddings_path']}/iv2_embd_parquet"}
    spec, made = imported(tmp_path, ("dedup", args))
    assert spec.inputs[0].uri == f"{SPLIT['output_clip_path']}/clips" and "caption" not in spec.stages
    assert {"input_embeddings_path", "embedding_algorithm"} <= lost(made).keys()


FULL = SPLIT | {
    "limit": 12, "limit_clips": 3, "input_s3_profile_name": "raw", "output_s3_profile_name": "lake",
    "transnetv2_threshold": 0.5, "transnetv2_min_length_s": 4, "transnetv2_min_length_frames": 120,
    "transnetv2_max_length_s": 30, "transnetv2_max_length_mode": "truncate", "transnetv2_crop_s": None,
    "transcode_encoder": "h264_nvenc", "motion_filter": "score-only", "motion_global_mean_threshold": 0.002,
    "aesthetic_threshold": 3.5, "aesthetic_reduction": "mean", "artificial_text_filter": "enable",
    "vlm_filter": "enable", "vlm_filter_categories": "a cat, slideshow", "vlm_filter_rejection_threshold": 0.2,
    "video_classifier": "enable", "video_classifier_allow": ["pets", "sports/exercise"],
    "embedding_algorithm": "cosmos-embed1-448p", "captioning_algorithm": "qwen3_vl_30b_fp8",
    "captioning_window_size": 128, "captioning_remainder_threshold": 64, "captioning_sampling_fps": 1.5,
    "captioning_max_output_tokens": 512, "qwen_stage2_caption": True, "qwen_stage2_prompt_text": "Again, please.",
    "qwen_num_gpus_per_worker": 2, "enhance_captions": True, "preview_target_height": 360,
    "generate_cosmos_predict_dataset": "predict2",
}  # fmt: skip


def test_all_that_a_split_can_say(tmp_path: Path) -> None:
    spec, made = imported(tmp_path, ("split", FULL))
    assert spec.inputs[0].uri == "s3://raw@your_bucket/your_dataset/raw_data" and spec.inputs[0].limit == 12
    assert spec.output == "s3://lake@your_bucket/your_dataset/processed_data/v0"
    clips = spec.stages["clips"].settings
    split, encode, filters = clips.split, clips.encode, clips.filter
    assert (split.threshold, split.min_clip, split.min_frames, split.max_clip, split.long_shots, split.crop) == (
        0.5, 4.0, 120, 30.0, "truncate", 0.5
    ), "null is as not given"  # fmt: skip
    assert (encode.encoder, encode.crf, clips.limit_clips) == ("h264_nvenc", 21.0, 3)
    assert (filters.motion.mode, filters.motion.min_vectors_global) == ("score-only", 0.002)
    assert (filters.aesthetic.min, filters.aesthetic.reduce, filters.text.mode) == (3.5, "mean", "enable")
    assert (clips.preview.window, clips.preview.height) == (128, 360)
    semantic, classify = spec.stages["semantic"], spec.stages["classify"]
    assert semantic.settings.criteria == ("a cat", "slideshow") and semantic.settings.max_share == 0.2
    assert semantic.settings.unparsable == "drop" and classify.needs == ("clips", "semantic")
    assert classify.settings.allow == ("pets", "sports/exercise") and len(classify.settings.labels) == 27
    caption = spec.stages["caption"]
    assert caption.needs == ("clips", "semantic", "classify") and caption.resources.gpus == 2
    said = caption.settings
    assert (said.window, said.fps, said.max_tokens, said.second) == (128, 1.5, 512, "Again, please.")
    assert said.model.startswith("Qwen/Qwen3-VL-30B-A3B-Instruct-FP8@") and said.serve.send == "video"
    usual = Serve().command
    assert said.serve.command[: len(usual)] == usual
    assert said.serve.command[len(usual) :] == ("--tensor-parallel-size", "2", "--gpu-memory-utilization", "0.5")
    assert said.enhance is not None
    assert spec.stages["embed"].settings.model == "cosmos-embed1-448p"
    assert spec.stages["predict2"].settings.layout == "predict2"
    fields = {spec.stages[name].settings.field for name in ("text_embed", "predict2-members")}
    assert fields == {"caption"}, "not the enhanced one"
    assert lost(made).keys() == {"artificial_text_filter"}, "the rest has its defaults"


def test_a_server_that_is_there_already(tmp_path: Path) -> None:
    args = SMALL | {"generate_captions": True, "captioning_algorithm": "openai", "openai_model_name": "gpt-x",
                    "vlm_filter": "score-only", "vlm_filter_endpoint": "gemini"}  # fmt: skip
    spec, made = imported(tmp_path, ("split", args))
    caption, semantic = spec.stages["caption"].settings, spec.stages["semantic"].settings
    assert (caption.model, caption.endpoint.key, caption.endpoint.retries) == ("gpt-x", "OPENAI_API_KEY", 3)
    assert semantic.model == "gemini-2.5-pro" and "googleapis" in semantic.endpoint.url
    assert semantic.mode == "score-only" and semantic.unparsable == "keep"
    assert spec.secrets == ("GEMINI_API_KEY", "OPENAI_API_KEY")
    assert "config.yaml" in lost(made)["captioning_algorithm"]


@pytest.mark.parametrize(("algorithm", "keys"), [("qwen", ()), ("gemini", ("GEMINI_API_KEY",))])
def test_a_server_that_writes_captions_out(tmp_path: Path, algorithm: str, keys: tuple[str, ...]) -> None:
    args = SMALL | {"generate_captions": True, "captioning_algorithm": algorithm, "enhance_captions": True,
                    "enhance_captions_lm_variant": "openai", "enhance_captions_openai_model": "gpt-x"}  # fmt: skip
    spec, _ = imported(tmp_path, ("split", args))
    assert spec.stages["caption"].settings.enhance.endpoint.key == "OPENAI_API_KEY"
    assert spec.secrets == (*keys, "OPENAI_API_KEY")


def test_what_has_no_counterpart_is_told(tmp_path: Path) -> None:
    args = SMALL | {
        "vlm_filter": "enable", "generate_captions": True,
        "super_resolution": True, "enable_sam3": False, "captioning_remainder_threshold": 10, "spliting_algorithm": "x",
        "transcode_max_output_frames": 186, "transcode_cpus_per_worker": 3.0, "motion_score_batch_size": 8,
        "transnetv2_gpus_per_worker": 0.5, "limit": None, "upload_clip_info_in_lance": True, "stage_save": "x",
        "vllm_sampling_temperature": 0.7, "aesthetic_reduction": "mean",
    }  # fmt: skip
    _, made = imported(tmp_path, ("split", args))
    assert sorted(one.key for one in made.left if one.lost) == [
        "captioning_remainder_threshold", "spliting_algorithm", "super_resolution", "transcode_max_output_frames",
        "upload_clip_info_in_lance",
    ], "each once"  # fmt: skip
    by_key = {one.key: one for one in made.left}
    assert by_key["spliting_algorithm"].do == "did you mean splitting_algorithm?"
    assert "not enabled" in by_key["aesthetic_reduction"].why and "enable_sam3" not in by_key
    for one in made.left:
        assert one.key in made.text and one.why and one.do


def test_names_of_the_command_line(tmp_path: Path) -> None:
    args = {"--input-video-path": "s3://b/raw", "output-clip-path": "s3://b/v0", "no-generate-embeddings": True,
            "--no-generate-captions": True, "qwen-filter": "enable", "qwen-video-classifier-block": "pets",
            "--qwen-video-classifier": "enable", "transnetv2-min-length-frames": 120}  # fmt: skip
    spec, made = imported(tmp_path, ("split", args))
    assert list(spec.stages) == ["clips", "semantic", "classify"] and lost(made) == {}
    assert spec.stages["classify"].settings.block == ("pets",)
    assert spec.stages["clips"].settings.split.min_frames == 120


def test_kinds_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "kinds.txt").write_text("rain\nsnow\n")
    args = SMALL | {"video_classifier": "enable", "video_classifier_use_custom_categories": True,
                    "video_classifier_allow": ["sea side", "rain"], "video_classifier_block": ["snow"]}  # fmt: skip
    spec, _ = imported(tmp_path, ("split", args))
    assert spec.stages["classify"].settings.labels == ("rain", "sea_side", "snow")
    args = SMALL | {"video_classifier": "enable", "video_classifier_block_file": str(tmp_path / "kinds.txt")}
    spec, _ = imported(tmp_path, ("split", args))
    assert spec.stages["classify"].settings.labels == spec.stages["classify"].settings.block == "rain\nsnow"


@pytest.mark.parametrize(
    ("prompt", "loaded"),
    [
        (PROMPT, PROMPT),
        ("Say: {what} #1 - 'yes' | \"no\" > & * ! % @ `\\n` \t end", None),
        ("  two lines \n\n\n with  spaces at their ends  \nend", None),
        ("- a\n- b: c\n  d", None),
        ("Umlaute, 中文 and é\u2028next\r\nline\x07", "Umlaute, 中文 and é\nnext\nline"),
        ("word " * 300 + "end", None),
    ],
)
def test_prompts_come_through_as_they_are(tmp_path: Path, prompt: str, loaded: str | None) -> None:
    spec, _ = imported(tmp_path, ("split", SPLIT | {"captioning_prompt_text": prompt}))
    assert spec.stages["caption"].settings.prompt == (prompt if loaded is None else loaded)


def test_yaml_configs_and_arguments_beside_the_pipeline(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"pipeline": "split"} | SMALL))
    assert "s3://b/raw" in cosmos.convert([str(tmp_path / "c.yaml")]).text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"pipeline": "split", "args": {"input_video_path": "s3://b/x"}}', "output_clip_path: missing"),
        ('{\n"pipeline": "split", "args": {"input_video_path": "x", "output_clip_path": "y",\n"limit": "all"}}',
         "c.json:3: args.limit: 'all' is not a whole number"),
        ('{"pipeline": "image", "args": {}}', "none that can be taken over: split, dedup, shard"),
        ('{"pipeline": "split", }', "not JSON"),
        ('["x"]', "not a pipeline config"),
    ],
)  # fmt: skip
def test_a_wrong_config_says_where(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(SpecErrors, match=r"(?s).*" + words.replace("(", r"\(")):
        cosmos.convert([str(tmp_path / "c.json")])


def test_configs_that_do_not_belong_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not about the same clips"):
        imported(tmp_path, ("split", SMALL), ("split", SMALL | {"input_video_path": "s3://b/other"}))
    with pytest.raises(ValueError, match="the splits write s3://b/v0"):
        imported(tmp_path, ("split", SMALL), ("shard", SHARD))
    with pytest.raises(ValueError, match="no embeddings"):
        imported(tmp_path, ("split", SMALL), ("dedup", DEDUP | {"input_embeddings_path": "s3://b/v0"}))
    with pytest.raises(ValueError, match="'qwen9' is no model"):
        imported(tmp_path, ("split", SPLIT | {"captioning_algorithm": "qwen9"}))


def test_the_verb(tmp_path: Path) -> None:
    for name, pipeline, args in (("a", "split", SPLIT), ("b", "shard", SHARD)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"pipeline": pipeline, "args": args}))
    done = runs.hpc("import-cosmos", tmp_path / "a.json", tmp_path / "b.json")
    assert yaml.safe_load(done.stdout)["name"] == "processed_data-v0"
    assert "not taken over: " in done.stderr and "embedding_algorithm" in done.stderr
    facts = runs.facts("import-cosmos", tmp_path / "a.json", "--output", tmp_path / "x.yaml")
    assert (tmp_path / "x.yaml").read_text() == facts["spec"] and facts["left"][0]["key"] == "embedding_algorithm"
    again = runs.hpc("import-cosmos", tmp_path / "a.json", "--output", tmp_path / "x.yaml", code=2)
    assert "File exists" in again.stderr
    (tmp_path / "c.json").write_text(json.dumps({"pipeline": "split", "args": SMALL | {"transnetv2_threshold": 7}}))
    assert "7 is not a probability" in runs.hpc("import-cosmos", tmp_path / "c.json", code=2).stderr


def test_every_argument_is_read_somewhere() -> None:
    source = Path(cosmos_stages.__file__).read_text() + Path(cosmos.__file__).read_text()
    for kind in cosmos_args.PIPELINES.values():
        unread = {key for key in kind.__struct_encode_fields__ if key not in source}
        sampling = {f"vllm_sampling_{name}" for name in ("presence_penalty", "frequency_penalty", "min_p")}
        assert unread <= sampling | {"min_clips_per_tar", "input_semantic_dedup_s3_profile_name"}
