# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sampling a group of replies on a shared prompt, and the log-probabilities of given ones.

Shape letters: B prompts, G rollouts a prompt, K boxes of a reply, P prompt tokens, T reply tokens,
A actions, I tokens of a picture, D width.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cropvlm_jax.geometry import DONE, OPENING, BoxTokens, Grammar, GrammarState
from cropvlm_jax.models.decode import read_prompt
from cropvlm_jax.models.llama import NEGATIVE, KVCache
from cropvlm_jax.models.vlm import VLM


class Turns(NamedTuple):
    """Both replies of a cropper that looks twice; see `second_look`.

    Attributes:
        tiles: what it saw in the second turn, leaves `[B, G, ...]`.
        first: int32 `[B, G, 1, 4]`, the boxes of the first turn; of replies without a box the whole
            picture's.
        second: int32 `[B, G, 1, 4]`, the boxes of the second turn, in percent of the first ones.
        second_count: int32 `[B, G]`, 1 where the second turn names a box, 0 where it stops or there
            is no crop to look at; there `second` is all of the first one.
    """

    tiles: Any
    first: jax.Array
    second: jax.Array
    second_count: jax.Array


class Rollouts(NamedTuple):
    """Sampled replies.

    Attributes:
        boxes: `[B, G, K, 4]`, what the target is shown, in increasing order; those beyond `count`
            are the whole picture's. Whole percent, int32; of two looks float32, see
            `geometry.inside`.
        count: int32 `[B, G]`, how many boxes a reply names, 0 to K.
        log_probs: fp32 `[B, G]`, the log-probability of each reply as the decoding saw it, of two
            looks that of both.
        turns: the replies of two looks; None of one.
    """

    boxes: jax.Array
    count: jax.Array  # type: ignore[assignment]  # not the method of tuples
    log_probs: jax.Array
    turns: Turns | None = None


class ReplyLogProbs(NamedTuple):
    """Teacher-forced log-probabilities of given replies.

    Attributes:
        reply: the replies' tokens, arrays `[B, G, T, ...]`.
        actions: fp32 `[B, G, T, A]`, of every action; meaningful where `reply.allowed` has any.
        chosen: fp32 `[B, G, T]`, of the action that the reply takes.
        well_formed: fp32 `[B, G, T]`, that a token of the whole vocabulary is one which the grammar
            allows there.
    """

    reply: BoxTokens
    actions: jax.Array
    chosen: jax.Array
    well_formed: jax.Array


class SamplerCarry(NamedTuple):
    """What one decode pass hands to the next. C is `grammar.chunk`, the tokens of a pass.

    Attributes:
        state: where each reply stands, arrays `[B, G, ...]`.
        tokens: int32 `[B, G, C]`, what the next pass reads: the last choice and what it forces.
        valid: bool `[B, G, C]`, which of these tokens are real.
        cache: keys and values of all that the replies have read so far.
        log_probs: fp32 `[B, G]`, of the choices made so far.
    """

    state: GrammarState
    tokens: jax.Array
    valid: jax.Array
    cache: KVCache
    log_probs: jax.Array


def masked_log_softmax(
    logits: Float[Array, "*shape A"], allowed: Bool[Array, "*shape A"], temperature: float
) -> Float[Array, "*shape A"]:
    """Log-probabilities of the policy: logits over temperature, among the allowed actions only."""
    return jax.nn.log_softmax(jnp.where(allowed, logits / temperature, NEGATIVE))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """Writes a reply a rollout, under the grammar, in `grammar.iterations` passes.

    A pass reads what was chosen last together with the tokens that this choice forces, and chooses
    the next action. With SmolVLM's tokenizer the reply "[12, 5, 40, 100]." is written so:

        pass  reads                 chooses  because
        1     last prompt token, [  1        x1 begins
        2     1                     2        x1 = 12; a third digit is impossible: ", " is forced
        3     2 ","  " "            5        y1 begins
        4     5                     end      y1 = 5
        5     ","  " "              4        x2 begins
        6     4                     0        x2 = 40; 400 is impossible: ", " is forced
        7     0 ","  " "            1        y2 begins
        8     1, and a 0 on trial   0, 0     y2 = 10 after the 1, then 100 after the 0 on trial

    Pass 8 makes two choices. Where a 0 would leave the choice between 10 and 100, that 0 is read on
    trial beside what is written; its cache slot becomes invalid where another digit is chosen. So
    no reply needs a ninth pass, and no device waits to hear from the others. What follows the last
    choice ("].", the end token) is forced, so it is never read.

    A box which another may follow takes one pass more: what ends it is chosen, after its last
    digit. Where a reply may name no box, pass 1 makes two choices as well: between " [" and "Not
    needed." after the last prompt token, and that of x1's first digit after "[".

    Attributes:
        model: the cropper.
        grammar: of its tokenizer.
        prefix: the prompts without their last tokens, G = 1.
        noise: fp32 `[grammar.choices, B, G, A]`, Gumbel noise of each choice, by its number; zeros
            choose the likeliest actions. Results do not depend on how the batch is sharded.
        temperature: of the sampling.
        log_prob_temperature: of the log-probabilities that are returned.
    """

    model: VLM
    grammar: Grammar
    prefix: KVCache
    noise: jax.Array
    temperature: float
    log_prob_temperature: float

    def __call__(self, last_token: Int[Array, " B"]) -> Rollouts:
        """Samples G replies to each prompt, whose last token is `last_token`."""
        carry = self.start(last_token)
        carry = jax.lax.fori_loop(0, self.grammar.iterations, self.decode_pass, carry)
        return Rollouts(carry.state.boxes, carry.state.count, carry.log_probs)

    def start(self, last_token: Int[Array, " B"]) -> SamplerCarry:
        """The carry before the first pass, which reads the last prompt token and the opening."""
        grammar = self.grammar
        _, batch, group, _ = self.noise.shape
        slots = grammar.iterations * grammar.chunk
        opening = jnp.asarray((0, *grammar.opening), jnp.int32)
        opening = jnp.pad(opening, (0, grammar.chunk - opening.size))
        tokens = jnp.broadcast_to(opening, (batch, group, grammar.chunk))
        tokens = tokens.at[:, :, 0].set(last_token[:, None])
        return SamplerCarry(
            state=grammar.start(jnp.zeros((batch, group, grammar.max_boxes, 4), jnp.int32)),
            tokens=tokens,
            valid=jnp.broadcast_to(jnp.arange(grammar.chunk) <= len(grammar.opening), tokens.shape),
            cache=KVCache.empty(
                self.model.config.text, (batch, group, slots), self.prefix.keys.dtype
            ),
            log_probs=jnp.zeros((batch, group)),
        )

    def decode_pass(self, i: jax.Array, carry: SamplerCarry) -> SamplerCarry:
        """Pass `i`: reads `carry.tokens`, and makes a choice, or two: see the class."""
        grammar, slot = self.grammar, i * self.grammar.chunk
        newest = jnp.where(carry.valid, jnp.arange(grammar.chunk), 0).max(-1)
        # What precedes a 0 on trial is a digit alone, so the slot after it is free.
        trial = grammar.may_be_ten(carry.state)
        zero = jnp.where(trial, grammar.actions[0], carry.tokens[:, :, 1])
        hidden, cache = self.model.read(
            carry.tokens.at[:, :, 1].set(zero),
            carry.valid.at[:, :, 1].set(trial | carry.valid[:, :, 1]),
            None,
            self.prefix,
            carry.cache,
            slot,
        )
        last = jnp.take_along_axis(hidden, newest[..., None, None], 2)[:, :, 0]
        on_trial = hidden[:, :, 1]
        if grammar.abstain:
            begins = (carry.state.coordinate == OPENING)[..., None]
            on_trial = jnp.where(begins, last, on_trial)
            last = jnp.where(begins, hidden[:, :, grammar.shared], last)
        action, log_prob = self.choose(carry.state, last)
        after = grammar.advance(carry.state, action)
        second, second_log_prob = self.choose(after[0], on_trial)
        after_second = grammar.advance(after[0], second)

        is_ten = trial & (action == 0)
        two = is_ten | (action == grammar.open) if grammar.abstain else is_ten
        state, tokens, valid = jax.tree.map(
            lambda both, one: jnp.where(jnp.expand_dims(two, range(2, one.ndim)), both, one),
            after_second,
            after,
        )
        tried = trial[..., None] & (jnp.arange(cache.valid.shape[-1]) == slot + 1)
        return SamplerCarry(
            state=state,
            tokens=tokens,
            valid=valid,
            cache=cache._replace(valid=cache.valid & (~tried | is_ten[..., None])),
            log_probs=carry.log_probs + log_prob + jnp.where(two, second_log_prob, 0.0),
        )

    def choose(
        self, state: GrammarState, hidden: Float[Array, "B G D"]
    ) -> tuple[Int[Array, "B G"], Float[Array, "B G"]]:
        """An action for each reply, and its log-probability: 0 where the reply is complete."""
        grammar = self.grammar
        allowed = grammar.allowed(state)
        logits = self.model.text.logits(hidden, jnp.asarray(grammar.actions))
        number = jnp.minimum(grammar.choice(state), grammar.choices - 1)[None, ..., None]
        noise = jnp.take_along_axis(self.noise, number, 0)[0]
        action = jnp.argmax(masked_log_softmax(logits, allowed, self.temperature) + noise, -1)
        log_probs = masked_log_softmax(logits, allowed, self.log_prob_temperature)
        chosen = jnp.take_along_axis(log_probs, action[..., None], -1)[..., 0]
        return action, jnp.where(state.coordinate < DONE, chosen, 0.0)


def sample(
    model: VLM,
    grammar: Grammar,
    prefix: KVCache,
    last_token: Int[Array, " B"],
    key: PRNGKeyArray,
    *,
    group: int,
    temperature: float,
    log_prob_temperature: float,
) -> Rollouts:
    """Samples `group` replies to each prompt, by a `Sampler` with random noise.

    Args:
        model: the cropper.
        grammar: of its tokenizer.
        prefix: what `models.decode.read_prompt` returned.
        last_token: the last prompt token.
        key: PRNG key.
        group: G.
        temperature: of the sampling, above 0.
        log_prob_temperature: of the log-probabilities that are returned.
    """
    shape = (grammar.choices, last_token.shape[0], group, len(grammar.actions))
    sampler = Sampler(
        model=model,
        grammar=grammar,
        prefix=prefix,
        noise=jax.random.gumbel(key, shape),
        temperature=temperature,
        log_prob_temperature=log_prob_temperature,
    )
    return sampler(last_token)


def likeliest(
    model: VLM,
    grammar: Grammar,
    image_tokens: Float[Array, "B N I D"],
    prompt: Int[Array, "B P"],
    prompt_valid: Bool[Array, "B P"],
) -> Rollouts:
    """The choice with the highest probability at each step, for each prompt.

    Args:
        model: the cropper.
        grammar: of its tokenizer.
        image_tokens: what its `encode_images` made of the tiles.
        prompt: token ids, padded on the left.
        prompt_valid: which of them are real.

    Returns:
        One rollout a prompt, G = 1, with the log-probability of its reply among all that the
        grammar allows.
    """
    sampler = Sampler(
        model=model,
        grammar=grammar,
        prefix=read_prompt(model, image_tokens, prompt, prompt_valid),
        noise=jnp.zeros((grammar.choices, prompt.shape[0], 1, len(grammar.actions))),
        temperature=1.0,
        log_prob_temperature=1.0,
    )
    return sampler(prompt[:, -1])


def reply_log_probs(
    model: VLM,
    grammar: Grammar,
    prefix: KVCache,
    last_token: Int[Array, " B"],
    boxes: Int[Array, "B G K 4"],
    count: Int[Array, "B G"],
    temperature: float,
) -> ReplyLogProbs:
    """Log-probabilities of the replies that name boxes, read at once on the shared prefix.

    Args:
        model: policy or reference.
        grammar: of its tokenizer.
        prefix: what `models.decode.read_prompt` returned.
        last_token: the last prompt token.
        boxes: what the replies name, in increasing order.
        count: how many of these K boxes they name.
        temperature: that the logits are divided by.
    """
    reply = grammar.encode(boxes, count)
    first = jnp.broadcast_to(last_token[:, None, None], (*boxes.shape[:2], 1))
    tokens = jnp.concatenate([first, reply.tokens[..., :-1]], -1)
    valid = jnp.concatenate([jnp.ones_like(first, bool), reply.valid[..., :-1]], -1)
    hidden, _ = model.read(tokens, valid, None, prefix)
    logits = model.text.logits(hidden, jnp.asarray(grammar.actions))
    actions = masked_log_softmax(logits, reply.allowed, temperature)
    # Where nobody uses `well_formed`, these vocabulary-sized logits are never computed.
    vocabulary = model.text.logits(hidden)
    forced = jnp.take_along_axis(vocabulary, reply.tokens[..., None], -1)[..., 0]
    any_allowed = jax.nn.logsumexp(jnp.where(reply.allowed, logits, NEGATIVE), -1)
    well_formed = jnp.where(reply.allowed.any(-1), any_allowed, forced)
    return ReplyLogProbs(
        reply=reply,
        actions=actions,
        chosen=jnp.take_along_axis(actions, reply.action[..., None], -1)[..., 0],
        well_formed=well_formed - jax.nn.logsumexp(vocabulary, -1),
    )
