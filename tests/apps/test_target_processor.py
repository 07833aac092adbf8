# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What --target_processor says."""

import pytest
from absl import app

from cropvlm_jax.apps import target_processor


def test_settings_are_read_with_their_types():
    pairs = ["do_pad=True", "max_pixels=802816", " size = 3"]
    settings = target_processor.read(pairs, ["tesseract", "x/y"])
    assert settings == {"do_pad": True, "max_pixels": 802816, "size": 3}
    assert target_processor.read([], []) == {}


@pytest.mark.parametrize("pair", ["max_pixels", "max_pixels=", "max_pixels=many", "=3", ""])
def test_what_is_no_setting_is_refused(pair):
    with pytest.raises(app.UsageError, match="takes pairs such as max_pixels=802816"):
        target_processor.read([pair], ["x/y"])


@pytest.mark.parametrize("targets", [[], ["tesseract@256", "openai:m"]])
def test_without_a_vlm_there_is_nothing_to_set(targets):
    with pytest.raises(app.UsageError, match="no target is one"):
        target_processor.read(["do_pad=true"], targets)
