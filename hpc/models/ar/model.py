"""The autoregressive transformer on megatron-core: one model for every preset, layout and precision.

    start = embedding(tokens)
    layer:  x += positions                                   video2world alone
            x += attention(rope(norm(q)), rope(norm(k)), v)  of norm(x); causal, grouped queries
            x += attention(norm(q), norm(k), v of context)   of norm(x); video2world alone
                                                             with actions: context = w2(relu(w1 action))
            x += w2(silu(w1 x) * w3 x)                       of norm(x)
    logits = output(norm(x))                                 each tensor-parallel rank has its part of the classes

Two sets of layers make the same model with the same checkpoints: `local` (torch, any device, gloo) and
`transformer_engine` (GPUs, FP8). Tensors are sequence first: x_SBD. Parity with the published code is tested against
arrays that it made (tests/golden/make_ar.py).
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import hpc.models.ar.light  # noqa: F401  before megatron-core

# isort: split
import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.attention import (
    Attention,
    CrossAttentionSubmodules,
    SelfAttention,
    SelfAttentionSubmodules,
)
from megatron.core.transformer.enums import AttnMaskType, ModelType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_block import (
    TransformerBlock,
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from hpc.kernels import choose
from hpc.kernels.qk_norm_rope import qkv_norm_rope
from hpc.models.ar import keys
from hpc.models.ar.adapters import adapt
from hpc.models.ar.positions import absolute, rope_angles, zigzag
from hpc.models.ar.presets import Preset

Backend = Literal["local", "transformer_engine"]
Kernels = Literal["auto", "torch", "fused"]
ACTIONS = 128
"""Times that an action's embedding is in the context: attention to equal tokens is attention to one, and FP8 wants so
many rows. Upstream has 7, as many as an action has numbers."""


def config(preset: Preset, **parallel: Any) -> TransformerConfig:
    """megatron-core's configuration of a preset. parallel: its further fields: layout, precision, recomputation."""
    fused = torch.cuda.is_available()
    dtype = parallel.get("params_dtype", torch.float32)
    fields: dict[str, Any] = {
        "num_layers": preset.layers,
        "hidden_size": preset.dim,
        "ffn_hidden_size": preset.ffn,
        "num_attention_heads": preset.heads,
        "num_query_groups": preset.kv_heads,
        "kv_channels": preset.head_dim,
        "normalization": "RMSNorm",
        "layernorm_epsilon": preset.norm_eps,
        "qk_layernorm": True,
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "add_bias_linear": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "perform_initialization": False,
        "use_cpu_initialization": not fused,
        "bias_activation_fusion": fused,
        "bias_dropout_fusion": False,  # there is neither; the plain sum is as fast
        "masked_softmax_fusion": False,
        "apply_rope_fusion": fused,
        "gradient_accumulation_fusion": False,
        "persist_layer_norm": False,
        "bf16": dtype == torch.bfloat16,
        "pipeline_dtype": dtype,
    }
    return TransformerConfig(**(fields | parallel))


class Positions:
    """The tables of positions on this rank's part of the sequence; made once for each device."""

    def __init__(self, preset: Preset, config: TransformerConfig, groups: ProcessGroupCollection) -> None:
        self.preset, self.groups, self.sharded = preset, groups, config.sequence_parallel
        self._made: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def rope(self, device: torch.device) -> Tensor:
        """float32 [S, 1, 1, head_dim]: angles of all tokens that this context-parallel rank attends from."""
        key = ("rope", device, torch.float32)
        if key not in self._made:
            part = zigzag(rope_angles(self.preset), self.groups.cp.rank(), self.groups.cp.size())
            self._made[key] = part[:, None, None].to(device)
        return self._made[key]

    def cos_sin(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """float32 [S, head_dim / 2] each, of the same tokens; the other half is the same."""
        key = ("cos_sin", device, torch.float32)
        if key not in self._made:
            angles = self.rope(device)[:, 0, 0, : self.preset.head_dim // 2]
            self._made[key] = torch.stack([angles.cos(), angles.sin()])
        return tuple(self._made[key])  # type: ignore[return-value]

    def absolute(self, like_SBD: Tensor) -> Tensor:
        """[S, 1, D], of the tokens whose hidden states this rank has: under sequence parallelism, its share."""
        key = ("absolute", like_SBD.device, like_SBD.dtype)
        if key not in self._made:
            part = zigzag(absolute(self.preset), self.groups.cp.rank(), self.groups.cp.size())
            if self.sharded:
                part = part.chunk(self.groups.tp.size())[self.groups.tp.rank()]
            self._made[key] = part[:, None].to(like_SBD.device, like_SBD.dtype)
        return self._made[key]


class ARModel(LanguageModule):
    """A pipeline stage of the model: the first one has the embedding, the last one the output. The MLP for actions is
    of the only one."""

    def __init__(
        self,
        preset: Preset,
        config: TransformerConfig,
        backend: Backend = "local",
        first: bool = True,
        last: bool = True,
        kernels: Kernels = "auto",
        lora: tuple[int, float] | None = None,
    ) -> None:
        """lora: rank and alpha of adapters, which alone are trained then (hpc.models.ar.adapters)."""
        super().__init__(config=config)
        self.preset, self.pre_process, self.post_process = preset, first, last
        self.model_type = ModelType.encoder_or_decoder
        self.share_embeddings_and_output_weights = False
        self.vp_stage = None
        groups = self.pg_collection
        self.positions = Positions(preset, config, groups)
        if first:
            self.embedding = LanguageModelEmbedding(
                config, preset.vocab, preset.length, position_embedding_type="rope", tp_group=groups.tp
            )
        device = "cpu" if config.use_cpu_initialization else "cuda"
        self.fused = choose(kernels, torch.empty(0, device=device)) == "fused"
        layer, norm = layer_spec(preset, backend, self.positions, self.fused, apart=lora is not None)
        layers = [layer] * get_num_layers_to_build(config)
        self.decoder = TransformerBlock(
            config, TransformerBlockSubmodules(layers, norm), pre_process=first, post_process=last,
            pg_collection=groups,
        )  # fmt: skip
        if last:
            unfused = copy.copy(config)
            unfused.gradient_accumulation_fusion = False  # megatron-core's own layers need apex for it
            self.output_layer = tensor_parallel.ColumnParallelLinear(
                preset.dim, preset.classes, config=unfused, init_method=config.init_method, bias=False,
                gather_output=False, tp_group=groups.tp,
            )  # fmt: skip
        self.setup_embeddings_and_output_layer()
        if preset.action_dim is not None:
            self.action_mlp = action_mlp(preset).to(device, config.params_dtype)
        self.frozen = lora is not None
        if lora is not None:
            adapt(self, preset, *lora)
        table = keys.rules(preset) | keys.trained(preset, lora[0] if lora else 0)
        for name, parameter in keys.parameters(self, preset).items():
            # megatron-core says so where it makes initial weights; without, norms of gradients leave ranks out
            parameter.tensor_model_parallel = table[name].axis is not None

    def set_input_tensor(self, arriving: Any) -> None:
        """What the stage before this one made: megatron-core's schedules call it."""
        self.decoder.set_input_tensor(arriving[0] if isinstance(arriving, list) else arriving)

    def forward(
        self, tokens_BS: Tensor, context_CBD: Tensor | None = None, action_BA: Tensor | None = None
    ) -> Tensor:
        """logits_SBV of the last stage: this rank's classes, of this rank's part of the sequence if it is split over
        context-parallel ranks (in zigzag order, as the tokens must be). Hidden states of other stages.

        tokens_BS: int64. context_CBD: prompts' embeddings, for video2world models. action_BA: for those with actions.
        """
        p = self.preset
        if (action_BA is None) != (p.action_dim is None):
            raise ValueError("models for actions need action_BA, and no other takes it")
        if (context_CBD is None) != (p.context_dim is None or p.action_dim is not None):
            raise ValueError("video2world models need context_CBD, and no other takes it")
        x_SBD = self.embedding(tokens_BS, None) if self.pre_process else None
        if x_SBD is not None and self.frozen:
            x_SBD.requires_grad_()  # else layers that are computed again would lead to nothing that is trained
        if action_BA is not None:
            context_CBD = self.action_mlp(action_BA.to(self.config.params_dtype)).repeat(ACTIONS, 1, 1)
        if context_CBD is not None:
            context_CBD = context_CBD.to(self.config.params_dtype)
        rope = None if self.fused else self.positions.rope(tokens_BS.device)
        x_SBD = self.decoder(x_SBD, attention_mask=None, context=context_CBD, rotary_pos_emb=rope)
        return self.output_layer(x_SBD)[0] if self.post_process else x_SBD


def action_mlp(preset: Preset) -> nn.Sequential:
    """An action -> what stands in the place of a prompt's embedding (NVIDIA/Cosmos 71f19b0:
    autoregressive/nemo/cosmos_action_control.py)."""
    assert preset.action_dim is not None and preset.context_dim is not None
    inside = preset.context_dim // 4
    return nn.Sequential(nn.Linear(preset.action_dim, inside), nn.ReLU(), nn.Linear(inside, preset.context_dim))


def layer_spec(
    preset: Preset, backend: Backend, positions: Positions, fused: bool, apart: bool = False
) -> tuple[ModuleSpec, type]:
    """(a layer, the norm after the last one). apart: norms before linears are modules of their own, and adapters see
    what comes out of them."""
    provider: Any
    if backend == "transformer_engine":
        from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider

        provider = TESpecProvider()
        norm, attention = provider.layer_norm(), provider.core_attention()
    else:
        provider = LocalSpecProvider()
        norm, attention = RMSNorm, TorchAttention
        apart = True
    before, names = IdentityOp, {}
    normed_linear = provider.column_parallel_linear() if apart else provider.column_parallel_layer_norm_linear()
    if apart:
        before = norm
        # checkpoints have the names of transformer-engine's fused modules, as megatron-core's own local layers do it
        names = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_",
                 "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"}  # fmt: skip
    column, row = provider.column_parallel_linear(), provider.row_parallel_linear()
    of_self = SelfAttentionSubmodules(normed_linear, attention, row, norm, norm)
    cross: dict[str, Any] = {}
    if preset.context_dim is not None:
        of_context = CrossAttentionSubmodules(column, column, attention, row)
        params = {"context_dim": preset.context_dim, "norm": norm}
        cross = {"pre_cross_attn_layernorm": norm, "cross_attn_bda": get_bias_dropout_add,
                 "cross_attention": ModuleSpec(ContextAttention, params, of_context)}  # fmt: skip
    submodules = TransformerLayerSubmodules(
        input_layernorm=before,
        self_attention=ModuleSpec(
            FusedSelfAttention if fused else SelfAttention,
            {"attn_mask_type": AttnMaskType.causal} | ({"positions": positions} if fused else {}),
            of_self,
        ),
        self_attn_bda=get_bias_dropout_add,
        pre_mlp_layernorm=before,
        mlp=ModuleSpec(MLP, submodules=MLPSubmodules(linear_fc1=normed_linear, linear_fc2=row)),
        mlp_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map=names,
        **cross,
    )
    return ModuleSpec(Layer, {"positions": positions}, submodules), norm


class Layer(TransformerLayer):
    """megatron-core's, with absolute positions added to what comes in, where the model has a context."""

    def __init__(self, *args: Any, positions: Positions, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.positions = positions

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        if self.positions.preset.context_dim is not None:
            hidden_states = hidden_states + self.positions.absolute(hidden_states)
        return super().forward(hidden_states, *args, **kwargs)


class FusedSelfAttention(SelfAttention):
    """megatron-core's, with the norms and the rotation of q and k in one pass over what linear_qkv makes."""

    def __init__(self, *args: Any, positions: Positions, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.positions = positions

    def get_query_key_value_tensors(  # type: ignore[override]
        self, hidden_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The model passes no angles to the attention: they are applied here."""
        qkv_SBN, _ = self.linear_qkv(hidden_states)
        cos, sin = self.positions.cos_sin(qkv_SBN.device)
        return qkv_norm_rope(
            qkv_SBN, self.q_layernorm.weight, self.k_layernorm.weight, cos, sin,
            groups=self.num_query_groups_per_partition, eps=self.config.layernorm_epsilon, kernels="fused",
        )  # fmt: skip


class ContextAttention(Attention):
    """Attention to a prompt's embedding: no mask, no rotation. megatron-core's own cross attention has neither grouped
    queries, nor norms of q and k, nor a context of another width."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: CrossAttentionSubmodules,
        layer_number: int,
        context_dim: int,
        norm: type,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        # every context-parallel rank has the whole context: its attention is its own affair
        config = copy.copy(config)
        config.context_parallel_size = 1
        super().__init__(config, submodules, layer_number, AttnMaskType.no_mask, "cross", cp_comm_type, pg_collection)
        # nor is the context split over the ranks of sequence parallelism
        whole = copy.copy(config)
        whole.sequence_parallel = False
        more = {"init_method": config.init_method, "gather_output": False, "bias": False, "skip_bias_add": False,
                "is_expert": False, "tp_group": self.pg_collection.tp}  # fmt: skip
        self.linear_q = build_module(
            submodules.linear_q, config.hidden_size, self.query_projection_size, config=config, **more
        )
        self.linear_kv = build_module(
            submodules.linear_kv, context_dim, 2 * self.kv_projection_size, config=whole, **more
        )
        self.q_layernorm, self.k_layernorm = (
            build_module(norm, config=config, hidden_size=config.kv_channels, eps=config.layernorm_epsilon)
            for _ in range(2)
        )

    def get_query_key_value_tensors(  # type: ignore[override]
        self, hidden_states: Tensor, key_value_states: Tensor, output_gate: bool = False, split_qkv: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """k and v of each group of queries stand side by side in linear_kv."""
        dim = self.hidden_size_per_attention_head
        q_SBHd = self.linear_q(hidden_states)[0].unflatten(-1, (-1, dim))
        k_CBGd, v_CBGd = self.linear_kv(key_value_states)[0].unflatten(-1, (-1, 2 * dim)).split(dim, -1)
        return self.q_layernorm(q_SBHd), self.k_layernorm(k_CBGd.contiguous()), v_CBGd.contiguous()


class RMSNorm(nn.RMSNorm):
    """torch's, for sequence parallelism too: then its gradient is a part that finalize_model_grads sums up."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype, device=device)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[assignment]


class TorchAttention(nn.Module):
    """torch's attention in the place of transformer-engine's: causal with grouped queries, or to all of a context.
    Context-parallel ranks gather k and v, which a test can afford."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        cp_comm_type: str | None = None,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__()
        self.causal, self.scale = attn_mask_type == AttnMaskType.causal, softmax_scale
        self.group = pg_collection.cp if pg_collection and config.context_parallel_size > 1 else None

    def forward(self, q_SBHd: Tensor, k_CBGd: Tensor, v_CBGd: Tensor, attention_mask: None = None, **_: Any) -> Tensor:
        mask, causal = None, self.causal
        if self.group is not None:
            ranks, rank = self.group.size(), self.group.rank()
            places = [zigzag(torch.arange(len(k_CBGd) * ranks, device=k_CBGd.device), r, ranks) for r in range(ranks)]
            mask, causal = torch.cat(places) <= places[rank][:, None], False
            k_CBGd, v_CBGd = (  # along the tokens, and back as sums of all ranks' gradients
                tensor_parallel.gather_from_sequence_parallel_region(t.contiguous(), group=self.group)
                for t in (k_CBGd, v_CBGd)
            )
        q, k, v = (t.permute(1, 2, 0, 3) for t in (q_SBHd, k_CBGd, v_CBGd))
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=self.scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.permute(2, 0, 1, 3).flatten(2)
