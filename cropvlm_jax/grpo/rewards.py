# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a box is worth: how likely it makes the frozen target give the gold answer, and whether the
target gives it.

Shape letters: B prompts, G rollouts a prompt, I tokens of a picture, P tokens up to the end of the
whole picture, C crop tokens, Q question tokens, A gold answer tokens, T tokens of the target's own
answer.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt8

from cropvlm_jax import geometry
from cropvlm_jax.data.batching import Batch
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.models.conversations import Conversations
from cropvlm_jax.models.decode import greedy_decode
from cropvlm_jax.models.llama import KVCache
from cropvlm_jax.models.vlm import VLM, ImageTokens
from cropvlm_jax.scoring import in_graph
from cropvlm_jax.scoring.text import Metric


class Rewards(NamedTuple):
    """What boxes are worth.

    Attributes:
        total: fp32 `[B, G]`, the weighted sum of the parts.
        parts: fp32 `[B, G]` by name: "likelihood" and "verification" (nats), "accuracy" and
            "area" (0..1).
    """

    total: jax.Array
    parts: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class AnswerTemplate:
    """The constant parts of the answer conversation about two pictures of one tile each.

    Attributes:
        first: token ids up to the end of the whole picture.
        crop: token ids from there to the end of the crop.
        colon: token id of the ":" of "Assistant:", that ends the question.
        end: token id that ends an answer.
    """

    first: tuple[int, ...]
    crop: tuple[int, ...]
    colon: int
    end: int

    @classmethod
    def from_conversations(cls, conversations: Conversations) -> "AnswerTemplate":
        """Reads the parts off any answer conversation."""
        conversation = conversations.answer("Any question?", answer="Any answer")
        ids, (first, second) = conversation.ids.tolist(), conversation.images
        return cls(
            first=tuple(ids[: first.stop]),
            crop=tuple(ids[first.stop : second.stop]),
            colon=ids[conversation.question.stop - 1],
            end=ids[conversation.completion.stop - 1],
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetRewards:
    """Asks the frozen target about boxes, inside the graph.

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
        boxes: Int[Array, "B G 4"],
        whole: ImageTokens | None = None,
    ) -> Rewards:
        """What boxes are worth to the target: it reads the whole picture once, then each crop.

        Args:
            target: the frozen target.
            batch: the prompts.
            boxes: percent boxes.
            whole: image tokens `[B, 1, I, ...]` of the whole pictures, where another model's tower
                has made the same already.

        Raises:
            ValueError: the accuracy reward lacks the vocabulary or the gold answers.
        """
        config = self.config
        if whole is None:
            whole = encode_whole(target, batch.canvas, batch.size)
        picture = read_picture(target, self.template, whole)

        def ask(boxes: jax.Array) -> dict[str, jax.Array]:
            return self.ask(target, batch, picture, boxes)

        answers = in_chunks(ask, boxes, config.reward_chunk or boxes.shape[1])
        span = answer_span(self.template, batch, config.official_span)
        parts = {
            name: log_likelihood(answers[name], span, config.likelihood)
            for name in ("likelihood", "verification")
            if name in answers
        }
        if config.gain:
            alone = answer_log_probs(target, self.template, batch, None, picture)
            parts["likelihood"] -= log_likelihood(alone, span, config.likelihood)
        if config.accuracy_weight:
            if self.vocabulary is None or batch.gold is None:
                raise ValueError(
                    "accuracy_weight needs `vocabulary` of the target's tokenizer and batches with "
                    "`gold` answers"
                )
            metric = cast(Metric, config.accuracy)
            parts["accuracy"] = in_graph.score(self.vocabulary, batch.gold, answers["own"], metric)
        return weigh(config, boxes, parts)

    def ask(
        self, target: VLM, batch: Batch, picture: KVCache, boxes: Int[Array, "B g 4"]
    ) -> dict[str, jax.Array]:
        """Shows the target the crops of a few boxes.

        Returns:
            "likelihood" and "verification": fp32 `[B, g, A]`, log-probabilities of the gold
            answer's tokens given picture and crop, and given the crop alone; "own": int32
            `[B, g, T]`, the target's own answer. What has no weight is left out.
        """
        crops = target.encode_crops(batch.canvas, batch.size, boxes)
        answers = {}
        if self.config.likelihood_weight:
            answers["likelihood"] = answer_log_probs(target, self.template, batch, crops, picture)
        if self.config.verification_weight:
            answers["verification"] = answer_log_probs(target, self.template, batch, crops, None)
        if self.config.accuracy_weight:
            most = self.config.answer_tokens
            answers["own"] = own_answers(target, self.template, picture, batch, crops, most)
        return answers


def weigh(config: GRPOConfig, boxes: Int[Array, "B G 4"], parts: dict[str, jax.Array]) -> Rewards:
    """Sums up the parts of the reward by their weights, after adding what boxes cost by themselves.

    Args:
        config: has the weights.
        boxes: percent boxes.
        parts: fp32 `[B, G]` by name, what the target says.
    """
    if config.area_weight:
        parts = parts | {"area": geometry.area(boxes)}
    weighted = [config.weights[name] * part for name, part in parts.items()]
    return Rewards(jnp.stack(weighted).sum(0), parts)


def encode_whole(
    target: VLM, canvas: UInt8[Array, "B Hc Wc 3"], size: Int[Array, "B 2"]
) -> ImageTokens:
    """Image tokens `[B, 1, I, ...]` of the whole pictures.

    Args:
        target: the frozen target.
        canvas: original pixels, padded at the bottom and right.
        size: height and width of the pictures inside their canvases.
    """
    whole = jnp.broadcast_to(jnp.array(geometry.FULL), (canvas.shape[0], 1, 4))
    return target.encode_crops(canvas, size, whole)


def read_picture(target: VLM, template: AnswerTemplate, whole: ImageTokens) -> KVCache:
    """The target reads the whole picture, once a prompt.

    Args:
        target: the frozen target.
        template: of its tokenizer.
        whole: image tokens `[B, 1, I, ...]`.

    Returns:
        The prefix cache that all answers about this picture share, G = 1.
    """
    shape = (*jax.tree.leaves(whole)[0].shape[:2], len(template.first))
    ids = jnp.broadcast_to(jnp.array(template.first), shape)
    return target.read(ids, jnp.ones_like(ids, bool), whole)[1]


def in_chunks(function: Callable[[jax.Array], Any], boxes: jax.Array, chunk: int) -> Any:
    """`function` of a few rollouts at a time, which bounds memory.

    Args:
        function: boxes `[B, chunk, 4]` to arrays `[B, chunk, ...]`.
        boxes: int `[B, G, 4]`.
        chunk: rollouts of each prompt at once, a divisor of G.

    Returns:
        The arrays, `[B, G, ...]`.
    """
    b, g = boxes.shape[:2]
    if g % chunk:
        raise ValueError(f"reward_chunk={chunk} does not divide the {g} rollouts of a group")
    parts = jax.lax.map(function, boxes.reshape(b, g // chunk, chunk, 4).swapaxes(0, 1))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(b, g, *x.shape[3:]), parts)


def _questions(
    opening: tuple[int, ...], batch: Batch, crops: ImageTokens | None
) -> tuple[jax.Array, jax.Array]:
    """The crop, if any, and the question up to "Assistant:".

    Args:
        opening: C token ids up to the end of the crop; not read where there is no crop.
        batch: the prompts.
        crops: `[B, G, I, ...]` from `encode_crops`, or None for no crop, G = 1.

    Returns:
        Token ids `[B, G, C + Q]` and which are real, bool `[B, G, C + Q]`.
    """
    if crops is None:
        return batch.question[:, None], batch.question_valid[:, None]
    shape = (*jax.tree.leaves(crops)[0].shape[:2], len(opening))
    crop = jnp.broadcast_to(jnp.array(opening), shape)
    question = _spread(batch.question, shape[1])
    question_valid = _spread(batch.question_valid, shape[1])
    return (
        jnp.concatenate([crop, question], -1),
        jnp.concatenate([jnp.ones(shape, bool), question_valid], -1),
    )


def _spread(row: jax.Array, group: int) -> jax.Array:
    """Repeats what all rollouts of a prompt share, `[B, T]`, to `[B, G, T]`."""
    return jnp.broadcast_to(row[:, None], (row.shape[0], group, row.shape[-1]))


def answer_log_probs(
    target: VLM,
    template: AnswerTemplate,
    batch: Batch,
    crops: ImageTokens | None,
    picture: KVCache | None,
) -> jax.Array:
    """Log-probabilities of the gold answer's tokens given what is shown and the question.

    Args:
        target: the frozen target.
        template: of its tokenizer.
        batch: the prompts.
        crops: `[B, G, I, ...]` from `encode_crops`; None asks about the picture alone, G = 1.
        picture: what `read_picture` returned; None asks about the crops alone, each of which then
            stands where else the whole picture does.

    Returns:
        fp32 `[B, G, A]`, meaningless in the padding.
    """
    opening = template.first if picture is None else template.crop
    asked, asked_valid = _questions(opening, batch, crops)
    answer = _spread(batch.answer, asked.shape[1])
    valid = _spread(batch.answer_valid, asked.shape[1])
    ids = jnp.concatenate([asked, answer[..., :-1]], -1)
    valid = jnp.concatenate([asked_valid, valid[..., :-1]], -1)
    hidden, _ = target.read(ids, valid, crops, picture)
    # The last token of what was asked predicts the first one of the answer.
    log_probs = jax.nn.log_softmax(target.text.logits(hidden[:, :, asked.shape[2] - 1 :]))
    return jnp.take_along_axis(log_probs, answer[..., None], -1)[..., 0]


def answer_span(template: AnswerTemplate, batch: Batch, official: bool) -> jax.Array:
    """Which tokens of the gold answers the likelihood counts: bool `[B, A]`.

    Args:
        template: of the target's tokenizer.
        batch: the prompts.
        official: reproduces the official code, which looks for the last ":" of the conversation and
            so counts an answer that has a colon only from after that one on.
    """
    if not official:
        return batch.answer_valid
    colons = (batch.answer == template.colon) & batch.answer_valid
    from_here_on = jnp.cumsum(colons[:, ::-1], -1)[:, ::-1]
    return batch.answer_valid & (from_here_on == 0)


def log_likelihood(
    log_probs: jax.Array, span: jax.Array, reduction: Literal["sum", "mean"]
) -> jax.Array:
    """Log-likelihood of answers in nats.

    Args:
        log_probs: `[B, G, A]` of the answer tokens, the end token included.
        span: bool `[B, A]`, tokens that count.
        reduction: "sum", as the official code (long answers dominate a batch), or a token's "mean".

    Returns:
        `[B, G]`.
    """
    total = jnp.where(span[:, None], log_probs, 0.0).sum(-1)
    return total if reduction == "sum" else total / jnp.maximum(span.sum(-1), 1)[:, None]


def own_answers(
    target: VLM,
    template: AnswerTemplate,
    picture: KVCache,
    batch: Batch,
    crops: ImageTokens,
    max_tokens: int,
) -> Int[Array, "B G T"]:
    """What the target itself answers: the likeliest next token again and again.

    Args:
        target: the frozen target.
        template: of its tokenizer.
        picture: what `read_picture` returned.
        batch: the prompts.
        crops: image tokens `[B, G, I, ...]` from `encode_crops`.
        max_tokens: T, where an answer is cut; decoding stops earlier once all have ended.

    Returns:
        Token ids; what follows an end token is end tokens.
    """
    ids, valid = _questions(template.crop, batch, crops)
    # The decoding reads the last token, which the first one of the answer follows.
    _, asked = target.read(ids[..., :-1], valid[..., :-1], crops, picture)
    return greedy_decode(
        target,
        picture,
        ids[..., -1],
        end_token=template.end,
        max_tokens=max_tokens,
        own=asked,
    )
