# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run computes: one class a kind of run, behind the `Stage` protocol of `base.py`."""

import jax
from jax.sharding import Mesh

from cropvlm_jax.readers.registry import is_black_box
from cropvlm_jax.training.config import TrainConfig
from cropvlm_jax.training.stages.base import Stage
from cropvlm_jax.training.stages.black_box import BlackBoxStage
from cropvlm_jax.training.stages.grpo import GRPOStage
from cropvlm_jax.training.stages.sft import ReaderStage, SFTStage

# The settings that name the models of each stage.
MODELS = {"reader": ("target",), "sft": ("cropper",), "grpo": ("cropper", "target")}


def open_stage(config: TrainConfig, abstract: bool = False, mesh: Mesh | None = None) -> Stage:
    """Opens the models that a config names, and puts together what is computed with them.

    Args:
        config: settings of the run.
        abstract: read and download no weights; `Stage.weights` are shapes. The very step of a run
            can then be compiled for machines that are not there.
        mesh: of the devices, which share the weights of a large target from the beginning; None for
            the default device.

    Raises:
        FileNotFoundError: a model is not there.
        ValueError: a setting is missing, or does not go with the models.
    """
    models_of(config)
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    in_step = cuts_in_step(config, platform)
    if config.stage == "reader":
        return ReaderStage.open(config, abstract, in_step)
    if config.stage == "sft":
        return SFTStage.open(config, abstract, in_step)
    if is_black_box(config.target):
        return BlackBoxStage.open(config, abstract, in_step)
    return GRPOStage.open(config, abstract, in_step, mesh)


def cuts_in_step(config: TrainConfig, platform: str) -> bool:
    """Whether the step cuts what the trained model sees from canvases, or the host prepares it.

    A CPU resizes more slowly in the step than Pillow does: `docs/lab.md` has the measurement.

    Args:
        config: settings of the run; `data.tiles` decides.
        platform: of the devices, such as "tpu".
    """
    return config.data.tiles == "device" or (config.data.tiles == "auto" and platform != "cpu")


def models_of(config: TrainConfig) -> list[str]:
    """The settings that name models of this package which the run takes.

    Raises:
        ValueError: one that the stage needs is empty.
    """
    for name in MODELS[config.stage]:
        if not getattr(config, name):
            raise ValueError(f"{name}='': say which model, by a folder or a Hugging Face id")
    outside = config.stage == "grpo" and is_black_box(config.target)
    return [name for name in MODELS[config.stage] if name != "target" or not outside]
