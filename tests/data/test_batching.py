# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import pytest

from cropvlm_jax.data import batching


def test_the_gold_answer_is_that_of_most_annotators():
    assert batching.gold_answer(["no", "Yes", "No", "yes ", "YES"]) == "Yes"
    assert batching.gold_answer(["b", "a"]) == "b"
    with pytest.raises(ValueError, match="no answer"):
        batching.gold_answer([])
