"""The filters that run models: overlaid text with the real detector, aesthetic scores with tiny CLIPs of the real kind.

What no network is needed for is the real thing: PP-OCR's weights come with rapidocr, transformers saves and loads the
tiny CLIPs, and the heads have the keys and the shapes of the published files.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpc.curate import clips, filters, source
from hpc.curate.filters import aesthetic, text
from hpc.curate.look import Look
from hpc.curate.settings import Clips, Encode, Split
from hpc.curate.settings import filters as settings
from hpc.data import layers, storage, video
from hpc.data.units import Seconds
from hpc.data.work import Item, Made, Work
from hpc.models.aesthetic import HEADS, load_aesthetic, load_head
from hpc.models.hub import located

TRAILER = Path(__file__).parents[1] / "jobs" / "quickstart" / "trailer_bbb.mp4"
TITLES = [(4.5, 7.5), (10.5, 13.5), (16.5, 19.5)]  # seconds
PICTURES = [(0.0, 3.0), (24.0, 27.0), (28.0, 31.0)]
FAST = Encode(preset="ultrafast", crf=30.0)
HEAVY = ("transformers", "onnxruntime", "rapidocr", "cv2", "huggingface_hub")


def read(path: Path, open_meter: filters.Open, first: float = 0.0, last: float = 1e9) -> dict[str, float]:
    """The scores of a span of a video, as a clip would get them."""
    return spans(path, open_meter, [(first, last)])[0]


def spans(path: Path, open_meter: filters.Open, wanted: list[tuple[float, float]]) -> list[dict[str, float]]:
    """The scores of spans that follow one another, from one decode."""
    info, sizes, found = video.probe(path), {}, []
    rest, meter, due = list(wanted), open_meter(info), 0.0
    for number, frame in video.Decoder(path):
        seconds = float((frame.pts - info.start_pts) * info.time_base)
        if seconds >= rest[0][1]:
            found.append(meter.scores())
            rest.pop(0)
            if not rest:
                return found
            meter, due = open_meter(info), 0.0
        if seconds - rest[0][0] >= due:
            meter.take(Look(number, frame, sizes), seconds - rest[0][0])
            due += meter.every
    return [*found, meter.scores()]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


# --- overlaid text


@pytest.fixture(scope="module")
def detect() -> Callable[..., Any]:
    return text.load_detector()


@pytest.fixture(scope="module")
def overlay(detect: Callable[..., Any]) -> filters.Open:
    return lambda info: text.Overlay(detect, info)


@pytest.fixture(scope="module")
def burn(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """burn(words, pixels, x, y, opacity): four seconds of the trailer without text of its own, with these words at a
    place that may depend on the time t."""
    folder = tmp_path_factory.mktemp("burnt")

    def make(words: str, pixels: int, x: str, y: str, opacity: int = 255) -> Path:
        path = folder / f"{len(list(folder.iterdir()))}.mp4"
        font = PIL.ImageFont.load_default(pixels)
        box = PIL.ImageDraw.Draw(PIL.Image.new("RGBA", (1, 1))).textbbox((0, 0), words, font, stroke_width=1)
        picture = PIL.Image.new("RGBA", (int(box[2]) + 4, int(box[3]) + 4))
        PIL.ImageDraw.Draw(picture).text(
            (1, 1), words, (255, 255, 255, opacity), font, stroke_width=1, stroke_fill=(0, 0, 0, opacity)
        )
        picture.save(path.with_suffix(".png"))
        subprocess.run(
            ["ffmpeg", "-v", "error", "-y", "-ss", "24", "-t", "4", "-i", TRAILER, "-i", path.with_suffix(".png"),
             "-filter_complex", f"[0:v]fps=12[v];[v][1:v]overlay=x='{x}':y='{y}':eval=frame", "-an",
             "-c:v", "libx264", "-preset", "ultrafast", "-crf", "23", path],
            check=True, timeout=180,
        )  # fmt: skip
        return path

    return make


def test_title_cards_and_pictures_of_a_film(overlay: filters.Open) -> None:
    wanted = sorted([*TITLES, *PICTURES])
    for span, found in zip(wanted, spans(TRAILER, overlay, wanted), strict=True):
        limits = settings.Text().limits()["text_area"]
        if span in TITLES:
            assert found["text_area"] > 0.02, span
            assert found["text_seconds"] >= 1.0, span
        else:
            assert limits[0] <= found["text_area"] <= limits[1], span


@pytest.mark.parametrize(
    ("words", "pixels", "x", "y", "opacity", "least", "most"),
    [
        ("Did you ever hear of the rabbit?", 40, "(W-w)/2", "H-h-30", 255, 0.02, 0.08),
        ("CHANNEL 7", 30, "W-w-30", "30", 190, 0.004, 0.03),
        ("stock.example", 60, "(W-w)/2", "(H-h)/2", 130, 0.01, 0.1),
    ],
    ids=["subtitle", "logo", "watermark"],
)
def test_text_that_stays_is_overlaid(
    overlay: filters.Open, burn: Callable[..., Path], words: str, pixels: int, x: str, y: str, opacity: int,
    least: float, most: float,
) -> None:  # fmt: skip
    found = read(burn(words, pixels, x, y, opacity), overlay)
    assert least < found["text_area"] < most
    assert found["text_seconds"] >= 2.0
    assert found["text_cover"] > least / 2


@pytest.mark.parametrize(
    ("x", "y"), [("60+120*t", "80"), ("60+40*t", "80"), ("60", "80+8*t"), ("90+25*sin(5*t)", "80+9*cos(7*t)")],
    ids=["pan", "slow pan", "slow tilt", "shaken"],
)  # fmt: skip
def test_text_that_moves_is_of_the_scene(overlay: filters.Open, burn: Callable[..., Path], x: str, y: str) -> None:
    found = read(burn("FISH AND CHIPS", 48, x, y), overlay)
    assert found["text_area"] == found["text_seconds"] == 0.0
    assert found["text_cover"] > 0.01  # it is seen, though


def test_text_that_comes_and_goes_within_a_second(overlay: filters.Open, burn: Callable[..., Path]) -> None:
    found = read(burn("FISH AND CHIPS", 48, "if(lt(mod(t,2),0.7),60,-1000)", "80"), overlay)
    assert found["text_area"] == 0.0 < found["text_cover"]


def test_a_clip_too_short_to_tell_has_no_area(overlay: filters.Open) -> None:
    assert set(read(TRAILER, overlay, 4.5, 5.2)) == {"text_cover"}
    assert filters.judge(settings.Filters(text=settings.Text()), {"text_cover": 0.5}) == ("", [])


def test_limits_of_text() -> None:
    both = settings.Filters(text=settings.Text(max_area=0.01, max_cover=0.1))
    assert filters.judge(both, {"text_area": 0.01, "text_cover": 0.1}) == ("", [])
    assert filters.judge(both, {"text_area": 0.02, "text_cover": 0.2}) == (
        "text", ["text_area 0.02 > 0.01", "text_cover 0.2 > 0.1"],
    )  # fmt: skip


def test_the_same_picture_gives_the_same_map(detect: Callable[..., Any]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    first, again = detect(picture), text.load_detector()(picture)
    assert first.shape == (64, 96) and np.array_equal(first, again)


def test_connected_parts_are_those_of_a_flood() -> None:
    random = np.random.default_rng(1)
    for density in (0.0, 0.1, 0.3, 0.4, 0.6, 1.0):
        mask = random.random((17, 23)) < density
        assert sorted(text.cores(mask)) == sorted(flooded(mask))


def flooded(mask: np.ndarray) -> list[tuple[int, int, int, int]]:
    left, found = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}, []
    while left:
        part = [left.pop()]
        for y, x in part:
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            part += near
            left -= near
        ys, xs = zip(*part, strict=True)
        found.append((min(xs), min(ys), max(xs) + 1, max(ys) + 1))
    return found


def test_boxes_of_a_map() -> None:
    found = np.zeros((64, 128), np.float32)
    found[20:30, 40:100] = 0.9  # a line: 60 x 10, a margin of 600 * 1.6 / 140
    found[50:52, 10:50] = 0.9  # too thin
    found[40:48, 60:90] = 0.5  # not sure enough
    found[0:4, 0:20] = 0.9  # cut off by the picture's corner
    margin, small = 600 * 1.6 / 140, 80 * 1.6 / 48
    assert text.boxes(found) == [
        pytest.approx((0, 0, 20 + small, 4 + small)),
        pytest.approx((40 - margin, 20 - margin, 100 + margin, 30 + margin)),
    ]
    assert text.overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert text.overlap((0, 0, 2, 2), (5, 5, 6, 6)) == 0


QUIET = """
import socket, sys
def refuse(*a, **k): raise AssertionError("no network at run time")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import numpy as np
from hpc.curate.filters import text
from hpc.curate.settings.filters import Text
threads = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("Threads")).split()[1])
import onnxruntime
before = threads()
text.start(Text())
text.load_detector()(np.zeros((352, 640, 3), np.uint8))
assert threads() <= before, (before, threads())
assert not {"cv2", "rapidocr", "transformers"} & set(sys.modules)
"""


def test_the_detector_is_quiet_offline_and_on_one_thread() -> None:
    done = run_python(QUIET)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_not_named_is_not_imported() -> None:
    done = run_python(f"""
import sys
from hpc.curate import clips, filters
from hpc.curate.settings.filters import Aesthetic, Filters, Text
assert filters.start(Filters()) == {{}}
assert filters.start(Filters(text=Text(mode="disable"), aesthetic=Aesthetic(mode="disable"))) == {{}}
assert not set({HEAVY!r}) & set(sys.modules), set({HEAVY!r}) & set(sys.modules)
""")
    assert done.returncode == 0, done.stderr


def test_a_missing_package_is_named_with_the_extra_that_has_it() -> None:
    done = run_python("""
import sys
sys.modules["onnxruntime"] = sys.modules["transformers"] = None
from hpc.curate import filters
from hpc.curate.settings.filters import Aesthetic, Filters, Text
for named in Filters(text=Text()), Filters(aesthetic=Aesthetic()):
    try:
        filters.start(named)
    except ModuleNotFoundError as error:
        print(error)
""")
    words = "{}, which is not installed here: pip install 'hpc[curate-models]'"
    for missing, line in zip(("onnxruntime", "transformers"), done.stdout.splitlines(), strict=True):
        assert words.format(missing) in line


def test_another_rapidocr_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "WEIGHTS", "PP-OCRv9.onnx")
    with pytest.raises(FileNotFoundError, match=r"PP-OCRv9.onnx, which rapidocr [\d.]+ does not carry: pip install"):
        text.start(settings.Text())


# --- aesthetic scores

SHAPES = {
    "linear": {"weight": (1, 768), "bias": (1,)},
    **{
        name: {
            f"layers.{layer}.{part}": shape if part == "weight" else shape[:1]
            for layer, shape in zip(numbers, ((1024, 768), (128, 1024), (64, 128), (16, 64), (1, 16)), strict=True)
            for part in ("weight", "bias")
        }
        for name, numbers in {"mlp": (0, 2, 4, 6, 7), "mlp-relu": (0, 3, 6, 9, 11)}.items()
    },
}
"""Keys and shapes in sa_0_4_vit_l_14_linear.pth, sac+logos+ava1-l14-linearMSE.pth and ava+logos-l14-reluMSE.pth."""


def weights(name: str) -> dict[str, Tensor]:
    """The same numbers everywhere, of a size that lets ratings differ."""
    found = {}
    for i, (key, shape) in enumerate(SHAPES[name].items()):
        numbers = torch.arange(1.0, 1 + int(np.prod(shape)), dtype=torch.float64)
        found[key] = torch.sin(numbers**2 % 1009 * (0.7 + i)).view(shape).float() / (
            1.0 if 768 in shape else shape[-1] ** 0.5
        )
    return found


def rate(name: str, state: dict[str, Tensor], embeddings: Tensor) -> Tensor:
    """The published formula."""
    x = embeddings
    layers = sorted({key.rpartition(".")[0] for key in state}, key=lambda key: int(key.rpartition(".")[2] or 0))
    for i, layer in enumerate(layers):
        prefix = f"{layer}." if layer else ""
        x = x @ state[f"{prefix}weight"].T + state[f"{prefix}bias"]
        x = x.clamp(min=0) if name == "mlp-relu" and i < len(layers) - 1 else x
    return x[:, 0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP, tiny but for its embedding of 768, saved by transformers; and the heads beside it."""
    import transformers

    folder = tmp_path_factory.mktemp("clip")
    config = transformers.CLIPConfig(
        text_config={"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                     "num_attention_heads": 2, "bos_token_id": 0, "eos_token_id": 1},
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                       "image_size": 224, "patch_size": 56, "projection_dim": 768},
        projection_dim=768,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.CLIPModel(config)
    for parameter in model.parameters():  # far apart for pictures that differ
        parameter.data *= 8 if parameter.dim() > 1 else 1
    model.save_pretrained(folder)
    transformers.CLIPImageProcessorPil().save_pretrained(folder)
    for name in SHAPES:
        torch.save(weights(name), folder / f"{name}.pth")
    return folder


def pictures(count: int, height: int = 224, width: int = 398) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("name", "golden"), [("linear", 1.372769), ("mlp", -0.314237), ("mlp-relu", -0.194424)])
def test_heads_are_the_published_formulas(checkpoint: Path, name: str, golden: float) -> None:
    head = load_head(checkpoint / f"{name}.pth", 768).eval()
    embeddings = F.normalize(torch.sin(torch.arange(2 * 768.0)).view(2, 768), dim=1)
    torch.testing.assert_close(head(embeddings)[:, 0], rate(name, weights(name), embeddings))
    assert head(embeddings)[0, 0].item() == pytest.approx(golden, abs=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_scores_are_the_heads_ratings_of_clips_embeddings(checkpoint: Path, name: str) -> None:
    import transformers

    model, processor = load_aesthetic(str(checkpoint), str(checkpoint / f"{name}.pth"), "cpu")
    pixels = processor(pictures(3), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    whole = transformers.CLIPModel.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        embeddings = whole.visual_projection(whole.vision_model(pixels).pooler_output)
        expected = rate(name, weights(name), embeddings / embeddings.norm(dim=1, keepdim=True))
    torch.testing.assert_close(model(pixels), expected, rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


def test_frames_come_at_the_size_that_the_processor_wants(checkpoint: Path) -> None:
    open_meter = aesthetic.start(settings.Aesthetic(clip=str(checkpoint), head=str(checkpoint / "linear.pth")))
    info = video.probe(TRAILER)
    meter = open_meter(info)
    (width, height), processor = meter.size, meter.processor
    picture = pictures(1, height, width)
    made, cut = (
        processor(picture, return_tensors="pt", input_data_format="channels_last", do_resize=resize)["pixel_values"]
        for resize in (True, False)
    )
    assert made.shape == (1, 3, 224, 224) and torch.equal(made, cut)
    tall = open_meter(msgspec.structs.replace(info, width=info.height, height=info.width))
    assert tall.size == (height, width)


def test_a_long_clip_is_rated_in_batches(checkpoint: Path, burn: Callable[..., Path]) -> None:
    """And like the single frames; min and mean are of them all."""
    path = burn("FISH AND CHIPS", 48, "60+120*t", "80")
    found: dict[str, float] = {}
    for reduce in ("min", "mean"):
        chosen = settings.Aesthetic(
            clip=str(checkpoint), head=str(checkpoint / "mlp.pth"), reduce=reduce, every=Seconds(0.1)
        )
        open_meter = aesthetic.start(chosen)
        found[reduce] = read(path, open_meter)["aesthetic_score"]
        assert read(path, open_meter)["aesthetic_score"] == found[reduce]
    ratings: list[float] = []

    class Single:
        every = 0.1

        def __init__(self, info: video.Video) -> None:
            self.info = info

        def take(self, look: Look, seconds: float) -> None:
            one = open_meter(self.info)
            one.take(look, seconds)
            ratings.append(one.scores()["aesthetic_score"])

        def scores(self) -> dict[str, float]:
            return {}

    read(path, Single)
    assert aesthetic.BATCH < len(ratings) <= 40
    assert found == {"min": pytest.approx(min(ratings), abs=1e-5), "mean": pytest.approx(np.mean(ratings), abs=1e-5)}
    assert np.std(ratings) > 1e-3


def test_no_threshold_drops_nothing() -> None:
    named = settings.Filters(aesthetic=settings.Aesthetic())
    assert filters.judge(named, {"aesthetic_score": -5.0}) == ("", [])
    named = settings.Filters(aesthetic=settings.Aesthetic(min=3.5))
    assert filters.judge(named, {"aesthetic_score": 3.5}) == ("", [])
    assert filters.judge(named, {"aesthetic_score": 3.2}) == ("aesthetic", ["aesthetic_score 3.2 < 3.5"])


@pytest.mark.parametrize("name", SHAPES)
def test_heads_in_other_files(checkpoint: Path, tmp_path: Path, name: str) -> None:
    """safetensors, a folder, and a whole predictor of simple-aesthetics-predictor: tower and head in one file."""
    state = weights(name)
    save_file(state, tmp_path / "model.safetensors")
    whole = {k: v for k, v in load_file(checkpoint / "model.safetensors").items() if k.startswith(("vision", "visual"))}
    whole |= {key if key.startswith("layers.") else f"predictor.{key}": value for key, value in state.items()}
    save_file(whole, tmp_path / "whole.safetensors")
    embeddings = F.normalize(torch.ones(1, 768), dim=1)
    for path in (*located(str(tmp_path), "model.safetensors"), tmp_path / "whole.safetensors"):
        torch.testing.assert_close(load_head(path, 768).eval()(embeddings)[:, 0], rate(name, state, embeddings))


def test_a_head_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    state = weights("mlp")
    torch.save({**state, "layers.8.weight": torch.zeros(1)}, tmp_path / "more.pth")
    torch.save({k: v for k, v in state.items() if k != "layers.7.bias"}, tmp_path / "less.pth")
    torch.save({"weight": torch.zeros(1, 512), "bias": torch.zeros(1)}, tmp_path / "b32.pth")
    with pytest.raises(
        RuntimeError, match=r"more.pth: no known head.*layers\.8\.weight.*Known are linear: weight bias; mlp: 0"
    ):
        load_head(tmp_path / "more.pth", 768)
    with pytest.raises(RuntimeError, match=r"less.pth: no known head has these weights: layers\.0\.weight"):
        load_head(tmp_path / "less.pth", 768)
    with pytest.raises(RuntimeError, match="512"):
        load_head(tmp_path / "b32.pth", 768)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("visual_projection.weight"), "missing: visual_projection.weight; left over: nothing"),
        (lambda s: s.update(extra=torch.zeros(1)), "missing: nothing; left over: extra"),
        (lambda s: s.update({"visual_projection.weight": torch.zeros(512, 32)}), "another size: visual_projection"),
    ],
)
def test_a_tower_is_read_whole_or_not_at_all(
    checkpoint: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], words: str
) -> None:
    state = load_file(checkpoint / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((checkpoint / name).read_text())
    with pytest.raises(RuntimeError, match=words):
        load_aesthetic(str(tmp_path), str(checkpoint / "linear.pth"), "cpu")


CACHED = """
import pathlib
from hpc.curate.settings.filters import Aesthetic
from hpc.models.aesthetic import load_aesthetic
load = lambda: load_aesthetic(Aesthetic().clip, "{checkpoint}/linear.pth", "cpu")
try:
    load()
except FileNotFoundError as error:
    print(error)
snapshot = pathlib.Path("{snapshot}")
snapshot.mkdir(parents=True)
for file in ("config.json", "preprocessor_config.json", "model.safetensors"):
    (snapshot / file).symlink_to("{checkpoint}/" + file)
print(load()[0].head.weight.shape)
"""


def test_the_hubs_cache_is_used_and_what_is_missing_is_said(checkpoint: Path, tmp_path: Path) -> None:
    name, _, revision = settings.Aesthetic().clip.partition("@")
    snapshot = tmp_path / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / revision
    code = CACHED.format(checkpoint=checkpoint, snapshot=snapshot)
    done = run_python(code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    first, *rest = done.stdout.splitlines()
    assert first.startswith(f"{name}@{revision} is not in the cache ({tmp_path}/hub) and could not be fetched")
    assert rest == [
        f"  hpc models pull {name}@{revision}",
        "or copy its folder and give the path instead of the name",
        "torch.Size([1, 768])",
    ]
    assert done.stderr == ""


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*config\.json .*preprocessor_config\.json"):
        located(str(tmp_path), "config.json", "preprocessor_config.json")
    with pytest.raises(FileNotFoundError, match=r"there is no .*head\.pth on this machine"):
        located(f"{tmp_path}/head.pth", "model.safetensors")


@pytest.mark.parametrize("given", ["clip", "models/clip", "openai/clip-vit-large-patch14", "a/b/c@d", ""])
def test_models_are_paths_or_pinned(given: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="owner/name@revision"):
        msgspec.convert({"clip": given}, settings.Aesthetic)
    with pytest.raises(ValueError, match="every"):
        settings.Aesthetic(every=Seconds(0.0))


def test_every_head_is_published() -> None:
    assert set(HEADS) == set(SHAPES)


# --- the stage


def test_the_stage_drops_clips_with_text_and_says_why(
    checkpoint: Path, burn: Callable[..., Path], tmp_path: Path
) -> None:
    chosen = Clips(
        split=Split(detector="stride", stride=Seconds(4.0)),
        encode=FAST,
        filter=settings.Filters(
            text=settings.Text(),
            aesthetic=settings.Aesthetic(clip=str(checkpoint), head=str(checkpoint / "mlp.pth"), min=-100.0),
        ),
    )
    inputs = [
        burn("Did you ever hear of the rabbit?", 40, "(W-w)/2", "H-h-30"), burn("FISH AND CHIPS", 48, "60+120*t", "80"),
    ]  # fmt: skip
    tools = source.Tools(chosen, None, filters.start(chosen.filter))
    made = []
    for run in ("first", "again"):
        (tmp_path / run).mkdir()
        items = [Item(e.uri, e.size, e.etag) for e in map(storage.stat, map(str, inputs)) if e]
        work = Work("000000", items, [], {}, tmp_path / run, "abc", lambda: None, lambda *_: None)
        made.append(clips.process(tools, work))
    rows = [layers.read_table(one.objects[1]).to_pylist() for one in made]
    assert rows[0] == rows[1] and table(made[0]) == table(made[1])
    assert [row["verdict"] for row in rows[0]] == ["text", "keep"]
    assert [len(row["reasons"]) for row in rows[0]] == [1, 0]
    assert rows[0][0]["reasons"][0].startswith("text_area 0.0")
    assert all(row["aesthetic_score"] is not None and row["text_cover"] > 0 for row in rows[0])


def table(made: Made) -> bytes:
    return made.objects[1].read_bytes()


def test_a_run_of_a_spec(checkpoint: Path, burn: Callable[..., Path], tmp_path: Path) -> None:
    spec = {
        "name": "models",
        "inputs": str(burn("Did you ever hear of the rabbit?", 40, "(W-w)/2", "H-h-30")),
        "output": str(tmp_path / "out"),
        "stages": {
            "clips": {
                "kind": "curate.clips",
                "split": {"detector": "stride", "stride": "2s"},
                "encode": {"preset": "ultrafast"},
                "filter": {
                    "text": {"mode": "score-only"},
                    "aesthetic": {"clip": str(checkpoint), "head": str(checkpoint / "mlp.pth"), "min": -100.0},
                },
            }
        },
    }
    path = tmp_path / "models.yaml"
    path.write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "hpc.cli", "run", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = (tmp_path / "out").rglob("*.parquet")
    rows = layers.read_table(found).to_pylist()
    assert [row["verdict"] for row in rows] == ["keep", "keep"]
    assert all(row["text_area"] > 0.02 and row["aesthetic_score"] is not None for row in rows)
