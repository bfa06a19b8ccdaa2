"""Coming from Cosmos-Curate: its pipeline configs as one spec of ours, and what of them has no counterpart.

    made = convert(["split.json", "dedup.json", "shard.json"])
    made.text                       # the spec, YAML with comments; hpc.batch.spec.load reads it
    made.left                       # every key that says nothing in it, why, and what to do

Its configs are {"pipeline": "split" | "dedup" | "shard", "args": {...}} (JSON or YAML; its command line's names with
dashes do too). What is not given there has the default of Cosmos-Curate; the spec writes it out where ours is another.
"""

from __future__ import annotations

import json
import re
import tempfile
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hpc.batch import cosmos_stages as stages
from hpc.batch import yaml_lines
from hpc.batch.cosmos_args import Args, Block, Dedup, Left, Split, left_over, read
from hpc.batch.spec import load
from hpc.batch.yaml_lines import Problem, SpecErrors


class Imported(msgspec.Struct, frozen=True):
    text: str
    left: list[Left]


def convert(files: Sequence[str]) -> Imported:
    """One spec of all these configs: splits, of which each but the first captions the clips of an earlier one again,
    and at most one "dedup" and one "shard" of what they made. Raises SpecErrors, ValueError for what is wrong."""
    problems: list[Problem] = []
    configs = [args for file in files if (args := read(file, problems)) is not None]
    if problems:
        raise SpecErrors(problems)
    splits = [args for args in configs if args.pipeline == "split"]
    rest = {args.pipeline: args for args in configs if args.pipeline != "split"}
    if len(splits) + len(rest) < len(configs):
        raise ValueError("a spec has one dedup and one shard: give one config of each")
    heading = [f"From {', '.join(Path(file).name for file in files)} of Cosmos-Curate, by `hpc import-cosmos`. "
               "Settings that are not here have the same default there."]  # fmt: skip
    given = bool(splits)
    if not given:
        splits = [alone(rest)]
    first, *others = ordered(splits)
    spec = Block({"name": name(first.output_clip_path), "inputs": stages.inputs(first)})
    spec["output"] = stages.profiled(stages.place(first.output_clip_path), first.output_s3_profile_name)
    made = spec["stages"] = Block({"clips": stages.clips(first)})
    if stages.whole(first):
        made.say("clips", AGAIN if given else ALONE)
    judged = verdicts(first, made)
    captions = {clean(first.output_clip_path): annotate(first, made, judged, "")}
    for number, other in enumerate(others, 2):
        captions[clean(other.output_clip_path)] = annotate(other, made, judged, str(number))
    if given:
        matched(rest, captions)
    elif "shard" in rest:
        made["caption"] = stages.caption_import(rest["shard"], list(judged))
        captions = {clean(first.output_clip_path): ["caption"]}
    finish(rest, made, judged, captions)
    asked = [one for block in made.values() for one in (block, block.get("enhance", {}))]
    secrets = {block["endpoint"]["key"] for block in asked if "endpoint" in block}
    if secrets:
        spec["secrets"] = sorted(secrets)
    left = [one for args in configs for one in left_over(args)]
    left += [] if given else first.left
    return Imported(text(spec, heading, left), left)


def check(made: Imported) -> None:
    """Is it a spec? Values that Cosmos-Curate takes can be too much for ours. Raises SpecErrors, with lines of it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spec.yaml"
        file.write_text(made.text)
        load(file, check_paths=False)


ALONE = (
    "Each input is one clip, as the split wrote it; nothing is encoded. Clips get ids of our own, of their paths; the "
    "names of the files, Cosmos-Curate's ids, are in the column `source`."
)
AGAIN = (
    "Each input is one clip: that is how Cosmos-Curate captions clips again. Here clips are copied, and nothing is "
    "encoded. Where a spec of ours made the clips, none of this is needed: change its caption.prompt and run it again. "
    "The captions become caption@v2, and clips, embeddings and previews stay as they are. (Or give both configs: hpc "
    "import-cosmos split.json recaption.json makes the new captions a layer beside the first.)"
)


def alone(rest: Mapping[str, Args]) -> Args:
    """The split that a dedup or shard config is about, when it is not given: the clips that it wrote, as they are."""
    args = rest.get("shard") or rest["dedup"]
    key = "input_clip_path" if args.pipeline == "shard" else "input_embeddings_path"
    source = re.sub(r"/[a-z0-9_]+_embd\w*$", "", clean(getattr(args, key)))
    given = {
        "input_video_path": f"{source}/clips",
        "output_clip_path": args.output_dataset_path if args.pipeline == "shard" else args.output_path,
        "input_s3_profile_name": args.input_s3_profile_name,
        "output_s3_profile_name": args.output_s3_profile_name,
        "splitting_algorithm": "fixed-stride",
        "fixed_stride_split_duration": float(stages.WHOLE),
        "fixed_stride_min_clip_length_s": 0.0,
        "generate_embeddings": "dedup" in rest or args.input_semantic_dedup_path is not None,
        "generate_captions": False,
    }
    if given["generate_embeddings"]:
        do = "give the split's config as well (hpc import-cosmos split.json ...), so that one run makes both"
        args.lose(key, f"embeddings in {source} are not read: they are made anew from the clips", do)
    return Args(args.file, "split", Split(**given), given)


def ordered(splits: Sequence[Args]) -> list[Args]:
    """The split that makes the clips, then those that caption them again. Raises ValueError without such an order."""
    outputs = {clean(args.output_clip_path) for args in splits}
    again = [args for args in splits if stages.whole(args) and source(args) in outputs]
    first = [args for args in splits if args not in again]
    if len(first) != 1:
        raise ValueError(
            f"{' and '.join(args.file for args in first or splits)}: these splits are not about the same clips: import "
            "each into a spec of its own"
        )
    return first + again


def source(args: Args) -> str:
    """The output of the split whose clips are the inputs."""
    return clean(args.input_video_path).removesuffix("/clips")


def verdicts(args: Args, made: Block) -> list[str]:
    """Adds the stages that judge clips by asking a model. All that clips have to pass, by name."""
    needs = ["clips"]
    for key, make in (("vlm_filter", stages.semantic), ("video_classifier", stages.classify)):
        if getattr(args, key) != "disable":
            stage = {"vlm_filter": "semantic", "video_classifier": "classify"}[key]
            made[stage] = make(args, list(needs))
            needs.append(stage)
    return needs


def annotate(args: Args, made: Block, judged: list[str], number: str) -> list[str]:
    """Adds captions and embeddings; the names of the stages with captions (and their embeddings) of this split."""
    if args.generate_embeddings and "embed" not in made:
        made["embed"] = stages.embed(args, list(judged))
    if not args.generate_captions:
        return []
    caption = f"caption{number}"
    made[caption] = stages.caption(args, list(judged))
    if number:
        made.say(caption, f"The captions of {Path(args.file).name}, beside those before.")
    names = [caption]
    if args.generate_cosmos_predict_dataset == "predict2":
        names.append(embedded(made, caption, number))
        made[f"predict2{number}"] = stages.predict2(args, [*judged, *names])
    return names


def embedded(made: Block, caption: str, number: str) -> str:
    made[f"text_embed{number}"] = stages.text_embed(caption)
    return f"text_embed{number}"


def matched(rest: Mapping[str, Args], captions: Mapping[str, list[str]]) -> None:
    """Raises ValueError for a dedup or shard config that is not about what these splits wrote."""
    for pipeline, key in (("dedup", "input_embeddings_path"), ("shard", "input_clip_path")):
        if pipeline not in rest:
            continue
        about = clean(getattr(rest[pipeline], key))
        if not any(about == output or about.startswith(f"{output}/") for output in captions):
            raise ValueError(
                f"{rest[pipeline].file}: {key} is {about}, and the splits write {' and '.join(captions)}: give the "
                "split that belongs to it, or import each alone"
            )


def finish(rest: Mapping[str, Args], made: Block, judged: list[str], captions: Mapping[str, list[str]]) -> None:
    """Adds dedup and shard."""
    needs = list(judged)
    sharding = rest.get("shard")
    wanted = sharding is not None and sharding.input_semantic_dedup_path is not None
    if "dedup" in rest or wanted:
        if "embed" not in made:
            raise ValueError(f"{(rest.get('dedup') or rest['shard']).file}: the split makes no embeddings to compare")
        args = rest.get("dedup")
        eps = sharding.semantic_dedup_epsilon if sharding is not None and wanted else None
        if args is None:
            args = Args(rest["shard"].file, "dedup", Dedup(input_embeddings_path="", output_path=""), {})
            rest["shard"].lose("input_semantic_dedup_path", "decisions are not read: they are made anew", "nothing")
        made["dedup"] = stages.dedup(args, ["clips", "embed"], eps)
        args.read |= {"input_embeddings_path", "output_path"}
        needs += ["dedup"] * wanted
    if sharding is None:
        return
    names = captions.get(clean(sharding.input_clip_path), next(iter(captions.values())))
    sharding.read |= {"input_clip_path", "output_dataset_path"}
    if names:
        number = names[0].removeprefix("caption")
        names = [names[0], f"text_embed{number}"]
        if names[1] not in made:
            embedded(made, names[0], number)
    made["shard"] = stages.shard(sharding, [*needs, *names])
    made.say("shard", f"Written to <output>/shard@v1 ({sharding.output_dataset_path} there): a spec has one output.")


def clean(uri: str) -> str:
    return stages.place(uri).rstrip("/")


def name(output: str) -> str:
    """Of a spec, from the last two parts of its output: s3://bucket/traffic/v0 -> traffic-v0."""
    parts = [re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-._") for part in output.rstrip("/").split("/")[-2:]]
    return "-".join(part for part in parts if part)[-64:].lstrip("-._") or "imported"


def text(spec: Block, heading: Sequence[str], left: Sequence[Left]) -> str:
    """The spec as YAML. Comments stand above their keys, what was left over at the end."""
    lines = [*_comment(heading), *_lines(spec, "")]
    for lost, words in ((True, "Not taken over:"), (False, "Not needed:")):
        told = [f"- {Path(one.file).name}: {one}" for one in left if one.lost == lost]
        lines += ["", f"# {words}", *_comment(told, hang="  ")] if told else []
    return "\n".join(lines) + "\n"


def _lines(block: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for key, value in block.items():
        if isinstance(block, Block) and key in block.words:
            lines += _comment([block.words[key]], indent)
        short = "" if isinstance(value, Block) and _told(value) else f"{indent}{key}: {_flow(value)}"
        if isinstance(value, dict) and ("kind" in value or key == "stages" or not 0 < len(short) < 110):
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
        elif isinstance(value, dict | list) and len(short) < 110:
            lines.append(short)
        elif isinstance(value, str) and _literal(value):
            lines += [f"{indent}{key}: |-", *((f"{indent}  {line}" if line else "") for line in value.split("\n"))]
        else:
            lines += [indent + line for line in yaml_lines.dump({key: value}).rstrip("\n").split("\n")]
    return lines


def _told(block: Block) -> bool:
    """Are there comments in it?"""
    return bool(block.words) or any(isinstance(value, Block) and _told(value) for value in block.values())


def _flow(value: Any) -> str:
    """As {a: 1, b: [2, 3]}."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    plain = isinstance(value, str) and yaml_lines.dump([value]) == f"- {value}\n" and not set(value) & set(",[]{}:#")
    return value if plain else json.dumps(value, ensure_ascii=False)


def _literal(value: str) -> bool:
    """Can a text of several lines stand as it is?"""
    rows = value.split("\n")
    whole = all(row.isprintable() and row == row.rstrip() for row in rows)
    return len(rows) > 1 and whole and bool(rows[0]) and bool(rows[-1]) and not rows[0].startswith(" ")


def _comment(paragraphs: Iterable[str], indent: str = "", hang: str = "") -> list[str]:
    return [
        f"{indent}# {line}"
        for words in paragraphs
        for line in textwrap.wrap(words, 118 - len(indent), subsequent_indent=hang, break_long_words=False)
    ]
