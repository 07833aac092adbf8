# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters as PEFT makes them."""

from typing import Any

import pytest


def adapt(model: Any, **settings: Any) -> Any:
    """Adapts a torch model as PEFT does, with random weights."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = peft.get_peft_model(model, peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.3, generator=generator)
    return model.eval()
