"""Frames of a video as a tensor in a GPU's memory: decoded by its video engines, resized there, never copied back.

    sampler = Sampler(torch.device("cuda", 0))       # one a thread: several side by side keep all engines busy
    pictures = sampler(data, [8, 9, 10], 456, 256)   # uint8 [3, 256, 456, 3]
    batch = together([pictures, ...])                # for what the current stream computes

These are the frames that hpc.data.video.sample takes (`chosen` chooses for both). What the engines cannot decode, or
would decode otherwise, the CPU decodes, and its frames go the same way from there on: NVDEC's frames are the CPU's, bit
for bit, and hpc.kernels.yuv resizes in whole numbers, so that pictures depend neither on who decoded nor on the GPU.
Only of 10 bits a CPU keeps 8 before it resizes, and the engines all of them: there they may differ by a level.
From the pictures of `sample`, which swscale resizes, these differ by half a level in the mean.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from hpc.data.video import nvdec
from hpc.data.video.container import Frame, Source, Unfit
from hpc.data.video.fit import Fit, laid, placed
from hpc.data.video.probe import probe
from hpc.data.video.sample import chosen, opened
from hpc.kernels.yuv import Planes, key, rgb

LANES = 8
"""Samplers that keep all engines of a GPU busy: an H100 or H200 has 7."""
HELD = 128 * 2**20
"""Bytes of decoded frames that a sampler holds before it resizes them. Frames come by CUDA's default stream, behind
what training has put there, so it is best to wait for many at once."""
FULL_RANGE = 2  # color_range


class Sampler:
    """sampler(source, frames, width, height): uint8 [len(frames), height, width, 3], RGB, upright, on the device. On a
    device without video engines, the CPU, all is the same but that the CPU decodes. Raises as `sample` does."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.by_cpu = 0
        """Videos so far that the CPU had to decode."""

    def __call__(self, source: bytes | Source, frames: Sequence[int], width: int, height: int) -> Tensor:
        with self._on_stream():
            return self._taken(opened(source), frames, width, height)

    def fitted(
        self, source: bytes | Source, frames: Sequence[int], size: tuple[int, int], to: tuple[int, int], fit: Fit
    ) -> Tensor:
        """The same of a video of `size`, width and height, brought to another as `fit` says: see hpc.data.video.fit."""
        width, height, left, top = placed(*size, *to, fit)
        with self._on_stream():
            pictures = laid(self._taken(opened(source), frames, width, height), *to, left, top)
            _wait(self.device)
            return pictures

    def _on_stream(self) -> AbstractContextManager[object]:
        if self.device.type != "cuda":
            return nullcontext()
        torch.cuda.set_device(self.device)
        return torch.cuda.stream(_stream(self.device))

    def _taken(self, file: Source, frames: Sequence[int], width: int, height: int) -> Tensor:
        if self.device.type == "cuda" and nvdec.fits(info := probe(file)):
            with contextlib.suppress(Unfit):
                return self._sampled(file, frames, width, height, info.pix_fmt)
        pictures = self._sampled(file, frames, width, height)
        self.by_cpu += 1
        return pictures

    def _sampled(
        self, file: Source, frames: Sequence[int], width: int, height: int, coded: str | None = None
    ) -> Tensor:
        """coded: the pixel format, for video engines."""
        out: list[Tensor] = []
        held: list[Planes] = []
        counts: list[int] = []

        def resize() -> None:
            if coded:  # libav's copies out of the engines are there
                torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            pictures = rgb(held, width, height)
            if max(counts) > 1:
                pictures = pictures.repeat_interleave(torch.tensor(counts, device=self.device), 0)
            out.append(pictures)
            _wait(self.device)  # the decoder uses frames' memory again when they are dropped
            held.clear()
            counts.clear()

        for frame, times in chosen(file, frames, nvdec=coded is not None):
            one = _planes(frame, coded) if coded else _uploaded(frame, self.device)
            if held and (key(one) != key(held[0]) or len(held) * _bytes(one) >= HELD):
                resize()
            held.append(one)
            counts.append(times)
        if held:
            resize()
        if not out:
            return torch.empty(0, height, width, 3, dtype=torch.uint8, device=self.device)
        if len(out) > 1:
            out = [torch.cat(out)]
            _wait(self.device)
        return out[0]


def together(pictures: Sequence[Tensor]) -> Tensor:
    """Stacked, for the current stream, whichever streams they were made on."""
    for one in pictures:
        if one.is_cuda:
            one.record_stream(torch.cuda.current_stream(one.device))  # else its memory is used again too early
    return torch.stack(list(pictures))


_threads = threading.local()


def _stream(device: torch.device) -> torch.cuda.Stream:
    """This thread's own, before others that nobody waits for."""
    if getattr(_threads, "device", None) != device:
        _threads.device, _threads.stream = device, torch.cuda.Stream(device, priority=-1)
    return _threads.stream


def _wait(device: torch.device) -> None:
    """Until this thread's stream has done all."""
    if device.type == "cuda":
        done = torch.cuda.Event(blocking=True)
        done.record()
        done.synchronize()


def _bytes(planes: Planes) -> int:
    """About what it takes in the GPU's memory: rows are padded."""
    return -(-planes.y.shape[1] // 512) * 512 * planes.y.shape[0] * planes.y.element_size() * 3 // 2


def _planes(frame: Frame, pix_fmt: str) -> Planes:
    """Of a frame in the GPU's memory."""
    full = frame.color_range == FULL_RANGE or pix_fmt == "yuvj420p"
    return Planes(*nvdec.planes(frame), int(frame.colorspace), full)


def _uploaded(frame: Frame, device: torch.device) -> Planes:
    """Of a frame as the CPU's decoder gives it, yuv420p or yuvj420p."""
    y, u, v = (
        torch.from_numpy(
            np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
        )
        for plane in frame.planes
    )
    full = frame.color_range == FULL_RANGE or frame.format.name == "yuvj420p"
    uv = torch.stack([u, v], 2)
    return Planes(y.contiguous().to(device, copy=True), uv.to(device), int(frame.colorspace), full)
