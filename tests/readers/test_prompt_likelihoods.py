# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Likelihoods through a server equal those of the model behind it, or it is said why not."""

import logging

import numpy as np
import pytest
import tiny_folder
from chat_server import KEY, endpoint, picture, serving
from likelihood_server import LikelihoodServer, Template

from cropvlm_jax.models.smolvlm.conversations import ANSWER_INSTRUCTION
from cropvlm_jax.readers import prompt_likelihoods
from cropvlm_jax.readers.base import LikelihoodReader, ReaderUnavailable, require_likelihoods
from cropvlm_jax.readers.vlm import VLMReader

ANSWERS = [
    "3.", "A red digit.", "Dr. Who.", "It's 10:45, or is it not?.", "日本.", "Ünïcödé, 🙂.",
    "Assistant: yes.", "\\n.", "12.50 €.", "A\nb.", "X" * 60 + ".", "e\u0301.", "«Ωμέγα».",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> VLMReader:
    folder = tiny_folder.make_folder(tmp_path_factory.mktemp("models") / "reader", 2)
    return VLMReader.from_pretrained(folder)


@pytest.fixture
def server(model):
    with serving(LikelihoodServer(model)) as server:
        yield server


def likelihood_endpoint(server, cache, **options):
    return endpoint(server, cache, **({"instruction": ANSWER_INSTRUCTION} | options))


def test_they_equal_those_of_the_model_itself(model, server, tmp_path):
    reader = likelihood_endpoint(server, tmp_path)
    assert isinstance(reader, LikelihoodReader) and isinstance(model, LikelihoodReader)
    assert require_likelihoods(reader) is reader
    shapes = [(20, 30), (96, 128), (40, 33), (7, 64)]
    pictures = [picture(i, *shapes[i % 4]) for i in range(len(ANSWERS) + 1)]
    images = [[pictures[i], pictures[-1]] if i % 2 else [pictures[i]] for i in range(len(ANSWERS))]
    questions = [f"What is no. {i}?" for i in range(len(ANSWERS))]
    expected = model.likelihoods(images, questions, ANSWERS)
    told = reader.likelihoods(images, questions, [f" {answer}\n" for answer in ANSWERS])
    np.testing.assert_allclose([x.nats for x in told], [x.nats for x in expected], 0, 1e-4)
    assert [x.tokens for x in told] == [x.tokens for x in expected]
    assert not any(x.failure for x in told)
    sums = reader.log_likelihood(images, questions, ANSWERS)
    assert sums.dtype == np.float32
    np.testing.assert_allclose(sums, model.log_likelihood(images, questions, ANSWERS), 0, 1e-4)
