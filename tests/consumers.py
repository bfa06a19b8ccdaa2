"""The readers' own code on our data sets: what they take and what they drop is what `hpc validate` says. Run by hand.

    git clone, from github.com/nvidia-cosmos: cosmos-predict2 (661da47), cosmos-predict2.5 (50369b8), cosmos-curate
        (29f1358)
    pip install '.[curate,test]' decord torchvision omegaconf einops loguru attrs pandas
    python tests/consumers.py FOLDER_OF_THE_CLONES

Their packages import much that reading data has no need of (megatron, object stores, loggers): those modules are
stand-ins here. What reads the data is theirs: data/dataset_video.py and dataset_multiview.py of Predict2;
local_datasets/dataset_video.py of Predict2.5; its webdataset.py, iterators.py, video_parsing.py and
text_transforms_for_video.py; dimensions.py of Cosmos-Curate.
"""

from __future__ import annotations

import csv
import importlib
import itertools
import random
import shutil
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Clip

from hpc import validate
from hpc.curate.layouts import bins
from hpc.validate import folders

CLIPS = [
    [Clip(), Clip(frames=400), Clip(frames=93), Clip(frames=94), Clip(frames=130)],
    [Clip(frames=300, width=480, height=270), Clip(frames=320, fps=30.0, width=1920, height=1080)],
]


def package(clone: Path, *names: str) -> None:
    """Packages of a clone without what their __init__.py would import."""
    for name in names:
        module = types.ModuleType(name)
        module.__path__ = [str(clone / name.replace(".", "/"))]
        sys.modules[name] = module


def stand_in(name: str, **what: Any) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(what)
    module.__path__ = []
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], last, module)


def forget(*tops: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in tops]:
        del sys.modules[name]


def log(warned: list[str]) -> dict[str, Any]:
    quiet = lambda *words, **more: None
    return {"info": quiet, "error": quiet, "warning": lambda words, **more: warned.append(str(words))}


def predict2(clone: Path, folder: str) -> None:
    package(clone, "cosmos_predict2", "cosmos_predict2.data", "imaginaire", "imaginaire.utils", "imaginaire.auxiliary")
    stand_in("imaginaire.utils.log", **log([]))
    encoder = type("CosmosTextEncoderConfig", (), {"EMBED_DIM": folders.WIDTH, "NUM_TOKENS": 512})
    stand_in("imaginaire.auxiliary.text_encoder", CosmosTextEncoderConfig=encoder)
    found = importlib.import_module("cosmos_predict2.data.dataset_video").Dataset(folder, 93, [48, 80])
    for one in (found[i] for i in range(len(found))):
        assert one["video"].shape == (3, 93, 48, 80) and one["t5_text_embeddings"].shape == (512, 1024)
    assert found.wrong_number == 0
    report = validate.validate(folder, "predict2")
    assert not report.problems and report.entries == len(found), "the rules agree"
    print(f"predict2: {len(found)} videos, none is dropped")
    forget("cosmos_predict2", "imaginaire")


def multiview(clone: Path, folder: str) -> None:
    package(clone, "cosmos_predict2", "cosmos_predict2.data", "imaginaire", "imaginaire.auxiliary")
    encoder = type("CosmosTextEncoderConfig", (), {"EMBED_DIM": folders.WIDTH, "NUM_TOKENS": 512})
    stand_in("imaginaire.auxiliary.text_encoder", CosmosTextEncoderConfig=encoder)
    reader = importlib.import_module("cosmos_predict2.data.dataset_multiview").MultiviewDataset
    sessions = 0
    for train in (True, False):
        found = reader(folder, 1, 29, ["left", "front"], [48, 80], start_frame_interval=50, is_train=train,
                       camera_to_view_id={"left": 5, "front": 0}, front_camera_key="front",
                       front_view_caption_only=True)  # fmt: skip
        for one in (found[i] for i in range(len(found))):
            assert one["video"].shape == (3, 58, 48, 80) and one["t5_text_embeddings"].shape == (1024, 1024)
            assert one["t5_text_mask"].sum() < 512 + 10, "of the front camera's tokens those that there are"
        assert found.wrong_number == 0
        sessions += len({one["video_path"] for one in found.samples})
    report = validate.validate(folder, "predict2-multiview", 29)
    assert not report.problems and report.entries == sessions, "the rules agree"
    lost = Path(min(Path(folder).glob("videos/front/*.mp4")))
    lost.unlink()
    found = reader(folder, 1, 29, ["left", "front"], [48, 80], is_train=True, camera_to_view_id={"left": 5, "front": 0},
                   front_camera_key="front", front_view_caption_only=True)  # fmt: skip
    found[0]
    assert found.wrong_number, "another one was taken"
    assert {one.rule for one in validate.validate(folder, "predict2-multiview", 29).problems} == {"camera-missing"}
    print(f"predict2-multiview: {sessions} sessions, none is dropped; one without a camera is, and the rules name it")
    forget("cosmos_predict2", "imaginaire")


def predict25(clone: Path, folder: str) -> None:
    stand_in("megatron")
    stand_in("megatron.core", parallel_state=None)
    warned: list[str] = []
    base = "cosmos_predict2._src.imaginaire"
    package(clone, "cosmos_predict2", "cosmos_predict2._src", base, f"{base}.utils")
    stand_in(f"{base}.utils.log", **log(warned))
    name = "cosmos_predict2._src.predict2.datasets.local_datasets.dataset_video"
    reader = importlib.import_module(name).VideoDataset
    found = reader(folder, 93, (48, 80))
    for one in (found[i] for i in range(len(found))):
        assert one["video"].shape == (3, 93, 48, 80) and one["ai_caption"].startswith("clip ")
    assert found.num_failed_loads == 0 and not validate.validate(folder, "predict2.5").problems
    short = Path(folder, "videos/zz.mp4")
    short.write_bytes(datasets.mp4(93))
    Path(folder, "metas/zz.txt").write_text("93 frames")
    again = reader(folder, 93, (48, 80))
    again[len(again) - 1]
    assert len(warned) == again.num_failed_loads and warned and all("zz.mp4" in words for words in warned)
    assert [one.file for one in validate.validate(folder, "predict2.5").problems] == ["videos/zz.mp4"]
    print(f"predict2.5: {len(found)} videos, none is dropped; one of 93 frames fails, and the rules name it")
    forget("cosmos_predict2", "megatron")


def predict25_webdataset(clone: Path, folder: str, keys: list[str], caption_type: str, windows: str) -> None:
    base, ours = "cosmos_predict2._src.imaginaire", "cosmos_predict2._src.predict2.datasets"
    common = "cosmos_predict2._src.common"
    package(clone, "cosmos_predict2", "cosmos_predict2._src", base, f"{base}.utils", f"{base}.datasets",
            f"{base}.datasets.webdataset", "cosmos_predict2._src.predict2", ours, f"{ours}.augmentors", common,
            f"{common}.datasets", f"{common}.datasets.augmentors")  # fmt: skip
    warned: list[str] = []
    stand_in(f"{base}.utils.log", **log(warned))
    stand_in(f"{base}.utils.distributed", get_world_size=lambda: 1)
    stand_in(f"{base}.utils.object_store", ObjectStore=None)
    store = type("ObjectStoreConfig", (), {"enabled": False})
    stand_in(f"{base}.config", ObjectStoreConfig=store, make_freezable=lambda kind: kind)
    stand_in(f"{base}.lazy_config", instantiate=lambda make: make())
    load = importlib.import_module
    schema = load(f"{base}.datasets.webdataset.config.schema")
    parsing, texts = load(f"{ours}.augmentors.video_parsing"), load(f"{ours}.augmentors.text_transforms_for_video")
    merging, decoder = load(f"{ours}.augmentors.merge_datadict"), load(f"{ours}.decoders.video_decoder")
    pickled = load(f"{base}.datasets.webdataset.decoders.pickle").pkl_decoder
    merged = ["video", "fps", "num_frames", "chunk_index", "frame_start", "frame_end", "n_orig_video_frames"]
    embeddings = "t5_xxl" if "t5_xxl" in keys else None
    parse = {"key_for_caption": windows, "min_duration": 4.0, "min_fps": 10, "max_fps": 60,
             "video_decode_num_threads": 1, "num_video_frames": 93, "use_native_fps": True,
             "use_original_fps": False}  # fmt: skip
    text = {"captions_key": "metas", "embeddings_key": embeddings, "caption_windows_key": windows,
            "caption_type": "qwen2p5_7b_caption", "embedding_caption_type": caption_type, "t5_tokens": {"num": 512},
            "is_mask_all_ones": True, "caption_probs": {"long": 7, "medium": 2, "short": 1, "user": 90}}  # fmt: skip

    class Tars(torch.utils.data.IterableDataset):
        """Each tar once, in place of its distributor."""

        def set_urls(self, urls: list[Any]) -> None:
            self.urls = urls

        def set_chunk_size(self, size: int) -> None:
            pass

        def __iter__(self) -> Iterator[dict[str, Any]]:
            return iter({"url": url} for url in self.urls)

    with Path(folder, "v0/wdinfo_list.csv").open() as file:
        listed = [row[0] for row in csv.reader(file)]
    infos = [schema.DatasetInfo(store(), wdinfo=[one], per_dataset_keys=keys) for one in listed]
    augmentation = {
        "video_parsing": lambda: parsing.VideoParsing(["metas", "video"], args=parse),
        "merge_datadict": lambda: merging.DataDictMerger(["video"], merged),
        "text_transform": lambda: texts.TextTransformForVideo([], args=text),
    }
    decoders = [decoder.construct_video_decoder("video_naive_bytes"), pickled]
    config = schema.DatasetConfig(keys, 10, infos, Tars(), decoders, augmentation, streaming_download=False)
    made = load(f"{ours}.webdataset").Dataset(config).build_dataset()
    seen = {one["__key__"] for one in made if one["ai_caption"].startswith("clip ") and one["video"].shape[1] == 93}
    report = validate.validate(folder, "predict2.5-webdataset")
    assert made.total_images == report.entries == len(seen) + len(warned)
    passed_over = {one.file.split("#")[1].split(".")[0] for one in report.problems if one.rule == "no-usable-window"}
    assert (
        not report.errors and len(passed_over) == len(warned) and all(any(k in w for k in passed_over) for w in warned)
    )
    assert not passed_over & seen, "the rules agree"
    print(f"predict2.5-webdataset, {caption_type}, {' '.join(keys)}: {len(seen)} clips, {len(warned)} are passed over; "
          "the rules name the same")  # fmt: skip
    forget("cosmos_predict2")


def curator(clone: Path) -> None:
    package(
        clone, "cosmos_curate", "cosmos_curate.core", "cosmos_curate.core.utils", "cosmos_curate.core.utils.dataset"
    )
    stand_in("cosmos_curate.core.utils.misc")
    stand_in("cosmos_curate.core.utils.misc.grouping", pairwise=itertools.pairwise)  # theirs needs Python 3.12
    theirs = importlib.import_module("cosmos_curate.core.utils.dataset.dimensions")
    spec = theirs.ResolutionAspectRatioFramesBinsSpec.for_standard_video_datasets()
    chance, agreed = random.Random(0), 0
    for _ in range(100_000):
        width, height = (chance.choice([chance.randrange(16, 4000), 720, 1080, 1000, 650]) for _ in range(2))
        frames, fps = chance.choice([120, 240, 720, chance.randrange(1, 2000)]), chance.choice([24.0, 30.0, 23.976])
        one = spec.find_appropriate_bin(theirs.Dimensions(width, height), frames / fps)
        try:
            ours = bins.by_duration(width, height, frames, fps, ("5_10", "10_30", "30_inf"))
        except bins.Unfit:
            ours = None
        assert ours == (one.to_path_string() if one else None), (width, height, frames, fps)
        agreed += ours is not None
    print(f"cosmos-curate: 100,000 shapes and durations go into the same bins ({agreed:,} into one at all)")
    forget("cosmos_curate")


def main(clones: Path) -> None:
    datasets.WIDTH = 1024
    # torchvision's own operators, which nothing here calls, are made for another torch
    real = torch.library.register_fake
    torch.library.register_fake = lambda op, *rest, **more: (  # type: ignore[assignment]
        (lambda function: function) if str(op).startswith("torchvision::") else real(op, *rest, **more)
    )
    with tempfile.TemporaryDirectory() as place:
        made = datasets.publish(Path(place), CLIPS)

        def shard(layout: str, **settings: Any) -> str:
            shutil.rmtree(Path(place, layout), ignore_errors=True)
            stages = {name: made[name] for name in ("clips", "caption", "text")}
            return datasets.shard(Path(place), stages, layout=layout, base=str(Path(place, layout)), **settings)

        predict2(clones / "cosmos-predict2", shard("predict2"))
        rig = [[Clip(frames=frames, cameras=("front", "left")) for frames in (60, 400, 100)]]
        base = Path(place, "rig")
        base.mkdir()
        stages = datasets.publish(base, rig)
        multiview(clones / "cosmos-predict2", datasets.shard(base, stages, layout="predict2-multiview", min_frames=29))
        predict25(clones / "cosmos-predict2.5", shard("predict2.5"))
        folder = shard("predict2.5-webdataset", further_durations=("2_5",))
        for keys in (["video", "metas", "t5_xxl"], ["video", "metas"]):
            for caption_type, windows in (("t2w_qwen2p5_7b", "t2w_windows"),
                                          ("i2w_qwen2p5_7b_later_frames", "i2w_windows_later_frames")):  # fmt: skip
                predict25_webdataset(clones / "cosmos-predict2.5", folder, keys, caption_type, windows)
        curator(clones / "cosmos-curate")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
