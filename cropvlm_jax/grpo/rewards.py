# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a reply is worth: how likely its crops make the frozen target give the gold answer, whether
the target gives it, and what the crops cost.

Shape letters: B prompts, G rollouts a prompt, K boxes of a reply, A gold answer tokens, T tokens of
the target's own answer.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from cropvlm_jax import geometry
from cropvlm_jax.data.batching import Batch
from cropvlm_jax.grpo import reading
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.grpo.reading import AnswerTemplate, Crops
from cropvlm_jax.models.llama import KVCache
from cropvlm_jax.models.vlm import VLM, ImageTokens
from cropvlm_jax.scoring import in_graph
from cropvlm_jax.scoring.text import Metric


class Rewards(NamedTuple):
    """What replies are worth.

    Attributes:
        total: fp32 `[B, G]`, the weighted sum of the parts, less "cost".
        parts: fp32 `[B, G]` by name: "likelihood" and "verification" (nats), "accuracy" and
            "area" (0..1, a sum over the boxes), "cost" (in units of the reward).
        crop_tokens: fp32 `[B, G]`, image tokens of the target that the crops take; None where
            nobody asks, or the target does not tell.
    """

    total: jax.Array
    parts: dict[str, jax.Array]
    crop_tokens: jax.Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetRewards:
    """Asks the frozen target about replies, inside the graph.

    Attributes:
        template: of the target's tokenizer.
        config: which rewards, and their weights.
        vocabulary: of the target's tokenizer; needed where `config.accuracy_weight` is not 0.
    """

    template: AnswerTemplate
    config: GRPOConfig
    vocabulary: in_graph.Vocabulary | None = None

    def __call__(
        self,
        target: VLM,
        batch: Batch,
        boxes: Real[Array, "B G K 4"],
        count: Int[Array, "B G"],
        whole: ImageTokens | None = None,
    ) -> Rewards:
        """What replies are worth to the target: it reads the whole picture once, then the crops.

        Args:
            target: the frozen target.
            batch: the prompts.
            boxes: percent boxes.
            count: how many of its K boxes a reply has.
            whole: image tokens `[B, 1, I, ...]` of the whole pictures, where another model's tower
                has made the same already.

        Raises:
            ValueError: the accuracy reward lacks the vocabulary or the gold answers.
        """
        config = self.config
        if whole is None:
            whole = reading.encode_whole(target, batch.canvas, batch.size)
        picture = reading.read_picture(target, self.template, whole)

        def ask(replies: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
            boxes, count = replies
            crops = Crops.of(target, batch, boxes, count)
            told = self.ask(target, batch, picture, crops)
            return told | ({"crop_tokens": crops.total} if counts_tokens(config, batch) else {})

        answers = in_chunks(ask, (boxes, count), config.reward_chunk or boxes.shape[1])
        crop_tokens = answers.pop("crop_tokens", None)
        parts = self.values(batch, answers)
        if config.compared:
            alone = self.values(batch, self.ask(target, batch, picture, None))
            parts = less_alone(config, count, parts, alone)
        return weigh(config, batch, boxes, count, parts, crop_tokens)

    def ask(
        self, target: VLM, batch: Batch, picture: KVCache, crops: Crops | None
    ) -> dict[str, jax.Array]:
        """Shows the target the picture and the crops of a few replies.

        Args:
            target: the frozen target.
            batch: the prompts.
            picture: what `reading.read_picture` returned.
            crops: of g replies a prompt; None asks about the picture alone, g = 1, what is
                compared with it.

        Returns:
            "likelihood" and "verification": fp32 `[B, g, A]`, log-probabilities of the gold
            answer's tokens given picture and crops, and given the crops alone; "own": int32
            `[B, g, T]`, the target's own answer. What has no weight is left out.
        """
        asked = self.config.asked if crops is not None else self.config.asked_alone
        answers = {}
        if "likelihood" in asked:
            answers["likelihood"] = reading.answer_log_probs(
                target, self.template, batch, crops, picture
            )
        if "verification" in asked:
            answers["verification"] = reading.answer_log_probs(
                target, self.template, batch, crops, None
            )
        if "accuracy" in asked:
            most = self.config.answer_tokens
            answers["own"] = reading.own_answers(target, self.template, picture, batch, crops, most)
        return answers

    def values(self, batch: Batch, answers: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """What `ask` told as parts of the reward, fp32 `[B, g]` by name."""
        config = self.config
        span = reading.answer_span(self.template, batch, config.official_span)
        parts: dict[str, jax.Array] = {
            name: reading.log_likelihood(answers[name], span, config.likelihood)
            for name in ("likelihood", "verification")
            if name in answers
        }
        if "own" in answers:
            if self.vocabulary is None or batch.gold is None:
                raise ValueError(
                    "accuracy_weight needs `vocabulary` of the target's tokenizer and batches with "
                    "`gold` answers"
                )
            metric = cast(Metric, config.accuracy)
            parts["accuracy"] = in_graph.score(self.vocabulary, batch.gold, answers["own"], metric)
        return parts


def less_alone(
    config: GRPOConfig,
    count: Int[Any, "B G"],
    parts: Mapping[str, Any],
    alone: Mapping[str, Any],
) -> dict[str, Any]:
    """The parts of the reward, those of `config.compared` less what the picture alone is worth.

    A reply without a box is the picture alone, and so gains exactly 0. Takes NumPy and JAX arrays.

    Args:
        config: says which parts are compared.
        count: boxes of each reply.
        parts: `[B, G]` by name, with the crops.
        alone: `[B, 1]` by name, without.
    """
    xp = count.__array_namespace__()
    gains = dict(parts)
    for name in config.compared:
        # What the crops alone are worth is compared with the picture alone, too.
        without = alone["likelihood" if name == "verification" else name]
        value = parts[name]
        if config.abstain:
            value = xp.where(count == 0, without, value)
        gains[name] = value - without
    return gains


def counts_tokens(config: GRPOConfig, batch: Batch) -> bool:
    """Whether somebody wants to know how many image tokens the crops of a reply take."""
    return config.varies or bool(config.token_price) or batch.price is not None


def weigh(
    config: GRPOConfig,
    batch: Batch,
    boxes: Real[Array, "B G K 4"],
    count: Int[Array, "B G"],
    parts: dict[str, jax.Array],
    crop_tokens: Float[Array, "B G"] | None = None,
) -> Rewards:
    """Sums up the parts of the reward by their weights, after adding what the boxes cost.

    Args:
        config: has the weights.
        batch: has the `price` of each prompt where that is not `config.token_price`.
        boxes: percent boxes.
        count: how many of its K boxes a reply has.
        parts: fp32 `[B, G]` by name, what the target says.
        crop_tokens: image tokens that the crops take; needed where they have a price.
    """
    if config.area_weight:
        parts = parts | {"area": shown_area(boxes, count)}
    weights = config.weights | {"cost": -1.0}
    price = config.token_price if batch.price is None else batch.price[:, None]
    if batch.price is not None or config.token_price:
        assert crop_tokens is not None
        parts = parts | {"cost": price * crop_tokens / 1000}
    weighted = [weights[name] * part for name, part in parts.items()]
    return Rewards(jnp.stack(weighted).sum(0), parts, crop_tokens)


def shown_area(boxes: Real[Array, "B G K 4"], count: Int[Array, "B G"]) -> Float[Array, "B G"]:
    """The boxes' shares of the picture's area, summed: what two boxes share counts twice.

    That is what the target is shown: it reads the common part in both crops.
    """
    shares = jnp.where(reading.there(boxes, count), geometry.area(boxes), 0)
    return shares[..., 0] if shares.shape[-1] == 1 else shares.sum(-1)


def in_chunks(function: Callable[[Any], Any], replies: Any, chunk: int) -> Any:
    """`function` of a few rollouts at a time, which bounds memory.

    Args:
        function: a tree of arrays `[B, chunk, ...]` to another one.
        replies: tree of arrays `[B, G, ...]`.
        chunk: rollouts of each prompt at once, a divisor of G.

    Returns:
        The tree that `function` returns, of arrays `[B, G, ...]`.
    """
    b, g = jax.tree.leaves(replies)[0].shape[:2]
    if g % chunk:
        raise ValueError(f"reward_chunk={chunk} does not divide the {g} rollouts of a group")
    chunks = jax.tree.map(
        lambda x: x.reshape((b, g // chunk, chunk, *x.shape[2:])).swapaxes(0, 1), replies
    )
    parts = jax.lax.map(function, chunks)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape((b, g, *x.shape[3:])), parts)
