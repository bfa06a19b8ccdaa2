"""Made tokenizers.npz and tokenizers.json, once, by running published code; needs clones of it, einops and loguru:

    git clone https://github.com/nvidia-cosmos/cosmos-predict1 && git -C cosmos-predict1 checkout 4ed35fa
    git clone https://github.com/Wan-Video/Wan2.1 && git -C Wan2.1 checkout 9737cba
    PYTHONPATH=cosmos-predict1:Wan2.1/wan/modules:tests python tests/golden/make_tokenizers.py

Weights and inputs come from tests/made.py, so that only what the code made of them is stored.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import vae as wan
from cosmos_predict1.tokenizer.modules.patching import Patcher3D
from cosmos_predict1.tokenizer.modules.quantizers import FSQuantizer
from cosmos_predict1.tokenizer.networks import CausalContinuousVideoTokenizer, CausalDiscreteVideoTokenizer
from cosmos_predict1.tokenizer.networks.configs import continuous_video_8x8x8_720p, discrete_video_8x16x16_720p
from made import made, weight

FOLDER = Path(__file__).parent
SMALL = {"channels": 8}
VIDEO = (1, 3, 17, 32, 48)
EVERY = 5  # of large arrays, each fifth number is kept


def shapes(*modules: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for module in modules for name, value in module.state_dict().items()}


torch.set_num_threads(1)
arrays: dict[str, np.ndarray] = {}

# FSQ alone: many latents, in float32 and rounded to bfloat16.
fsq = FSQuantizer([8, 8, 8, 5, 5, 5], dtype=torch.float32)
z = torch.from_numpy(made("fsq", 1, 6, 1, 1, 4000) * 4)
ids, codes, _ = fsq(z)
arrays |= {"fsq.ids": ids.flatten().numpy(), "fsq.codes": codes[0, :, 0, 0].numpy()}
arrays["fsq.ids.bfloat16"] = fsq(z.bfloat16())[0].flatten().numpy()

arrays["haar"] = Patcher3D(4, "haar")(torch.from_numpy(made("haar", 1, 3, 9, 8, 8))).numpy()

# DV8x16x16 with fewer channels: ids, reconstruction, and gradients through the rounding; in float64, stored as float32.
dv = CausalDiscreteVideoTokenizer(**{**discrete_video_8x16x16_720p, **SMALL, "dtype": torch.float64}).eval().double()
dv.quantizer.dtype = torch.float64
for name, parameter in dv.named_parameters():
    parameter.data = torch.from_numpy(weight(name, *parameter.shape)).double() * (
        4 if name == "quant_conv.conv3d.weight" else 1
    )
video = torch.from_numpy(made("video", *VIDEO)).double().requires_grad_()
z = dv.quant_conv(dv.encoder(video))
ids, codes, _ = dv.quantizer(z)
bounded = dv.quantizer.bound(z.detach().movedim(1, -1))
print("ids", ids.unique().numel(), "of", ids.numel(), "; nearest to a tie", (bounded % 1 - 0.5).abs().min().item())
reconstruction = dv.decode(codes)
(reconstruction * torch.from_numpy(made("gradient", *VIDEO))).sum().backward()
arrays |= {
    "dv.z": z.detach().float().numpy(),
    "dv.ids": ids.numpy(),
    "dv.reconstruction": reconstruction.detach().flatten()[::EVERY].float().numpy(),
    "dv.video.grad": video.grad.flatten()[::EVERY].float().numpy(),
    # of each parameter's gradient: its length, and its projection on a vector
    "dv.grads": np.array(
        [
            [p.grad.norm(), (p.grad * torch.from_numpy(made("probe." + name, *p.shape))).sum()]
            for name, p in dv.named_parameters()
        ]
    ),
}
np.savez_compressed(FOLDER / "tokenizers.npz", **arrays)

facts = {
    "cosmos-predict1": "4ed35faafd01cf3d18e8b98c3875eae63032027a",
    "Wan2.1": "9737cba9c1c3c4d04b33fcad41c111989865d315",
    "torch": torch.__version__.partition("+")[0],
    "dv": {"config": "discrete_video_8x16x16_720p", **SMALL, "video": VIDEO, "every": EVERY},
    "dv.grads": [name for name, _ in dv.named_parameters()],
}
# The names and shapes in published files: of the modules that jit_cli.py traces, at the published sizes.
with torch.device("meta"):
    full = wan.WanVAE_(dim=96, z_dim=16, temperal_downsample=[False, True, True])
dv = CausalDiscreteVideoTokenizer(**discrete_video_8x16x16_720p)
cv = CausalContinuousVideoTokenizer(**continuous_video_8x8x8_720p)
facts["names"] = {
    "DV8x16x16": shapes(dv.encoder_jit(), dv.decoder_jit()),
    "CV8x8x8": shapes(cv.encoder_jit(), cv.decoder_jit()),
    "Wan2.1": shapes(full),
}
(FOLDER / "tokenizers.json").write_text(
    json.dumps(facts, indent=None, separators=(",", ":")).replace('},"', '},\n"') + "\n"
)
