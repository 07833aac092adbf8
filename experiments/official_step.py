# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A GRPO step of the official CropVLM algorithm in PyTorch: what `bench_step.py` compares with.

    python experiments/official_step.py --tiles=5 --checkpointing

As the official trainer does, it takes one prompt at a time and repeats it G times: `generate`
samples the boxes, the frozen target scores picture and crop, the reference and then the policy read
prompt and reply anew, and AdamW updates. Weights, pictures and text are random, which takes as
long; of the model only the config is read. Prints one line of JSON: seconds by phase and in all,
medians over the steps of a minute or more without the first one, and the peak memory.
"""

import copy
import json
import os
import resource
import statistics
import time

import torch
import transformers
from absl import flags
from peft import LoraConfig, get_peft_model

from cropvlm_jax import apps

MODEL = flags.DEFINE_string(
    "model", "HuggingFaceTB/SmolVLM-256M-Instruct", "Folder or Hub id whose shape the models have."
)
TILES = flags.DEFINE_integer(
    "tiles", 1, "Tiles of the cropper's picture: 1 at 512 px, 5 at 1024, 13 or 17 at 2048."
)
GROUP = flags.DEFINE_integer("group", 6, "Boxes that are sampled for the prompt.")
COMPLETION = flags.DEFINE_integer("completion", 19, "Tokens of a completion, its end included.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "Type of all weights.")
MODE = flags.DEFINE_enum(
    "mode",
    "lora",
    ("lora", "lora_text", "full"),
    "What is trained: the paper's adapters, those of the decoder alone, or all weights.",
)
CHECKPOINTING = flags.DEFINE_bool(
    "checkpointing", False, "Recompute layers in the backward pass, which the official run doesn't."
)
SECONDS = flags.DEFINE_float("seconds", 60, "Seconds that the timed steps take together, at least.")
THREADS = flags.DEFINE_integer("threads", len(os.sched_getaffinity(0)), "Threads on the CPU.")

DECODER_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS = {
    "lora": [*DECODER_TARGETS, "fc1", "fc2", "proj"],
    "lora_text": rf".*\.text_model\..*\.({'|'.join(DECODER_TARGETS)})",
}
OPENING, CROP_TEXT, ANSWER_TEXT, ANSWER = 4, 30, 36, 8  # tokens; the answer ends the answer text


def conversation(config: transformers.PretrainedConfig, pictures: list[int], tokens: int):
    """Token ids `[T]` of a conversation about pictures of so many tiles each."""
    vision = config.vision_config
    grid = vision.image_size // vision.patch_size // config.scale_factor
    tile = torch.full((grid**2,), config.image_token_id)

    def text(tokens: int) -> torch.Tensor:
        return torch.randint(10, config.image_token_id, (tokens,))

    parts = [text(OPENING)]
    for tiles in pictures:
        for _ in range(tiles):
            parts += [text(2), tile]  # what names a tile, and the tile
        parts.append(text(2))
    return torch.cat([*parts, text(tokens)])


def log_probs(model: torch.nn.Module, ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Of all tokens but the first, `[G, T - 1]`, as trl's `_get_per_token_logps` finds them."""
    logits = model(input_ids=ids, pixel_values=pixels).logits[:, :-1]
    rows = zip(logits, ids[:, 1:], strict=True)
    return torch.stack([x.log_softmax(-1).gather(-1, i[:, None])[:, 0] for x, i in rows])


def main(argv: list[str]) -> None:
    del argv
    torch.manual_seed(0)
    torch.set_num_threads(THREADS.value)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_device(device)
    config = transformers.AutoConfig.from_pretrained(MODEL.value)
    dtype, side, group = getattr(torch, DTYPE.value), config.vision_config.image_size, GROUP.value

    def model() -> torch.nn.Module:
        return transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()

    def pixels(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, 3, side, side).to(dtype) * 2 - 1

    policy, target = model(), model().requires_grad_(False)
    if MODE.value != "full":
        adapters = LoraConfig(r=128, lora_alpha=256, target_modules=TARGETS[MODE.value])
        policy = get_peft_model(policy, adapters)
    reference = copy.deepcopy(policy).requires_grad_(False)
    if CHECKPOINTING.value:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-6)

    def step() -> dict[str, float]:
        """Seconds of a step by phase."""
        seconds, last = {}, time.perf_counter()

        def ends(phase: str) -> None:
            nonlocal last
            if device == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            seconds[phase], last = now - last, now

        prompt = conversation(config, [TILES.value], CROP_TEXT)[None]
        image = pixels(1, TILES.value)
        with torch.no_grad():
            ids = policy.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                pixel_values=image,
                do_sample=True,
                temperature=0.8,
                num_return_sequences=group,
                min_new_tokens=COMPLETION.value,
                max_new_tokens=COMPLETION.value,
            )
        ends("generate")

        with torch.inference_mode():
            asked = conversation(config, [1, 1], ANSWER_TEXT).repeat(group, 1)
            reward = log_probs(target, asked, pixels(group, 2))[:, -ANSWER:].sum(-1)
            ends("reward")
            images = image.repeat(group, 1, 1, 1, 1)
            of_reference = log_probs(reference, ids, images)[:, -COMPLETION.value :]
            ends("reference")

        policy.train(CHECKPOINTING.value)  # no dropout, and without training no checkpointing
        of_policy = log_probs(policy, ids, images)[:, -COMPLETION.value :]
        policy.eval()
        advantages = (reward - reward.mean())[:, None]
        gain = torch.exp(of_policy - of_policy.detach()) * advantages
        difference = of_reference - of_policy
        kl = torch.exp(difference) - difference - 1
        (-(gain - 0.01 * kl).sum() / (group * 32)).backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()
        optimizer.zero_grad()
        ends("update")
        return seconds

    step()
    steps: list[dict[str, float]] = []
    while not steps or sum(sum(s.values()) for s in steps) < SECONDS.value:
        steps.append(step())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    result = {
        "seconds": statistics.median(sum(s.values()) for s in steps),
        "phases": {phase: statistics.median(s[phase] for s in steps) for phase in steps[0]},
        "peak_mib": peak >> 20,
    }
    print(json.dumps(result, allow_nan=False))


if __name__ == "__main__":
    apps.run_script(main)
