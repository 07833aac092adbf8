# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Vision-language models of ours as readers."""

import hashlib
from collections.abc import Sequence

import numpy as np

from cropvlm_jax import api, geometry
from cropvlm_jax.models.qwen2_5_vl import QwenConfig
from cropvlm_jax.models.smolvlm import SmolVLMConfig
from cropvlm_jax.pixels import host
from cropvlm_jax.readers.base import Reply, said


class VLMReader:
    """A model of ours (`api.Target`).

    Attributes:
        name: of the model.
        settings: what replies depend on, for reports and records.
    """

    def __init__(self, model: api.Target, name: str):
        """Wraps a loaded model."""
        self.model, self.name = model, name
        shape = hashlib.sha256(repr(model.source.config).encode()).hexdigest()[:16]
        self.settings = {"config": shape}

    def answer(
        self, images: Sequence[Sequence[np.ndarray]], questions: Sequence[str]
    ) -> list[Reply]:
        """Greedy answers, as `Reader.answer`."""
        texts = self.model.answer(images, questions)
        return [said(text) for text in texts]

    def log_likelihood(
        self,
        images: Sequence[Sequence[np.ndarray]],
        questions: Sequence[str],
        answers: Sequence[str],
    ) -> np.ndarray:
        """Log-likelihoods of answers, fp32 `[n]`, in nats, summed over tokens and the end token."""
        return self.model.log_likelihood(images, questions, answers)

    def answer_tokens(self, answers: Sequence[str]) -> np.ndarray:
        """Tokens that `log_likelihood` sums over, the end token included, int `[n]`."""
        spans = [self.model.prompts.answer("?", 1, answer).completion for answer in answers]
        return np.array([span.stop - span.start for span in spans])

    def image_tokens(self, images: Sequence[Sequence[np.ndarray]]) -> int:
        """Tokens that all these pictures take together."""
        pictures = [picture for some in images for picture in some]
        return sum(self._tokens_of(*picture.shape[:2]) for picture in pictures)

    def _tokens_of(self, height: int, width: int) -> int:
        source = self.model.source
        if isinstance(source.config, QwenConfig):
            limits = source.config.limits
            size = geometry.smart_resize(
                height, width, limits.factor, limits.min_pixels, limits.max_pixels
            )
            return size[0] * size[1] // limits.factor**2
        if isinstance(source.config, SmolVLMConfig):
            rows, columns = host.grid(height, width, source.tile_size, self.model.longest_edge)
            return (rows * columns + 1) * source.config.image_seq_len
        return source.config.image_seq_len
