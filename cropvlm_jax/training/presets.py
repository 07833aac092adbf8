# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The runs of the paper (arXiv 2511.19820), and what its released code does otherwise than we do.

`OFFICIAL` names every difference once. `paper_grpo` takes those that are choices, and leaves those
that are defects corrected; `official(config)` sets all of them, to reproduce the released code:

    config = official(paper_grpo(512, "likelihood"))
"""

from typing import Any, NamedTuple

import ml_collections

from cropvlm_jax.training.config import default_config, source

DATA = ("textvqa", "docvqa", "stvqa", "infographicvqa")


class Difference(NamedTuple):
    """What the released code does otherwise than our defaults.

    Attributes:
        setting: the dotted name of the setting.
        value: the value that reproduces the released code.
        meaning: what the released code does.
        defect: whether it looks like a mistake, which the paper's text does not describe.
    """

    setting: str
    value: Any
    meaning: str
    defect: bool = False


OFFICIAL = (
    Difference("grpo.num_generations", 6, "six rollouts a prompt"),
    Difference("grpo.temperature", 0.8, "rollouts are sampled at this temperature"),
    Difference(
        "grpo.temperature_in_log_probs",
        False,
        "log-probabilities are not those of the sampling distribution: logits are not divided by "
        "the temperature",
    ),
    Difference("grpo.beta", 0.01, "weight of the KL to the reference"),
    Difference(
        "grpo.kl_loss_type",
        "k3",
        "this KL is estimated from the chosen tokens, as in the GRPO paper, so its gradient is "
        "that of the KL in the other direction",
    ),
    Difference("grpo.loss_type", "dr_grpo", "a reply's losses are summed over a constant"),
    Difference("grpo.normaliser", 32, "that constant is the limit of tokens of a reply"),
    Difference("grpo.scale_rewards", "none", "rewards are centred, not divided by a deviation"),
    Difference("grpo.likelihood", "sum", "log-likelihoods of answers are summed over tokens"),
    Difference(
        "grpo.official_span",
        True,
        "an answer with a colon counts only from after its last colon on, because the code looks "
        "for the last colon of the conversation",
        defect=True,
    ),
    Difference(
        "data.official_text",
        True,
        "questions and answers go through `str.capitalize()`, which makes all letters but the "
        "first small, and every answer gets a period, even after one that it has",
        defect=True,
    ),
)


def official(config: ml_collections.ConfigDict, defects: bool = True) -> ml_collections.ConfigDict:
    """Sets a GRPO run to do what the released code does.

    Args:
        config: of a run, which is changed.
        defects: whether to reproduce what looks like a mistake as well.

    Returns:
        `config`.
    """
    for difference in OFFICIAL:
        if defects or not difference.defect:
            config.update_from_flattened_dict({difference.setting: difference.value})
    return config


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
    for name in DATA:
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

    Source of the numbers: `train_grpo.sh` of the official repository: G=6, temperature 0.8, beta
    0.01, learning rate 5e-6, clipping at 0.1, 16 prompts an update, one epoch; the reward model is
    SmolVLM-256M at 512 px. Objective and reward are the released code's, but for its defects; see
    `OFFICIAL`.

    Args:
        longest_edge: pixels of the cropper's input, 512, 1024 or 2048.
        reward: "likelihood" or "accuracy".

    Raises:
        ValueError: another reward.
    """
    if reward not in ("likelihood", "accuracy"):
        raise ValueError(f"reward={reward!r} is neither 'likelihood' nor 'accuracy'")
    config = official(_paper(longest_edge, part=(0.5, 1.0)), defects=False)
    config.cropper = f"runs/paper/sft_{longest_edge}/cropper"
    config.target = "HuggingFaceTB/SmolVLM-256M-Instruct"
    config.learning_rate = 5e-6
    config.clip_norm = 0.1
    if reward == "accuracy":
        config.grpo.likelihood_weight = 0.0
        config.grpo.accuracy_weight = 1.0
        config.grpo.accuracy = "official"
    return config
