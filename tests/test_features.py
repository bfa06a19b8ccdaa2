"""How differently an image model sees two pictures, with models of random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from hpc.models.features import load

CONFIGS = {
    "convnext": lambda: transformers.ConvNextV2Config(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1]),
    "dinov2": lambda: transformers.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                                intermediate_size=32, image_size=56),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_distance_with_a_gradient(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    of = transformers.ConvNextV2ForImageClassification if kind == "convnext" else transformers.Dinov2Model
    of(CONFIGS[kind]()).save_pretrained(tmp_path)
    model = load(str(tmp_path))
    one = torch.rand(2, 3, 56, 84) * 2 - 1
    near = (one + 0.01 * torch.randn(one.shape)).requires_grad_(True)
    distance = model(one, near)
    assert torch.equal(model(one, one), torch.zeros(2))
    assert bool((0 < distance).all()) and bool((distance < model(one, -one)).all())
    distance.sum().backward()
    assert near.grad is not None and float(near.grad.abs().sum()) > 0
    assert not any(weight.requires_grad for weight in model.parameters())


def test_weights_are_accounted_for(tmp_path: Path) -> None:
    transformers.ConvNextV2Model(CONFIGS["convnext"]()).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace("24", "32"))
    with pytest.raises(RuntimeError):
        load(str(tmp_path))
