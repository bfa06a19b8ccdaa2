"""TransNetV2 on a GPU: small pictures made there, windows of several videos in one batch, answers that come later.

    batcher = Batcher(load_transnetv2("cuda"))       # one a process: a thread, a stream, a CUDA graph
    detector = batcher.detector()                    # one a video; used by one thread
    for planes in frames:                            # Planes of a frame on the GPU, or uint8 [27, 48, 3] of any other
        probabilities.extend(detector.push(planes))  # of the frames that are decided by now
    probabilities.extend(detector.finish())

The network runs in float16, always on BATCH windows (empty places hold old ones), as one CUDA graph: a window's
probabilities never depend on what else is in the batch, or on when they come. On an H200 one graph of 8 windows takes
6 ms, 68,000 frames/s, seven times what its video engines decode; torch.compile makes that 104,000, but takes 8 s at
every worker's start, and a C compiler in the image. bfloat16 takes as long, and is 65 times further from float32:
probabilities differ by up to 0.019 in place of 0.0003. Activations stay below 25, a long way from float16's 65,504.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpc.kernels.yuv import BT601, MATRICES, SWSCALE_LOSS, Planes, bicubic, key
from hpc.models.shots import CONTEXT, HEIGHT, STEP, WIDTH, WINDOW, TransNetV2

BATCH = 8  # windows
FILL = 0.05  # seconds that a window waits for others: the network takes as long for one as for BATCH
LATE = 4  # windows of a video that may be under way; then it waits for the oldest
CHUNK, CHUNK_BYTES = 25, 64 * 2**20  # frames that are made small at once: at most so many, of at most so many bytes


class Small:
    """Planes of one size -> what `hpc.data.video.Resizer` makes of them, within a few levels of 255."""

    def __init__(self, like: Planes) -> None:
        self.key = key(like)
        device = like.y.device
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        (height, width), (chroma_height, chroma_width) = like.y.shape, like.uv.shape[:2]
        # swscale gives two pixels beside each other the same color: half as many are made, and doubled.
        shapes = ((height, HEIGHT), (width, WIDTH), (chroma_height, HEIGHT), (chroma_width, WIDTH // 2))
        self.weights = [bicubic(*shape).to(device, dtype) for shape in shapes]
        red, blue = MATRICES.get(like.colorspace, BT601)
        green = 1 - red - blue
        light, color = (1.0, 1.0) if like.full_range else (255 / 219, 255 / 224)
        r, b = 2 * (1 - red) * color, 2 * (1 - blue) * color
        matrix = [[light, 0, r], [light, -b * blue / green, -r * red / green], [light, b, 0]]
        self.matrix = torch.tensor(matrix, device=device).T.contiguous()
        loss = torch.tensor((0.0, 0.0, 0.0) if like.full_range else SWSCALE_LOSS, device=device)
        black = torch.tensor([0.0 if like.full_range else 16.0, 128.0, 128.0], device=device)
        self.bias = loss - black @ self.matrix

    def __call__(self, frames: list[Planes]) -> Tensor:
        """uint8 [frames, 27, 48, 3], RGB."""
        rows, columns, chroma_rows, chroma_columns = self.weights
        y = rows @ (self._stack([f.y for f in frames]) @ columns.T)
        uv = chroma_rows @ (self._stack([f.uv for f in frames]).movedim(3, 1) @ chroma_columns.T)
        uv = uv.repeat_interleave(2, 3).float()
        yuv = torch.stack([y.float(), uv[:, 0], uv[:, 1]], 3)
        return (yuv @ self.matrix + self.bias).clamp_(0, 255).round_().to(torch.uint8)

    def _stack(self, planes: list[Tensor]) -> Tensor:
        dtype = self.weights[0].dtype
        if planes[0].dtype == torch.uint8:
            return torch.stack(planes).to(dtype)
        deep = torch.stack([p.view(torch.int16) for p in planes])  # few operators know uint16
        return ((deep.to(torch.int32) & 0xFFFF) / 256).to(dtype)


class Window(NamedTuple):
    pictures: Tensor
    """uint8 [100, 27, 48, 3]"""
    made: torch.cuda.Event
    due: float
    """When it is to be answered at the latest, with others or alone."""
    answer: Future[npt.NDArray[np.float32]]


class Batcher:
    """The network for all videos that a process works on. Any thread may submit; one thread here answers."""

    def __init__(self, model: TransNetV2) -> None:
        self.device = next(model.parameters()).device
        self.model = model  # the graph knows no more of its weights than where they lie
        self.stream = torch.cuda.Stream(self.device)
        self.windows: queue.SimpleQueue[Window] = queue.SimpleQueue()
        with torch.inference_mode():
            self.input = torch.zeros(BATCH, WINDOW, HEIGHT, WIDTH, 3, dtype=torch.uint8, device=self.device)
            self.run, self.output = self._capture()
            self.host = torch.empty(self.output.shape, pin_memory=True)
        threading.Thread(target=self._answer, name="shot detector", daemon=True).start()

    def detector(self, first: int = 0) -> Detector:
        return Detector(self, first)

    def submit(
        self, pictures: Tensor, made: torch.cuda.Event, at_once: bool = False
    ) -> Future[npt.NDArray[np.float32]]:
        """pictures: uint8 [100, 27, 48, 3]; made: recorded after them. The answer: probabilities [50] of the middle."""
        window = Window(pictures, made, time.monotonic() + (0 if at_once else FILL), Future())
        self.windows.put(window)
        return window.answer

    def _capture(self) -> tuple[Callable[[], object], Tensor]:
        """What runs the network from self.input to the tensor that is returned too."""

        def network() -> Tensor:
            with torch.autocast("cuda", torch.float16, cache_enabled=False):
                return self.model(self.input, slice(CONTEXT, CONTEXT + STEP))[0].float().sigmoid()

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):
            for _ in range(3):  # libraries choose their kernels and take their workspaces
                network()
        self.stream.synchronize()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            output = network()
        return graph.replay, output

    @torch.inference_mode()
    def _answer(self) -> None:
        while True:
            batch = [self.windows.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < BATCH:
                    left = min(window.due for window in batch) - time.monotonic()
                    batch.append(self.windows.get(timeout=left) if left > 0 else self.windows.get_nowait())
            try:
                with torch.cuda.stream(self.stream):
                    for place, window in enumerate(batch):
                        self.stream.wait_event(window.made)
                        self.input[place].copy_(window.pictures)
                        window.pictures.record_stream(self.stream)
                    self.run()
                    self.host.copy_(self.output, non_blocking=True)
                    done = torch.cuda.Event(blocking=True)
                    done.record()
                done.synchronize()
                answers = self.host.numpy().copy()
                for place, window in enumerate(batch):
                    window.answer.set_result(answers[place])
            except Exception as error:
                for window in batch:
                    if not window.answer.done():
                        window.answer.set_exception(error)


class Detector:
    """hpc.models.shots.Detector over a Batcher: the same windows, answered up to LATE windows later."""

    def __init__(self, batcher: Batcher, first: int = 0) -> None:
        if first % STEP:
            raise ValueError(f"first is {first}; the windows of the whole video begin at multiples of {STEP}")
        self.batcher = batcher
        self.stream = torch.cuda.Stream(batcher.device, priority=-1)  # before the network, which nobody waits for
        self.at_start = first == 0
        self.small: Small | None = None
        self.chunk: list[Planes] | list[npt.NDArray[np.uint8]] = []
        self.reading: tuple[object, torch.cuda.Event] | None = None  # frames that the GPU may still be reading
        self.pictures = torch.empty(0, HEIGHT, WIDTH, 3, dtype=torch.uint8, device=batcher.device)
        self.answers: deque[tuple[Future[npt.NDArray[np.float32]], int]] = deque()

    def push(self, picture: Planes | npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The next frame: its planes, in the GPU's memory, or itself, uint8 [27, 48, 3], RGB. Returns the probabilities
        [n] of the next n frames; n is a multiple of 50, and often 0."""
        if self.chunk and isinstance(picture, Planes) and key(picture) != self.small.key:
            self._shrink()
        self.chunk.append(picture)
        if isinstance(picture, Planes) and (self.small is None or self.small.key != key(picture)):
            self.small = Small(picture)
            self.stream.wait_stream(torch.cuda.current_stream())  # its weights
        if len(self.chunk) == CHUNK or (
            isinstance(picture, Planes) and len(self.chunk) * 3 * picture.y.numel() >= CHUNK_BYTES
        ):
            self._shrink()
        return self._known(LATE)

    def finish(self) -> npt.NDArray[np.float32]:
        """The video ends here: waits for the probabilities [n] of all frames that are left."""
        if self.chunk:
            self._shrink()
        with torch.inference_mode(), torch.cuda.stream(self.stream):
            while (undecided := len(self.pictures) - CONTEXT) > 0:
                last = self.pictures[-1:].expand(WINDOW - len(self.pictures), -1, -1, -1)
                self._submit(torch.cat([self.pictures, last]), min(undecided, STEP), at_once=True)
                self.pictures = self.pictures[STEP:]
        return self._known(0)

    @torch.inference_mode()
    def _shrink(self) -> None:
        with torch.cuda.stream(self.stream):
            if isinstance(self.chunk[0], Planes):
                # The decoder writes frames on the default stream, and uses their memory again when they are dropped.
                self.stream.wait_stream(torch.cuda.default_stream(self.batcher.device))
                pictures = self.small(self.chunk)
            else:
                pictures = torch.from_numpy(np.stack(self.chunk)).to(self.batcher.device)
            if self.at_start:
                pictures = torch.cat([pictures[:1].expand(CONTEXT, -1, -1, -1), pictures])
                self.at_start = False
            read = torch.cuda.Event(blocking=True)
            read.record()
            if self.reading:
                self.reading[1].synchronize()
            self.reading, self.chunk = (self.chunk, read), []
            self.pictures = torch.cat([self.pictures, pictures])
            while len(self.pictures) >= WINDOW:
                self._submit(self.pictures[:WINDOW], STEP)
                self.pictures = self.pictures[STEP:]

    def _submit(self, pictures: Tensor, count: int, at_once: bool = False) -> None:
        made = torch.cuda.Event()
        made.record()
        self.answers.append((self.batcher.submit(pictures, made, at_once), count))

    def _known(self, late: int) -> npt.NDArray[np.float32]:
        """What is answered, in order; waits until no more than `late` windows are not."""
        known = []
        while self.answers and (len(self.answers) > late or self.answers[0][0].done()):
            answer, count = self.answers.popleft()
            known.append(answer.result()[:count])
        return np.concatenate(known) if known else np.empty(0, np.float32)
