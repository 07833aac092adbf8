# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The scores of `scoring/text.py` in the graph, on token ids: decoding, normalisation, distance.

A text is an array of codepoints, and of -1 after the last. All functions but `score` work on one
reply; `score` vmaps them.
Shape letters: B prompts, G rollouts, T tokens, L characters, K gold answers of N characters.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from cropvlm_jax.scoring import characters
from cropvlm_jax.scoring.text import MAX_PERIODS, PUNCTUATION, WORDS, GoldAnswers, Metric

Text = Int[Array, " L"]

_SPACE, _PERIOD, _APOSTROPHE, _I_WITH_DOT, _REPLACEMENT = map(ord, " .'\u0130\ufffd")


class Vocabulary(NamedTuple):
    """What every token writes.

    Attributes:
        data: The bytes of all tokens, one after the other.
        start: Where the bytes of each token start in `data`, and last where they end; int32
            `[V + 1]` of V tokens.
    """

    data: UInt8[Array, " bytes"]
    start: Int[Array, " starts"]

    @classmethod
    def from_tokenizer(cls, tokenizer: tokenizers.Tokenizer) -> "Vocabulary":
        """Reads a byte-level BPE (GPT-2, SmolLM2, Qwen) or one with byte fallback (Llama).

        Special tokens write nothing, and a Llama text has one space too many before it.

        Raises:
            ValueError: the tokenizer is of another kind.
        """
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's alphabet
        others = sorted(set(range(256)) - set(plain))
        alphabet = {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}
        decoder = json.loads(tokenizer.to_str())["decoder"] or {}
        falls_back = {"type": "ByteFallback"} in decoder.get("decoders", [])
        if not falls_back and decoder.get("type") != "ByteLevel":
            raise ValueError(
                f"the decoder is {tokenizer.decoder}: accuracy in the graph needs a byte-level BPE "
                "or one with byte fallback"
            )
        added = tokenizer.get_added_tokens_decoder()

        def written(token_id: int) -> bytes:
            token = tokenizer.id_to_token(token_id)
            if token is None or (token_id in added and added[token_id].special):
                return b""
            if falls_back:
                byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
                return bytes.fromhex(byte[1]) if byte else token.replace("\u2581", " ").encode()
            if set(token) <= alphabet.keys():
                return bytes(alphabet[character] for character in token)
            return token.encode()

        size = max(tokenizer.get_vocab().values()) + 1
        pieces = [written(token_id) for token_id in range(size)]
        return cls(
            data=jnp.asarray(np.frombuffer(b"".join(pieces), np.uint8)),
            start=jnp.asarray(np.cumsum([0, *map(len, pieces)]), jnp.int32),
        )


def score(
    vocabulary: Vocabulary,
    gold: GoldAnswers,
    token_ids: Int[Array, "B G T"],
    metric: Metric,
    max_bytes: int = 128,
) -> Float[Array, "B G"]:
    """`scoring.score(tokenizer.decode(token_ids).strip(), answers, metric)` of every reply.

    Args:
        vocabulary: What the tokens of the replies write.
        gold: What `scoring.encode_gold` makes for the same metric, arrays `[B, K, N]` and `[B, K]`.
        token_ids: The replies. Special tokens write nothing, so they serve as padding.
        metric: The metric, static.
        max_bytes: Replies of more bytes score 0. Static; time and memory grow with it.

    Returns:
        Scores, 0..1.
    """

    def one(token_ids: Int[Array, " T"], gold: GoldAnswers) -> Float[Array, ""]:
        data, fits = _bytes(vocabulary, token_ids, max_bytes)
        return jnp.where(fits, _score(_strip(_decode(data)), gold, metric), 0.0)

    return jax.vmap(jax.vmap(one, (0, None)))(token_ids, gold)


def _score(reply: Text, gold: GoldAnswers, metric: Metric) -> Float[Array, ""]:
    if metric in ("evalai", "vicrop"):
        return _accuracy(_evalai(reply) if metric == "evalai" else _vicrop(reply), gold)
    if metric == "anls":
        return _anls(_collapse(_lower(reply)), _raw_length(reply), gold, strict=False)
    reply = _lower(jnp.where((reply == _PERIOD) & (_ahead(reply) < 0), -1, reply))
    text = _collapse(reply)
    return jnp.where(
        jnp.any(gold.weight > 0),  # ten answers
        _accuracy(reply, gold),
        _anls(text, _raw_length(text), gold, strict=True),
    )


# Comparison ---------------------------------------------------------------------------------------


def _accuracy(text: Text, gold: GoldAnswers) -> Float[Array, ""]:
    """The weight of the gold answer that `text` equals, or 0."""
    n = gold.text.shape[-1]
    text = jnp.pad(text, (0, n), constant_values=-1)
    return jnp.sum(gold.weight * (text[:n] == gold.text).all(-1)) * (text[n] < 0)


def _anls(text: Text, length: Int[Array, ""], gold: GoldAnswers, strict: bool) -> Float[Array, ""]:
    """The best similarity, 0 below 0.5, or with `strict` also at 0.5."""
    distance = jax.vmap(_levenshtein, (None, 0))(text, gold.text)
    length = jnp.maximum(length, gold.length)
    twice = 2 * distance  # integers: fp32 division is not exact on every device
    enough = (twice < length) | (distance == 0) if strict else twice <= length
    return jnp.where(enough, 1 - distance / jnp.maximum(length, 1), 0).max()


def _levenshtein(text: Text, gold: Int[Array, " N"]) -> Int[Array, ""]:
    """Edit distance, by anti-diagonals: entry i of the t-th is `gold[:i]` to `text[:t - i]`."""
    n, m = gold.shape[0], text.shape[0]
    index = jnp.arange(n + 1)
    size = jnp.sum(gold >= 0)
    end = size + jnp.sum(text >= 0)
    backwards = jnp.pad(text[::-1], n)

    def step(t: Int[Array, ""], carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        before, last, distance = carry
        characters = jax.lax.dynamic_slice(backwards, [n + m + 1 - t], [n])
        substituted = before[:-1] + (characters != gold)
        new = jnp.minimum(jnp.minimum(last[1:], last[:-1]) + 1, substituted)
        new = jnp.where((index == 0) | (index == t), t, jnp.pad(new, (1, 0)))
        return last, new, jnp.where(t == end, new[size], distance)

    start = (jnp.zeros_like(index), jnp.zeros_like(index), jnp.zeros_like(size))
    return jax.lax.fori_loop(1, n + m + 1, step, start)[2]


# Normalisation ------------------------------------------------------------------------------------


def _evalai(text: Text) -> Int[Array, " M"]:
    """EvalAI's normalisation of a reply."""
    text = _lower(text)
    text = _pack(text, (text != ord(",")) & (text != ord("?")))
    owns = (text == _APOSTROPHE) & (_ahead(text) == ord("s"))
    text = _strip(_interleave(jnp.where(owns, _SPACE, -1), text))
    text = jnp.where((text == ord("\n")) | (text == ord("\t")), _SPACE, text)
    return _words(_punctuation(text))


def _vicrop(text: Text) -> Int[Array, " M"]:
    """EvalAI's normalisation without its first step, as ViCrop has it."""
    return _words(_lower(_punctuation(jnp.pad(text, (0, text.shape[0]), constant_values=-1))))


def _punctuation(text: Text) -> Text:
    """Removes punctuation, or puts a space in its place."""
    decimal = _lookup(text, str.isdecimal)
    grouped = jnp.any((text == ord(",")) & _behind(decimal, False) & _ahead(decimal, False))
    marks = text[:, None] == jnp.array([*map(ord, PUNCTUATION)])
    spaced = (_behind(text) == _SPACE) | (_ahead(text) == _SPACE)
    removed = (marks & spaced[:, None]).any(0) | grouped
    text = jnp.where(marks.any(-1), _SPACE, text)
    text = _pack(text, ~(marks & removed).any(-1))
    period = (text == _PERIOD) & ~_lookup(_ahead(text), str.isdecimal)
    return _pack(text, ~(period & (jnp.cumsum(period) <= MAX_PERIODS)))


def _words(text: Text) -> Text:
    """Replaces the words that `WORDS` lists and drops the articles."""
    keys, values = _word_table()
    width = keys.shape[1]
    text = _collapse(text)
    letters = jnp.where(text == _SPACE, -1, text)
    listed = jnp.ones((text.shape[0], keys.shape[0]), bool)
    for i in range(width):  # a word has to match up to the -1 that ends it
        ended = (keys[:, :i] < 0).any(1)
        listed &= (_ahead(letters, -1, i)[:, None] == keys[:, i]) | ended
    index = jnp.arange(text.shape[0])
    begins = (letters >= 0) & (_behind(letters) < 0)
    begin = jax.lax.cummax(jnp.where(begins, index, 0))
    found = listed.any(1)[begin] & (letters >= 0)
    entry = jnp.argmax(listed, 1)[begin]
    offset = jnp.minimum(index - begin, width - 2)
    new = jnp.where(found, jnp.asarray(values)[entry, offset], text)
    # A contraction gains its apostrophe after the word's last letter.
    extra = jnp.where(found & (_ahead(letters) < 0), jnp.asarray(values)[entry, offset + 1], -1)
    stays = begins & (new >= 0)
    separates = _ahead(stays, False) & (jnp.cumsum(stays) > 0)
    new = jnp.where((text == _SPACE) & ~separates, -1, new)
    return _interleave(new, extra)[: text.shape[0]]


def _collapse(text: Text) -> Text:
    """Every run of whitespace becomes one space, and none at the ends."""
    inner = (text >= 0) & ~_lookup(text, str.isspace)
    separates = _ahead(inner, False) & (jnp.cumsum(inner) > 0)
    return _pack(jnp.where(inner, text, _SPACE), inner | separates)


def _strip(text: Text) -> Text:
    """Removes whitespace at both ends."""
    inner = (text >= 0) & ~_lookup(text, str.isspace)
    return _pack(text, (jnp.cumsum(inner) > 0) & (jnp.cumsum(inner[::-1])[::-1] > 0))


def _lower(text: Text) -> Text:
    """As `str.lower`: `İ` becomes two codepoints, `Σ` looks at the letters around it."""
    lowered = text + _lookup(text, characters.shift)
    cased = _lookup(text, characters.cased)
    looked_at = (text >= 0) & ~_lookup(text, characters.ignorable)

    def follows_cased(looked_at: Bool[Array, " L"], cased: Bool[Array, " L"]) -> Bool[Array, " L"]:
        last = jax.lax.cummax(jnp.where(looked_at, 2 * jnp.arange(len(cased)) + cased, 0))
        return _behind(last, 0) % 2 == 1

    final = follows_cased(looked_at, cased)
    final &= ~follows_cased(looked_at[::-1], cased[::-1])[::-1]
    lowered = jnp.where((text == ord("Σ")) & final, ord("ς"), lowered)
    dot = jnp.where(text == _I_WITH_DOT, ord("\u0307"), -1)
    return _interleave(lowered, dot)[: text.shape[0]]  # `İ` took two bytes: there is room


def _raw_length(text: Text) -> Int[Array, ""]:
    """`len(text.upper())`."""
    return jnp.sum(text >= 0) + jnp.sum(_lookup(text, characters.extra_capitals))


# Decoding -----------------------------------------------------------------------------------------


def _bytes(
    vocabulary: Vocabulary, token_ids: Int[Array, " T"], max_bytes: int
) -> tuple[Int[Array, " {max_bytes}"], Bool[Array, ""]]:
    """The bytes of a reply, followed by -1; and whether these are all."""
    stop = vocabulary.start[token_ids + 1]
    end = jnp.cumsum(stop - vocabulary.start[token_ids])
    position = jnp.arange(max_bytes)
    token = jnp.sum(end <= position[:, None], -1)
    data = vocabulary.data[(stop - end)[token] + position].astype(jnp.int32)
    return jnp.where(position < end[-1], data, -1), end[-1] <= max_bytes


def _decode(data: Int[Array, " L"]) -> Text:
    """Bytes to codepoints, as `bytes.decode(errors="replace")` and `Tokenizer.decode`."""
    second, third, fourth = (_ahead(data, -1, i) for i in (1, 2, 3))
    size = 1 + sum(jnp.where(data >= lead, 1, 0) for lead in (0xC0, 0xE0, 0xF0))
    low = jnp.where(data == 0xE0, 0xA0, jnp.where(data == 0xF0, 0x90, 0x80))  # no overlong forms
    high = jnp.where(data == 0xED, 0x9F, jnp.where(data == 0xF4, 0x8F, 0xBF))  # no surrogates
    taken = 1 + ((size > 1) & (low <= second) & (second <= high))
    taken += (size > 2) & (taken == 2) & (third >> 6 == 2)
    taken += (size > 3) & (taken == 3) & (fourth >> 6 == 2)
    impossible = ((data >= 0x80) & (data < 0xC2)) | (data > 0xF4)
    taken = jnp.where(impossible, 1, taken)
    code = jnp.select(
        [impossible | (taken < size), size == 1, size == 2, size == 3],
        [
            jnp.full_like(data, _REPLACEMENT),
            data,
            (data & 0x1F) << 6 | second & 0x3F,
            (data & 0x0F) << 12 | (second & 0x3F) << 6 | third & 0x3F,
        ],
        (data & 0x07) << 18 | (second & 0x3F) << 12 | (third & 0x3F) << 6 | fourth & 0x3F,
    )
    inside = sum(_behind(taken, 0, i) > i for i in (1, 2, 3))
    return _pack(code, (data >= 0) & (inside == 0))


# Characters ---------------------------------------------------------------------------------------


def _pack(text: Text, keep: Bool[Array, " L"]) -> Text:
    """Closes the gaps that dropped characters, and those below 0, leave."""
    keep &= text >= 0
    place = jnp.where(keep, jnp.cumsum(keep) - 1, text.shape[0])
    return jnp.full_like(text, -1).at[place].set(text, mode="drop")


def _interleave(first: Text, second: Text) -> Int[Array, " 2*L"]:
    """Two characters, or none (-1), in the place of every one."""
    both = jnp.stack([first, second], -1).reshape(-1)
    return _pack(both, both >= 0)


def _ahead(values: Shaped[Array, " L"], fill: int | bool = -1, by: int = 1) -> Shaped[Array, " L"]:
    """The values moved `by` places to the front: at every place, what stands `by` places on."""
    return jnp.pad(values[by:], (0, by), constant_values=fill)


def _behind(values: Shaped[Array, " L"], fill: int | bool = -1, by: int = 1) -> Shaped[Array, " L"]:
    """The values moved `by` places to the back: at every place, what stands `by` places before."""
    return jnp.pad(values[:-by], (by, 0), constant_values=fill)


def _lookup(text: Text, of: Callable[[str], int]) -> Shaped[Array, " L"]:
    """`of` of every character in the text, and 0 where the text has ended (-1)."""
    page, pages = map(jnp.asarray, characters.table(of))
    return pages[page[text >> 8], text & 0xFF]


@functools.cache
def _word_table() -> tuple[np.ndarray, np.ndarray]:
    """`WORDS`, keys and values, int32 `[words, longest + 1]`, -1 after the last letter."""
    width = max(map(len, [*WORDS, *WORDS.values()])) + 1

    def rows(words: Iterable[str]) -> np.ndarray:
        return np.array(
            [[*map(ord, word), *[-1] * (width - len(word))] for word in words], np.int32
        )

    return rows(WORDS), rows(WORDS.values())
