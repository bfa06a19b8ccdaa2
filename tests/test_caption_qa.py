"""Planted bad captions are found, each for what it is, and none of the good ones; over a data set, and in a run."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import runs
import tiny_models
import told as told_server
import torch
import yaml

from hpc.curate import caption_check, caption_qa
from hpc.curate.caption import SCHEMA as CAPTIONS
from hpc.curate.caption_check import checked, loop
from hpc.curate.language import language
from hpc.curate.settings.caption_qa import CaptionCheck, CaptionFind, CaptionQa
from hpc.data import layers, upstream
from hpc.data.work import Made, Work
from hpc.models.text_tower import open_text_tower

SUBJECTS = ("a red car", "two children", "an old man", "a black dog", "a cyclist", "a woman in a coat", "a bus")
ACTIONS = ("moves slowly along", "stops beside", "turns away from", "passes in front of", "waits near", "crosses")
PLACES = ("a wet street", "the harbour", "a market", "a bridge", "the station", "an empty field", "a tall building")
SIGHTS = ("The camera pans to the left.", "Snow is falling.", "In the background there are trees.",
          "It is early morning.", "A light comes on in a window.", "The camera follows it and then stands still.",
          "The sky is grey.")


def told(seed: int) -> str:
    """A caption as good models write them, different for each seed."""
    chance = random.Random(seed)
    parts = [f"{chance.choice(SUBJECTS).capitalize()} {chance.choice(ACTIONS)} {chance.choice(PLACES)}."]
    parts += chance.sample(SIGHTS, 4)
    parts.append(f"On a sign stands the number {seed}, and {chance.choice(SUBJECTS)} {chance.choice(ACTIONS)} it.")
    return " ".join(parts)


BAD: dict[str, tuple[str, str]] = {
    "empty": ("...", "success"),
    "truncated": (told(900_001) + " Then the", "truncated"),
    "refused": ("I’m sorry, but I can't describe this video.", "success"),
    "error": ("", "error"),
    "loop": (told(900_002) + " The man walks along the road." * 6, "success"),
    "language": ("一辆红色的汽车在夜晚湿漉漉的街道上慢慢行驶，两个人走过一家商店，商店的招牌很亮，"
                 "天空是灰色的，远处有一些树。镜头向左移动，然后停下来，一个女人站在窗前看着外面。", "success"),
    "short": ("Rain.", "success"),
    "long": (" ".join(told(n).split(". ")[-1] for n in range(910_000, 910_060)), "success"),
}  # fmt: skip
"""Flag -> (caption, status): one of each, found by itself or by its length."""


def rows_of(captions: list[tuple[str, str]], prefix: str) -> list[dict[str, Any]]:
    """Two windows a clip."""
    return [{"uuid": f"{prefix}-{i // 2:04}", "window": i % 2, "start_frame": 0, "end_frame": 255, "caption": text,
             "status": status, "detail": "the server is gone" if status == "error" else "", "prompt_tokens": 1,
             "output_tokens": 1} for i, (text, status) in enumerate(captions)]  # fmt: skip


def write(folder: Path, shard: str, rows: list[dict[str, Any]]) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    layers.write_table(folder / f"{shard}.parquet", rows, {}, CAPTIONS)
    return {".parquet": str(folder / f"{shard}.parquet")}


def work(place: Path, shard: str, rows: list[Any], **needs: dict[str, str]) -> Work:
    place.mkdir(parents=True)
    return Work(shard, [], rows, dict(needs), place, "f", lambda: None, lambda share, words: None)


def run(
    folder: Path, tables: list[list[dict[str, Any]]], settings: CaptionQa,
    replaced: tuple[tuple[str, str], ...] = (), **more: list[dict[str, str]],
) -> Made:  # fmt: skip
    """Both parts over shards of captions (and of what else is given), as their barrier plans them."""
    parts = settings.parts()
    shards = {"caption": [(f"{n:06}", write(folder / "caption", f"{n:06}", rows)) for n, rows in enumerate(tables)]}
    shards |= {name: [(f"{n:06}", objects) for n, objects in enumerate(made)] for name, made in more.items()}
    check = caption_check.start(parts["check"].settings)
    done = []
    for number in range(len(tables)):
        needs = {name: made[number][1] for name, made in shards.items()}
        place = folder / "check" / f"{number}"
        done.append((f"{number:06}", {".parquet": str(check(work(place, f"{number:06}", [], **needs)).objects[0])}))
    find = parts[""].settings
    [rows] = caption_qa.freeze(find, shards | {"qa-check": done}, set(replaced))
    return caption_qa.start(find)(work(folder / "qa", "000000", json.loads(json.dumps(rows))))


def found(made: Made) -> dict[tuple[str, int], list[str]]:
    return {(row["uuid"], row["window"]): row["flags"] for row in layers.read_table(made.objects[0]).to_pylist()}


def data_set() -> tuple[list[list[dict[str, Any]]], dict[tuple[str, int], str]]:
    """Three shards of 120 windows; what is planted: (uuid, window) -> flag."""
    planted: dict[tuple[str, int], str] = {}
    tables = []
    for shard in range(3):
        captions = [(told(1000 * shard + i), "success") for i in range(120)]
        wrong = {20 * k + shard: flag for k, flag in enumerate(list(BAD)[shard::3])}
        for at, flag in wrong.items():
            captions[at] = BAD[flag]
        for at in (7, 57):  # six times in all, with other marks
            captions[at], wrong[at] = (told(777).replace(". ", "!  ").upper(), "success"), "repeated"
        rows = rows_of(captions, f"s{shard}")
        planted |= {(rows[at]["uuid"], rows[at]["window"]): flag for at, flag in wrong.items()}
        tables.append(rows)
    return tables, planted


def test_each_planted_caption_is_found_and_no_other(tmp_path: Path) -> None:
    tables, planted = data_set()
    assert set(planted.values()) == {*BAD, "repeated"}
    made = run(tmp_path, tables, CaptionQa())
    flags = found(made)
    assert flags.keys() == planted.keys(), "none of the good ones"
    for key, flag in planted.items():
        assert flag in flags[key], (flag, flags[key])
    alone = {key: rest for key, flag in planted.items() if (rest := set(flags[key]) - {flag}) - {"short", "long"}}
    assert not alone, "each for what it is"
    rows = layers.read_table(made.objects[0]).to_pylist()
    assert {row["verdict"] for row in rows} == {"keep"} and upstream.dropped(str(made.objects[0])) == set()
    assert made.counts["windows"] == 360 and made.counts["flagged"] == len(planted) == 14
    assert made.counts["repeated_captions"] == 6 and "dropped" not in made.counts
    summary = json.loads(made.objects[1].read_text())
    assert summary["repeated"] == [{"caption": told(777).replace(". ", "!  ").upper(), "windows": 6}]
    assert summary["flags"]["loop"] == 1 and summary["languages"]["zh"] == 1
    assert "6 times" in summary["examples"]["loop"][0]["detail"]
    assert summary["examples"]["error"][0]["detail"] == "error: the server is gone"
    assert len(summary["examples"]["repeated"]) == 5
    assert sum(summary["words"]["histogram"].values()) == 358, "all but the empty one and the error"


def test_drop_makes_it_a_layer_of_verdicts(tmp_path: Path) -> None:
    tables, planted = data_set()
    made = run(tmp_path, tables, CaptionQa(drop=("refused", "error")))
    gone = {uuid for (uuid, _), flag in planted.items() if flag in ("refused", "error")}
    assert upstream.dropped(str(made.objects[0])) == gone
    assert made.counts["dropped"] == 2 and made.counts["clips"] == 178
    assert made.counts["dropped_refused"] == made.counts["dropped_error"] == 1
    assert layers.read_meta(made.objects[0])["drop"] == ["refused", "error"]


@pytest.mark.parametrize("knows", [True, False])
def test_captions_of_inputs_that_were_replaced(tmp_path: Path, knows: bool) -> None:
    """Two versions of a film with the same words are no repetition, where the clips say which are of the old one."""
    old, new = ([(told(i), "success") for i in range(40)] for _ in range(2))
    new[6] = BAD["loop"]
    tables, clips = [rows_of(old, "old"), rows_of(new, "new") + rows_of(old[:4], "last")], []
    for number, rows in enumerate(tables):
        named = dict.fromkeys(row["uuid"] for row in rows)
        told_of = [{"uuid": one, "source": "a.mp4", "etag": "2" if one.startswith("new") else "1", "cameras": None}
                   for one in named]  # fmt: skip
        layers.write_table(tmp_path / f"clips{number}.parquet", told_of, {})
        clips.append({".tar": f"{number}.tar", ".parquet": str(tmp_path / f"clips{number}.parquet")})
    more = {"clips": clips} if knows else {}
    made = run(tmp_path / "qa", tables, CaptionQa(repeated=2), (("a.mp4", "1"), ("b.mp4", "1")), **more)
    assert made.counts["windows"] == (40 if knows else 84)
    flags = found(made)
    assert ("loop" in flags["new-0003", 0]) and (len(flags) == 1) == knows
    summary = json.loads(made.objects[1].read_text())
    assert summary["examples"]["loop"][0]["caption"] == BAD["loop"][0][:397] + "..."
    assert ("repeated" in summary["flags"]) != knows


def test_a_fixed_text_a_few_captions_and_none(tmp_path: Path) -> None:
    same = run(tmp_path / "same", [rows_of([("A street.", "success")] * 40, "a")], CaptionQa())
    assert set(map(tuple, found(same).values())) == {("repeated",)} and same.counts["repeated_captions"] == 40
    few = run(tmp_path / "few", [rows_of([("Rain.", "success"), (told(1), "success")], "a")], CaptionQa())
    assert found(few) == {}, "too few to say which length is unusual"
    none = run(tmp_path / "none", [rows_of([], "a"), rows_of([], "b")], CaptionQa(drop=("empty",)))
    assert found(none) == {} and none.counts["windows"] == 0


def test_enhanced_captions(tmp_path: Path) -> None:
    rows = rows_of([(told(i), "success") for i in range(4)], "a")
    for row, enhanced in zip(rows, (told(5), "", None, told(6)), strict=True):
        row |= {"enhanced": enhanced, "enhanced_status": None if enhanced is None else "success"}
    flags = found(run(tmp_path, [rows], CaptionQa(field="enhanced")))
    assert flags == {("a-0000", 1): ["empty"], ("a-0001", 0): ["error"]}


GOOD = [
    told(1),
    "On the left, a red car. On the right, a blue car. Behind them, a white van, a black van and a yellow bus.",
    "The man walks. The man stops. The man walks again. The man sits down on a bench and looks at the sea.",
    "A sign reads 'NO NO NO'. One, two, three children run, run, run to the water.",
    "一辆红色的汽车在夜晚湿漉漉的街道上行驶，两个人走过一家商店。街道上有红色的灯，也有白色的灯。",
]
LOOPS = [
    "The car moves forward. " * 5,
    "A man walks and a man walks and a man walks and a man walks",
    "It is very " + "very " * 8 + "dark.",
    "Then the man picks up the cup. A dog barks. Then the man picks up the cup. A bird sings. Then the man picks up "
    "the cup.",
    2 * "A long sentence about a street that has many cars and people on it. ",
    "街道很宽。" + "这辆车在移动。" * 6,
]


GERMAN = "Ein rotes Auto fährt nachts durch eine nasse Straße, und zwei Menschen gehen an einem Laden vorbei."


def test_loops() -> None:
    assert [loop(text) for text in GOOD] == [""] * len(GOOD)
    assert all(loop(text) for text in LOOPS), [loop(text) for text in LOOPS]


@pytest.mark.parametrize(
    ("expected", "text", "flagged"),
    [
        ("en", GOOD[0], False),
        ("en", GERMAN, True),
        ("de", GERMAN, False),
        ("en", "A man walks along the street and past a shop whose sign says 中华, and the sky is grey.", False),
        ("en", "A man walks along the street. 街道上有很多汽车和行人在走，天空是灰色的。", True),
        ("zh", GOOD[4], False),
        ("zh", GOOD[0], True),
        ("en", "Nike Adidas Puma Reebok Asics Fila", False),  # no language
        ("en", "Rain.", False),
        (None, GOOD[4], False),
    ],
)  # fmt: skip
def test_languages(expected: str | None, text: str, flagged: bool) -> None:
    assert ("language" in checked(text, "success", "", expected)["flags"]) == flagged


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("fr", "Une voiture rouge roule dans une rue mouillée la nuit, et deux personnes passent devant un magasin."),
        ("es", "Un coche rojo circula por una calle mojada de noche mientras dos personas pasan por una tienda."),
        ("it", "Un'auto rossa percorre una strada bagnata di notte mentre due persone passano davanti a un negozio."),
        ("pt", "Um carro vermelho anda por uma rua molhada à noite enquanto duas pessoas passam em frente a uma loja."),
        ("nl", "Een rode auto rijdt 's nachts door een natte straat terwijl twee mensen langs een winkel lopen."),
        ("sv", "En röd bil kör längs en våt gata på natten medan två personer går förbi en butik."),
        ("pl", "Czerwony samochód jedzie nocą po mokrej ulicy, podczas gdy dwie osoby przechodzą obok sklepu."),
        ("tr", "Kırmızı bir araba gece ıslak bir caddede ilerliyor ve iki kişi bir dükkanın önünden geçiyor."),
        ("vi", "Một chiếc xe màu đỏ chạy trên con đường ướt vào ban đêm và hai người đi qua một cửa hàng."),
        ("id", "Sebuah mobil merah melaju di jalan yang basah pada malam hari dan dua orang melewati sebuah toko."),
        ("ru", "Красная машина едет ночью по мокрой улице, а двое людей проходят мимо магазина."),
        ("uk", "Червоний автомобіль їде вночі мокрою вулицею, а двоє людей проходять повз крамницю."),
        ("ja", "赤い車が夜の濡れた通りを走り、二人の人が店の前を通り過ぎる。"),
        ("ko", "빨간 차가 밤에 젖은 거리를 달리고 두 사람이 가게 앞을 지나간다."),
        ("ar", "سيارة حمراء تسير ليلا في شارع مبتل بينما يمر شخصان أمام متجر."),
    ],
)
def test_a_language_is_told(name: str, text: str) -> None:
    assert language(text) == (name, "")


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights, saved as published ones are."""
    import tokenizers
    import transformers

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("clip")
    words = tiny_models.tokenizer()
    words.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(  # as CLIP's has it
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", words.eos_token_id)]
    )
    text = {"vocab_size": len(words), "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 512, "eos_token_id": words.eos_token_id,
            "bos_token_id": words.pad_token_id, "pad_token_id": words.pad_token_id, "projection_dim": 64}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 16, "projection_dim": 64}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)
        model = transformers.CLIPModel(config)
        for parameter in model.parameters():
            parameter.data.mul_(4)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def embeddings(folder: Path, model: str, texts: dict[str, str], noise: float = 0.2) -> dict[str, str]:
    """As an ideal model would embed the clips that these captions describe."""
    vectors = open_text_tower(model, False)(list(texts.values()))
    vectors += noise * np.random.default_rng(0).standard_normal(vectors.shape).astype(np.float32) * vectors.std(0)
    rows = [{"uuid": uuid, "embedding": vector.tolist()} for uuid, vector in zip(texts, vectors, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([("uuid", pa.string()), ("embedding", pa.list_(pa.float32(), vectors.shape[1]))])
    layers.write_table(folder / "e.parquet", rows, {"model": model}, schema)
    return {".parquet": str(folder / "e.parquet")}


def described(tmp_path: Path, clip_model: Path, of: Any, settings: CaptionQa, count: int = 40) -> Made:
    """Captions of `of(i)`, beside clips that show what told(i) says."""
    names = [f"a-{i:04}" for i in range(count)]
    rows = [row | {"uuid": name, "window": 0} for row, name in
            zip(rows_of([(told(of(i)), "success") for i in range(count)], "x"), names, strict=True)]  # fmt: skip
    made = embeddings(tmp_path / "e", str(clip_model), {name: told(i) for i, name in enumerate(names)})
    return run(tmp_path, [rows], settings, embed=[made])


def test_captions_of_other_clips_are_found(tmp_path: Path, clip_model: Path) -> None:
    """A caption of some other clip fits its own worse than any share of the others alike: 90 % are to be found."""
    chosen = random.Random(0).sample(range(120), 40)
    swapped = dict(zip(chosen, chosen[7:] + chosen[:7], strict=True))
    settings = CaptionQa(match=str(clip_model), worse_than=0.1)
    made = described(tmp_path, clip_model, lambda i: swapped.get(i, i), settings, 120)
    flagged = {int(uuid[2:]) for (uuid, _), flags in found(made).items() if flags == ["mismatched"]}
    assert len(flagged) == len(found(made)) >= 32 and flagged <= swapped.keys(), "none of the good ones"


def test_captions_that_are_shifted_by_some_clips_are_found(tmp_path: Path, clip_model: Path) -> None:
    made = described(tmp_path, clip_model, lambda i: i + 2, CaptionQa(match=str(clip_model)))
    rows = layers.read_table(made.objects[0]).to_pylist()
    assert made.counts["shifted_captions"] >= 36 and "fits the clip 2 after better" in rows[0]["detail"]
    check = layers.read_meta(tmp_path / "check/0/000000.parquet")
    assert check["shift"] == 2
    right = described(tmp_path / "right", clip_model, lambda i: i, CaptionQa(match=str(clip_model)))
    assert right.counts["flagged"] == 0


def test_what_does_not_match_is_refused(tmp_path: Path, clip_model: Path) -> None:
    rows = rows_of([(told(1), "success")], "a")
    with pytest.raises(ValueError, match="looks at embeddings: add the stage"):
        run(tmp_path / "a", [rows], CaptionQa(match=str(clip_model)))
    other = embeddings(tmp_path / "e", str(clip_model), {"a-0000": told(1)})
    (tmp_path / "m").symlink_to(clip_model)
    with pytest.raises(ValueError, match="are no match"):
        run(tmp_path / "b", [rows], CaptionQa(match=str(tmp_path / "m")), embed=[other])
    with pytest.raises(ValueError, match="match: 'perceptual' embeds no texts"):
        CaptionQa(match="perceptual")
    with pytest.raises(ValueError, match="looks at captions: add the stage"):
        caption_check.process(CaptionCheck(), None, work(tmp_path / "c", "000000", [], embed=other))


def test_two_layers_of_captions_are_refused(tmp_path: Path) -> None:
    rows = rows_of([(told(1), "success")], "a")
    again = write(tmp_path / "again", "000000", rows)
    with pytest.raises(ValueError, match="names 2 stages that make captions: caption, again; keep one"):
        run(tmp_path / "check", [rows], CaptionQa(), again=[again])
    shards = {name: [("000000", again)] for name in ("caption", "again")}
    with pytest.raises(ValueError, match="names 2 stages that make captions: caption, again; keep one"):
        next(caption_qa.freeze(CaptionFind(), shards, set()))


def test_memory_does_not_grow_with_the_data_set(tmp_path: Path) -> None:
    """Hashes are spilled: of ten times the windows the peak is about the same."""
    peaks = []
    for tables in (4, 40):
        rows = []
        for number in range(tables):
            path = tmp_path / f"{tables}-{number}.parquet"
            chance = np.random.default_rng(number)
            hashes = chance.integers(1, 2**63, 5000).astype(np.uint64)
            hashes[:3] = 99
            table = pa.table({
                "uuid": [f"{number}-{i}" for i in range(5000)], "window": pa.array([0] * 5000, pa.int32()),
                "hash": hashes, "words": chance.integers(80, 120, 5000).astype(np.int32), "language": ["en"] * 5000,
                "fit": pa.nulls(5000, pa.float32()), "worse_than": pa.nulls(5000, pa.float32()),
                "flags": pa.array([[]] * 5000, pa.list_(pa.string())), "detail": [""] * 5000,
            }, schema=caption_check.SCHEMA)  # fmt: skip
            layers.pq.write_table(table, path)
            captions = write(tmp_path, "captions", rows_of([("x", "success")] * 3, "a"))
            rows.append(caption_qa.Source(captions[".parquet"], str(path), ""))
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        plan = [{"sources": rows, "superseded": []}]
        made = caption_qa.process(CaptionFind(), work(tmp_path / f"qa{tables}", "000000", plan))
        peaks.append(tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - before)
        tracemalloc.stop()
        assert made.counts["repeated_captions"] == made.counts["flagged"] == 3 * tables
    assert peaks[1] < 1.5 * peaks[0], peaks


def test_in_a_run(tmp_path: Path) -> None:
    """Clips, a filter that drops one, a text for all the others, and what the report says of it."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mp4").write_bytes(told_server.film(tmp_path / "x.mp4", [20, 50, 170, 200, 230]))
    spec = tmp_path / "x.yaml"
    with told_server.server({20: '{"slideshow": "no"}', 50: '{"slideshow": "yes"}', 200: "Nice."}) as there:
        spec.write_text(yaml.safe_dump({
            "name": "x", "inputs": "in", "output": "out",
            "stages": {
                "clips": {"kind": "curate.clips", "split": {"detector": "stride", "stride": "2s"}},
                "semantic": {"kind": "curate.semantic", "needs": "clips", "model": "m", "endpoint": {"url": there.url}},
                "caption": {"kind": "curate.caption", "needs": ["clips", "semantic"], "text": "A rabbit."},
                "qa": {"kind": "curate.caption_qa", "needs": "caption", "drop": ["repeated"]},
            },
        }))  # fmt: skip
        runs.go(spec)
    report = next((tmp_path / "runs").glob("x-*/report.txt")).read_text()
    summary = json.loads((tmp_path / "out/qa@v1/000000.json").read_text())
    assert summary["windows"] == summary["flags"]["repeated"] == 4
    assert "1 dropped (1 slideshow)" in report and "3 unparsed windows" in report
    assert "repeated: 4 of 4, e.g. " in report and "A rabbit." in report
    page = next((tmp_path / "runs").glob("x-*/report.html")).read_text()
    assert "A rabbit." in page and "Captions to look at" in page
