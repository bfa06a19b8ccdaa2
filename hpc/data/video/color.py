"""High dynamic range to standard: PQ and HLG pictures as a display of SDR shows them best, through one 3D LUT.

    signal -> nits on a display of 1000      PQ: SMPTE ST 2084; HLG: BT.2100, system gamma 1.2
           -> nits on a display of 203       BT.2390 EETF on the brightest of R, G and B, so that hues stay
           -> BT.709 primaries, clipped      from the chromaticities of the source's primaries
           -> signal                         inverse of BT.1886, the transfer of SDR displays, gamma 2.4

203 cd/m2 is the white of HDR by BT.2408: what a film shows as white paper is white in the clip. Every PQ film is taken
to be mastered for 1000 cd/m2 (brighter is white): metadata that say otherwise stand in the first frame only, where a
span of the film does not see them.
"""

from __future__ import annotations

import functools
import re
import tempfile

import numpy as np
import numpy.typing as npt

from hpc.data.video.container import Frame
from hpc.data.video.graph import SCALE, Graph

Array = npt.NDArray[np.float64]

PQ, HLG = 16, 18  # color_trc, as in ITU-T H.273
TRANSFERS = {PQ: "pq", HLG: "hlg"}
BRIGHT, WHITE = 1000.0, 203.0  # cd/m2: peak of the source's display and of the SDR display
BT709, BT2020, UNSPECIFIED = 1, 9, 2  # color_primaries and colorspace
CHROMATICITIES = {  # x, y of red, green, blue and white; of color_primaries
    BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), (0.3127, 0.3290)),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), (0.3127, 0.3290)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3127, 0.3290)),  # P3 with the white of D65
}
LUT = 65  # points a side


def pq_to_nits(signal: Array) -> Array:
    """SMPTE ST 2084, equation 5.1: 0..1 -> 0..10000 cd/m2."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = np.clip(signal, 0, 1) ** (1 / m2)
    return 10000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def nits_to_pq(nits: Array) -> Array:
    """SMPTE ST 2084, equation 5.2: the inverse of pq_to_nits."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = (np.clip(nits, 0, 10000) / 10000) ** m1
    return ((c1 + c2 * power) / (1 + c3 * power)) ** m2


def hlg_to_nits(signal: Array, luminance: Array) -> Array:
    """BT.2100, table 5: [..., 3] of 0..1 -> cd/m2 on a display of BRIGHT. luminance: [3], the weights of R, G and B."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    signal = np.clip(signal, 0, 1)
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return BRIGHT * scene * (scene @ luminance)[..., None] ** 0.2


def eetf(nits: Array) -> Array:
    """BT.2390, section 5.4.1: what a display of WHITE shows for the light of one of BRIGHT; black is 0 on both."""
    top = nits_to_pq(np.float64(BRIGHT))
    most = nits_to_pq(np.float64(WHITE)) / top
    knee = 1.5 * most - 0.5
    e = np.minimum(nits_to_pq(nits) / top, 1)
    t = (e - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * most
    return pq_to_nits(np.where(e < knee, e, spline) * top)


def to_xyz(primaries: int) -> Array:
    """Linear RGB -> CIE XYZ, [3, 3] (SMPTE RP 177); its middle row are the weights of luminance."""
    xy = np.array(CHROMATICITIES[primaries])
    xyz = np.concatenate([xy, 1 - xy.sum(1, keepdims=True)], 1) / xy[:, 1:]
    return xyz[:3].T * np.linalg.solve(xyz[:3].T, xyz[3])


def to_sdr(signal: Array, transfer: int, primaries: int) -> Array:
    """[..., 3] of 0..1, R'G'B' of PQ or HLG -> the same of BT.709, as a display of BT.1886 wants it."""
    matrix = to_xyz(primaries)
    nits = pq_to_nits(signal) if transfer == PQ else hlg_to_nits(signal, matrix[1])
    brightest = nits.max(-1, keepdims=True)
    nits = nits * eetf(brightest) / np.maximum(brightest, 1e-9)
    linear = nits / WHITE @ (np.linalg.inv(to_xyz(BT709)) @ matrix).T
    return np.clip(linear, 0, 1) ** (1 / 2.4)


@functools.cache
def cube(transfer: int, primaries: int) -> bytes:
    """to_sdr as a .cube file, red fastest."""
    points = np.linspace(0, 1, LUT)
    blue, green, red = np.meshgrid(points, points, points, indexing="ij")
    values = to_sdr(np.stack([red, green, blue], -1), transfer, primaries).reshape(-1, 3)
    return b"LUT_3D_SIZE %d\n" % LUT + b"".join(b"%.6f %.6f %.6f\n" % tuple(value) for value in values)


class ToneMap:
    """to_sdr for the frames of one video: yuv420p of BT.709 and limited range."""

    def __init__(self, frame: Frame) -> None:
        primaries = int(frame.color_primaries)
        # libav reads the table from a file of this suffix, whenever the graph is built
        self.file = tempfile.NamedTemporaryFile(suffix=".cube")
        self.file.write(cube(int(frame.color_trc), primaries if primaries in CHROMATICITIES else BT2020))
        self.file.flush()
        name = re.sub(r"([\\':])", r"\\\1", self.file.name)
        matrix = "bt709" if frame.colorspace == BT709 else "bt2020"
        self.graph = Graph(
            ("scale", f"in_color_matrix={matrix}:out_range=pc:flags={SCALE}"),
            ("format", "gbrp16le"),
            ("lut3d", f"file={name}:interp=tetrahedral"),
            ("scale", f"out_color_matrix=bt709:out_range=tv:flags={SCALE}"),
            ("format", "yuv420p"),
            ("setparams", "colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"),
        )

    def __call__(self, frame: Frame) -> Frame:
        return self.graph(frame)
