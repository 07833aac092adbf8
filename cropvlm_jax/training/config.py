# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every setting of a run with its default; the modules in `experiments/` change what they need."""

import dataclasses

import ml_collections
from ml_collections.config_dict import placeholder

from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.models.lora import LoRAConfig

STAGES = ("sft", "grpo")


def default_config() -> ml_collections.ConfigDict:
    """All settings; setting one that is not here is an error."""
    config = ml_collections.ConfigDict()
    config.stage = "grpo"  # or "sft": imitate the boxes of the sources
    config.cropper = ""  # folder, bundled model or hub id
    config.target = ""  # the same, or a black box: "rapidocr:v4@256", "openai:gpt-4.1-nano"; "grpo"
    # Settings of the target's image processor that replace its own.
    config.target_processor = ml_collections.ConfigDict()
    config.target_processor.do_pad = placeholder(bool)  # LLaVA: to a square, not its centre
    config.target_processor.max_pixels = placeholder(int)  # Qwen2.5-VL
    config.dtype = "float32"  # of the computation and frozen weights; trained ones are fp32
    config.remat = False  # recompute layers in the backward pass: slower, much less memory
    config.seed = 0  # of data order, rollouts, adapters and dropout

    config.steps = 0  # batches; 0 takes `epochs`
    config.epochs = 1.0  # passes over the data
    config.batch_size = 16  # prompts a step, over all devices
    config.gradient_accumulation_steps = 1  # microbatches a step: less memory, the same gradient
    config.learning_rate = 1e-5
    config.warmup = 0.03  # share of the updates
    config.clip_norm = 1.0
    config.adam_b2 = 0.999
    config.weight_decay = 0.0

    config.lora = ml_collections.ConfigDict(dataclasses.asdict(LoRAConfig()))
    config.lora.rank = 0  # 0 trains all weights

    config.grpo = ml_collections.ConfigDict(dataclasses.asdict(GRPOConfig()))
    for name in ("normaliser", "reward_chunk"):
        config.grpo[name] = placeholder(int)
    del config.grpo.gradient_accumulation_steps  # both stages have it

    config.data = ml_collections.ConfigDict()
    config.data.sources = ml_collections.ConfigDict()  # by name, see `source`
    config.data.longest_edge = 512  # pixels of the cropper's input: one tile, or split from it
    config.data.canvas = (2048, 2048)  # height and width; larger pictures are shrunk to fit
    config.data.question_tokens = 64  # longer questions are skipped
    config.data.answer_tokens = 32  # longer answers are skipped
    config.data.official_text = False  # the official code's capitalisation and final period
    config.data.workers = 0  # processes that prepare batches; 0 takes threads

    config.eval = ml_collections.ConfigDict()
    config.eval.every = 0  # steps; 0 never evaluates
    config.eval.examples = 256  # the first ones of `eval.sources`
    config.eval.sources = ml_collections.ConfigDict()

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every = 100  # steps; the last one is always saved
    config.checkpoint.keep = 2  # the latest ones
    config.checkpoint.best = ""  # and the one where this metric is highest, as "eval/reward"
    config.export_every = 0  # steps between exports to Hugging Face; the last one is always made

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1  # replicas; -1 takes the devices that are left
    config.mesh.fsdp = 1  # devices that share one copy of the weights
    config.mesh.tensor = 1  # devices that share each matmul
    return config


def source(
    folder: str = "",
    split: str = "train",
    weight: float = 0.0,
    part: tuple[float, float] = (0.0, 1.0),
    boxes: str = "",
    kind: str = "",
    prepared: bool = False,
) -> ml_collections.ConfigDict:
    """Settings of one source of `data.sources`.

    Args:
        folder: where the data set is.
        split: of it.
        weight: share of the examples drawn; 0 for all sources draws every example equally often.
        part: the stretch of the split to use, in its order, from 0 to 1.
        boxes: file of seed boxes that `apps.label` wrote; without it, the source's own boxes.
        kind: the data set, where the name of the source is not that of one.
        prepared: whether `folder` is what `apps.prepare` wrote, which shuffled training reads
            much faster than parquet.
    """
    settings = dict(folder=folder, split=split, weight=weight, part=part)
    return ml_collections.ConfigDict(settings | dict(boxes=boxes, kind=kind, prepared=prepared))


def _paper(longest_edge: int, part: tuple[float, float]) -> ml_collections.ConfigDict:
    """What the paper's two stages share: data, adapters, batch, schedule, precision.

    Four microbatches of 4 prompts are for one chip: more chips take
    `--config.gradient_accumulation_steps=1`.
    """
    config = default_config()
    config.dtype = "bfloat16"
    config.remat = True
    config.seed = 42
    config.batch_size = 16
    config.gradient_accumulation_steps = 4
    config.warmup = 0.03
    config.lora.rank = 128
    config.data.longest_edge = longest_edge
    for name in ("textvqa", "docvqa", "stvqa", "infographicvqa"):
        config.data.sources[name] = source(f"data/{name}", part=part)
    config.checkpoint.every = 150
    return config


def paper_sft(longest_edge: int) -> ml_collections.ConfigDict:
    """The paper's supervised stage: seed boxes of Qwen2.5-VL-7B on the first half of the data.

    Source of the numbers: `train_sft.sh` of the official repository (its 512 px, TextVQA-only
    defaults), which the paper does not contradict: LoRA r=128, alpha=256, dropout 0.05, learning
    rate 5e-5, cosine, 3% warm-up, batch 16 (2 x accumulation 8), clipping at 1.0, one epoch, bf16,
    seed 42.

    Args:
        longest_edge: pixels of the cropper's input, 512, 1024 or 2048.
    """
    config = _paper(longest_edge, part=(0.0, 0.5))
    config.stage = "sft"
    config.cropper = "HuggingFaceTB/SmolVLM-256M-Instruct"
    config.learning_rate = 5e-5
    for name, settings in config.data.sources.items():
        settings.boxes = f"data/seed_boxes/{name}.jsonl"
    return config


def paper_grpo(longest_edge: int, reward: str) -> ml_collections.ConfigDict:
    """The paper's GRPO stage, on the second half of the data, from the SFT cropper.

    Source of the numbers: `train_grpo.sh` of the official repository: G=6, temperature 0.8,
    beta 0.01, learning rate 5e-6, clipping at 0.1, 16 prompts an update, one epoch; the reward
    model is SmolVLM-256M at 512 px. Objective and reward are the released code's (Dr.GRPO's
    constant of 32 tokens and no scaling, summed log-likelihood, no temperature in log-probs)
    except for its defects, which `GRPOConfig` lists as switches.

    Args:
        longest_edge: pixels of the cropper's input, 512, 1024 or 2048.
        reward: "likelihood" or "accuracy".

    Raises:
        ValueError: another reward.
    """
    if reward not in ("likelihood", "accuracy"):
        raise ValueError(f"reward={reward!r} is neither 'likelihood' nor 'accuracy'")
    config = _paper(longest_edge, part=(0.5, 1.0))
    config.cropper = f"runs/paper/sft_{longest_edge}/cropper"
    config.target = "HuggingFaceTB/SmolVLM-256M-Instruct"
    config.learning_rate = 5e-6
    config.clip_norm = 0.1
    config.grpo.num_generations = 6
    config.grpo.temperature = 0.8
    config.grpo.temperature_in_log_probs = False
    config.grpo.beta = 0.01
    config.grpo.loss_type = "dr_grpo"
    config.grpo.normaliser = 32
    config.grpo.scale_rewards = "none"
    if reward == "accuracy":
        config.grpo.likelihood_weight = 0.0
        config.grpo.accuracy_weight = 1.0
        config.grpo.accuracy = "official"
    return config
