# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""GRPO on the pages of any folder of PDF files; nobody has to label them.

    cropvlm train --config=experiments/pdf_pages.py --workdir=runs/pdf_pages \
        --config.data.sources.pdfs.folder=manuals --config.eval.sources.pdfs.folder=manuals

`cropvlm_jax/data/sources/pdfs.py` makes questions of the text in the files. The run starts from the
cropper of `experiments/paper/sft_1024.py` and has the settings of `paper_grpo`. No document has
pages in both training and validation. Scanned pages have no text: the log counts them and names
their files; run OCR on these first, such as `ocrmypdf IN.pdf OUT.pdf`.
"""

import ml_collections

from cropvlm_jax.training.config import source
from cropvlm_jax.training.presets import paper_grpo


def get_config() -> ml_collections.ConfigDict:
    """The paper's GRPO at 1024 px on PDF pages instead of its data sets."""
    config = paper_grpo(longest_edge=1024, reward="likelihood")
    config.data.sources = ml_collections.ConfigDict({"pdfs": source("data/pdfs")})
    config.eval.sources.pdfs = source("data/pdfs", split="val")
    config.eval.every = 100
    config.checkpoint.best = "eval/reward"
    return config
