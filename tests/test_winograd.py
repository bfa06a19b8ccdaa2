"""Winograd's convolutions give what torch's own give; the shot detector gives the same bits each time."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_shots import frames, stream
from torch import Tensor

from hpc.models import shots
from hpc.models.winograd import Patches, Winograd, Workspace, cook_toom, one_thread

DILATIONS = (1, 3)
GAP = max(DILATIONS)


@pytest.mark.parametrize("m", range(1, 7))
def test_cook_toom_filters(m: int) -> None:
    a, g, b = cook_toom(m)
    torch.manual_seed(m)
    inputs, taps = torch.randn(m + 2, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    wanted = F.conv1d(inputs[None, None], taps[None, None])[0, 0]
    torch.testing.assert_close(a @ ((g @ taps) * (b @ inputs)), wanted, rtol=0, atol=1e-11)


def published(x: Tensor, kernels: list[Tensor], bias: Tensor) -> Tensor:
    """The same by conv3d: x [height, width, frames, channels] -> [height, width, frames, branches * filters]."""
    video = x.permute(3, 2, 0, 1)[None]
    branches = [
        F.conv3d(video, kernel, padding=(d, 1, 1), dilation=(d, 1, 1))
        for kernel, d in zip(kernels, DILATIONS, strict=True)
    ]
    return (torch.cat(branches, 1)[0].permute(2, 3, 1, 0) + bias).relu()


@pytest.mark.parametrize("size", [(1, 1), (5, 12), (13, 7)])
@pytest.mark.parametrize(("tile", "rows"), [((4, 6), 2), ((5, 6), 1), ((6, 4), 3), (None, 0)])
def test_equal_to_conv3d(size: tuple[int, int], tile: tuple[int, int] | None, rows: int) -> None:
    torch.manual_seed(0)
    kernels, bias = [torch.randn(4, 5, 3, 3, 3) / 12 for _ in DILATIONS], torch.randn(8)
    workspace = Workspace()
    args = (kernels, bias, DILATIONS, workspace)
    layer = Winograd(*args, tile, rows) if tile else Patches(*args)
    for name in ("line", "domain", "sums"):  # what the memory held before has no influence
        workspace(name, 10**6).fill_(float("nan"))
    x = torch.zeros(*size, 7 + GAP, 5)
    x[:, :, :7] = torch.randn(*size, 7, 5)
    out = layer(x, torch.full((*size, 7 + GAP, 8), float("nan")))
    torch.testing.assert_close(out[:, :, :7], published(x[:, :, :7], kernels, bias), rtol=0, atol=1e-4)
    assert not out[:, :, 7:].any()


@pytest.fixture(scope="module", autouse=True)
def as_in_a_worker() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> shots.TransNetV2:
    return shots.load_transnetv2()


def test_the_network_is_that_of_direct_convolutions(model: shots.TransNetV2) -> None:
    video = torch.from_numpy(frames(200)).view(2, 100, 27, 48, 3)
    direct = shots.TransNetV2()
    direct.load_state_dict(model.state_dict())
    assert model.fast and not direct.fast
    with torch.inference_mode():
        for ours, theirs in zip(model(video), direct(video), strict=True):
            torch.testing.assert_close(ours.sigmoid(), theirs.sigmoid(), rtol=0, atol=1e-5)
        (x, means), (x2, means2) = model.fast(video), direct.convolve(video)
    torch.testing.assert_close(x, x2, rtol=0, atol=1e-4)
    torch.testing.assert_close(means, means2, rtol=0, atol=1e-5)


def test_the_same_bits_from_anywhere_in_any_thread(model: shots.TransNetV2) -> None:
    video = frames(173)
    whole, found = stream(model, video), {}
    threads = [
        threading.Thread(target=lambda first=first: found.update({first: stream(model, video, first)}))
        for first in (0, 50, 100)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for first in (0, 50, 100):
        np.testing.assert_array_equal(found[first], whole[first:])


def test_one_thread_for_as_long_as_needed() -> None:
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError), one_thread():
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
