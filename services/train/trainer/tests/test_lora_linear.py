"""What lora_linear.py computes at once is what PEFT computes in steps."""

import lora_linear
import pytest
import torch
from peft import LoraConfig, get_peft_model


class Small(torch.nn.Module):
    def __init__(self, bias: bool):
        super().__init__()
        self.q_proj = torch.nn.Linear(12, 20, bias=bias)

    def forward(self, x):
        return self.q_proj(x)


def small(bias=False, dtype=torch.float32, **config):
    torch.manual_seed(1)
    model = get_peft_model(Small(bias).to(dtype), LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj"], init_lora_weights=False, **config))
    return model.train()


def pass_through(model, x, autocast=False) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    torch.manual_seed(2)  # of the dropout
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x)
    y.float().square().sum().backward()
    return {"y": y, "x": x.grad, **{name: each.grad for name, each in model.named_parameters() if each.requires_grad}}


@pytest.mark.parametrize(
    ("config", "autocast", "dtype"),
    [
        ({}, False, torch.float32),
        ({"bias": True}, False, torch.float32),
        ({"lora_dropout": 0.5}, False, torch.float32),
        ({"use_rslora": True}, True, torch.bfloat16),
        ({"lora_dropout": 0.5}, True, torch.bfloat16),
    ],
    ids=["plain", "bias", "dropout", "bf16", "bf16 with dropout"],
)
def test_values_and_gradients_are_pefts(config, autocast, dtype):
    config = dict(config)
    bias = config.pop("bias", False)
    x = torch.randn(1, 7, 12, generator=torch.Generator().manual_seed(3))
    expected = pass_through(small(bias, dtype, **config), x, autocast)
    model = small(bias, dtype, **config)
    lora_linear.use(model)
    used = []
    apply = lora_linear.LoraLinear.apply
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora_linear.LoraLinear, "apply", lambda *given: used.append(1) or apply(*given))
        got = pass_through(model, x, autocast)
    assert used
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype, name
        limit = 0.02 if autocast else 1e-6
        assert (got[name] - value).abs().max() <= limit * value.abs().max(), name


def test_what_is_more_than_plain_lora_stays_pefts():
    x = torch.randn(1, 7, 12)
    model = small()
    lora_linear.use(model)
    with model.disable_adapter():
        assert torch.equal(model(x), model.base_model.model.q_proj.base_layer(x))
    model.merge_adapter()
    merged = model(x)
    model.unmerge_adapter()
    assert torch.allclose(merged, model(x), atol=1e-5)
    dora = small(use_dora=True)
    lora_linear.use(dora)
    assert "forward" not in vars(dora.base_model.model.q_proj)
