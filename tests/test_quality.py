"""PSNR and SSIM are those of scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from hpc.models.quality import psnr, ssim


def videos() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    one = torch.nn.functional.interpolate(torch.rand(2, 3, 3, 6, 7, generator=draw) * 2 - 1, size=(3, 40, 48))
    return one, one + 0.3 * torch.randn(one.shape, generator=draw)  # some of it beyond -1 to 1


def test_equal_to_scikit_image() -> None:
    one, other = videos()
    a, b = (((v.clamp(-1, 1) + 1) / 2).numpy().astype(np.float64) for v in (one, other))
    for clip in range(2):
        for frame in range(3):
            x, y = a[clip, :, frame], b[clip, :, frame]
            expected = structural_similarity(x, y, channel_axis=0, data_range=1, gaussian_weights=True, sigma=1.5,
                                             use_sample_covariance=False)  # fmt: skip
            assert float(ssim(one, other)[clip, frame]) == pytest.approx(expected, abs=1e-5)
            expected = peak_signal_noise_ratio(x, y, data_range=1)
            assert float(psnr(one, other)[clip, frame]) == pytest.approx(expected, abs=1e-4)


def test_equal_videos() -> None:
    one, _ = videos()
    assert torch.allclose(ssim(one, one), torch.ones(2, 3)) and torch.equal(psnr(one, one), torch.full((2, 3), 100.0))
    with pytest.raises(ValueError, match="window has 11 x 11 pixels"):
        ssim(one[..., :8, :8], one[..., :8, :8])
