# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The snippet of an exported cropper's card, run as printed, gives the boxes that we give."""

import re

import numpy as np
from PIL import Image

from cropvlm_jax.api import CropVLM
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.hub.export import export
from cropvlm_jax.hub.pretrained import Pretrained

SCENES, RELOADED = 50, 10


def test_transformers_writes_the_same_boxes(tmp_path, monkeypatch):
    source = Pretrained.open("zoom_digits/cropper")
    folder = tmp_path / "cropper"
    export(folder, source.load(), source)
    scenes = [ZoomDigits("test", SCENES)[i] for i in range(SCENES)]
    pictures = [Image.fromarray(scene["image"]) for scene in scenes]
    questions = [scene["question"] for scene in scenes]
    ours = CropVLM.from_pretrained(folder).propose(pictures, questions)

    monkeypatch.chdir(tmp_path)
    pictures[0].save("picture.jpg")
    card = (folder / "README.md").read_text()
    snippet = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    space: dict = {}
    exec(snippet, space)
    theirs = [space["propose"](*asked) for asked in zip(pictures, questions, strict=True)]
    np.testing.assert_array_equal(theirs, ours)

    again = tmp_path / "again"  # as transformers saves it
    space["model"].save_pretrained(again)
    space["processor"].save_pretrained(again)
    exec(snippet.replace(str(folder), str(again)), space)
    assert space["folder"] == str(again)
    few = pictures[:RELOADED], questions[:RELOADED]
    theirs = [space["propose"](*asked) for asked in zip(*few, strict=True)]
    np.testing.assert_array_equal(theirs, ours[:RELOADED])
    np.testing.assert_array_equal(CropVLM.from_pretrained(again).propose(*few), ours[:RELOADED])
