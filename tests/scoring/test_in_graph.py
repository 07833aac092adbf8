# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava
import tokenizers

from cropvlm_jax import scoring
from cropvlm_jax.hub.tokenizer import train_tokenizer
from cropvlm_jax.scoring import in_graph
from cropvlm_jax.scoring.text import PUNCTUATION, WORDS

PROMPTS = 2500  # of 4 replies
TOKENS = MAX_BYTES = 72
ANSWER_LENGTH, WIDTH = 40, 60  # normalisation lengthens a text by half at most
METRICS = ("evalai", "vicrop", "official", "anls")
TOKENIZER = train_tokenizer(["the somebody'd wouldn't've said there're ten of them,"] * 2, 360)
VOCABULARY = jax.device_get(in_graph.Vocabulary.from_tokenizer(TOKENIZER))
END = TOKENIZER.token_to_id("<end_of_utterance>")

PIECES = [*WORDS, *WORDS.values(), "THE", "None", "it's", "hes's", "'s", "', s"]
PIECES += ["3.5", "7.", "1,000", "1,-2", ".5", "5.-5", "...", "." * 33, "ΟΔΟΣ", "aΣ.", "<image>"]
CHARACTERS = [*"aAsSd'0123 .,", *PUNCTUATION, *"\0\n\t\r\v\x1c\x85\u00a0\u2003\u2028"]
CHARACTERS += [*"\u3000\u0301\u0307\u0345\u00ad\u200d\ufe0f"]
CHARACTERS += [*"İIıßẞΣσςΑΊﬁŉǰéÉKÅ’“", *"٣४²½Ⅷⓐªʰ中😀𝐀𐐀\ufffd\U000e0041"]
BYTES = [*range(256), *b"\x80\x8f\x90\x9f\xc0\xc3\xe0\xe2\xed\xf0\xf4\xf5" * 20]


def written(token_id: int, vocabulary: in_graph.Vocabulary = VOCABULARY) -> bytes:
    start, end = vocabulary.start[token_id : token_id + 2]
    return vocabulary.data[start:end].tobytes()


BYTE_TOKENS = {
    written(token_id)[0]: token_id
    for token_id in range(TOKENIZER.get_vocab_size())
    if len(written(token_id)) == 1
}


def make_reply(rng: random.Random) -> list[int]:
    """Token ids of words, of odd characters, of any characters, or of bytes that are no UTF-8."""
    count = rng.randrange(10)
    style = rng.randrange(4)
    if style == 0:
        return [BYTE_TOKENS[rng.choice(BYTES)] for _ in range(count)]
    if style == 1:
        parts = [rng.choice(PIECES) + rng.choice([" ", " ", "", "-", ". "]) for _ in range(count)]
    elif style == 2:
        parts = [rng.choice(CHARACTERS) for _ in range(2 * count)]
    else:
        parts = [chr(rng.randrange(rng.choice([0x250, 0x3000, 0x20000]))) for _ in range(count)]
    return TOKENIZER.encode("".join(parts).encode(errors="ignore").decode()).ids[:TOKENS]


def make_answers(rng: random.Random, replies: list[str], prompt: int, metric: str) -> list[str]:
    """Right, nearly right and wrong answers: any difference in normalisation shows."""
    if metric == "official":  # leaves the answers as they are
        replies = [reply.removesuffix(".").lower() for reply in replies]
    length = WIDTH if prompt == 0 else ANSWER_LENGTH
    a, b, c, d = (reply[:length] for reply in replies)
    cut = rng.randrange(len(a) + 1)
    if metric == "anls" or (metric == "official" and prompt % 2):
        return [a[:cut] + rng.choice(["", "x", "  "]) + a[cut + 1 :], b.swapcase()]
    return [a] * 5 + [b] * 2 + [c] * 2 + [d[:cut] + d[cut + 1 :]]


@functools.cache
def make_groups() -> tuple[np.ndarray, list[list[str]], np.ndarray]:
    """Token ids `[prompts, G, T]`, the replies they write, and whether these are too long."""
    rng = random.Random(0)
    widest = [TOKENIZER.encode("x" * length).ids for length in (WIDTH, WIDTH + 1, WIDTH - 1, 0)]
    groups = [widest] + [[make_reply(rng) for _ in range(4)] for _ in range(PROMPTS - 1)]
    texts = [[TOKENIZER.decode(reply).strip() for reply in group] for group in groups]
    long = [[sum(len(written(i)) for i in reply) > MAX_BYTES for reply in g] for g in groups]
    ids = [[reply + [END] * (TOKENS - len(reply)) for reply in group] for group in groups]
    return np.array(ids), texts, np.array(long)


@pytest.mark.parametrize("metric", METRICS)
def test_10_000_replies_score_as_in_python(metric):
    rng = random.Random(0)
    ids, texts, too_long = make_groups()
    expected, golds = [], []
    for prompt, replies in enumerate(texts):
        answers = make_answers(rng, replies, prompt, metric)
        expected.append([scoring.score(reply, answers, metric) for reply in replies])
        golds.append(scoring.encode_gold(answers, metric, 4, WIDTH))
    gold = scoring.GoldAnswers(*map(np.stack, zip(*golds, strict=True)))
    # It runs for longer than it takes to compile.
    score = jax.jit(
        in_graph.score,
        static_argnames=("metric", "max_bytes"),
        compiler_options={"xla_backend_optimization_level": 2},
    )
    scores = score(VOCABULARY, gold, ids, metric, max_bytes=MAX_BYTES)
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, np.where(too_long, 0, expected), atol=1e-6)
    assert 0.1 < np.mean(scores > 0.99) < 0.9 and len(np.unique(scores)) > 3
    assert 0 < too_long.mean() < 0.1


def test_what_tokens_write():
    tokenizer = train_tokenizer(["ten ten"], 320)
    tokenizer.add_tokens(["né", "<中>"])
    vocabulary = jax.device_get(in_graph.Vocabulary.from_tokenizer(tokenizer))
    for text in ("a né <中> b", "ten<image>\n<end_of_utterance>", "İ😀"):
        ids = tokenizer.encode(text).ids
        data = b"".join(written(token_id, vocabulary) for token_id in ids)
        assert data.decode(errors="replace") == tokenizer.decode(ids)


def test_other_tokenizers_are_refused():
    with pytest.raises(ValueError, match="byte-level BPE or one"):
        in_graph.Vocabulary.from_tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()))


def test_no_character_outside_the_tables_has_properties():
    others = "".join(map(chr, [*range(0x20000, 0xE0000), *range(0xE1000, 0x110000)]))
    assert others.lower() == others.upper() == others
    assert not any(character.isspace() or character.isdecimal() for character in others)
    for before in ("", "a"):  # neither cased nor looked past
        assert not any((before + character + "Σ").lower()[-1] == "ς" for character in others)


@pytest.mark.parametrize("text", ["a red frame", "Ωmega 42, é", "  two  spaces", "中文 <0x41>"])
def test_llama_tokens_write_what_the_tokenizer_decodes(text):
    tokenizer = tiny_llava.TOKENIZER
    vocabulary = jax.device_get(in_graph.Vocabulary.from_tokenizer(tokenizer))
    ids = tokenizer.encode(text + "</s>").ids
    data = b"".join(written(i, vocabulary) for i in ids)
    assert data == b" " + text.encode()
    assert data.decode().removeprefix(" ") == tokenizer.decode(ids)
