"""Training tokenizers on a GPU: bfloat16, compiled, and equal to the last bit after a stop. Without one, the same in
float32 on the CPU, in four minutes, where it is asked for. It needs no other test's files:

    python -m pytest -q tests/gpu/test_train_gpu.py            on a CPU with HPC_TEST_ON_CPU=1
    torchrun --nproc-per-node 2 tests/gpu/test_train_gpu.py        NCCL: says the losses, to be those of one rank
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import torch.distributed as dist
from asked import skip_without_gpu

from hpc.data import layers
from hpc.data.work import Stopped
from hpc.train import ranks, tokenizer
from hpc.train.checkpoint import Checkpoints
from hpc.train.metrics import CLOCKS, lines
from hpc.train.samples import listed
from hpc.train.settings import TrainTokenizer
from hpc.train.settings.data import Shape, Validation
from hpc.train.settings.optimizer import Optimizer
from hpc.train.settings.tokenizer import Sizes

skip_without_gpu(__name__)

pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
SIDE = 64
SIZES = {
    "cosmos-dv": Sizes(family="cosmos-dv", temporal=4, spatial=8, channels=16, levels=(8, 5, 5, 5)),
    "cosmos-cv": Sizes(family="cosmos-cv", temporal=4, channels=16, latent_channels=8),
    "wan": Sizes(family="wan", channels=16, latent_channels=8),
}


def settings(family: str = "cosmos-dv", **more: Any) -> TrainTokenizer:
    return TrainTokenizer(**{
        "tokenizer": SIZES[family], "shapes": (Shape(frames=9, height=SIDE, width=SIDE, batch=4),), "steps": 8,
        "in_memory": True, "validation": Validation(share=0.2, by="clip", every=4, clips=2),
        "checkpoints": Checkpoints(every=100), "optimizer": Optimizer(rate=1e-3, warmup=2), **more,
    })  # fmt: skip


def tar(place: Path) -> Path:
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    with layers.TarWriter(place / "000000.tar") as out:
        for number in range(10):
            path = place / "clip.mp4"
            with contextlib.closing(av.open(str(path), "w")) as file:
                stream = file.add_stream("libx264", 10, options={"crf": "5"})
                stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
                for frame in range(12):
                    waves = [np.sin(9 * rows + number + 0.3 * frame), np.cos(7 * columns - 0.2 * frame * number), rows]
                    picture = ((np.stack(waves, -1) + 1) * 127).astype(np.uint8)
                    file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
                file.mux(stream.encode(None))
            out.add(f"c{number:02}", {".mp4": path.read_bytes()})
    return place / "000000.tar"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return listed([str(tar(tmp_path_factory.mktemp("clips")))])


@pytest.fixture(scope="module")
def here() -> Iterator[ranks.Here]:
    yield ranks.start(deterministic=True)
    torch.use_deterministic_algorithms(False)
    dist.destroy_process_group()


def curve(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in CLOCKS}
            for line in lines(folder / "metrics.jsonl")]  # fmt: skip


@pytest.mark.parametrize("family", SIZES)
def test_it_learns_and_goes_on_to_the_last_bit(clips: Any, here: ranks.Here, tmp_path: Path, family: str) -> None:
    given, left = settings(family, deterministic=True), [5]

    def check() -> None:
        left[0] -= 1
        if not left[0]:
            raise Stopped

    tokenizer.train(given, clips, tmp_path / "whole", here, lambda: None)
    with pytest.raises(Stopped):
        tokenizer.train(given, clips, tmp_path / "stopped", here, check)
    made, _ = tokenizer.train(given, clips, tmp_path / "stopped", here, lambda: None)
    whole = curve(tmp_path / "whole")
    assert curve(tmp_path / "stopped") == whole
    assert whole[-1]["loss"] < whole[0]["loss"] and all(math.isfinite(line["grad_norm"]) for line in whole)
    assert made is not None and all(bool(weight.isfinite().all()) for weight in made.parameters())


def test_bfloat16_and_compiled_are_near(clips: Any, here: ranks.Here, tmp_path: Path) -> None:
    found = {}
    ways: dict[str, dict[str, Any]] = {"fp32": {"precision": "fp32"}, "bf16": {}}
    if here.device.type == "cuda":  # on CPUs it takes minutes
        ways["compiled"] = {"compile": True}
    for name, more in ways.items():
        tokenizer.train(settings(**more), clips, tmp_path / name, here, lambda: None)
        found[name] = [line["loss"] for line in curve(tmp_path / name)]
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.1)
    if "compiled" in found:
        assert found["compiled"] == pytest.approx(found["bf16"], rel=0.1)


def main() -> None:
    """Says the losses, in float32: those of any number of ranks agree to 1e-5 or so."""
    here = ranks.start()
    with tempfile.TemporaryDirectory() as own:
        table = listed([str(tar(Path(own)))])
        shared = [tempfile.mkdtemp()]
        dist.broadcast_object_list(shared, 0, group=here.words)
        tokenizer.train(settings(precision="fp32"), table, Path(shared[0], "many"), here, lambda: None)
        dist.barrier(group=here.words)
        many = [line["loss"] for line in curve(Path(shared[0], "many"))]
        losses = " ".join(f"{loss:.6f}" for loss in many)
        print(f"rank {here.rank} of {here.count}, {here.device}: {losses}", flush=True)
        dist.barrier(group=here.words)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
