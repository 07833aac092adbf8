# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Likelihoods through a server equal those of the model behind it, or it is said why not."""

import logging
import os

import numpy as np
import pytest
import tiny_folder
from chat_server import endpoint, picture, serving
from likelihood_server import LikelihoodServer, Template
from tiny_evals import choice, folder_source, run

from cropvlm_jax.models.smolvlm.conversations import ANSWER_INSTRUCTION
from cropvlm_jax.readers.base import (
    Likelihood,
    LikelihoodReader,
    ReaderUnavailable,
    require_likelihoods,
)
from cropvlm_jax.readers.prompt_likelihoods import QUESTION, Ending, Token, find_span
from cropvlm_jax.readers.vlm import VLMReader

# As the model's own conversations would write them.
ANSWERS = [
    "3.", "A red digit.", "Dr. Who.", "It's 10:45, or is it not?.", "日本.", "Ünïcödé, 🙂.",
    "Assistant: yes.", "\\n.", "12.50 €.", "A\nb.", "X" * 20 + ".", "E\u0301.", "«Ωμέγα».",
]  # fmt: skip
END = "<end_of_utterance>"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> VLMReader:
    folder = tiny_folder.make_folder(tmp_path_factory.mktemp("models") / "reader", 2)
    return VLMReader.from_pretrained(folder)


@pytest.fixture
def server(model):
    with serving(LikelihoodServer(model)) as server:
        yield server


def likelihood_endpoint(server, cache, **options):
    defaults = {"instruction": ANSWER_INSTRUCTION, "timeout": 60}
    return endpoint(server, cache, **(defaults | options))


def test_they_equal_those_of_the_model_itself(model, server, tmp_path):
    reader = likelihood_endpoint(server, tmp_path)
    assert isinstance(reader, LikelihoodReader) and isinstance(model, LikelihoodReader)
    assert require_likelihoods(reader) is reader
    shapes = [(20, 30), (96, 128), (40, 33), (7, 64)]
    pictures = [picture(i, *shapes[i % 4]) for i in range(len(ANSWERS) + 1)]
    images = [[pictures[i], pictures[-1]] if i % 2 else pictures[i] for i in range(len(ANSWERS))]
    questions = [f"What is no. {i}?" for i in range(len(ANSWERS))]
    expected = model.likelihoods(images, questions, ANSWERS)
    told = reader.likelihoods(images, questions, [f" {answer}\n" for answer in ANSWERS])
    np.testing.assert_allclose([x.nats for x in told], [x.nats for x in expected], 0, 1e-4)
    assert [x.tokens for x in told] == [x.tokens for x in expected]
    assert not any(x.failure for x in told)

    # Again, all comes from the disk, also where there is no server any more.
    requests = len(server.requests)
    assert requests == 3 + 2 * len(ANSWERS)
    server.gone = True
    again = likelihood_endpoint(server, tmp_path).log_likelihood(images, questions, ANSWERS)
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, np.array([x.nats for x in told], np.float32))
    server.gone = False
    for change in (  # and only what is known comes from there
        lambda: reader.likelihoods(images[:1], ["What else?"], ANSWERS[:1]),
        lambda: reader.likelihoods(images[1:2], questions[:1], ANSWERS[:1]),
        lambda: reader.likelihoods(images[:1], questions[:1], ANSWERS[1:2]),
    ):
        change()
        requests += 1
        assert len(server.requests) == requests


TEMPLATES = {
    # The generation prompt ends in a space, which melts with the answer.
    "space": Template(asks="Assistant: "),
    "chatml": Template(
        "<|im_start|>user\n{pictures}{text}<end_of_utterance>\n",
        "<|im_start|>assistant\n",
        "<|im_start|>assistant\n{text}",
    ),
    "thinking": Template(asks="Assistant: <think>\n</think>"),
    "two line ends": Template(ends=f"{END}\n\n"),
    "a space before the end": Template(ends=f" {END}\n"),
    "words at the end": Template(ends=f"{END}<|im_start|>"),
    "no end": Template(ends=" "),
    "nothing at the end": Template(ends=""),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_tokens_of_an_answer_are_found_in_any_template(model, tmp_path, name, caplog):
    template, question, answers = TEMPLATES[name], "What is it?", ["A red digit.", "日本 🙂.", "3"]
    with serving(LikelihoodServer(model, template)) as server:
        reader = likelihood_endpoint(server, tmp_path)
        told = reader.likelihoods([picture()] * 3, [question] * 3, answers)
        bodies = [body for *_, body in server.requests]
        before = template.says.partition("{text}")[0]
        shared = os.path.commonprefix([template.asks, before])
        for answer, likelihood in zip(answers, told, strict=True):
            body = next(b for b in reversed(bodies) if b["messages"][-1]["content"] == answer)
            ids, log_probs = server.tokens(body)
            text = template.render("", body)
            start = text.rindex(before + answer) + len(shared)
            stop = text.rindex(answer) + len(answer)
            stop = text.index(END, stop) + len(END) if END in template.ends else stop
            offsets = model.source.tokenizer.encode(text, add_special_tokens=False).offsets
            holds = [end > start and begin < stop for begin, end in offsets]
            expected = log_probs[-len(holds) :][np.array(holds)]
            assert likelihood.tokens == len(expected) and len(ids) > len(holds)
            np.testing.assert_allclose(likelihood.nats, expected.sum(), 0, 1e-4)
    assert ("writes no token that ends an answer" in caplog.text) == (END not in template.ends)


def test_spans_by_hand():
    def tokens(*texts):
        return [Token(sum(map(ord, text)), 0.0, text) for text in texts]

    ending = Ending(tuple(token.id for token in tokens("</s>", "\n")), 1)
    for question, whole, counted in [
        (["Q", ":"], ["Q", ":", " Red", ".", "</s>", "\n"], 3),
        (["Q", ":", " "], ["Q", ":", " Red", ".", "</s>", "\n"], 3),
        (["Q", ": "], ["Q", ":", " Red", ".", "</s>", "\n"], 3),  # the colon is not the answer's
        (["Q", ":"], ["Q", "::", ")", "</s>", "\n"], 3),  # this colon is, in part
        (["Q", ":", "\n"], ["Q", ":", "\n", "\n\n", "</s>", "\n"], 2),
    ]:
        span = find_span(tokens(*question), tokens(*whole), ending)
        assert span.counted == counted
        assert span.ids == tuple(token.id for token in tokens(*whole))[-len(span.ids) :]
        assert len(span.ids) == counted + 2
    for question, whole, reason in [
        (["Q"], ["A", "x", "</s>", "\n"], "begins otherwise"),
        (["Q"], ["Q", "</s>", "\n"], "nothing of the answer"),
        (["Q"], ["Q", "x", "\n"], "melts"),
    ]:
        with pytest.raises(ValueError, match=reason):
            find_span(tokens(*question), tokens(*whole), ending)


RECOVERED = [
    "500 ok", "429 ok", "429after ok", "503 502 ok", "half ok", "invalid ok", "html ok",
    "nan ok", "minus ok", "missing ok", "top ok", "text ok", "short ok", "none ok",
]  # fmt: skip
FAILED = {
    "500": "HTTP 500: ", "429": "HTTP 429: ", "400": "HTTP 400: ", "half": "connection: ",
    "invalid": "broken body: ", "html": "broken body: ",
    "missing": "broken body: prompt_logprobs is None", "silent": "broken body: prompt_logprobs is",
    "hollow": "broken body: prompt_logprobs is", "text": "broken body: prompt_logprobs is 'many'",
    "nan": "broken body: nan as", "minus": "broken body: -inf as",
    "clamped": "broken body: -9999.0 as", "positive": "broken body: 0.7 as",
    "string": "broken body: '-0.5' as", "true": "broken body: True as",
    "null": "broken body: None as", "unnamed": "broken body: 'logprob'",
    "none": "broken body: the prompt does not end", "top": "broken body: 2 tokens at one position",
    "short": "broken body: ", "shortly": "broken body: ", "long": "broken body: ",
    "uncounted": "broken body: the prompt does not end",
    "other": "broken body: the prompt does not end", "prompted": "broken body: the prompt does not",
}  # fmt: skip


def test_no_fault_of_the_server_is_taken_for_a_likelihood(model, server, tmp_path, caplog):
    reader = likelihood_endpoint(server, tmp_path, instruction="Say it.")

    def tell(*questions):
        n = len(questions)
        return reader.likelihoods([picture()] * n, questions, ["3."] * n)

    (first,) = tell("ok")
    for question, told in zip(RECOVERED, tell(*RECOVERED), strict=True):
        assert told.nats < 0 and told.tokens == first.tokens and not told.failure, question
    questions = list(FAILED)
    for start in range(0, len(questions), 6):
        part = questions[start : start + 6]
        *lost, found = tell(*part, f"ok {start}")
        assert found.tokens == first.tokens
        assert f"no answer to {len(part)} of {len(part) + 1} questions" in caplog.text
        for question, told in zip(part, lost, strict=True):
            assert np.isnan(told.nats) and told.tokens == 0, question
            assert told.failure.startswith(FAILED[question]), (question, told)
            assert server.tries[f"{question}\nSay it."] == (1 if question == "400" else 4)
    again = reader.log_likelihood([picture()], ["nan"], ["3."])  # what failed was not kept
    assert np.isnan(again).all() and server.tries["nan\nSay it."] == 8


def test_a_server_that_is_too_slow_is_asked_again(server, tmp_path):
    likelihood_endpoint(server, tmp_path).likelihoods([picture()], ["ok"], ["3."])
    reader = likelihood_endpoint(server, tmp_path, timeout=2)
    found, lost = reader.likelihoods([picture()] * 2, ["slow ok", "slow"], ["3."] * 2)
    assert found.nats < 0 and np.isnan(lost.nats) and lost.failure.startswith("timeout: ")


CANNOT = {
    "missing": "no prompt_logprobs: its reply has no such field",
    "silent": "no prompt_logprobs: its reply has no such field",
    "400": "HTTP 400: .*no, ",
    "422": "HTTP 422: .*no, ",
    "closed": "continue_final_message does not leave the answer open",
    "prompted": "add_generation_prompt=false is ignored|does not leave the answer open",
}


@pytest.mark.parametrize("fault", CANNOT)
def test_a_server_that_cannot_is_found_out_at_once_and_in_one_line(
    server, tmp_path, fault, monkeypatch
):
    server.always = fault
    reader = likelihood_endpoint(server, tmp_path, backoff=5)
    with pytest.raises(ValueError, match=CANNOT[fault]) as raised:
        require_likelihoods(reader)
    said = str(raised.value)
    assert "\n" not in said and said.startswith("m at http://127.0.0.1:")
    assert "such as vLLM's" in said and len(server.requests) == 3
    with pytest.raises(
        ValueError, match=f"vstar_likelihood is about likelihoods: m at .*{CANNOT[fault]}"
    ):
        source = folder_source(tmp_path, [choice(0)])
        run(tmp_path, source, "vstar_likelihood", [reader])
    server.always = ""
    assert require_likelihoods(reader) is reader  # it was set up anew


@pytest.mark.parametrize("fault", ["500", "429", "html", "401", "text", "half"])
def test_a_server_that_does_not_answer_is_not_taken_for_one_that_cannot(server, tmp_path, fault):
    server.always = fault
    with pytest.raises(ReaderUnavailable, match="m at http"):
        require_likelihoods(likelihood_endpoint(server, tmp_path))


def test_an_answer_that_fails_beforehand_costs_its_own_items_only(server, tmp_path):
    reader = likelihood_endpoint(server, tmp_path)
    require_likelihoods(reader)
    told = reader.likelihoods([picture()] * 2, ["What?"] * 2, ["A.", "B."])
    server.always = "400"
    images, questions = [picture()] * 3, ["What?"] * 3
    first, lost, second = reader.likelihoods(images, questions, ["A.", "C.", "B."])
    assert [first, second] == told and lost.failure.startswith("HTTP 400: ")
    assert np.isnan(lost.nats)


def test_another_chat_template_under_the_same_name_is_noticed(model, server, tmp_path):
    asked = [picture()], ["What?"], ["A."]
    (first,) = likelihood_endpoint(server, tmp_path).likelihoods(*asked)
    server.template = TEMPLATES["a space before the end"]
    requests = len(server.requests)
    (second,) = likelihood_endpoint(server, tmp_path).likelihoods(*asked)
    assert len(server.requests) == requests + 5  # nothing comes from the disk
    assert second.tokens == first.tokens + 1 and second.nats != first.nats


@pytest.mark.parametrize(
    ("images", "questions", "answers", "reason"),
    [
        ([picture()], ["What?"], [" "], "the answer is empty"),
        ([picture()], ["What?"], ["\ud83d"], "cannot be written as UTF-8"),
        ([picture()], ["What?"], "3", "answers must be a list"),
        ([picture()], ["What?"], [3], "answers must be a list"),
        ([picture()], ["What?"], [], "1 images but 0 answers"),
        ([picture()], [], ["3"], "1 images but 0 questions"),
    ],
)
def test_what_cannot_be_asked_is_refused(server, tmp_path, images, questions, answers, reason):
    with pytest.raises(ValueError, match=reason):
        likelihood_endpoint(server, tmp_path).likelihoods(images, questions, answers)
    assert likelihood_endpoint(server, tmp_path).likelihoods([], [], []) == []


def test_the_small_request_itself_can_be_asked_about(model, server, tmp_path):
    grey = np.full((64, 64, 3), 128, np.uint8)  # what is kept of one request does not mix
    for _ in range(2):
        reader = likelihood_endpoint(server, tmp_path)
        (told,) = reader.likelihoods([grey], [QUESTION], ["Yes."])
        assert isinstance(told, Likelihood) and not told.failure
        expected = model.log_likelihood([grey], [QUESTION], ["Yes."])
        np.testing.assert_allclose(told.nats, expected[0], 0, 1e-4)
    (reply,) = reader.answer([grey], [QUESTION])
    assert reply.text.startswith("said")


def test_an_evaluation_finds_the_same_options_likeliest(model, server, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    options = ["Red.", "A blue one.", "Green and grey.", "None."]
    rows = [choice(i, options=options, answers=[options[i]]) for i in range(4)]
    reader = likelihood_endpoint(server, tmp_path)
    source = folder_source(tmp_path, rows)
    _, records = run(tmp_path, source, "vstar_likelihood", [reader, model])
    replies = [record["replies"] for record in records]
    assert all(row["m"] == row[model.name] for row in replies)
    assert {told["text"] for row in replies for told in row["m"].values()} <= {*options}

    rows = [choice(i, options=options, question="ok" if i else "nan") for i in range(3)]
    source = folder_source(tmp_path, rows)
    results, (lost, *found) = run(tmp_path, source, "vstar_likelihood", [reader])
    for reply in lost["replies"]["m"].values():
        assert reply["failure"].startswith("broken body: nan as") and not reply["text"]
    assert all(reply["text"] for row in found for reply in row["replies"]["m"].values())
    assert results["targets"]["m"]["failures"] == {"broken body": len(lost["replies"]["m"])}
