"""Adapters: they start as nothing, are all that is trained, and can be added to the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_dit import LATENTS, PREDICT25, given, published, tensor

from hpc.models import dit_files, lora
from hpc.models.diffusion import Condition, Draws, Flow
from hpc.models.dit import DiT


def step(model: DiT) -> torch.Tensor:
    draws = Draws(tensor("n", *LATENTS), torch.tensor([0.3, -0.4]), torch.ones(2, 2), torch.zeros(2), None)
    return Flow().loss(model, tensor("x0", *LATENTS), Condition(tensor("text", 2, 6, 80), given(0, 1)), draws).loss


def trained() -> DiT:
    model = published(PREDICT25, "predict2")
    lora.adapt(model, 4, 8.0, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        step(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_an_adapter_starts_as_nothing_and_alone_is_trained() -> None:
    model = published(PREDICT25, "predict2")
    before, plain = step(model).item(), {name: value.clone() for name, value in model.state_dict().items()}
    names = lora.adapt(model, 4, generator=torch.Generator().manual_seed(1))
    assert len(names) == 2 * (4 + 4 + 2) and "blocks.1.cross_attn.v_proj" in names
    assert step(model).item() == before
    moving = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moving == {f"{name}.lora_{x}.default.weight" for name in names for x in "AB"}
    a = model.blocks[0].mlp.layer1.lora_A["default"].weight
    assert a.shape == (4, 48) and 0 < a.abs().max() <= 48**-0.5
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(5):
        loss = step(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] == before
    state = lora.merged({k: v for k, v in model.state_dict().items() if "lora_" not in k})
    assert all(torch.equal(state[name], value) for name, value in plain.items()), "the layers themselves stay"


def test_merged_weights_compute_the_same(tmp_path: Path) -> None:
    """Also from a file with published names, as training leaves it."""
    model = trained()
    wanted = step(model).item()
    whole = published(PREDICT25, "predict2")
    assert abs(step(whole).item() - wanted) > 1e-4, "training has changed something"
    whole.load_state_dict(lora.merged(model.state_dict(), 8.0 / 4))
    assert step(whole).item() == pytest.approx(wanted, rel=1e-5)
    state = dit_files.exported(model.state_dict(), "predict2")
    assert {"net.blocks.0.self_attn.q_proj.base_layer.weight", "net.blocks.0.self_attn.q_proj.lora_A.default.weight",
            "net.blocks.0.mlp.layer2.lora_B.default.weight"} <= set(state)  # fmt: skip
    torch.save(state, tmp_path / "model.pt")
    again = dit_files.load(tmp_path / "model.pt", PREDICT25, dtype=torch.float32, lora_scale=2.0)
    assert step(again).item() == pytest.approx(wanted, rel=1e-5)


def test_adapters_alone_bring_a_model_back() -> None:
    model = trained()
    small = lora.adapters(model.state_dict())
    assert len(small) == 40 and all("lora_" in name for name in small)
    again = published(PREDICT25, "predict2")
    lora.adapt(again, 4, 8.0)
    found = again.load_state_dict(small, strict=False)
    assert not found.unexpected_keys and step(again).item() == step(model).item()


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no layer is called to_q; there are .*q_proj"):
        lora.adapt(DiT(PREDICT25), targets=("q_proj", "to_q"))
    with pytest.raises(ValueError, match="rank: 0 must be 1 or more"):
        lora.adapt(DiT(PREDICT25), rank=0)
    with pytest.raises(ValueError, match="its lora_B or its layer's own weight is not there"):
        lora.merged({"a.lora_A.default.weight": torch.zeros(1, 1), "a.base_layer.weight": torch.zeros(1, 1)})
    with pytest.raises(ValueError, match=r"an adapter of 6 x 4 \(ranks 2, 2\) for a layer of 6 x 5: it is"):
        lora.merged({"a.lora_A.default.weight": torch.zeros(2, 4), "a.lora_B.default.weight": torch.zeros(6, 2),
                     "a.base_layer.weight": torch.zeros(6, 5)})  # fmt: skip
