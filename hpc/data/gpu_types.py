"""What types of GPUs can do, by the names that Slurm and drivers have for them: for estimates, and for MFU.

    named("h100").memory          79.1 GiB; also "NVIDIA H100 80GB HBM3", "nvidia_h100_80gb_hbm3", "gpu:H100"
    named("v100")                 None

Dense rates, from the vendor's data sheets (H100 and H200: NVIDIA H100/H200 Tensor Core GPU; A100, B200, L40S the same),
memory as PyTorch sees it (torch.cuda.get_device_properties), links in one direction.
"""

from __future__ import annotations

import re

from msgspec import Struct

GIB = 1 << 30


class Gpu(Struct, frozen=True):
    """One type. Bytes, bytes a second, FLOP/s."""

    name: str
    memory: float
    bf16: float
    fp8: float
    """0: it has none."""
    bandwidth: float
    """Of its memory."""
    link: float
    """To the GPUs beside it: NVLink, or PCIe where there is none."""


TYPES = (  # a more particular name stands before the one that it contains
    Gpu("H100 PCIe", 79.1 * GIB, 756e12, 1513e12, 2.04e12, 32e9),
    Gpu("H100", 79.1 * GIB, 989e12, 1979e12, 3.35e12, 450e9),
    Gpu("GH200", 94.5 * GIB, 989e12, 1979e12, 4.0e12, 450e9),
    Gpu("H200", 139.8 * GIB, 989e12, 1979e12, 4.8e12, 450e9),
    Gpu("A100 80", 79.2 * GIB, 312e12, 0.0, 2.04e12, 300e9),
    Gpu("A100", 39.4 * GIB, 312e12, 0.0, 1.555e12, 300e9),
    Gpu("B200", 178.3 * GIB, 2250e12, 4500e12, 7.7e12, 900e9),
    Gpu("L40S", 44.4 * GIB, 362e12, 733e12, 0.864e12, 32e9),
)


def named(text: str) -> Gpu | None:
    """The type in whose name all words of one of TYPES stand; an A100 of which no size is said is one of 40 GB. None:
    it is not known."""
    said = re.sub(r"[^a-z0-9]+", " ", text.lower())
    return next((one for one in TYPES if all(word in said for word in one.name.lower().split())), None)
