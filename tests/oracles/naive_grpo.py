# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A GRPO step written naively, one rollout and one token at a time, and what it is tried on.

The naive version shares the models' whole-sequence forward, the prompts and the host's image
processing with the package, and nothing else: no cache, no shared prefix, no left padding, no
grammar tables, no device crop.
"""

import dataclasses
import fractions
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny
from flax import nnx
from PIL import Image

from cropvlm_jax import geometry, scoring
from cropvlm_jax.data import batching
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.models import lora
from cropvlm_jax.models.smolvlm.model import SmolVLM
from cropvlm_jax.pixels import host

GROUP, TEMPERATURE, LEARNING_RATE = 4, 0.8, 1.0
ENTROPY_COEF = 0.3  # before the step, where the policy's entropy is rewarded
KEY = jax.random.key(7)
EXAMPLES = tiny.make_examples(4)
EXAMPLES[2]["answers"] = ["At: 10:42"]
GOLD = (("th th",), ("iefWhich", "Which"), ("this this",), ("ief help", "11 this"))  # or nearly
GRAPHDEF, POLICY = tiny.make_model(0)
REFERENCE = jax.tree.map(lambda a, b: 0.8 * a + 0.2 * b, POLICY, tiny.make_model(1)[1])
UNDECIDED = tiny.make_model(11)[1]  # about whether and how often to look
TARGET = tiny.make_model(2)[1]
# Of the same shape, but told apart.
TARGET_CONFIG = dataclasses.replace(tiny.CONFIG, model_type="smolvlm")
TARGET_GRAPHDEF = nnx.graphdef(nnx.eval_shape(lambda: SmolVLM(TARGET_CONFIG, rngs=nnx.Rngs(0))))
FAST_COMPILE = {"xla_backend_optimization_level": 0}


@dataclasses.dataclass(frozen=True)
class Case:
    """What is trained on what.

    Attributes:
        config: settings of the step.
        adapters: train low-rank adapters of the cropper, not all of it.
        grid: tiles of the cropper's pictures.
        spoilt: the rollouts `(b, g)` whose likelihood turns NaN.
        prices: of 1,000 image tokens of crops, of each example; empty where they are the config's.
        gold: the answers that score, of each example.
    """

    config: GRPOConfig
    adapters: bool = False
    grid: tuple[int, int] = (0, 0)
    spoilt: tuple[tuple[int, int], ...] = ()
    prices: tuple[float, ...] = ()
    gold: tuple[tuple[str, ...], ...] = GOLD

    @property
    def longest_edge(self) -> int:
        return tiny.SIDE * max(1, *self.grid)

    @functools.cached_property
    def batch(self) -> batching.Batch:
        in_step, looks = self.grid != (0, 0), self.config.looks
        batch = tiny.make_batch(EXAMPLES, self.longest_edge, in_step, looks)
        if self.prices:
            batch = batch._replace(price=np.array(self.prices, np.float32))
        if not self.config.accuracy_weight:
            return batch
        gold = [scoring.encode_gold(a, self.config.accuracy, 3, 40) for a in self.gold]
        return batch._replace(gold=jax.tree.map(lambda *x: np.stack(x), *gold))

    @functools.cached_property
    def model(self) -> tuple[nnx.GraphDef, nnx.State, tuple[nnx.State, ...]]:
        """The policy: its graph, what is trained and what is not."""
        if not self.adapters:
            undecided = self.config.varies or self.config.looks > 1
            return GRAPHDEF, UNDECIDED if undecided else POLICY, ()
        settings = lora.LoRAConfig(rank=2, alpha=4, dropout=0.0)
        adapted = lora.add(nnx.merge(GRAPHDEF, POLICY), settings, nnx.Rngs(0))
        graphdef, trained, frozen = nnx.split(adapted, lora.LoRAParam, ...)
        rng = np.random.default_rng(0)  # a fresh adapter's second half is zero
        trained = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.1, x.shape)), trained)
        return graphdef, jax.tree.map(jnp.float32, trained), (frozen,)

    @property
    def tokenizer(self) -> Any:
        """What replies are written with."""
        return tiny.SEVERAL if self.config.max_boxes > 1 else tiny.TOKENIZER

    @functools.cached_property
    def grammar(self) -> geometry.Grammar:
        config = self.config
        return geometry.Grammar.from_tokenizer(self.tokenizer, config.max_boxes, config.abstain)

    @functools.cached_property
    def second(self) -> "Case":
        """The case of the second look's replies: a box or none."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, abstain=True))

    @property
    def max_choices(self) -> int:
        """Most choices of a rollout, of all looks."""
        one = self.grammar.max_choices
        return one if self.config.looks == 1 else one + self.second.grammar.max_choices

    @property
    def second_grammar(self) -> geometry.Grammar | None:
        return self.second.grammar if self.config.looks > 1 else None

    @property
    def actions(self) -> list[str]:
        """What replies are written of."""
        more = ["], ["] * (self.config.max_boxes > 1)
        return [*"0123456789", ", ", "].", *more, *["[", "Not needed."] * self.config.abstain]

    @property
    def choices(self) -> int:
        """Draws of noise: three a coordinate, one for the end of each box but the last."""
        return 13 * self.config.max_boxes - 1 + self.config.abstain

    @property
    def reference(self) -> nnx.State:
        return POLICY if self.adapters else REFERENCE

    @property
    def spoil(self) -> np.ndarray:
        """bool `[B, G]`."""
        spoil = np.zeros((len(EXAMPLES), GROUP), bool)
        for rollout_ in self.spoilt:
            spoil[rollout_] = True
        return spoil

    def plain(self, trained: nnx.State) -> nnx.State:
        """All weights of the plain model, adapters merged."""
        graphdef, _, frozen = self.model
        if not self.adapters:
            return trained
        return nnx.split(lora.merge(nnx.merge(graphdef, trained, *frozen)))[1]


CONFIG = GRPOConfig(num_generations=GROUP, temperature=TEMPERATURE, beta=0.1)
BATCH = Case(CONFIG).batch


def jitted(function: Any, **options: Any) -> Any:
    return jax.jit(function, compiler_options=FAST_COMPILE, **options)


@dataclasses.dataclass
class Result:
    """What one step did.

    `boxes` are `[B, G, K, 4]`, of which each reply has `count`; `pictures`, uint8 `[B, 1 + G * K,
    S, S, 3]`, are what the target saw: the whole and the crops; `tiles`, uint8 `[B, G, S, S, 3]`,
    what the cropper saw in its second look; `gradient` is that of the last update.
    """

    boxes: np.ndarray
    count: np.ndarray
    pictures: np.ndarray
    likelihood: np.ndarray
    metrics: dict[str, float]
    gradient: Any
    params: Any
    tiles: np.ndarray | None = None


# The naive version --------------------------------------------------------------------------------

LENGTH = 96  # sequences have multiples of it; what follows their end no causal model ever sees


def logits_of(params: nnx.State, ids: jax.Array, pictures: jax.Array) -> jax.Array:
    """Logits fp32 `[T, V]` of one whole sequence, without a mask."""
    model = nnx.merge(GRAPHDEF, params)
    return model(ids[None], jnp.ones((1, ids.size), bool), pictures[None])[0]


naive_logits = jitted(logits_of)


def extended(ids: Any) -> np.ndarray:
    return np.pad(np.array(ids, np.int32), (0, -len(ids) % LENGTH))


Box = tuple[Any, ...]  # whole numbers, or fractions of two looks


@dataclasses.dataclass(frozen=True)
class Writing:
    """A reply being written: its complete boxes, coordinates of the next one, and their digits.

    `begun` is False where it is open whether there is a box at all.
    """

    boxes: tuple[Box, ...] = ()
    box: Box = ()
    digits: str = ""
    begun: bool = True
    done: bool = False

    @property
    def values(self) -> list[int]:
        """What the coordinate may be: some box of these first coordinates comes after the last."""
        box, largest = self.box, (99, 99, 100, 100)
        values = range(100) if len(box) < 2 else range(box[len(box) - 2] + 1, 101)
        last = self.boxes[-1] if self.boxes else ()
        return [v for v in values if (*box, v, *largest[len(box) + 1 :]) > last]

    def options(self, case: "Case") -> list[str]:
        """What may be written next."""
        if self.done:
            return []
        if not self.begun:
            return ["[", "Not needed."]
        possible = [str(v) for v in self.values if str(v).startswith(self.digits)]
        longer = [text for text in possible if text != self.digits]
        found = sorted({text[len(self.digits)] for text in longer})
        if self.digits in possible:
            found += [", "] if len(self.box) < 3 else ["]."]
            if len(self.box) == 3 and len(self.boxes) + 1 < case.config.max_boxes:
                found += ["], ["] if self.after("], [").values else []
        return found

    def after(self, option: str) -> "Writing":
        """The reply with one of its options."""
        if not self.begun:
            return dataclasses.replace(self, begun=True, done=option != "[")
        if option.isdigit():
            return dataclasses.replace(self, digits=self.digits + option)
        box = (*self.box, int(self.digits))
        if option == ", ":
            return dataclasses.replace(self, box=box, digits="")
        boxes = (*self.boxes, box)
        return dataclasses.replace(self, boxes=boxes, box=(), digits="", done=option == "].")

    @property
    def text(self) -> str:
        """One of the texts that it may become."""
        if self.done and not self.boxes:
            return "Not needed."
        texts = [", ".join(map(str, box)) for box in self.boxes]
        now = self
        while not now.done and len(now.boxes) == len(self.boxes):
            value = next(v for v in now.values if str(v).startswith(now.digits))
            now = dataclasses.replace(now, digits=str(value))
            now = now.after(", " if len(now.box) < 3 else "].")
        texts += [", ".join(map(str, box)) for box in now.boxes[len(self.boxes) :]]
        return "[" + "], [".join(texts) + "]."

    @property
    def written(self) -> int:
        """How many characters of `text` are written."""
        before = sum(len("[" + ", ".join(map(str, box)) + "], ") for box in self.boxes)
        return before + len("[" + "".join(f"{value}, " for value in self.box) + self.digits)

    def number(self, case: "Case") -> int:
        """Which of the draws of noise a choice takes."""
        if not self.begun:
            return case.choices - 1
        box = 13 if case.config.max_boxes > 1 else 12
        return box * len(self.boxes) + 3 * len(self.box) + len(self.digits)


@dataclasses.dataclass
class NaiveRollout:
    """One sampled reply.

    `choices` maps the index of each chosen token of `ids` to the tokens it was chosen from;
    `prompt` of the ids came before, and `tiles` is what the cropper saw.
    """

    boxes: tuple[Box, ...]
    ids: list[int]
    choices: dict[int, list[int]]
    prompt: int
    tiles: np.ndarray


def reply_ids(case: "Case", text: str) -> tuple[list[int], list[int]]:
    """Token ids of a reply, and the character of its text at which each begins, from -1 on."""
    encoding = case.tokenizer.encode(f" {text}<end_of_utterance>", add_special_tokens=False)
    return encoding.ids, [start - 1 for start, _ in encoding.offsets]


def naive_rollout(case: "Case", prompt: Any, tiles: np.ndarray, noise: Any) -> NaiveRollout:
    """Writes a reply token by token; `noise(c)` is the Gumbel noise `[A]` of choice c."""
    policy = case.plain(case.model[1])
    prompt, choices = list(prompt), {}
    now = Writing(begun=not case.config.abstain)
    while options := now.options(case):
        if len(options) == 1:
            now = now.after(options[0])  # forced
            continue
        texts = {option: reply_ids(case, now.after(option).text) for option in options}
        if now.begun:
            index = next(iter(texts.values()))[1].index(now.written)
        else:
            (one, _), (other, _) = texts.values()
            index = next(
                i for i, pair in enumerate(zip(one, other, strict=False)) if len({*pair}) > 1
            )
        tokens = [ids[index] for ids, _ in texts.values()]
        before = prompt + next(iter(texts.values()))[0][:index]
        logits = naive_logits(policy, extended(before), tiles)[len(before) - 1]
        scores = np.asarray(logits, np.float64)[tokens] / TEMPERATURE
        scores += np.asarray(noise(now.number(case)))[[case.actions.index(o) for o in options]]
        choices[len(before)] = tokens
        now = now.after(options[int(np.argmax(scores))])
    ids = prompt + reply_ids(case, now.text)[0]
    return NaiveRollout(now.boxes, ids, choices, len(prompt), tiles)


@functools.cache
def naive_rollouts(
    accumulate: int,
    adapters: bool = False,
    grid: tuple[int, int] = (0, 0),
    max_boxes: int = 1,
    abstain: bool = False,
    looks: int = 1,
) -> list[list[NaiveRollout]]:
    """All replies of the first look; microbatch j of n takes examples j, j + n, ... and the j-th of
    n keys."""
    batch = len(EXAMPLES) // accumulate
    keys = keys_of(accumulate, looks)[0]
    config = dataclasses.replace(CONFIG, max_boxes=max_boxes, abstain=abstain, looks=looks)
    case = Case(config, adapters, grid)

    @functools.cache
    def gumbel(microbatch: int) -> np.ndarray:
        shape = (case.choices, batch, GROUP, len(case.actions))
        return np.asarray(jax.random.gumbel(keys[microbatch], shape))

    rollouts = []
    for b, example in enumerate(EXAMPLES):
        prompt, tiles = naive_prompt(case, example)

        def noise(choice: int, b: int = b, g: int = 0) -> np.ndarray:
            return gumbel(b % accumulate)[choice, b // accumulate, g]

        rollouts.append(
            [
                naive_rollout(case, prompt, tiles, functools.partial(noise, g=g))
                for g in range(GROUP)
            ]
        )
    return rollouts


def keys_of(accumulate: int, looks: int) -> list[list[Any]]:
    """A key of each microbatch, for each look."""
    keys = list(jax.random.split(KEY, accumulate)) if accumulate > 1 else [KEY]
    return (
        [keys] if looks == 1 else [list(x) for x in zip(*map(jax.random.split, keys), strict=True)]
    )


def naive_seconds(
    case: Case, first: list[list[NaiveRollout]], tiles: np.ndarray
) -> list[list[NaiveRollout | None]]:
    """The reply of the second look after each first one that names a box; it sees `tiles[b, g]`."""
    accumulate, second = case.config.gradient_accumulation_steps, case.second
    shape = second.choices, len(EXAMPLES) // accumulate * GROUP, 1, len(second.actions)
    noises = [np.asarray(jax.random.gumbel(k, shape)) for k in keys_of(accumulate, 2)[1]]
    replies: list[list[NaiveRollout | None]] = [[None] * GROUP for _ in first]
    for b, g in np.ndindex(len(first), GROUP):
        if not first[b][g].boxes:
            continue
        prompt = tiny.CONVERSATIONS.crop(EXAMPLES[b]["question"]).ids.tolist()

        def noise(choice: int, b: int = b, g: int = g) -> np.ndarray:
            return noises[b % accumulate][choice, b // accumulate * GROUP + g, 0]

        replies[b][g] = naive_rollout(second, prompt, tiles[b, g][None], noise)
    return replies


def naive_shown(turns: list[NaiveRollout]) -> tuple[Box, ...]:
    """What the target is shown: what the second look says is percent of what the first one does."""
    first, *second = turns
    if not second or not second[0].boxes:
        return first.boxes
    (outer,), (inner,) = first.boxes, second[0].boxes
    edges = zip(inner, outer[:2] * 2, (outer[2] - outer[0], outer[3] - outer[1]) * 2, strict=True)
    return (tuple(low + fractions.Fraction(edge * extent, 100) for edge, low, extent in edges),)


def naive_prompt(case: Case, example: dict[str, Any]) -> tuple[list[int], np.ndarray]:
    """What the cropper reads: token ids and tiles."""
    tiles, grid = host.tile(example["image"], tiny.SIDE, case.longest_edge)
    assert grid == case.grid
    return tiny.CONVERSATIONS.crop(example["question"], grid).ids.tolist(), tiles


def naive_crop(image: np.ndarray, box: tuple[int, ...]) -> np.ndarray:
    """What is inside of a box, by PIL: uint8 RGB."""
    height, width = image.shape[:2]
    left, top, right, bottom = (
        round(percent * side / 100) for percent, side in zip(box, (width, height) * 2, strict=True)
    )
    left, top = min(left, width - 1), min(top, height - 1)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    return np.asarray(Image.fromarray(image).crop((left, top, right, bottom)))


def naive_pictures(example: dict[str, Any], *boxes: tuple[int, ...]) -> np.ndarray:
    """The whole picture and its crops as the target sees them: uint8 `[1 + n, S, S, 3]`."""
    image = example["image"]
    pictures = [image, *(naive_crop(image, box) for box in boxes)]
    return np.concatenate([host.tile(picture, tiny.SIDE, tiny.SIDE)[0] for picture in pictures])


def naive_likelihood(
    example: dict[str, Any], pictures: np.ndarray, config: GRPOConfig = CONFIG
) -> float:
    """Asks with all the pictures, and reads the answer off the whole conversation."""
    prompt = tiny.CONVERSATIONS.answer(example["question"], len(pictures), example["answers"][0])
    logits = naive_logits(TARGET, extended(prompt.ids), pictures)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    start, stop = prompt.completion.start, prompt.completion.stop
    if config.official_span:
        colons = np.flatnonzero(prompt.ids[:stop] == tiny.TOKENIZER.token_to_id(":"))
        start = int(colons[-1]) + 1
    answer = [log_probs[t - 1, prompt.ids[t]] for t in range(start, stop)]
    return float(np.mean(answer) if config.likelihood == "mean" else np.sum(answer))


def naive_answer(example: dict[str, Any], pictures: np.ndarray, max_tokens: int) -> str:
    """Lets the target write its answer, one token at a time."""
    ids = tiny.CONVERSATIONS.answer(example["question"], len(pictures)).ids.tolist()
    prompt = len(ids)
    while len(ids) < prompt + max_tokens:
        ids.append(int(np.argmax(naive_logits(TARGET, extended(ids), pictures)[len(ids) - 1])))
        if ids[-1] == tiny.TOKENIZER.token_to_id("<end_of_utterance>"):
            break
    return tiny.TOKENIZER.decode(ids[prompt:]).strip()


def naive_normalised(parts: dict[str, np.ndarray], config: GRPOConfig) -> np.ndarray:
    """Each part in its group before their weighted sum."""
    scored = np.isfinite(sum(parts.values()))
    return sum(
        config.weights[name] * naive_advantages(np.where(scored, part, np.nan), "group")
        for name, part in parts.items()
    ) + np.where(scored, 0, np.nan)


def naive_advantages(rewards: np.ndarray, scale: str) -> np.ndarray:
    every = rewards[np.isfinite(rewards)]
    advantages = np.zeros(rewards.shape)
    for row, got in zip(rewards, advantages, strict=True):
        group = row[np.isfinite(row)]
        if len(group) > 1:
            divisor = {"group": group, "batch": every, "none": None}[scale]
            divisor = 1 if divisor is None else divisor.std(ddof=1) + 1e-4
            got[:] = np.where(np.isfinite(row), (row - group.mean()) / divisor, 0)
    return advantages


def log_probs_of(
    params: nnx.State, ids: jax.Array, tiles: jax.Array, allowed: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities `[T - 1, V]` of all tokens among the tokens `allowed`, bool `[T - 1, V]`;
    `[T - 1]` of tokens 1.. to be among those, which says something where the grammar leaves a
    choice; entropies."""
    logits = logits_of(params, ids, tiles)[:-1]
    among = jax.nn.log_softmax(jnp.where(allowed, logits / temperature, -jnp.inf))
    inside = jnp.log(jnp.where(allowed, jax.nn.softmax(logits), 0).sum(-1))
    written = jax.nn.log_softmax(logits)[jnp.arange(ids.size - 1), ids[1:]]
    inside = jnp.where(allowed.all(-1), written, inside)
    known = jnp.where(allowed, among, 0)  # or its gradient is not a number
    entropy = -jnp.where(allowed, jnp.exp(among) * known, 0).sum(-1)
    return among, inside, entropy


naive_log_probs = jitted(log_probs_of)


@functools.partial(jitted, static_argnums=(0, 1))
@functools.partial(jax.value_and_grad, argnums=2, has_aux=True)
def naive_reply(
    adapters: bool,
    exact: bool,
    trained: nnx.State,
    reply: tuple[jax.Array, ...],
    advantage: jax.Array,
    old: jax.Array,
    reference: jax.Array,
    settings: dict[str, Any],
):
    """Sum of a reply's token losses, what else there is to know, and the gradient.

    Of two looks it is one of two replies, which have `chosen_in_all` and `tokens_in_all` together.
    """
    ids, tiles, allowed, chosen, is_reply, chosen_in_all, tokens_in_all = reply
    params = Case(CONFIG, adapters).plain(trained)
    among, inside, entropy = log_probs_of(params, ids, tiles, allowed, settings["temperature"])
    log_probs, old, other = (x[jnp.arange(ids.size - 1), ids[1:]] for x in (among, old, reference))
    ratio = jnp.exp(log_probs - old)
    low, high = 1 - settings["epsilon"], 1 + settings["epsilon_high"]
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, low, high) * advantage)
    if exact:
        gap = jnp.where(allowed, among, 0) - jnp.where(allowed, reference, 0)
        kl = jnp.where(allowed, jnp.exp(among) * gap, 0).sum(-1)
    else:
        kl = jnp.exp(other - log_probs) - (other - log_probs) - 1
    # What decoding without the grammar does: any of the allowed tokens is as good.
    malformed = -jnp.where(is_reply, inside, 0).sum() / tokens_in_all
    loss = settings["beta"] * kl - gain - settings["entropy_coef"] * entropy
    sums = {
        "kl" if exact else "kl_k3": jnp.where(chosen, kl, 0).sum(),
        "entropy": jnp.where(chosen, entropy, 0).sum(),
        "clip_low_fraction": (chosen & (ratio < low) & (advantage < 0)).sum(),
        "clip_high_fraction": (chosen & (ratio > high) & (advantage > 0)).sum(),
    }
    loss = jnp.where(chosen, loss, 0).sum()
    return loss + settings["format_weight"] * malformed * chosen_in_all, (sums, malformed)


def check_pictures(boxes: list[list[tuple[Box, ...]]], seen: list[list[np.ndarray]]) -> None:
    """The pictures that a model saw are the whole one and its crops, but for a grey level."""
    differences = []
    for example, group, shown in zip(EXAMPLES, boxes, seen, strict=True):
        for of_reply, got in zip(group, shown, strict=True):
            want = naive_pictures(example, *of_reply)
            differences.append(np.abs(got.astype(int) - want).ravel())
    difference = np.concatenate(differences)
    print("pixels off", (difference > 0).mean(), "by two", (difference > 1).mean())
    assert (difference > 1).mean() < 1e-3 and (difference > 0).mean() < 1e-2
    assert difference.max() <= 3


def naive_areas(boxes: tuple[Box, ...]) -> float:
    """The boxes' shares of the picture, added up."""
    return float(sum((x2 - x1) * (y2 - y1) / 10_000 for x1, y1, x2, y2 in boxes))


def naive_crop_tokens(example: dict[str, Any], pictures: np.ndarray) -> int:
    """How many image tokens a question has for its crops."""

    def image_tokens(count: int) -> int:
        ids = tiny.CONVERSATIONS.answer(example["question"], count).ids
        return int((ids == tiny.TOKENIZER.token_to_id("<image>")).sum())

    return image_tokens(len(pictures)) - image_tokens(1)


def naive_parts(
    case: Case, seen: list[list[np.ndarray]]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What the target says of each rollout's pictures, by part, and the tokens of the crops."""
    config = case.config

    def of_each(tell: Any) -> np.ndarray:
        return np.array([[tell(b, p) for p in group] for b, group in enumerate(seen)], float)

    def likelihood(b: int, pictures: np.ndarray) -> float:
        return naive_likelihood(EXAMPLES[b], pictures, config)

    def accuracy(b: int, pictures: np.ndarray) -> float:
        answer = naive_answer(EXAMPLES[b], pictures, config.answer_tokens)
        return scoring.score(answer, case.gold[b], config.accuracy)

    gains = config.abstain or config.token_price > 0
    alone = np.array([likelihood(b, group[0][:1]) for b, group in enumerate(seen)])[:, None]
    parts = {}
    if config.likelihood_weight:
        parts["likelihood"] = of_each(likelihood) - (alone if gains or config.gain else 0)
    if config.verification_weight:
        parts["verification"] = of_each(lambda b, p: likelihood(b, p[1:] if len(p) > 1 else p))
        parts["verification"] -= alone if gains else 0
    if config.accuracy_weight:
        parts["accuracy"] = of_each(accuracy)
        assert parts["accuracy"].std() > 0.1
        if gains:
            wholes = [accuracy(b, group[0][:1]) for b, group in enumerate(seen)]
            parts["accuracy"] -= np.array(wholes)[:, None]
    tokens = of_each(lambda b, p: naive_crop_tokens(EXAMPLES[b], p))
    return parts, tokens


def naive(case: Case, seen: np.ndarray, tiles: np.ndarray | None = None) -> Result:
    """One step; where the pictures are `seen` but for a grey level, the target gets those, and the
    cropper in its second look gets `tiles`.

    A grey level moves a random target's likelihoods by more than the rest may.
    """
    config = case.config
    rollouts = naive_rollouts(
        config.gradient_accumulation_steps,
        case.adapters,
        case.grid,
        config.max_boxes,
        config.abstain,
        config.looks,
    )
    turns = [[[r] for r in group] for group in rollouts]
    if config.looks > 1:
        for b, group in enumerate(naive_seconds(case, rollouts, tiles)):
            for g, reply in enumerate(group):
                turns[b][g] += [] if reply is None else [reply]
        outer = [[r.boxes for r in group] for group in rollouts]
        check_pictures(
            outer,
            [
                [
                    np.concatenate([whole, tile[None]])[: 1 + len(box)]
                    for box, tile in zip(*x, strict=True)
                ]
                for whole, *x in zip(map(naive_pictures, EXAMPLES), outer, tiles, strict=True)
            ],
        )
    shown = [[naive_shown(of_reply) for of_reply in group] for group in turns]
    count = np.array([[len(boxes) for boxes in group] for group in shown])
    slots = seen[:, 1:].reshape(*count.shape, -1, *seen.shape[2:])
    pictures = [
        [np.concatenate([seen[b, :1], slots[b, g, : count[b, g]]]) for g in range(GROUP)]
        for b in range(len(EXAMPLES))
    ]
    check_pictures(shown, pictures)
    parts, crop_tokens = naive_parts(case, pictures)
    for part in parts.values():
        part[case.spoil] = np.nan
    shares = [[naive_areas(boxes) for boxes in group] for group in shown]
    if config.area_weight:
        parts["area"] = np.array(shares)
    if config.token_price or case.prices:
        price = np.array(case.prices)[:, None] if case.prices else config.token_price
        parts["cost"] = price * crop_tokens / 1000
    reward = sum(
        {"area": -1}.get(name, 1) * getattr(config, f"{name}_weight") * part
        for name, part in parts.items()
        if name != "cost"
    ) - parts.get("cost", 0)
    scored = np.isfinite(reward)
    compared = reward
    if config.multi_objective_aggregation == "normalize_then_sum":
        compared = naive_normalised(parts, config)
    advantages = naive_advantages(compared, config.scale_rewards)
    metrics = {f"reward/{name}": part[scored].mean() for name, part in parts.items()}
    metrics["reward"] = reward[scored].mean()
    metrics["unscored"] = 1 - scored.mean()
    groups = [row[known] for row, known in zip(reward, scored, strict=True)]
    deviations = [np.std(group, ddof=1) if group.size > 1 else 0 for group in groups]
    metrics["reward_std"] = np.mean(deviations)
    ties = [not group.size or np.ptp(group) < 1e-6 for group in groups]
    metrics["zero_variance_groups"] = np.mean(ties)
    metrics["area"] = np.mean(shares)
    if config.max_boxes > 1 or config.abstain:
        metrics["boxes"] = count.mean()
    if config.abstain:
        metrics["no_crop"] = (count == 0).mean()
    if config.max_boxes > 1 or config.abstain or "cost" in parts:
        metrics["crop_tokens"] = crop_tokens.mean()
    if config.looks > 1:
        closer = [[len(r) > 1 and bool(r[1].boxes) for r in group] for group in turns]
        metrics["second_look"] = np.mean(closer)
    enough = np.array(deviations) >= config.min_reward_std
    if config.min_reward_std:
        assert 0 < enough.sum() < len(enough), deviations
        metrics["groups_left_out"] = 1 - enough.mean()

    # What each reply was chosen from.
    settings = {
        name: getattr(config, name) for name in ("beta", "format_weight", "epsilon", "epsilon_high")
    }
    settings["entropy_coef"] = ENTROPY_COEF if config.entropy_target else 0.0
    settings["temperature"] = TEMPERATURE if config.temperature_in_log_probs else 1.0
    start = case.plain(case.model[1])
    learned = []
    for b, g in zip(*np.nonzero(scored), strict=True):
        chosen_in_all = sum(len(r.choices) for r in turns[b][g])
        tokens_in_all = sum(len(r.ids) - r.prompt for r in turns[b][g])
        for r in turns[b][g]:
            length = len(extended(r.ids))
            allowed = np.ones((length, tiny.CONFIG.text.vocab_size), bool)
            chosen = np.zeros(length, bool)
            for position, candidates in r.choices.items():
                allowed[position] = np.isin(np.arange(allowed.shape[1]), candidates)
                chosen[position] = True
            positions = np.arange(length)
            is_reply = (positions >= r.prompt) & (positions < len(r.ids))
            inputs = extended(r.ids), r.tiles, allowed[1:]
            old, *_ = naive_log_probs(start, *inputs, settings["temperature"])
            reference, *_ = naive_log_probs(case.reference, *inputs, settings["temperature"])
            reply = (*inputs, chosen[1:], is_reply[1:], chosen_in_all, tokens_in_all)
            learned.append((enough[b], reply, np.float32(advantages[b, g]), old, reference))

    # Updates.
    params, totals = case.model[1], []
    choices = np.array([[sum(len(r.choices) for r in x) for x in group] for group in turns])
    tokens = choices[scored].sum()
    counted = list(zip(*np.nonzero(scored & enough[:, None]), strict=True))
    divisor = len(counted)
    if config.loss_type == "dapo":
        divisor = sum(choices[b, g] for b, g in counted)
    for _ in range(config.num_iterations):
        kl = "kl" if config.kl_loss_type == "exact" else "kl_k3"
        summed = "loss", kl, "entropy", "malformed", "clip_low_fraction", "clip_high_fraction"
        total = dict.fromkeys(summed, 0.0)
        gradient = jax.tree.map(jnp.zeros_like, params)
        for counts, *inputs in learned:
            length = {
                "grpo": inputs[0][5],
                "dr_grpo": config.normaliser or case.max_choices,
                "dapo": 1,
            }[config.loss_type]
            exact = config.kl_loss_type == "exact"
            (part, (sums, malformed)), grads = naive_reply(
                case.adapters, exact, params, *inputs, settings
            )
            total["loss"] += counts * float(part) / length / divisor
            total["malformed"] += float(malformed) / scored.sum()
            for name, value in sums.items():
                total[name] += float(value) / tokens
            share = counts / (length * divisor)
            gradient = jax.tree.map(lambda g, x, n=share: g + n * x, gradient, grads)
        total["grad_norm"] = float(optax.tree.norm(gradient))
        params = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradient)
        totals.append(total)
    there = {
        kl: config.beta > 0,
        "malformed": config.format_weight > 0,
        "clip_low_fraction": config.num_iterations > 1,
        "clip_high_fraction": config.num_iterations > 1,
    }
    metrics |= {
        name: np.mean([total[name] for total in totals])
        for name in totals[0]
        if there.get(name, True)
    }
    if config.entropy_target:
        metrics["entropy_coef"] = ENTROPY_COEF
    boxes = np.zeros((*count.shape, config.max_boxes, 4))
    for b, g in np.ndindex(count.shape):
        boxes[b, g, : count[b, g]] = np.reshape([*map(float, sum(shown[b][g], ()))], (-1, 4))
    return Result(boxes, count, seen, parts["likelihood"], metrics, gradient, params)
