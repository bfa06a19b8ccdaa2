"""Flags that no test runs do not exist: every choice that a spec can make of training, conversion and generation stands
here beside a test that runs it, and the JSON Schema says which choices there are.

Choices are enum values, true and false, and the parallel axes (counts in `layout` and `mesh`), of which 2 is asked for.
A test is named as file::function. It must be there, and name the value, itself or in a helper, fixture, parameter or
table of tests/ that it uses: a string by itself, others by the setting's name. A default needs no name; a test runs it
by saying nothing. Degrees above 2 of one axis (tensor 4, 8) run what 2 runs. tests/gpu run on a GPU alone.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from test_generate import models
from torch import nn

from hpc.batch import spec
from hpc.batch.kinds import KINDS, settings_of
from hpc.generate import diffusion as generating
from hpc.models import dit_files
from hpc.models.dit import DiT
from hpc.train import ar, diffusion, ema, fsdp, tokenizer
from hpc.train.ranks import Here
from hpc.train.settings import TrainAr, TrainDiffusion, TrainTokenizer
from hpc.train.settings.data import Shape
from hpc.train.settings.optimizer import Optimizer
from hpc.train.settings.tokenizer import Sizes

__all__ = ["models"]  # the fixture

ROOT = Path(__file__).parents[1]
AXES = ("layout", "mesh")
"""Settings whose whole numbers are parallel axes."""
CHECKED = [kind for kind in KINDS if kind.startswith(("train.", "convert.", "generate.")) and "-" not in kind]
"""Without the parts that a stage becomes, which have its settings."""

ENGINE = "test_ar_engine.py::test_the_losses_are_the_same"
AR_GPU = "gpu/test_ar_gpu.py::test_every_way_to_compute_learns_alike"
DIT = "test_train_diffusion.py"
DIT_INPUT = "test_diffusion_input.py"
DIT_GPU = "gpu/test_diffusion_gpu.py"
TOKENIZER = "test_train_tokenizer.py"
RATES = {"cosine": "test_training_shared.py::test_the_rate_of_each_step",
         "linear": "test_training_shared.py::test_the_rate_of_each_step",
         "constant": "test_training_shared.py::test_the_rate_of_each_step"}  # fmt: skip
FITS = dict.fromkeys(("crop", "pad", "stretch"), "test_loader.py::test_pictures_are_cut_padded_or_stretched")
HELD_OUT = {"source": "test_training_shared.py::test_sources_are_held_out_whole",
            "clip": f"{DIT}::test_it_learns_and_measures"}  # fmt: skip
TRACKERS = {"tensorboard": "test_trackers.py::test_tensorboard_reads_each_step_once",
            "wandb": "test_trackers.py::test_wandb_without_a_network_has_each_step_once"}  # fmt: skip
SIZES = "test_ar_model.py::test_the_sizes_of_the_presets"
STARTED = "test_flags.py::test_trainers_start_deterministic"
SOLVERS = "test_diffusion.py::test_samples_have_the_mean_and_variance_of_the_data"

RUN: dict[str, dict[str, dict[str, str]]] = {
    "train.ar": {
        "model": {
            "ar-4b": SIZES, "ar-12b": SIZES, "ar-5b-video2world": SIZES, "ar-13b-video2world": SIZES,
            "ar-5b-action": SIZES, "ar-13b-action": SIZES, "ar-tiny": "test_train_ar.py::test_from_films_to_a_model",
            "ar-tiny-video2world": "test_train_ar.py::test_prompts",
            "ar-tiny-action": "test_post_training.py::test_train_ar_on_actions",
        },
        "layout.tensor": {"2": ENGINE}, "layout.pipeline": {"2": ENGINE}, "layout.context": {"2": ENGINE},
        "layout.sequence": {"True": ENGINE, "False": ENGINE},
        "precision": {
            "fp32": ENGINE, "bf16": "test_ar_engine.py::test_bfloat16_is_near", "fp8-delayed": AR_GPU,
            "fp8-current": AR_GPU, "fp8-blockwise": AR_GPU,
        },
        "recompute": {"none": ENGINE, "selective": ENGINE, "full": ENGINE},
        "kernels": {"auto": ENGINE, "torch": AR_GPU, "fused": AR_GPU},
        "optimizer.decay": RATES,
        "metrics[]": TRACKERS,
        "reshard": {
            "True": "test_train_ar.py::test_with_reshard_another_layout_takes_every_checkpoint",
            "False": "test_train_ar.py::test_another_layout_takes_the_last_checkpoint_alone",
        },
        "deterministic": {"True": ENGINE, "False": ENGINE},
    },
    "train.diffusion": {
        "average": dict.fromkeys(("True", "False"), f"{DIT}::test_a_checkpoint_to_files_and_back"),
        "fit": FITS,
        "text.source": {
            "pickles": f"{DIT_INPUT}::test_videos_and_texts_as_predict2_has_them",
            "encoder": f"{DIT_INPUT}::test_videos_and_texts_as_predict2_has_them",
            "none": f"{DIT}::test_other_models_are_trained_and_published",
        },
        "mesh.dp_replicate": {"2": "test_diffusion_ranks.py::test_ranks_learn_what_one_does"},
        "mesh.dp_shard": {"2": "test_diffusion_ranks.py::test_ranks_learn_what_one_does"},
        "mesh.cp": {"2": "test_diffusion_ranks.py::test_ranks_learn_what_one_does"},
        "precision": {
            "bf16": f"{DIT_GPU}::test_fp8_is_near_bf16_and_not_the_same",
            "fp32": f"{DIT_GPU}::test_an_update_in_one_pass_learns_the_same",
            **dict.fromkeys(("fp8-current", "fp8-delayed", "fp8-blockwise"),
                            f"{DIT_GPU}::test_gradients_of_fsdp_are_those_of_one_gpu"),
        },
        "recompute": dict.fromkeys(("none", "matmuls", "attention", "blocks"),
                                   f"{DIT}::test_parts_of_a_share_and_recompute_change_nothing"),
        "spared": dict.fromkeys(("none", "matmuls", "attention", "blocks"),
                                f"{DIT_GPU}::test_kernels_have_the_gradients_of_torchs_operators"),
        "compile": dict.fromkeys(("True", "False"), f"{DIT_GPU}::test_compiled_blocks_learn_the_same"),
        "kernels": {
            "auto": f"{DIT}::test_it_learns_and_measures",
            "torch": f"{DIT_GPU}::test_kernels_have_the_gradients_of_torchs_operators",
            "fused": f"{DIT_GPU}::test_kernels_have_the_gradients_of_torchs_operators",
        },
        "optimizer.decay": RATES,
        "validation.by": HELD_OUT,
        "metrics[]": TRACKERS,
        "deterministic": {"True": STARTED, "False": f"{DIT}::test_it_learns_and_measures"},
        "decode": {
            "cpu": f"{DIT}::test_it_learns_and_measures",
            "auto": f"{DIT_INPUT}::test_videos_and_texts_as_predict2_has_them",
            "gpu": f"{DIT_INPUT}::test_videos_and_texts_as_predict2_has_them",
        },
    },
    "train.tokenizer": {
        "tokenizer.family": dict.fromkeys(("cosmos-dv", "cosmos-cv", "wan"),
                                          f"{TOKENIZER}::test_what_is_published_can_be_loaded_and_does_the_same"),
        "fit": FITS,
        "optimizer.decay": RATES,
        "validation.by": HELD_OUT,
        "metrics[]": TRACKERS,
        "precision": dict.fromkeys(("bf16", "fp32"), "gpu/test_train_gpu.py::test_bfloat16_and_compiled_are_near"),
        "compile": dict.fromkeys(("True", "False"), "gpu/test_train_gpu.py::test_bfloat16_and_compiled_are_near"),
        "deterministic": dict.fromkeys(("True", "False"),
                                       "gpu/test_train_gpu.py::test_it_learns_and_goes_on_to_the_last_bit"),
        "weights": {"float32": f"{TOKENIZER}::test_what_is_published_can_be_loaded_and_does_the_same",
                    "bfloat16": "test_flags.py::test_a_tokenizer_is_kept_in_bfloat16"},
        "decode": {
            "cpu": f"{TOKENIZER}::test_it_learns_and_measures",
            "auto": "test_decode.py::test_who_decodes",
            "gpu": "gpu/test_decode_gpu.py::test_batches_of_training",
        },
        "in_memory": {"True": "gpu/test_train_gpu.py::test_it_learns_and_goes_on_to_the_last_bit",
                      "False": f"{TOKENIZER}::test_it_learns_and_measures"},
    },
    "convert.ar": {
        "forms[]": {
            **dict.fromkeys(("model.pt", "model.safetensors", "nemo"),
                            "test_convert_ar.py::test_a_stage_makes_all_forms"),
            "adapters.safetensors":
                "test_post_training.py::test_checkpoints_have_adapters_alone_and_are_converted_with_the_rest",
        },
    },
    "convert.diffusion": {},
    "generate.ar": {
        "tensor": {"1": "test_generate_ar.py::test_ranks_make_what_one_makes",
                   "2": "test_generate_ar.py::test_ranks_make_what_one_makes"},
        "precision": {"float32": "test_generate_ar.py::test_from_tokens_to_videos",
                      "bfloat16": "gpu/test_generate_ar_gpu.py::test_graphs_give_the_ids_of_plain_steps"},
    },
    "generate.diffusion": {
        "average": dict.fromkeys(("True", "False"), "test_flags.py::test_videos_are_made_by_the_average_of_a_file"),
        "context": {"1": "test_generate.py::test_ranks_that_share_frames_make_what_one_makes",
                    "2": "test_generate.py::test_ranks_that_share_frames_make_what_one_makes"},
        "solver": dict.fromkeys(("multistep", "heun", "unipc", "euler"), SOLVERS),
        "schedule": dict.fromkeys(("karras", "karras-zero", "shifted", "flow-karras"), SOLVERS),
        "precision": {"float32": "test_generate.py::test_prompts_of_all_formats_become_videos",
                      "bfloat16": "gpu/test_dit_gpu.py::test_bfloat16_is_near_float32"},
    },
}  # fmt: skip


@functools.cache
def schema() -> dict[str, Any]:
    return spec.schema()["$defs"]


def choices(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, str, bool]]:
    """(setting, value, is it the default?) of each choice in a schema."""
    default = node.get("default")
    if "$ref" in node:
        node = schema()[node["$ref"].rpartition("/")[2]]
    for value in node.get("enum", [True, False] if node.get("type") == "boolean" else []):
        yield path, str(value), value == default and type(value) is type(default)
    if node.get("type") == "integer" and path.split(".")[0] in AXES and "." in path:
        yield path, "2", False
    for one in node.get("anyOf", []):
        yield from choices({"default": default} | one, path)
    if isinstance(node.get("items"), dict):
        yield from choices(node["items"], f"{path}[]")
    if isinstance(node.get("propertyNames"), dict):
        yield from choices(node["propertyNames"], path)
    for name, child in node.get("properties", {}).items():
        yield from choices(child, f"{path}.{name}" if path else name)


def of_kind(kind: str) -> dict[str, dict[str, bool]]:
    """{setting: {value: is it the default?}}, without what all stages have."""
    common = {"kind", "needs", "resources", "required", "throttle", "starts", "image"}
    found: dict[str, dict[str, bool]] = {}
    for name, child in schema()[kind]["properties"].items():
        for path, value, default in choices(child, name) if name not in common else ():
            found.setdefault(path, {})[value] = default or found.get(path, {}).get(value, False)
    return found


def stands_for(kind: str, setting: str, value: str) -> str:
    """Of a degree above 2 the 2."""
    of = of_kind(kind)[setting]
    return "2" if value.isdigit() and int(value) > 2 and "2" in of else value


def missing(kind: str) -> list[str]:
    """What nothing runs, and what is no choice."""
    known, there = RUN.get(kind, {}), of_kind(kind)
    out = [f"{kind}: {setting}: {value}: no test runs it: name one in RUN, or take the choice away"
           for setting, values in there.items() for value in values
           if stands_for(kind, setting, value) not in known.get(setting, {})]  # fmt: skip
    return out + [f"{kind}: {setting}: {value}: there is no such choice"
                  for setting, values in known.items() for value in values if value not in there.get(setting, {})
                  ]  # fmt: skip


class Source(NamedTuple):
    text: str
    uses: frozenset[tuple[Path, str]]
    """(file, name), of which some are of Python or of what is tested, and are in no file of tests."""


@functools.cache
def defined(file: Path) -> dict[str, Source]:
    """What a file of tests has at its top, by name: tests, helpers, fixtures, tables, and what it takes from others."""
    found: dict[str, Source] = {}
    rows = file.read_text().splitlines()
    for one in ast.parse(file.read_text()).body:
        if isinstance(one, ast.ImportFrom):
            places = [place for place in (file.parent, ROOT / "tests") if (place / f"{one.module}.py").is_file()]
            found |= {name.asname or name.name: Source("", frozenset([(places[0] / f"{one.module}.py", name.name)]))
                      for name in one.names if places}  # fmt: skip
        elif isinstance(one, (ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)):
            within = list(ast.walk(one))
            names = {node.id: node.ctx for node in within if isinstance(node, ast.Name)}
            asked = {node.arg for node in within if isinstance(node, ast.arg)}  # fixtures
            begin = min(node.lineno for node in (one, *getattr(one, "decorator_list", ())))
            source = Source("\n".join(rows[begin - 1 : one.end_lineno]),
                            frozenset((file, name) for name in names.keys() | asked))  # fmt: skip
            mine = [one.name] if isinstance(one, (ast.FunctionDef, ast.ClassDef)) else [
                name for name, use in names.items() if isinstance(use, ast.Store)]  # fmt: skip
            found |= dict.fromkeys(mine, source)
    return found


@functools.cache
def reached(file: Path, name: str) -> str:
    """The source of a test and of all in tests/ that it uses; not of modules that it imports whole."""
    seen: dict[tuple[Path, str], str] = {}
    ahead = {(file, name)}
    while ahead:
        place = ahead.pop()
        if one := defined(place[0]).get(place[1]):
            seen[place] = one.text
            ahead |= one.uses - seen.keys()
    return "\n".join(seen.values())


def wrong(kind: str, setting: str, value: str, test: str) -> str:
    """Why a test cannot be the one that runs a choice; "" if it can."""
    file, _, name = test.partition("::")
    path = ROOT / "tests" / file
    if not path.is_file():
        return f"there is no tests/{file}"
    if name not in defined(path):
        return f"there is no {name} in tests/{file}"
    if of_kind(kind)[setting].get(value):
        return ""
    last = re.split(r"[.\[]", setting.removesuffix("[]"))[-1]
    word = last if value in ("True", "False") or value.isdigit() else value
    source = reached(path, name)
    if setting == "model" and "PRESETS.values()" in source:  # it goes through all of them
        return ""
    return "" if re.search(rf"\b{re.escape(word)}\b", source.replace("_", "-") if "-" in word else source) else (
        f"{name} and what it uses in tests/ never name {word}")  # fmt: skip


@pytest.mark.parametrize("kind", CHECKED)
def test_every_choice_has_a_test(kind: str) -> None:
    found = missing(kind)
    assert not found, "\n".join(found)
    bad = [f"{kind}: {setting}: {value}: {why}" for setting, values in RUN.get(kind, {}).items()
           for value, test in values.items() if (why := wrong(kind, setting, value, test))]  # fmt: skip
    assert not bad, "\n".join(bad)


def test_a_choice_without_a_test_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = json.loads(json.dumps(schema()))
    changed["train.ar"]["properties"]["precision"]["enum"].append("fp4")
    changed["train.settings.ar.Layout"]["properties"]["expert"] = {"type": "integer", "default": 1}
    changed["train.ar"]["properties"]["sparse"] = {"type": "boolean", "default": False}
    del changed["train.ar"]["properties"]["reshard"]
    monkeypatch.setattr("test_flags.schema", lambda: changed)
    found = "\n".join(missing("train.ar"))
    for words in ("precision: fp4: no test", "layout.expert: 2: no test", "sparse: True: no test",
                  "reshard: True: there is no such choice"):  # fmt: skip
        assert f"train.ar: {words}" in found
    assert wrong("train.ar", "precision", "fp4", "test_train_ar.py::test_prompts").endswith("never name fp4")
    elsewhere = wrong("train.ar", "layout.tensor", "2", "test_train_ar.py::test_prompts")
    assert elsewhere == "test_prompts and what it uses in tests/ never name tensor", "another test of the file does"
    assert wrong("train.ar", "precision", "bf16", "test_train_ar.py::test_gone").startswith("there is no test_gone")
    assert wrong("train.ar", "precision", "bf16", "gone.py::test_x") == "there is no tests/gone.py"


# Choices that nothing else runs

SHAPE = (Shape(frames=17, height=64, width=96, batch=1),)


def test_trainers_start_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """...by what torch is told, before anything is computed."""
    monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1")
    made = [
        (ar, TrainAr(model="ar-tiny", steps=1, batch=1, deterministic=True)),
        (diffusion, TrainDiffusion(model="tiny-predict2", shapes=SHAPE, steps=200, deterministic=True)),
        (tokenizer, TrainTokenizer(tokenizer=Sizes(family="wan"), shapes=SHAPE, steps=1, deterministic=True,
                                   optimizer=Optimizer(warmup=0))),
    ]  # fmt: skip
    try:
        for module, settings in made:
            torch.use_deterministic_algorithms(False)
            module.start(settings)
            assert torch.are_deterministic_algorithms_enabled(), settings.KIND
    finally:
        torch.use_deterministic_algorithms(False)
        torch.distributed.destroy_process_group()


def test_a_tokenizer_is_kept_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainTokenizer(
        tokenizer=Sizes(family="cosmos-dv", temporal=4, spatial=8, channels=8, multipliers=(1, 2), levels=(8, 5, 5)),
        shapes=SHAPE, steps=1, optimizer=Optimizer(warmup=0), weights="bfloat16",
    )  # fmt: skip
    one = tokenizer.first(settings)
    mean = ema.begin(one)
    monkeypatch.setattr(fsdp, "whole", dict)
    alone = Here(0, 1, torch.device("cpu"), None, None)  # type: ignore[arg-type]
    kept = tokenizer.exported(settings, one, mean, None, alone)  # type: ignore[arg-type]
    assert {weight.dtype for weight in kept.parameters()} == {torch.bfloat16}
    for name, weight in kept.named_parameters():
        assert torch.equal(weight, mean[name].bfloat16())


@pytest.mark.parametrize("average", [False, True])
def test_videos_are_made_by_the_average_of_a_file(models: dict[str, Any], tmp_path: Path, average: bool) -> None:
    last = dit_files.load(Path(models["weights"]), None, "cpu", torch.float32)
    other = DiT(last.config)
    for weight in other.parameters():
        nn.init.normal_(weight)
    state = dit_files.exported(last.state_dict(), "predict2") | dit_files.exported(
        other.state_dict(), "predict2", "net_ema"
    )
    torch.save(state, tmp_path / "model.pt")
    more = {"weights": str(tmp_path / "model.pt"), "average": average}
    made = generating.Maker(settings_of("generate.diffusion", models | more)).model
    wanted = (other if average else last).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in made.state_dict().items())
