"""Made ar.npz and ar.json, once, by running published code on a CPU; needs copies of it, einops, omegaconf, loguru:

    git clone https://github.com/nvidia-cosmos/cosmos-predict1 && git -C cosmos-predict1 checkout 4ed35fa
    git clone https://github.com/NVIDIA/Cosmos && git -C Cosmos checkout 71f19b0
    PYTHONPATH=cosmos-predict1:Cosmos:tests python tests/golden/make_ar.py

Weights and inputs come from tests/made.py, so that only what the code made of them is stored. What is not there on a
CPU (CUDA, transformer-engine, NeMo) is stood in for by empty modules: nothing of them runs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import megatron.core.models.gpt  # noqa: F401  before modules are stood in for: it looks for transformer-engine
import numpy as np
import torch
from made import made, weight
from megatron.core import parallel_state

FOLDER = Path(__file__).parent
MISSING = ["transformer_engine", "nemo", "cosmos_predict1.diffusion", "cosmos_predict1.autoregressive.configs",
           "cosmos1.utils", "cosmos1.models.autoregressive.nemo.inference",
           "megatron.core.inference.model_inference_wrappers",
           "megatron.core.transformer.custom_layers", "cosmos_predict1.utils.log", "cosmos_predict1.utils.misc",
           "cosmos_predict1.utils.model", "cosmos_predict1.utils.distributed", "cosmos_predict1.utils.lazy_config",
           "cosmos_predict1.autoregressive.tokenizer", "cosmos_predict1.autoregressive.networks.vit",
           "cosmos_predict1.autoregressive.modules.mm_projector", "safetensors"]  # fmt: skip
TINY = {"n_layers": 2, "dim": 64, "n_heads": 16, "n_kv_heads": 8, "head_dim": 16, "ffn_hidden_size": 128}
SHAPE = [3, 4, 6]
VOCAB = 320
IGNORED = SHAPE[1] * SHAPE[2] - 1  # num_tokens_to_ignore of create_video2world_model_config, without special tokens


class Missing:
    """Finds and loads empty modules, for whatever begins with a name of MISSING."""

    def find_spec(self, name: str, path: object = None, target: object = None):
        import importlib.machinery

        if any(name == one or name.startswith(one + ".") for one in MISSING):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = mock.MagicMock(name=spec.name)
        module.__path__, module.__spec__ = [], spec
        if spec.name == "nemo.lightning":
            module.io.state_transform = lambda **_: lambda function: function
            module.io.model_importer = lambda *_: lambda kind: kind
        for base in ("LlamaModel", "Llama3Config", "InferenceWrapperConfig", "Model", "TransformerBlockTE"):
            setattr(module, base, type(base, (), {}))
        return module

    def exec_module(self, module) -> None:
        pass


sys.meta_path.insert(0, Missing())
torch.Tensor.cuda = lambda self, *_, **__: self
torch.cuda.current_device = lambda: "cpu"
torch.set_num_threads(1)
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29600", "RANK": "0", "WORLD_SIZE": "1"}
torch.distributed.init_process_group("gloo")

from cosmos_predict1.autoregressive.modules import embedding  # noqa: E402
from cosmos_predict1.autoregressive.networks.transformer import Transformer  # noqa: E402

parallel_state.initialize_model_parallel(1)
arrays: dict[str, np.ndarray] = {}
facts: dict[str, object] = {
    "cosmos-predict1": "4ed35faafd01cf3d18e8b98c3875eae63032027a",
    "Cosmos": "71f19b0d88a7268f0b5f198dcabac8e1b1e3ca49",
    "torch": torch.__version__.partition("+")[0],
    "config": TINY | {"shape": SHAPE, "vocab": VOCAB, "ignored": IGNORED},
}

# Rotary angles at the published sizes, of 4B and (with YaRN) of 12B: every 1009th number.
YARN = {"apply_yarn": True, "scale": 2, "beta_fast": 4, "beta_slow": 1, "original_latent_shape": [3, 40, 64]}
for name, more, training, seq in [("4b", {}, None, 12800), ("12b", YARN, None, 12800),
                                  ("13b", YARN, "text_to_video", 12864)]:  # fmt: skip
    rope = embedding.RotaryPositionEmbeddingPytorchV2(
        seq_len=seq, training_type=training, dim=128, max_position_embeddings=seq, rope_theta=500000, rope_dim="3D",
        latent_shape=[5, 40, 64], pad_to_multiple_of=64, **more,
    )  # fmt: skip
    angles = rope.create_rope_freqs(seq_len=seq, training_type=training)
    assert angles.shape == (seq, 1, 1, 128)
    arrays[f"rope.{name}"] = angles.flatten()[::1009].numpy()
table = embedding.SinCosPosEmbAxisTE(dim=4096, latent_shape=[5, 40, 64], pad_to_multiple_of=64, device="cpu")
arrays["absolute.5b"] = table(training_type="text_to_video").flatten()[::40009].float().numpy()


def model(world: bool, yarn: bool) -> Transformer:
    length = 128 if world else 72
    params = {
        **TINY, "max_batch_size": 2, "max_seq_len": length, "norm_type": "rmsnorm", "norm_eps": 1e-5,
        "use_qk_normalization": True, "causal_mask": True, "precision": "float32", "tensor_model_parallel_size": 1,
        "insert_cross_attn": world, "insert_cross_attn_every_k_layers": 1, "context_dim": 24, "vocab_size": VOCAB,
        "num_video_frames": 17, "pytorch_rope_version": "v2", "rope_dim": "3D", "video_latent_shape": SHAPE,
        "original_seq_len": 8192, "rope_theta": 500000, "apply_yarn": yarn, "yarn_scale": 2, "yarn_beta_fast": 4,
        "yarn_beta_slow": 1, "original_latent_shape": [2, 4, 6], "apply_abs_pos_emb": world,
        "pad_to_multiple_of": 64 if world else 1,
    }  # fmt: skip
    cpu = lambda *args, **kwargs: sin_cos(*args, **{**kwargs, "device": "cpu"})
    sin_cos = embedding.SinCosPosEmbAxisTE
    kind = "text_to_video" if world else "video_to_video"
    with mock.patch("cosmos_predict1.autoregressive.networks.transformer.SinCosPosEmbAxisTE", cpu):
        made_ = Transformer(params, tokenizer_config=SimpleNamespace(training_type=kind))
    if world:
        made_.tok_embeddings = torch.nn.Embedding(VOCAB + 64, TINY["dim"])  # as expand_vocab does
    for name, parameter in made_.named_parameters():
        parameter.data = torch.from_numpy(weight("model." + name, *parameter.shape))
    return made_


def tokens(name: str, batch: int, length: int) -> torch.Tensor:
    return torch.from_numpy(((made(name, batch, length) + 1) * VOCAB / 2).astype(np.int64).clip(0, VOCAB - 1))


def gradients(name: str, made_: Transformer) -> None:
    """Of each parameter's gradient: its length, and its projection on a vector."""
    facts[f"{name}.grads"] = ["model." + n for n, _ in made_.named_parameters()]
    arrays[f"{name}.grads"] = np.array([
        [p.grad.norm(), (p.grad * torch.from_numpy(made("probe.model." + n, *p.shape))).sum()]
        for n, p in made_.named_parameters()
    ])  # fmt: skip


# 4B-like (with YaRN, as 12B): logits, and the loss of the native trainer with its gradients, in float64.
from cosmos_predict1.autoregressive.training.model import AutoRegressiveTrainingModel  # noqa: E402

base = model(world=False, yarn=True).double()
ids = tokens("tokens", 2, 72)
for layer in base.layers:
    layer.attention.init_kv_cache(torch.float64)
trainer = SimpleNamespace(
    config=SimpleNamespace(ignore_first_num_tokens=IGNORED, z_loss_coeff=1e-2),  # larger, so that it shows
    tokenizer=SimpleNamespace(tokenize=lambda batch: (batch["ids"], {}), ignore_index=-100, training_type="video"),
    model=SimpleNamespace(forward=lambda tokens, **_: base(tokens, input_pos=torch.arange(72))),
    vision_encoder=None, monitor_output_logits=False,
)  # fmt: skip
with mock.patch("cosmos_predict1.autoregressive.training.model.misc.to", lambda value, device: value):
    with mock.patch("cosmos_predict1.autoregressive.training.model.broadcast_data_batch_in_tp_cp_group"):
        output, loss = AutoRegressiveTrainingModel.training_step(trainer, {"ids": ids}, 0)
loss.backward()
arrays["base.logits"] = output["logits"].flatten()[::7].float().numpy()
arrays["base.loss"] = loss.detach().numpy()
gradients("base", base)

# 5B-like: begin of video, padding, context, absolute positions.
world = model(world=True, yarn=False).double()
for layer in world.layers:
    layer.attention.init_kv_cache(torch.float64)
ids = torch.cat([torch.full((2, 1), VOCAB), tokens("tokens", 2, 72), torch.full((2, 55), VOCAB + 2)], 1)
world.precision = torch.float64
context = torch.from_numpy(made("context", 2, 5, 24)).double()
logits = world(ids, input_pos=torch.arange(128), context=context)
(logits * torch.from_numpy(made("gradient", *logits.shape))).sum().backward()
arrays["world.logits"] = logits.detach().flatten()[::7].float().numpy()
gradients("world", world)

# The order of rows that NeMo's importer makes of q, k and v: 0, 1, ... in q, then k, then v.
from cosmos1.models.autoregressive.nemo import cosmos, cosmos_video2world  # noqa: E402

sizes = {"num_attention_heads": 32, "num_query_groups": 8, "kv_channels": 128, "hidden_size": 1}
context_ = SimpleNamespace(target=SimpleNamespace(config=SimpleNamespace(**sizes, crossattn_emb_size=1024)))
rows = torch.arange(4096 + 2 * 1024)[:, None]
arrays["qkv"] = cosmos._import_qkv_cosmos(context_, *rows.split([4096, 1024, 1024]))[:, 0].short().numpy()
k, v = (rows[start : start + 1024].expand(1024, 1024).contiguous() for start in (0, 1024))
arrays["kv"] = cosmos_video2world._import_kv_cosmos_cross_attention(context_, k, v)[:, 0].short().numpy()

np.savez_compressed(FOLDER / "ar.npz", **arrays)
(FOLDER / "ar.json").write_text(json.dumps(facts, separators=(",", ":")).replace('],"', '],\n"') + "\n")
print({name: value.shape for name, value in arrays.items()}, "loss", loss.item())
