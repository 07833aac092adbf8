# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""One GRPO step as one jitted function: rollouts, crops, rewards and the update.

    step = GRPOStep(policy=..., grammar=..., optimizer=..., config=..., target=..., template=...)
    state, metrics = jax.jit(step, donate_argnums=0)(state, batch, key)

`GRPOStep`'s methods stand in the order in which they run. `black_box.py` calls the same methods
around a reward that comes from the host.

Shape letters: B prompts, G rollouts a prompt, K boxes of a reply, T reply tokens, A actions.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from cropvlm_jax import geometry
from cropvlm_jax.data.batching import Batch
from cropvlm_jax.grpo import objective, rollout, second_look
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.grpo.experience import Experience, Gradients, ReadPrompts
from cropvlm_jax.grpo.loss import loss_of
from cropvlm_jax.grpo.metrics import as_fp32, evaluation_sums, rollout_metrics
from cropvlm_jax.grpo.reading import AnswerTemplate
from cropvlm_jax.grpo.rewards import Rewards, TargetRewards
from cropvlm_jax.grpo.rollout import ReplyLogProbs, Rollouts
from cropvlm_jax.grpo.second_look import SecondLook, looks_of, of_prompts
from cropvlm_jax.microbatching import Sums, accumulate, split
from cropvlm_jax.models.decode import read_prompt
from cropvlm_jax.models.llama import KVCache
from cropvlm_jax.models.vlm import VLM, cut_planned
from cropvlm_jax.scoring.in_graph import Vocabulary
from cropvlm_jax.train_state import TrainState

Asked = Batch | SecondLook  # what the cropper reads: its tiles and the prompt that asks for a box


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)  # `jax.jit` tells steps apart
class GRPOStep:
    """The step and all that it is made of; call it with a train state, a batch and a key.

    Attributes:
        policy: graph of the cropper whose weights are `state.params` and, under adapters, those of
            the tuple `state.frozen`.
        grammar: of the cropper's tokenizer, for the replies of the first look.
        optimizer: of the cropper; applied `config.num_iterations` times a step.
        config: settings.
        base: graph of the cropper without adapters, whose weights are `state.frozen`: the KL
            reference. None where all weights are trained: then the reference is `policy` with the
            weights `state.reference`.
        target: graph of the frozen model whose weights are `state.target`; None where the reward
            comes from outside of the graph.
        template: of the target's tokenizer; None where there is no target.
        vocabulary: of the target's tokenizer, where `config.accuracy_weight` is not 0.
        tower: names of the cropper's parts that make image tokens.
        shared_tower: whether the cropper's tower before its training is the target's, and its one
            tile is the picture as the target sees it. Then target, reference and, where the tower
            is not trained, policy encode the picture once.
        same_picture: whether the step cuts such a tile, whatever the towers, and so once for both.
        longest_edge: of the pictures that the step cuts tiles of, in pixels; 0 where it cuts none.
        second_grammar: for the replies of the second look, a box or none; None where there is one
            look.
    """

    policy: nnx.GraphDef
    grammar: geometry.Grammar
    optimizer: optax.GradientTransformation
    config: GRPOConfig
    base: nnx.GraphDef | None = None
    target: nnx.GraphDef | None = None
    template: AnswerTemplate | None = None
    vocabulary: Vocabulary | None = None
    tower: tuple[str, ...] = ("vision", "connector")
    shared_tower: bool = False
    same_picture: bool = False
    longest_edge: int = 0
    second_grammar: geometry.Grammar | None = None

    def __call__(
        self, state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step: the new state and its metrics, fp32 scalars."""
        state, metrics, _ = self.run(state, batch, key)
        return state, metrics

    def run(
        self, state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[TrainState, dict[str, jax.Array], Experience]:
        """One step that also returns its experience: of N microbatches stacked, `[N, ...]`."""
        count = self.config.gradient_accumulation_steps
        batch = split(batch, count)
        keys = jax.random.split(key, count) if count > 1 else key
        learn = functools.partial(self.learn_from_prompts, state)
        gradients, experience = accumulate(learn, count, batch, keys)
        state, metrics = self.update(state, gradients, batch, experience)
        return state, metrics, experience

    def learn_from_prompts(
        self, state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Gradients, Experience]:
        """A microbatch, from its prompts to its first gradients."""
        batch = self.see(state, batch)
        prompts, rollouts = self.roll_out(state, batch, key)
        prompts, rewards = self.reward(state, batch, prompts, rollouts)
        return self.learn(state, batch, prompts, rollouts, rewards)

    def roll_out(
        self, state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[tuple[ReadPrompts, ...], Rollouts]:
        """The policy reads the prompts and samples replies: 1 and 2 below, of each look.

        Returns:
            The prompts of each look, and the replies.
        """
        keys = [key] if self.second_grammar is None else jax.random.split(key)
        prompts = self.read_prompts(state, batch)
        rollouts = self.sample(state, batch, prompts, keys[0])
        if self.second_grammar is None:
            return (prompts,), rollouts
        with jax.named_scope("prefix"):
            look = SecondLook.after(self.policy_model(state), batch, rollouts)
        closer = self.read_prompts(state, look)
        second = self.sample_second(state, look, closer, keys[1])
        return (prompts, closer), second_look.joined(rollouts, look, second)

    # 1. The policy reads each prompt once -----------------------------------------------------

    def see(self, state: TrainState, batch: Batch) -> Batch:
        """The batch with the cropper's tiles, cut from its canvases unless the host has done so."""
        with jax.named_scope("prefix"):
            tiles = cut_planned(self.policy_model(state), batch.tiles, batch, self.longest_edge)
        return batch._replace(tiles=tiles)

    def read_prompts(self, state: TrainState, batch: Asked) -> ReadPrompts:
        """The policy reads the prompts; the pullback carries the gradient to its weights later."""
        with jax.named_scope("prefix"):
            image_tokens = None
            if not set(self.tower) & set(state.params):
                image_tokens = self.policy_model(state).encode_images(batch.tiles)

            def keys_and_values(params: Any) -> tuple[Any, jax.Array]:
                model = self.policy_model(state._replace(params=params))
                prefix = self.read_prefix(model, batch, image_tokens)
                return (prefix.keys, prefix.values), prefix.valid  # booleans have no gradient

            (keys, values), pull_back, valid = jax.vjp(keys_and_values, state.params, has_aux=True)
            return ReadPrompts(KVCache(keys, values, valid), pull_back, image_tokens)

    def read_prefix(self, model: VLM, batch: Asked, image_tokens: jax.Array | None) -> KVCache:
        """The prompts without their last tokens, read by policy or reference."""
        if image_tokens is None:
            image_tokens = model.encode_images(batch.tiles)
        image_tokens = of_prompts(image_tokens, len(batch.crop_prompt))
        return read_prompt(model, image_tokens, batch.crop_prompt, batch.crop_prompt_valid)

    # 2. A group of boxes a prompt --------------------------------------------------------------

    def sample(
        self, state: TrainState, batch: Batch, prompts: ReadPrompts, key: PRNGKeyArray
    ) -> Rollouts:
        """The policy samples G boxes a prompt, on the prefix that they share."""
        with jax.named_scope("rollout"):
            rollouts = rollout.sample(
                self.policy_model(state),
                self.grammar,
                prompts.prefix,
                batch.crop_prompt[:, -1],
                key,
                group=self.config.num_generations,
                temperature=self.config.temperature,
                log_prob_temperature=self.log_prob_temperature,
            )
            return rollouts._replace(count=self.counted(rollouts.count))

    def sample_second(
        self, state: TrainState, look: SecondLook, prompts: ReadPrompts, key: PRNGKeyArray
    ) -> Rollouts:
        """The policy samples one reply to each crop."""
        assert self.second_grammar is not None
        with jax.named_scope("rollout"):
            return rollout.sample(
                self.policy_model(state),
                self.second_grammar,
                prompts.prefix,
                look.crop_prompt[:, -1],
                key,
                group=1,
                temperature=self.config.temperature,
                log_prob_temperature=self.log_prob_temperature,
            )

    # 3. The frozen target reads picture and crops ----------------------------------------------

    def reward(
        self,
        state: TrainState,
        batch: Batch,
        prompts: tuple[ReadPrompts, ...],
        rollouts: Rollouts,
    ) -> tuple[tuple[ReadPrompts, ...], Rewards]:
        """What the target says that the replies are worth.

        Returns:
            The prompts, with the image tokens where a shared tower has made them now for target
            and reference; and the rewards.
        """
        first, *closer = prompts
        with jax.named_scope("reward"):
            target = self.target_model(state)
            if self.shared_tower and first.image_tokens is None:
                first = first._replace(image_tokens=target.encode_images(batch.tiles))
            whole = first.image_tokens if self.shared_tower else None
            if self.same_picture and whole is None:
                whole = target.encode_images(batch.tiles)
            worth = self.target_rewards(self.config)
            return (first, *closer), worth(target, batch, rollouts.boxes, rollouts.count, whole)

    # 4. Advantages, the reference's log-probabilities, and the gradient ------------------------

    def learn(
        self,
        state: TrainState,
        batch: Batch,
        prompts: tuple[ReadPrompts, ...],
        rollouts: Rollouts,
        rewards: Rewards,
    ) -> tuple[Gradients, Experience]:
        """The first gradients from rollouts and their rewards."""
        with jax.named_scope("reward"):
            compared = rewards.total
            if self.config.multi_objective_aggregation == "normalize_then_sum":
                compared = objective.normalize_then_sum(rewards.parts, self.config.weights)
            advantages = objective.advantages(compared, self.config.scale_rewards)
        reference = None
        if self.config.beta:
            with jax.named_scope("reference"):
                model = self.reference_model(state)
                prefixes = [
                    self.read_prefix(model, look, read.image_tokens)
                    for look, read in zip(looks_of(batch, rollouts), prompts, strict=True)
                ]
                reference = self.log_probs(model, prefixes, batch, rollouts).actions
        experience = Experience(
            rollouts.boxes, rollouts.count, rewards, advantages, reference, turns=rollouts.turns
        )
        gradients, log_probs = self.gradients(state, batch, prompts, experience)
        gradients.sums.update(rollout_metrics(self.config, rollouts, rewards, log_probs))
        return gradients, experience._replace(old_log_probs=log_probs)

    def gradients(
        self,
        state: TrainState,
        batch: Batch,
        prompts: tuple[ReadPrompts, ...],
        experience: Experience,
    ) -> tuple[Gradients, Float[Array, "B G T"]]:
        """Gradients of the objective, and the log-probabilities of the choices, 0 elsewhere.

        A weight's gradient has two parts: its direct one, through the replies, and the one through
        the prefix of each look, which its `pull_back` carries on.
        """
        with jax.named_scope("update"):
            read = [(look.prefix.keys, look.prefix.values) for look in prompts]

            def loss(params: Any, read: list[tuple[jax.Array, ...]]) -> tuple[jax.Array, Any]:
                model = self.policy_model(state._replace(params=params))
                prefixes = [
                    KVCache(keys, values, look.prefix.valid)
                    for (keys, values), look in zip(read, prompts, strict=True)
                ]
                replies = self.log_probs(model, prefixes, batch, experience)
                return loss_of(
                    self.config, self.max_choices, replies, experience, state.entropy_coef
                )

            gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
            (weights, of_prefixes), (sums, log_probs) = gradient(state.params, read)
            for look, of_prefix in zip(prompts, of_prefixes, strict=True):
                (through_prefix,) = look.pull_back(of_prefix)
                weights = jax.tree.map(jnp.add, weights, through_prefix)
            return Gradients(weights, as_fp32(sums)), log_probs

    # 5. The optimizer ---------------------------------------------------------------------------

    def update(
        self,
        state: TrainState,
        gradients: Gradients,
        batch: Batch | None,
        experience: Experience | None,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Applies the gradients, and `num_iterations - 1` more that the same rollouts give.

        Args:
            state: before the step.
            gradients: summed over all microbatches.
            batch: the prompts, as `split` returned them; not read where `num_iterations` is 1.
            experience: what was learned from them, as `run` returns it; not read either where
                `num_iterations` is 1.
        """
        after, sums = self.apply(state, gradients)

        def iterate(carry: Any, _: None) -> tuple[Any, None]:
            params, opt_state, sums = carry
            now = state._replace(params=params, opt_state=opt_state)
            count = self.config.gradient_accumulation_steps
            learn = functools.partial(self.learn_again, now)
            gradients, _ = accumulate(learn, count, batch, experience)
            now, more = self.apply(now, gradients)
            added = {name: jax.tree.map(jnp.add, sums[name], more[name]) for name in more}
            return (now.params, now.opt_state, sums | added), None

        if self.config.num_iterations > 1:
            carry = after.params, after.opt_state, sums
            length = self.config.num_iterations - 1
            (params, opt_state, sums), _ = jax.lax.scan(iterate, carry, length=length)
            after = after._replace(params=params, opt_state=opt_state)
        metrics = {name: total / jnp.maximum(count, 1) for name, (total, count) in sums.items()}
        if state.entropy_coef is not None:
            coef, entropy = state.entropy_coef, metrics["entropy"]
            target = self.config.entropy_target
            coef = objective.adapt_entropy_coef(coef, entropy, target)
            after = after._replace(entropy_coef=coef)
        return after._replace(step=state.step + 1), metrics

    def learn_again(
        self, state: TrainState, batch: Batch, experience: Experience
    ) -> tuple[Gradients, None]:
        """A later gradient from the same rollouts, with the weights as they are by now."""
        with jax.named_scope("update"):
            looks = looks_of(self.see(state, batch), experience)
            prompts = tuple(self.read_prompts(state, look) for look in looks)
        return self.gradients(state, batch, prompts, experience)[0], None

    def apply(self, state: TrainState, gradients: Gradients) -> tuple[TrainState, Sums]:
        """One update of the weights; the sums get the gradient's norm."""
        weights, sums = gradients
        divisor = jnp.maximum(sums["loss"][1], 1)
        weights = jax.tree.map(lambda gradient: gradient / divisor, weights)
        norm = optax.tree.norm(weights), jnp.float32(1)
        return state.apply_gradients(weights, self.optimizer), sums | {"grad_norm": norm}

    # Evaluation -----------------------------------------------------------------------------------

    def propose(self, state: TrainState, batch: Batch) -> Rollouts:
        """The policy's likeliest reply to each prompt, of each look, G = 1."""
        model, batch = self.policy_model(state), self.see(state, batch)

        def reply(look: Asked, grammar: geometry.Grammar) -> Rollouts:
            prompt, valid = look.crop_prompt, look.crop_prompt_valid
            tokens = of_prompts(model.encode_images(look.tiles), len(prompt))
            return rollout.likeliest(model, grammar, tokens, prompt, valid)

        first = reply(batch, self.grammar)
        first = first._replace(count=self.counted(first.count))
        if self.second_grammar is None:
            return first
        look = SecondLook.after(model, batch, first)
        return second_look.joined(first, look, reply(look, self.second_grammar))

    def evaluate(self, state: TrainState, batch: Batch) -> Sums:
        """Sums and counts of reward, its parts and area of the policy's likeliest replies."""
        batch = self.see(state, batch)
        replies, target = self.propose(state, batch), self.target_model(state)
        config = dataclasses.replace(self.config, reward_chunk=None)
        whole = target.encode_images(batch.tiles) if self.same_picture else None
        worth = self.target_rewards(config)
        rewards = worth(target, batch, replies.boxes, replies.count, whole)
        return evaluation_sums(config, replies, rewards)

    # Models and settings --------------------------------------------------------------------------

    @property
    def max_choices(self) -> int:
        """Most choices of a rollout, over all looks."""
        grammars = filter(None, (self.grammar, self.second_grammar))
        return sum(grammar.max_choices for grammar in grammars)

    @property
    def log_prob_temperature(self) -> float:
        """What the objective divides logits by; the official code divides them by nothing."""
        return self.config.temperature if self.config.temperature_in_log_probs else 1.0

    def log_probs(
        self,
        model: VLM,
        prefixes: Sequence[KVCache],
        batch: Batch,
        replies: Rollouts | Experience,
    ) -> ReplyLogProbs:
        """Teacher-forced log-probabilities of the replies, on the prefix of each look."""
        last, turns, count = batch.crop_prompt[:, -1], replies.turns, self.counted(replies.count)
        of_look = functools.partial(
            rollout.reply_log_probs, model, temperature=self.log_prob_temperature
        )
        if turns is None:
            return of_look(self.grammar, prefixes[0], last, replies.boxes, count)
        first = of_look(self.grammar, prefixes[0], last, turns.first, count)
        assert self.second_grammar is not None
        second = of_look(
            self.second_grammar,
            prefixes[1],
            jnp.repeat(batch.second_prompt[:, -1], count.shape[1]),
            turns.second.reshape(-1, 1, 1, 4),
            turns.second_count.reshape(-1, 1),
        )
        return second_look.joined_log_probs(first, second, count > 0)

    def counted(self, count: Int[Array, "B G"]) -> Int[Array, "B G"]:
        """Boxes of replies, as constants where all have one: their masks then cost nothing."""
        return count if self.config.varies else jnp.ones_like(count)

    def policy_model(self, state: TrainState) -> VLM:
        """The cropper as it is trained."""
        return nnx.merge(self.policy, state.params, *state.frozen)

    def reference_model(self, state: TrainState) -> VLM:
        """The cropper as it was before its training."""
        if self.base is None:
            return nnx.merge(self.policy, state.reference)
        return nnx.merge(self.base, *state.frozen)

    def target_model(self, state: TrainState) -> VLM:
        """The frozen target; where it has no tower of its own, it has the reference's."""
        assert self.target is not None
        if set(self.tower) & set(state.target):
            return nnx.merge(self.target, state.target)
        reference = state.frozen[0] if state.frozen else state.reference
        tower = nnx.State({part: reference[part] for part in self.tower})
        return nnx.merge(self.target, state.target, tower)

    def target_rewards(self, config: GRPOConfig) -> TargetRewards:
        """What shows boxes to the target, with the settings of `config`."""
        assert self.template is not None
        return TargetRewards(template=self.template, config=config, vocabulary=self.vocabulary)
