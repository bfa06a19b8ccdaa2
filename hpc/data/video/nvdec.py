"""Decode on NVDEC, the video engines of NVIDIA's GPUs: the pictures stay in the GPU's memory until they are asked for.

`Decoder(source, nvdec=True)` numbers and times the frames as on a CPU, since demuxer and parsers are the same; its
frames are handles of memory on the GPU, valid as long as they are held. `planes` shows them to torch without a copy;
`Downloader` makes them the very frames that the CPU gives: H.264, HEVC and VP9 define every bit. (So does AV1, but
libav decodes that by dav1d where it can, and PyAV has no way to open its other decoder as the container says.)

Not all videos fit: `fits` says what is known beforehand, `Unfit` is raised for what turns up on the way.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import av
import numpy as np
import torch
from av.codec.hwaccel import HWAccel
from av.sidedata.sidedata import Type
from torch import Tensor

from hpc.data.video.container import Frame, Unfit
from hpc.data.video.graph import Graph
from hpc.data.video.probe import Video

EIGHT, TEN = ("yuv420p", "yuvj420p"), ("yuv420p10le",)
CODECS = {"h264": EIGHT, "hevc": EIGHT + TEN, "vp9": EIGHT + TEN}
SITINGS = ("left", "unspecified", "topleft", "center", "top", "bottomleft", "bottom")


def fits(info: Video) -> bool:
    """Can NVDEC decode it, and is a decoded frame all that is to be made of it: nothing to turn, deinterlace or map to
    a lower dynamic range? (The GPU may still refuse, then the first frame is Unfit.)"""
    plain = not (info.rotation or info.interlaced or info.transfer)
    return plain and info.pix_fmt in CODECS.get(info.codec, ()) and not (info.width % 2 or info.height % 2)


def device_for(decode: str, consumer: torch.device) -> torch.device | None:
    """The GPU that decodes for a consumer of frames, as `decode` of the settings says, auto, cpu or gpu; None: CPUs do.
    Raises ValueError where a GPU should, and none can."""
    if decode == "cpu" or (decode == "auto" and consumer.type != "cuda"):
        return None
    if consumer.type != "cuda":
        raise ValueError("decode: gpu: there is no GPU here: take one (resources: {gpus: 1}), or `decode: cpu`")
    if why := _missing():
        if decode == "gpu":
            raise ValueError(f"decode: gpu: {why}: in a container NVIDIA_DRIVER_CAPABILITIES must have `video` beside "
                             "compute and utility; or take `decode: cpu`")  # fmt: skip
        return None
    return consumer if consumer.index is not None else torch.device("cuda", torch.cuda.current_device())


@functools.cache
def _missing() -> str:
    """Why the driver cannot decode; "" where it can. It is the library that libav looks for, too."""
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError as error:
        return str(error)
    return ""


@functools.cache
def prepare() -> None:
    """Once a process, before torch first touches the GPU: lets waits for the GPU sleep instead of spin, which the CPUs
    that encode are better without. libav demands that of the context that it makes, and torch takes what is there."""
    if not torch.cuda.is_initialized():
        av.CodecContext.create("h264", "r", HWAccel("cuda", is_hw_owned=True))


def accelerator() -> HWAccel:
    """For av.open, in the thread that will decode."""
    prepare()
    torch.cuda.set_device(torch.cuda.current_device())  # makes torch's context this thread's, and libav takes that
    options = {"primary_ctx": "0", "current_ctx": "1"}
    return HWAccel("cuda", str(torch.cuda.current_device()), is_hw_owned=True, options=options)


def check(frame: Frame) -> None:
    """Raises Unfit."""
    if frame.format.name != "cuda":
        raise Unfit("the GPU does not decode it")
    if frame.interlaced_frame:
        raise Unfit("interlaced frames")


def planes(frame: Frame) -> tuple[Tensor, Tensor]:
    """Y [height, width] and UV [height / 2, width / 2, 2] of a frame in the GPU's memory: uint8, or uint16 with 10 bits
    at its upper end. libav's copy into them is on CUDA's default stream."""
    y, uv = frame.planes
    return torch.from_dlpack(_Capsule(y)), torch.from_dlpack(_Capsule(uv))


class _Capsule:
    """A plane as torch wants it: PyAV refuses to be told a stream to wait for."""

    __slots__ = ("plane",)

    def __init__(self, plane: av.video.plane.VideoPlane) -> None:
        self.plane = plane

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.plane.__dlpack_device__()

    def __dlpack__(self, **_: object) -> object:
        return self.plane.__dlpack__()


class Downloader:
    """Frames of one video from the GPU's memory to the CPU's, several in one copy."""

    def __init__(self, info: Video, plain: Callable[[Frame], Frame]) -> None:
        """plain: what the decoder does to decoded frames, Decoder.plain."""
        self.info, self.plain = info, plain
        self.stream = torch.cuda.Stream(priority=-1)
        self.mark: Graph | None = None

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """The same frames, as the CPU's decoder gives them."""
        # The long way is right for all, and keeps closed captions; but PyAV holds Python's lock while it copies.
        # (Of heights that are no multiple of 4 it makes less, when it makes frames of arrays.)
        odd = self.info.pix_fmt in TEN or self.info.height % 4
        if odd or any(Type.A53_CC in frame.side_data for frame in frames):
            return [self.plain(_kept(frame, frame.reformat(format=self.info.pix_fmt))) for frame in frames]
        if self.mark is None:
            self.mark = Graph(("setparams", f"chroma_location={siting(frames[0], self.info.pix_fmt)}"))
        pairs = [planes(frame) for frame in frames]
        with torch.inference_mode(), torch.cuda.stream(self.stream):
            self.stream.wait_stream(torch.cuda.default_stream())
            y = torch.stack([y for y, _ in pairs]).flatten(1)
            uv = torch.stack([uv for _, uv in pairs]).movedim(3, 1).flatten(1)
            host = torch.empty(len(frames), y.shape[1] * 3 // 2, dtype=torch.uint8, pin_memory=True)
            host.copy_(torch.cat([y, uv], 1), non_blocking=True)
            done = torch.cuda.Event(blocking=True)
            done.record()
        done.synchronize()
        height, width = pairs[0][0].shape
        arrays = host.numpy().reshape(len(frames), height * 3 // 2, width)
        made = (av.VideoFrame.from_numpy_buffer(array, self.info.pix_fmt) for array in arrays)
        return [self.plain(_kept(f, self.mark(_kept(f, m)))) for f, m in zip(frames, made, strict=True)]


def _kept(source: Frame, frame: Frame) -> Frame:
    for name in ("pts", "duration", "time_base", "colorspace", "color_range", "color_trc", "color_primaries"):
        setattr(frame, name, getattr(source, name))
    return frame


def siting(frame: Frame, pix_fmt: str) -> str:
    """Where the frame's chroma samples lie, in the words of libav's filter "setparams". PyAV does not say; but small
    pictures depend on it, so it shows in those of noise. Raises Unfit if it cannot be told."""
    noise = np.random.default_rng(0)
    known = frame.reformat(format=pix_fmt)
    for plane in known.planes:
        plane.update(noise.integers(0, 256, plane.buffer_size, np.uint8).tobytes())
    size = (frame.width // 4, frame.height // 4, "rgb24")
    small = known.reformat(*size).to_ndarray()
    for name in SITINGS:
        unmarked = av.VideoFrame.from_numpy_buffer(known.to_ndarray(), pix_fmt)
        marked = Graph(("setparams", f"chroma_location={name}"))(_kept(frame, unmarked))
        if np.array_equal(_kept(frame, marked).reformat(*size).to_ndarray(), small):
            return name
    raise Unfit("chroma samples in an unknown place")
