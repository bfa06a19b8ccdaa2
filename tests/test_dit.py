"""Diffusion transformers compute what the published code computes, forwards and backwards: with the same random
weights, through the key maps, in float32 to 1e-5 of the largest number; the gradient of a single parameter to 1e-4.

diffusers' CosmosTransformer3DModel runs here. What it has not (given frames, noise levels of their own, the
log-variance head, losses) is compared with arrays that golden/make_dit.py made by the published code.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from made import made, weight
from test_tokenizer_parity import close
from torch import Tensor, nn

from hpc.models import attention, diffusion, dit_files, dit_publish
from hpc.models.diffusion import EDM, Condition, Draws, Flow, SigmaFlow
from hpc.models.dit import DiT
from hpc.models.dit_presets import EXPERIMENTS, PRESETS, Config, flops, parameters, preset

GOLDEN = Path(__file__).parent / "golden"
FACTS = json.loads((GOLDEN / "dit.json").read_text())
LATENTS = (2, 16, 4, 8, 12)
SMALL = {"channels": 48, "blocks": 2, "heads": 2, "adaln_rank": 8, "text_channels": 32, "max_frames": 16,
         "max_height": 32, "max_width": 32}  # fmt: skip
PREDICT1 = Config(**SMALL, condition_mask=True, rope_stretch=(2.0, 2.0, 2.0), rope_fps=True, learned_positions=True,
                  log_variance=True)  # fmt: skip
PREDICT2 = Config(**SMALL, condition_mask=True, rope_stretch=(20 / 24, 2.0, 2.0))
PREDICT25 = Config(**SMALL, condition_mask=True, rope_stretch=(1.0, 3.0, 3.0), timestep_scale=0.001, text_projection=80)


def tensor(name: str, *shape: int) -> Tensor:
    return torch.from_numpy(made(name, *shape))


def arrays(generation: str) -> dict[str, Tensor]:
    import numpy as np

    with np.load(GOLDEN / f"dit_{generation}.npz") as found:
        return {name: torch.from_numpy(found[name]) for name in found.files}


def padding() -> Tensor:
    """Of pixels: the right third."""
    mask = torch.zeros(2, 64, 96)
    mask[..., 64:] = 1
    return mask


def given(*frames: int) -> Tensor:
    return (torch.arange(4) < torch.tensor(frames)[:, None]).float()


def published(config: Config, names: dit_files.Names, prefix: str = "") -> DiT:
    """With weights by what published files call them."""
    model = DiT(config)
    for name, parameter in model.named_parameters():
        theirs = dit_files.published(name, names)
        theirs = theirs if theirs.startswith("logvar.") else prefix + theirs
        parameter.data = torch.from_numpy(weight(theirs, *parameter.shape))
    if model.log_variance is not None:
        model.log_variance.freqs.copy_(tensor("freqs", 128) * 10)
        model.log_variance.phases.copy_(tensor("phases", 128) * 3)
    return model


def same_gradients(model: DiT, names: dit_files.Names, prefix: str, facts: list[str], golden: Tensor) -> None:
    """Lengths and projections on vectors."""
    own = {}
    for name, parameter in model.named_parameters():
        theirs = dit_files.published(name, names)
        own[theirs if theirs.startswith("logvar.") else prefix + theirs] = parameter
    assert sorted(own) == facts
    for name, (length, projection) in zip(facts, golden.tolist(), strict=True):
        grad = own[name].grad.double()
        assert grad.norm().item() == pytest.approx(length, rel=1e-4), name
        probe = tensor("probe." + name, *grad.shape)
        assert (grad * probe).sum().item() == pytest.approx(projection, abs=1e-4 * length), name


# With diffusers


@pytest.mark.parametrize("generation", ["predict1", "predict2", "predict2.5"])
def test_the_network_is_that_of_diffusers(generation: str) -> None:
    from diffusers import CosmosTransformer3DModel

    config, more = {
        "predict1": (
            dataclasses.replace(PREDICT1, condition_mask=False, log_variance=False, rope_stretch=(2.0, 1.0, 1.0)),
            {"in_channels": 17, "extra_pos_embed_type": "learnable", "rope_scale": (2.0, 1.0, 1.0)},
        ),
        "predict2": (
            PREDICT2, {"in_channels": 18, "extra_pos_embed_type": None, "rope_scale": PREDICT2.rope_stretch},
        ),
        "predict2.5": (
            dataclasses.replace(PREDICT25, timestep_scale=1.0),
            {"in_channels": 18, "extra_pos_embed_type": None, "rope_scale": PREDICT25.rope_stretch,
             "use_crossattn_projection": True, "crossattn_proj_in_channels": 80, "encoder_hidden_states_channels": 32},
        ),
    }[generation]  # fmt: skip
    # its padding mask needs torchvision: here the masks are channels of its input
    theirs = CosmosTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, num_layers=2, text_embed_dim=32, adaln_lora_dim=8,
        max_size=(16, 32, 32), concat_padding_mask=False, **more,
    )  # fmt: skip
    for name, parameter in theirs.named_parameters():
        parameter.data = torch.from_numpy(weight(name, *parameter.shape))
    for module in theirs.modules():
        if getattr(module, "norm_q", None) is not None:  # 1e-5 there; the published models have 1e-6
            module.norm_q.eps = module.norm_k.eps = 1e-6
    ours = DiT(config)
    account = dit_files.fit(ours, theirs.state_dict(), "here")
    assert account == ("diffusers", len(theirs.state_dict()), {}, [])
    latents = [tensor("x", *LATENTS).requires_grad_() for _ in range(2)]
    texts = [tensor("text", 2, 6, config.text_input).requires_grad_() for _ in range(2)]
    masks = [given(1, 2)[:, None, :, None, None].expand(2, 1, 4, 8, 12)] if config.condition_mask else []
    masks.append(padding()[:, None, None, ::8, ::8].expand(2, 1, 4, 8, 12))
    fps = 12 if config.rope_fps else None
    # one level for a sample, then one for each frame
    for levels in (torch.tensor([0.3, -0.7]), tensor("levels", 2, 4)):
        mine = ours(latents[0], levels, texts[0], given(1, 2), torch.tensor([12.0, 12.0]), padding()).latents_BCTHW
        wanted = levels if levels.ndim == 1 else levels[:, None, :, None, None]
        their = theirs(torch.cat([latents[1], *masks], dim=1), wanted, texts[1], fps=fps).sample
        close(mine, their, "what the network gives")
    for output in (mine, their):
        (output * tensor("gradient", *output.shape)).sum().backward()
    close(latents[0].grad, latents[1].grad, "the gradient of the latents")
    close(texts[0].grad, texts[1].grad, "the gradient of the text")
    mine_by_name = {dit_files.published(name, "diffusers"): p.grad for name, p in ours.named_parameters()}
    total = torch.cat([p.grad.flatten() for p in theirs.parameters()])
    close(torch.cat([mine_by_name[name].flatten() for name, _ in theirs.named_parameters()]), total, "the gradient")
    for name, parameter in theirs.named_parameters():
        close(mine_by_name[name], parameter.grad, f"the gradient of {name}", 1e-4)


def test_videos_of_other_frame_rates_share_a_batch() -> None:
    """Of each sample, what it is alone."""
    model = published(PREDICT1, "predict1")
    x, text, levels = tensor("x", *LATENTS), tensor("text", 2, 6, 32), torch.tensor([0.3, -0.7])
    fps = torch.tensor([12.0, 30.0])
    both = model(x, levels, text, given(0, 1), fps).latents_BCTHW
    for i in range(2):
        alone = model(x[i : i + 1], levels[i : i + 1], text[i : i + 1], given(0, 1)[i : i + 1], fps[i : i + 1])
        close(both[i : i + 1], alone.latents_BCTHW)
    assert not torch.allclose(both[1], model(x, levels, text, given(0, 1), fps[:1].expand(2)).latents_BCTHW[1])


# With the published code


def test_predict1_is_the_published_one() -> None:
    golden, facts = arrays("predict1"), FACTS["predict1"]
    model = published(PREDICT1, "predict1", "net.")
    x = tensor("x", *LATENTS).requires_grad_()
    text, fps = tensor("text", 2, 6, 32), torch.tensor([12.0, 12.0])
    out, u = model(x, torch.tensor([0.3, -0.7]), text, given(0, 2), fps, padding())
    close(out, golden["out"], "what the network gives")
    close(u[:, None], golden["logvar"], "the log-variance")
    ((out * tensor("gradient", *out.shape)).sum() + u.sum()).backward()
    close(x.grad, golden["x.grad"], "the gradient of the latents")
    same_gradients(model, "predict1", "net.", facts["grads"], golden["grads"])


def test_the_loss_of_predict1_is_the_published_one() -> None:
    golden = arrays("predict1")
    model = published(PREDICT1, "predict1", "net.")
    x0, sigma, own = tensor("x0", *LATENTS), torch.tensor([0.4, 3.0]), torch.tensor([0.02, 0.1])
    edm = EDM()
    condition = Condition(tensor("text", 2, 6, 32), given(2, 2), None, torch.tensor([12.0, 12.0]), padding())
    draws = Draws(
        tensor("noise", *LATENTS), sigma.log(), torch.zeros(2, 2),
        (own.log() - edm.given_log_mean) / edm.given_log_std, tensor("given noise", *LATENTS),
    )  # fmt: skip
    loss = edm.loss(model, x0, condition, draws)
    close(loss.level_B, sigma)
    close(loss.loss, golden["loss"], "the loss")
    close(loss.per_sample_B.mean(), golden["weighted"], "the weighted error")
    found, _ = edm._denoised(
        model, edm.noised(x0, draws.noise_BCTHW, sigma), sigma, condition._replace(latents_BCTHW=x0), own,
        draws.given_noise_BCTHW,
    )  # fmt: skip
    close(found, golden["x0"], "x0")
    assert torch.equal(found[:, :, :2], x0[:, :, :2])


def test_predict2_is_the_published_one() -> None:
    """Network, given frames and loss together."""
    golden, facts = arrays("predict2"), FACTS["predict2"]
    model = published(PREDICT2, "predict2")
    x0, noise, sigma = tensor("x0", *LATENTS), tensor("noise", *LATENTS), torch.tensor([0.4, 30.0])
    flow = SigmaFlow(multiplier=1.0)
    condition = Condition(tensor("text", 2, 6, 32), given(1, 2), x0, torch.tensor([12.0, 12.0]), padding())
    t = sigma / (1 + sigma)
    found = flow.denoised(model, flow.noised(x0, noise, t), t, condition)
    close(found, golden["x0"], "x0")
    loss = flow.loss(model, x0, condition, Draws(noise, sigma.log(), torch.ones(2, 2), torch.zeros(2), None))
    close(loss.level_B, t)
    # weights (1 + sigma)^2 / sigma^2 of errors of x0, times 10: the error of the velocity
    close(loss.loss, golden["loss"], "the loss", 1e-4)
    loss.loss.backward()
    same_gradients(model, "predict2", "", facts["grads"], golden["grads"])


@pytest.mark.parametrize("own", [0.1, -1.0])
def test_predict25_is_the_published_one(own: float) -> None:
    golden, facts = arrays("predict25"), FACTS["predict25"]
    model = published(PREDICT25, "predict2")
    x0, noise = tensor("x0", *LATENTS), tensor("noise", *LATENTS)
    flow = Flow(given_level=own if own >= 0 else None)
    draws = Draws(noise, torch.logit(torch.tensor([0.3, 0.9])), torch.ones(2, 2), torch.zeros(2), None)
    condition = Condition(tensor("text", 2, 6, 80), given(1, 2), x0, torch.tensor([12.0, 12.0]), padding())
    t = flow.levels(draws.level_B, draws.high_B2)
    velocity = flow.velocity(model, flow.noised(x0, noise, t), t, condition)
    close(diffusion.mixed(condition.mask_B1T11, noise - x0, velocity), golden[f"velocity.{own}"], "the velocity")
    loss = flow.loss(model, x0, condition._replace(latents_BCTHW=None), draws)
    close(loss.loss, golden[f"loss.{own}"], "the loss")
    loss.loss.backward()
    same_gradients(model, "predict2", "", facts["grads"], golden[f"grads.{own}"])


# Files


def test_published_names_and_sizes_are_all_known() -> None:
    """Of two blocks at published widths."""
    for generation in ("predict1", "predict25"):
        for name, shapes in FACTS[generation]["names"].items():
            config = dataclasses.replace(PRESETS[name].config, blocks=2)
            with torch.device("meta"):
                model = DiT(config)
                state = {f"net.{key}": torch.empty(shape) for key, shape in shapes.items()}
                for key, shape in FACTS[generation].get("logvar", {}).items():
                    state[f"logvar.{key}"] = torch.empty(shape)
                state["net.blocks.0.self_attn.q_norm._extra_state"] = torch.empty(0)
            account = dit_files.fit(model, state, name)
            assert account.read == len(model.state_dict()) and not account.fresh
            assert account.ignored["of transformer-engine"] == 1 and account.ignored["rotary positions"] >= 1
            written = dit_files.exported(model.state_dict(), account.names)
            ignored = "|".join(dit_files.NOT_WEIGHTS.values())
            assert {k: list(v.shape) for k, v in written.items()} == {
                k: list(v.shape) for k, v in state.items() if not re.search(ignored, k)
            }


def test_parameters_are_as_many_as_published() -> None:
    """Section A of the reference: 7.23, 14.27, 2.06 and 14.4 billion; its numbers are rounded."""
    for name, billions in {"predict1-7b-text2world": 7.23, "predict1-14b-video2world": 14.27, "predict2.5-2b": 2.06,
                           "predict2.5-14b": 14.4}.items():  # fmt: skip
        with torch.device("meta"):
            model = DiT(PRESETS[name].config)
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.01), name
        assert parameters(PRESETS[name].config) == sum(p.numel() for p in model.parameters()), name


@pytest.mark.parametrize(
    ("name", "latents", "training"),
    [
        ("predict2.5-2b", (24, 88, 160), 5.77),
        ("predict2.5-2b", (24, 54, 96), 0.98),
        ("predict2.5-14b", (24, 88, 160), 22.6),
        ("predict2.5-14b", (24, 54, 96), 4.64),
        ("predict1-7b-text2world", (16, 88, 160), 6.63),
        ("predict1-14b-text2world", (16, 88, 160), 11.6),
    ],
)
def test_flops_of_a_training_sample(name: str, latents: tuple[int, int, int], training: float) -> None:
    """In 10^15, of sections A3 and A4 of the reference."""
    assert 3 * flops(PRESETS[name].config, *latents) / 1e15 == pytest.approx(training, rel=0.01)


def test_flops_are_what_pytorch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = dataclasses.replace(PREDICT25, channels=192, heads=4)
    model = DiT(config)
    x, text = tensor("x", 1, *LATENTS[1:]), tensor("text", 1, 512, 80)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(x, torch.tensor([500.0]), text)
    # with what is not counted here: patches, noise level, modulation, the last layer
    assert 1 < counter.get_total_flops() / flops(config, *LATENTS[2:]) < 1.1


@pytest.mark.parametrize("names", ["predict1", "predict2"])
def test_files_both_ways(tmp_path: Path, names: dit_files.Names) -> None:
    """Trained weights and their average in one file, transformer-engine's bytes among them, and back."""
    config = PREDICT1 if names == "predict1" else PREDICT25
    model, average = DiT(config), DiT(config)
    state = dit_files.exported(model.state_dict(), names) | dit_files.exported(average.state_dict(), names, "net_ema")
    if names == "predict1":  # there, a file each; the state of a layer is a BytesIO
        state = dit_files.exported(model.state_dict(), names)
        state["net.blocks.block0.blocks.0.block.attn.to_q.1._extra_state"] = io.BytesIO(b"fp8")
    else:
        state |= {"net.accum_iteration": torch.tensor(7), "net.pos_embedder.seq": torch.arange(8.0)}
    torch.save(state, tmp_path / "model.pt")
    again = DiT(config)
    account = dit_files.fit(again, dit_files.read(tmp_path / "model.pt"), "model.pt")
    assert account.names == names and account.read == len(model.state_dict())
    if names == "predict1":
        assert account.ignored == {"of transformer-engine": 1}
    else:
        assert account.ignored == {"net_ema.": len(average.state_dict()), "counters": 1, "rotary positions": 1}
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    if names == "predict2":
        dit_files.fit(again, state, "model.pt", "net_ema")
        assert torch.equal(again.blocks[1].mlp.layer1.weight, average.blocks[1].mlp.layer1.weight)
        # one file of safetensors without a prefix, its sizes said by a preset's config
        from safetensors.torch import save_file

        save_file(dit_files.exported(model.state_dict(), names, None), tmp_path / "x.safetensors")
        loaded = dit_files.load(tmp_path / "x.safetensors", config, dtype=torch.float32)
        assert torch.equal(loaded.x_embedder.weight, model.x_embedder.weight)
    # without the log-variance, which is of training alone
    if names == "predict1":
        loaded = dit_files.load(tmp_path / "model.pt", config)
        assert loaded.log_variance is None and loaded.x_embedder.weight.dtype == torch.bfloat16
        lacking = {key: value for key, value in state.items() if not key.startswith("logvar.")}
        account = dit_files.fit(DiT(config), lacking, "x", lack=("log_variance.",))
        assert account.fresh == ["log_variance.freqs", "log_variance.phases", "log_variance.out.weight"]
        with pytest.raises(RuntimeError, match=r"missing.*log_variance\.freqs"):
            dit_files.fit(DiT(config), lacking, "x")


@pytest.mark.parametrize(("form", "name"), [("predict1", "predict1-7b-video2world"), ("predict2", "predict2.5-2b")])
def test_trained_weights_in_the_published_forms(tmp_path: Path, form: str, name: str) -> None:
    config = PREDICT1 if form == "predict1" else PREDICT25
    model, other = DiT(config), DiT(config)
    average = {key: parameter.detach() for key, parameter in other.named_parameters()}
    files = dit_publish.publish(tmp_path, config, form, 1000, model.state_dict(), average)
    assert [file.name for file in files] == {
        "predict1": ["iter_000001000_reg_model.pt", "iter_000001000_ema_model.pt"],
        "predict2": ["model.pt", "model_ema_fp32.pt", "model_ema_bf16.pt"],
    }[form]  # fmt: skip
    held = {file.name: dit_files.read(file) for file in files}
    # whose keys are all that the published network has, and no other
    sizes = FACTS["predict1" if form == "predict1" else "predict25"]["names"][name]
    assert {key.removeprefix("net.") for key in held[files[-1].name] if key.startswith("net.")} == set(sizes)
    for file, weights, wanted in ((files[0], "net", model), (files[-1], "net", other)):
        again = DiT(config)
        dit_files.fit(again, held[file.name], file.name, weights)
        for key, value in wanted.named_parameters():
            near = value.bfloat16().float() if "bf16" in file.name else value
            assert torch.equal(again.get_parameter(key), near), key
    if form == "predict2":
        assert {key.partition(".")[0] for key in held["model.pt"]} == {"net", "net_ema"}
        again = DiT(config)
        dit_files.fit(again, held["model.pt"], "model.pt", "net_ema")
        assert torch.equal(again.x_embedder.weight, other.x_embedder.weight)
        types = {value.dtype for key, value in held["model_ema_bf16.pt"].items() if "accum" not in key}
        assert types == {torch.bfloat16} and held["model.pt"]["net.accum_iteration"] == 1000
        seq = held["model.pt"]["net.pos_embedder.dim_temporal_range"]
        torch.testing.assert_close(seq, torch.arange(0, 8, 2) / 8)
    else:
        assert torch.equal(held[files[1].name]["logvar.0.freqs"], model.log_variance.freqs)
    ours = dit_files.load(tmp_path / "ours", dtype=torch.float32)
    assert torch.equal(ours.blocks[0].mlp.layer1.weight, other.blocks[0].mlp.layer1.weight)
    assert not list(tmp_path.glob(".*"))


def test_a_folder_of_our_own(tmp_path: Path) -> None:
    model = DiT(PREDICT25)
    dit_files.save(model.state_dict(), PREDICT25, tmp_path / "model")
    again = dit_files.load(tmp_path / "model", dtype=torch.float32)
    assert again.config == PREDICT25
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    (tmp_path / "model" / "config.json").write_text('{"chanels": 3}')
    with pytest.raises(RuntimeError, match=r"chanels: unknown; known of a transformer are .* channels"):
        dit_files.load(tmp_path / "model")


def test_other_weights_are_refused(tmp_path: Path) -> None:
    model = DiT(PREDICT2)
    state = dit_files.exported(model.state_dict(), "predict2")
    wrong = {k: v for k, v in state.items() if k != "net.blocks.1.mlp.layer1.weight"} | {
        "net.blocks.9.mlp.layer1.weight": torch.zeros(1),
        "net.t_embedding_norm.weight": torch.zeros(3),
    }
    with pytest.raises(RuntimeError) as error:
        dit_files.fit(model, wrong, "model.pt")
    for words in ("model.pt", "2 blocks of 48 channels", "missing (as they are called here): blocks.1.mlp.layer1",
                  "left over: net.blocks.9.mlp.layer1.weight", "net.t_embedding_norm.weight [3] for [48]"):  # fmt: skip
        assert words in str(error.value)
    with pytest.raises(RuntimeError, match=r"it has no net_ema\. weights, only net"):
        dit_files.fit(model, state, "model.pt", "net_ema")
    with pytest.raises(RuntimeError, match="not the weights of a diffusion transformer that is known"):
        dit_files.fit(model, {"a": torch.zeros(1)}, "model.pt")
    torch.save({"step": 3}, tmp_path / "model.pt")
    with pytest.raises(RuntimeError, match="expected a file of named tensors; it holds step"):
        dit_files.read(tmp_path / "model.pt")


# The rest


PUBLISHED = """
text2world_7b_example_hdvila text2world_14b_example_hdvila video2world_7b_example_hdvila
text2world_7b_example_cosmos_nemo_assets text2world_14b_example_cosmos_nemo_assets
video2world_7b_example_cosmos_nemo_assets text2world_7b_lora_example_cosmos_nemo_assets
video2world_7b_lora_example_cosmos_nemo_assets text2world_7b_example_cosmos_nemo_assets_4gpu_40gb
video2world_7b_example_cosmos_nemo_assets_8gpu_40gb
predict2_text2image_training_2b_cosmos_nemo_assets predict2_text2image_training_14b_cosmos_nemo_assets
predict2_video2world_training_2b_cosmos_nemo_assets predict2_video2world_training_14b_cosmos_nemo_assets
predict2_video2world_lora_training_2b_cosmos_nemo_assets predict2_video2world_lora_training_14b_cosmos_nemo_assets
predict2_video2world_training_2b_groot_gr1_480 predict2_video2world_training_14b_groot_gr1_480
predict2_video2world_training_2b_video2world_data predict2_video2world_training_14b_video2world_data
predict2_video2world_training_2b_agibot_head_center_fisheye_color
predict2_video2world_training_2b_agibot_head_center_fisheye_color_480p_10fps
predict2_video2world_training_2b_agibot_head_center_fisheye_color_480p_16fps
predict2_video2world_training_14b_agibot_head_center_fisheye_color_720p_10fps
predict2_video2world_training_14b_agibot_head_center_fisheye_color_720p_16fps
predict2_lora_training_2b_cosmos_nemo_assets_txt predict2_lora_training_2b_cosmos_nemo_assets_json
"""
"""As cosmos_predict1 (4ed35fa and its documents since), cosmos_predict2 661da47, cosmos_predict2.5 50369b8 and later
register them: of generations, sizes and kinds that are here."""


def test_presets_by_the_names_of_published_experiments() -> None:
    """Each is of the generation, size and kind that its name says."""
    for name in PUBLISHED.split():
        ours = EXPERIMENTS[name]
        assert preset(name).config is PRESETS[ours].config
        size = re.search(r"_(\d+b)_", name)
        assert size and size[1] in ours.split("-"), name
        assert ("predict1" in ours) == (not name.startswith("predict2_")), name
        kind = re.search("text2world|video2world|text2image", name)
        assert kind is None or kind[0] in ours or ours == "predict2.5-2b", name
    slow = preset("predict2_video2world_training_2b_agibot_head_center_fisheye_color_480p_10fps")
    assert (slow.frames, slow.height, slow.width, slow.fps, slow.file) == (61, 432, 768, 10.0, "model-480p-10fps.pt")
    assert slow.settings == {"multiplier": 4.0} and slow.config == PRESETS["predict2-2b-video2world"].config
    usual = preset("predict2_video2world_training_14b_agibot_head_center_fisheye_color_720p_16fps")
    assert usual is PRESETS["predict2-14b-video2world"] and usual.file == "model-720p-16fps.pt"
    for name, ours in EXPERIMENTS.items():
        assert (preset(name) is PRESETS[ours]) == (not name.startswith("predict2_lora")), name
    thirds = {"given_frames": (1 / 3,) * 3}
    assert preset("predict2_lora_training_2b_cosmos_nemo_assets_txt").settings == thirds
    # adjust_video_noise of cosmos-predict1 5c348ca: for 14B, and for all that are given frames
    multiplied = {"predict1-14b-text2world", "predict1-7b-video2world", "predict1-14b-video2world"}
    for name in [one for one in PRESETS if one.startswith("predict1-")]:
        assert PRESETS[name].settings.get("multiplier") == (4.0 if name in multiplied else None), name
    for name, one in PRESETS.items():
        diffusion.objective(one)
        assert one.config.condition_mask == ("text2" not in name), name
        assert (one.height % 16, one.width % 16) == (0, 0) and (one.frames - 1) % 4 == 0
    with pytest.raises(ValueError, match=r"did you mean predict2\.5-2b\?"):
        preset("predict2.5-2B")


def test_a_new_network_gives_what_its_input_alone_says() -> None:
    """Every block starts as the identity: neither text nor noise level changes anything."""
    model = DiT(PREDICT2)
    x = tensor("x", *LATENTS)
    outs = [
        model(x, torch.full((2,), level), tensor(text, 2, 6, 32)).latents_BCTHW
        for level in (0.1, 0.9) for text in ("a", "b")
    ]  # fmt: skip
    shared = model.t_embedder.linear_2.weight  # what all share is not 0
    assert shared.abs().max() > 0 and not torch.allclose(outs[0], outs[2])
    torch.nn.init.zeros_(shared)
    outs = [
        model(x, torch.full((2,), level), tensor(text, 2, 6, 32)).latents_BCTHW
        for level in (0.1, 0.9) for text in ("a", "b")
    ]  # fmt: skip
    assert all(torch.equal(out, outs[0]) for out in outs)
    weights = model.blocks[0].mlp.layer1.weight
    assert weights.std().item() == pytest.approx(1 / 48**0.5, rel=0.05) and weights.abs().max() <= 3 / 48**0.5 + 1e-6


def test_bfloat16_is_near_float32() -> None:
    model = published(PREDICT25, "predict2")
    x, text, levels = tensor("x", *LATENTS), tensor("text", 2, 6, 80), torch.tensor([300.0, 900.0])
    exact = model(x, levels, text).latents_BCTHW
    rounded = model.bfloat16()(x, levels, text).latents_BCTHW
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() / exact.norm() < 0.02


def test_one_factory_makes_the_layers_of_blocks() -> None:
    made_of: list[tuple[int, int]] = []

    def factory(inside: int, outside: int) -> nn.Module:
        made_of.append((inside, outside))
        return nn.Linear(inside, outside, bias=False)

    model = DiT(PREDICT2, factory)
    assert len(made_of) == 2 * (4 + 4 + 2) and (48, 192) in made_of and (32, 48) in made_of
    in_them = sum(inside * outside for inside, outside in made_of)
    with torch.device("meta"):
        big = DiT(PRESETS["predict2-2b-video2world"].config)
    assert in_them / sum(p.numel() for p in model.parameters()) > 0.5
    assert sum(p.numel() for p in big.blocks.parameters()) / sum(p.numel() for p in big.parameters()) > 0.98


def test_attention_is_softmax_of_products() -> None:
    q, k, v = (tensor(name, 2, length, 3, 8).double() for name, length in (("q", 5), ("k", 7), ("v", 7)))
    weights = torch.einsum("bshd,blhd->bhsl", q, k).div(8**0.5).softmax(-1)
    torch.testing.assert_close(attention.attend(q, k, v), torch.einsum("bhsl,blhd->bshd", weights, v))


def test_slow_attention_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a device that pretends to be a GPU and takes none of the fast kernels."""

    class GPU:
        type = "cuda"

    tried = []

    def kernels(kind):
        tried.append(kind)
        if kind in attention.ORDER[:2]:
            raise RuntimeError("No available kernel")
        return warnings.catch_warnings()

    monkeypatch.setattr(attention, "sdpa_kernel", kernels)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: torch.zeros(1, 1, 4, 8))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.warns(UserWarning, match=r"float32 with 8 channels a head runs on PyTorch's EFFICIENT_ATTENTION"):
        assert attention.backend.__wrapped__(GPU(), torch.float32, 8) == "EFFICIENT_ATTENTION"
    assert tried == attention.ORDER[:3]


@pytest.mark.parametrize(
    ("shape", "text", "words"),
    [
        ((1, 16, 4, 7, 12), 32, "height and width must be even"),
        ((1, 16, 17, 8, 12), 32, "at most 16 frames of 32 x 32"),
        ((1, 16, 4, 8, 12), 33, "a text of 33 channels; this network takes 32"),
    ],
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], text: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DiT(PREDICT2)(torch.zeros(shape), torch.zeros(1), torch.zeros(1, 3, text))
