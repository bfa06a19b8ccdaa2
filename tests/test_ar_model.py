"""The autoregressive model equals the published one: outputs, loss and gradients, against arrays that its code made
(tests/golden/make_ar.py says how); and weights come in and go out under the published names, bit for bit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.distributed as dist
from made import made, weight

from hpc.models.ar import cpu, keys
from hpc.models.ar.loss import NO_LABEL, losses
from hpc.models.ar.positions import absolute, rope_angles, zigzag
from hpc.models.ar.presets import PRESETS, Preset, Yarn, preset

pytestmark = pytest.mark.filterwarnings("ignore")  # megatron-core's, of what is not installed

GOLDEN = Path(__file__).parent / "golden"
FACTS = json.loads((GOLDEN / "ar.json").read_text())
ARRAYS = np.load(GOLDEN / "ar.npz")
VOCAB = FACTS["config"]["vocab"]
BASE = Preset(layers=2, dim=64, heads=16, kv_heads=8, head_dim=16, ffn=128, vocab=VOCAB, classes=VOCAB,
              shape=tuple(FACTS["config"]["shape"]), yarn=Yarn((2, 4, 6)))  # fmt: skip
WORLD = msgspec.structs.replace(BASE, yarn=None, context_dim=24, vocab=VOCAB + 64, bov=VOCAB, pad=VOCAB + 2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """megatron-core's process groups, of one rank."""
    from megatron.core import parallel_state

    file = tmp_path_factory.mktemp("meet") / "file"
    with cpu.stand_in():
        dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        yield
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


class Made(dict):  # type: ignore[type-arg]
    """Published weights made of their names."""

    def __init__(self, shape_of: Preset) -> None:
        for rule in keys.rules(shape_of).values():
            for name, shape in zip(rule.sources, rule.shapes, strict=True):
                self[name] = torch.from_numpy(weight(name, *shape))


def test_a_rank_loads_no_compiler_until_it_compiles() -> None:
    code = """
import sys, torch, hpc.train.ar
from hpc.models.ar.light import compile_later
print(*{"torch._inductor.compile_fx", "wandb", "tensorboard"} & sys.modules.keys())
seen = []
add = compile_later(lambda x: x + 1, backend=lambda graph, given: seen.append(graph) or graph.forward)
print(len(seen), add(torch.ones(2)).tolist(), add(torch.zeros(2)).tolist(), len(seen))
import wandb
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["", "0 [2.0, 2.0] [1.0, 1.0] 1"], done.stderr
    assert done.returncode == 0, done.stderr


def model(shape_of: Preset) -> Any:
    from hpc.models.ar.model import ARModel, config

    out = ARModel(shape_of, config(shape_of))
    keys.fill(out, shape_of, Made(shape_of))
    return out


def tokens(name: str, batch: int, length: int) -> torch.Tensor:
    return torch.from_numpy(((made(name, batch, length) + 1) * VOCAB / 2).astype(np.int64).clip(0, VOCAB - 1))


def compare_gradients(name: str, shape_of: Preset, trained: Any) -> None:
    whole = {n: p.grad for n, p in keys.parameters(trained, shape_of).items()}
    grads = dict(keys.published(shape_of, whole.__getitem__))
    assert sorted(grads) == sorted(FACTS[f"{name}.grads"])
    for one, (length, projected) in zip(FACTS[f"{name}.grads"], ARRAYS[f"{name}.grads"], strict=True):
        grad, probe = grads[one].double(), torch.from_numpy(made("probe." + one, *grads[one].shape))
        assert grad.norm().item() == pytest.approx(length, rel=1e-5), one
        assert (grad * probe).sum().item() == pytest.approx(projected, abs=1e-5 * length), one


# Parity


def test_rotary_angles_at_the_published_sizes() -> None:
    for name, short in (("ar-4b", "4b"), ("ar-12b", "12b"), ("ar-13b-video2world", "13b")):
        angles = rope_angles(preset(name))
        assert angles.shape == (preset(name).length, 128)
        np.testing.assert_allclose(angles.flatten()[::1009].numpy(), ARRAYS[f"rope.{short}"], rtol=1e-6, atol=1e-7)
    assert not np.allclose(ARRAYS["rope.4b"], ARRAYS["rope.12b"])


def test_absolute_positions_at_the_published_size() -> None:
    table = absolute(preset("ar-5b-video2world"))
    assert table.shape == (12864, 4096) and not table[0].any() and not table[12801:].any()
    np.testing.assert_array_equal(table.flatten()[::40009].float().numpy(), ARRAYS["absolute.5b"])


def test_logits_loss_and_gradients(alone: None) -> None:
    net, ids = model(BASE), tokens("tokens", 2, 72)
    logits = net(ids)
    np.testing.assert_allclose(logits.transpose(0, 1)[:, :-1].flatten()[::7].detach(), ARRAYS["base.logits"],
                               rtol=1e-5, atol=1e-5)  # fmt: skip
    labels = torch.cat([ids[:, 1:], torch.full((2, 1), NO_LABEL)], 1).T
    mask = (torch.arange(72) >= FACTS["config"]["ignored"])[:, None].expand(72, 2)
    ce, z = losses(logits, labels, mask, 1e-2)
    loss = ce.sum() / (2 * (71 - FACTS["config"]["ignored"])) + z.sum() / (2 * 71)
    assert loss.item() == pytest.approx(float(ARRAYS["base.loss"]), rel=1e-6)
    loss.backward()
    compare_gradients("base", BASE, net)


def test_logits_and_gradients_with_a_context(alone: None) -> None:
    net = model(WORLD)
    assert WORLD.length == 128
    ids = torch.full((2, 128), WORLD.pad)
    ids[:, 0], ids[:, 1:73] = WORLD.bov, tokens("tokens", 2, 72)
    context = torch.from_numpy(made("context", 2, 5, 24)).transpose(0, 1)
    logits = net(ids, context).transpose(0, 1)
    np.testing.assert_allclose(logits.flatten()[::7].detach(), ARRAYS["world.logits"], rtol=1e-5, atol=1e-5)
    (logits * torch.from_numpy(made("gradient", *logits.shape))).sum().backward()
    compare_gradients("world", WORLD, net)
    with pytest.raises(ValueError, match="video2world models need context_CBD"):
        net(ids)


# The loss


def test_the_loss_is_torchs() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(40, 3, 50, generator=generator) * 9).requires_grad_()
    labels = torch.randint(0, 50, (40, 3), generator=generator)
    labels[-4:] = NO_LABEL
    mask = torch.rand(40, 3, generator=generator) < 0.6
    ce, z = losses(logits, labels, mask, 0.1)
    (ours,) = torch.autograd.grad((ce * 2 + z * 3).sum(), logits)
    with_label, counted = labels >= 0, mask & (labels >= 0)
    lse = logits.logsumexp(-1)
    plain = torch.nn.functional.cross_entropy(logits[counted], labels[counted], reduction="none")
    torch.testing.assert_close(ce[counted], plain)
    assert not ce[~counted].any() and not z[~with_label].any()
    torch.testing.assert_close(z[with_label], 0.1 * lse[with_label] ** 2)
    (theirs,) = torch.autograd.grad(plain.sum() * 2 + 0.3 * (lse[with_label] ** 2).sum(), logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# Sizes


def test_the_sizes_of_the_presets() -> None:
    known = {"ar-4b": (4.014, 12800, 27.5), "ar-12b": (11.561, 12800, 80.0), "ar-5b-video2world": (4.585, 12864, 31.2),
             "ar-13b-video2world": (13.323, 12864, 91.1)}  # fmt: skip
    for name, (billions, length, per_token) in known.items():
        one = preset(name)
        assert one.parameters / 1e9 == pytest.approx(billions, abs=1e-3) and one.length == length
        assert one.flops() / one.length / 1e9 == pytest.approx(per_token, abs=0.06)
    for one in PRESETS.values():
        shapes = [shape for rule in keys.rules(one).values() for shape in rule.shapes]
        assert sum(int(np.prod(shape)) for shape in shapes) == one.parameters
    with pytest.raises(ValueError, match="did you mean ar-12b"):
        preset("ar-13b")


# Names


def test_the_order_of_rows_is_nemos() -> None:
    rows = torch.arange(4096 + 2 * 1024)[:, None]
    table = keys.rules(preset("ar-5b-video2world"))
    qkv = table["decoder.layers.0.self_attention.linear_qkv.weight"]
    np.testing.assert_array_equal(qkv.joined(list(rows.split([4096, 1024, 1024])), 8)[:, 0], ARRAYS["qkv"])
    kv = table["decoder.layers.0.cross_attention.linear_kv.weight"]
    np.testing.assert_array_equal(kv.joined([rows[:1024], rows[1024:2048]], 8)[:, 0], ARRAYS["kv"])


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_what_tensor_parallel_ranks_have_makes_the_published_weights_again(ranks: int) -> None:
    source, table = Made(WORLD), keys.rules(WORLD)
    whole = {}
    for name, rule in table.items():
        parts = [rule.cut(rule.joined([source[s] for s in rule.sources], 8), rank, ranks) for rank in range(ranks)]
        whole[name] = rule.together(parts)
    again = dict(keys.published(WORLD, whole.__getitem__))
    assert again.keys() == source.keys()
    for name, tensor in again.items():
        assert torch.equal(tensor, source[name]), name


def test_each_rank_is_filled_with_its_part(alone: None) -> None:
    net, source = model(WORLD), Made(WORLD)
    whole = {name: p.detach() for name, p in keys.parameters(net, WORLD).items()}
    for name, tensor in keys.published(WORLD, whole.__getitem__):
        assert torch.equal(tensor, source[name]), name
    # the first of four heads' groups: 2 of 8, each with 2 heads of q, one of k, one of v
    rule = keys.rules(WORLD)["decoder.layers.1.self_attention.linear_qkv.weight"]
    part = rule.cut(rule.joined([source[s] for s in rule.sources], 8), 0, 4)
    wq, wk, wv = (source[s] for s in rule.sources)
    expected = torch.cat([wq[:32], wk[:16], wv[:16], wq[32:64], wk[16:32], wv[16:32]])
    assert torch.equal(part, expected)


def test_every_name_is_used_and_every_parameter_filled(alone: None, tmp_path: Path) -> None:
    net, source = model(BASE), Made(BASE)
    del source["model.layers.1.attention.wk.weight"]
    source["model.layers.2.ffn_norm.weight"] = torch.ones(64)
    source["model.norm.weight"] = torch.ones(65)
    source["model.layers.0.attention._extra_state"] = torch.ones(1)
    words = ("missing: model.layers.1.attention.wk.weight; left over: model.layers.2.ffn_norm.weight; "
             "of another shape: model.norm.weight (65,) for (64,)")  # fmt: skip
    with pytest.raises(ValueError, match=re.escape(words)):
        keys.fill(net, BASE, source)
    torch.save({"model": dict(Made(BASE))}, tmp_path / "model.pt")
    keys.fill(net, BASE, keys.Published(tmp_path / "model.pt"))
    whole = (tmp_path / "model.pt").read_bytes()
    for name, data in (("cut.pt", whole[: len(whole) // 2]), ("none.pt", b""), ("cut.safetensors", b"hello")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}: this is no whole file of weights"):
            keys.Published(tmp_path / name)
    from safetensors.torch import save_file

    save_file(dict(Made(BASE)), tmp_path / "model.safetensors")
    keys.fill(net, BASE, keys.Published(tmp_path / "model.safetensors"))


def test_nemos_checkpoints_are_read_and_written(alone: None, tmp_path: Path) -> None:
    """What megatron-core writes of a model inside NeMo's module, and what it reads of ours."""
    from megatron.core import dist_checkpointing, parallel_state

    from hpc.models.ar import nemo

    source, net = Made(WORLD), model(WORLD)
    metadata = {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    sharded = net.sharded_state_dict(prefix="module.", metadata=metadata)
    (tmp_path / "theirs/weights").mkdir(parents=True)
    dist_checkpointing.save(sharded, str(tmp_path / "theirs/weights"))
    found = nemo.Nemo(tmp_path / "theirs", WORLD)
    assert found.keys() == source.keys() and all(torch.equal(found[name], source[name]) for name in source)
    assert "module.decoder.layers.self_attention.linear_qkv.layer_norm_weight" in found.whole

    nemo.save(tmp_path / "ours", WORLD, source)
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    sharded = net.sharded_state_dict(prefix="module.", metadata=metadata)
    state, unused, absent = dist_checkpointing.load(sharded, str(tmp_path / "ours/weights"), strict="return_all")
    assert not unused and all(name.endswith("_extra_state") for name in absent)  # of FP8
    net.load_state_dict({name.removeprefix("module."): value for name, value in state.items()}, strict=False)
    whole = {name: p.detach() for name, p in keys.parameters(net, WORLD).items()}
    assert all(torch.equal(tensor, source[name]) for name, tensor in keys.published(WORLD, whole.__getitem__))

    words = "missing: module.decoder.layers.cross_attention.k_layernorm.weight"
    with pytest.raises(ValueError, match=words):
        nemo.save(tmp_path / "base", BASE, Made(BASE))
        nemo.Nemo(tmp_path / "base", WORLD)
    words = "left over: module.decoder.layers.cross_attention.k_layernorm.weight"
    with pytest.raises(ValueError, match=words):
        nemo.Nemo(tmp_path / "ours", BASE)


def test_initial_weights_depend_on_seed_and_name_alone() -> None:
    made_ = keys.Initial(BASE, lambda name: torch.Generator().manual_seed(len(name)))
    assert set(made_) == set(Made(BASE))
    assert torch.equal(made_["model.norm.weight"], torch.ones(64))
    for name, std in (("model.layers.1.attention.wq.weight", 0.02), ("model.layers.1.attention.wo.weight", 0.01),
                      ("model.layers.0.feed_forward.w3.weight", 0.02 / 2**0.5), ("model.output.weight", 1 / 8),
                      ("model.tok_embeddings.weight", 1.0)):  # fmt: skip
        assert made_[name].std().item() == pytest.approx(std, rel=0.05)
        assert torch.equal(made_[name], made_[name])


def test_zigzag() -> None:
    parts = [zigzag(torch.arange(12), rank, 3).tolist() for rank in range(3)]
    assert parts == [[0, 1, 10, 11], [2, 3, 8, 9], [4, 5, 6, 7]]
