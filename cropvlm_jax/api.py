# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The cropper from Python: it proposes where to look, and zooms in front of any reader.

    from cropvlm_jax import CropVLM, open_reader

    model = CropVLM.from_pretrained("runs/zoom_digits/cropper", open_reader("rapidocr:v4@256"))
    zoom = model("receipt.png", "What is the total amount?")
    print(zoom.box, zoom.answer)

Shape letters: n questions, B rows of a batch.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Int
from PIL import Image

from cropvlm_jax import geometry
from cropvlm_jax.data.batching import SupervisedBatch
from cropvlm_jax.grpo import rollout
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.models.vlm import VLM
from cropvlm_jax.pixels import host
from cropvlm_jax.readers.base import Reader, ReaderUnavailable
from cropvlm_jax.readers.batches import Row
from cropvlm_jax.readers.loaded import LoadedModel, Picture, check_texts
from cropvlm_jax.readers.vlm import VLMReader


@functools.partial(jax.jit, static_argnums=(0, 3))
def _propose(
    graphdef: nnx.GraphDef, params: Any, batch: SupervisedBatch, grammar: geometry.Grammar
) -> Int[Array, "B 4"]:
    """The likeliest box of each row, percent."""
    model = nnx.merge(graphdef, params)
    image_tokens = model.encode_images(batch.images)
    return rollout.propose(model, grammar, image_tokens, batch.prompt, batch.prompt_valid)


class Zoom(NamedTuple):
    """Where the cropper looked at a picture, and what the target says.

    Attributes:
        box: percent of the picture's width and height: left, top, right, bottom.
        crop: what is inside, of the original pixels.
        answer: to the picture and the crop, "" where the target gave none; None without a target.
        answer_without_crop: to the picture alone, "" where the target gave none; None without a
            target.
    """

    box: tuple[int, int, int, int]
    crop: Image.Image
    answer: str | None
    answer_without_crop: str | None


class CropVLM(LoadedModel):
    """The cropper, which says where to look, in front of a target, which answers.

    Attributes:
        grammar: the boxes that the cropper's tokenizer can write.
        target: the reader that answers, or None where only boxes are wanted.
    """

    def __init__(
        self,
        source: Pretrained,
        model: VLM,
        longest_edge: int,
        target: Reader | None = None,
        mesh: Mesh | None = None,
    ):
        """Puts a loaded cropper in front of a target.

        Args:
            source: where the cropper comes from.
            model: its weights.
            longest_edge: pixels that pictures' longest sides are resized to for the cropper.
            target: answers; may be None where only boxes are wanted.
            mesh: whose devices hold the weights; None where one does.
        """
        super().__init__(source, model, longest_edge, mesh)
        self.grammar, self.target = geometry.Grammar.from_tokenizer(source.tokenizer), target

    @classmethod
    def from_pretrained(
        cls,
        cropper: str | Path,
        target: str | Path | Reader | None = None,
        *,
        dtype: Any = jnp.float32,
        longest_edge: int | None = None,
        mesh: Mesh | None = None,
    ) -> "CropVLM":
        """Loads a cropper, and a target where one is named.

        Args:
            cropper: a folder, a bundled model or a model of the Hugging Face Hub; or a LoRA adapter
                in PEFT's format, which is merged into its base model.
            target: the same, of a VLM; or any reader, such as `open_reader` returns.
            dtype: of the computation and the weights.
            longest_edge: pixels that pictures' longest sides are resized to for the cropper; None
                takes what its own processor says.
            mesh: whose devices share the weights of both, as `VLMReader.from_pretrained` takes it.
        """
        if isinstance(target, (str, Path)):
            target = VLMReader.from_pretrained(target, dtype=dtype, mesh=mesh)
        elif target is not None and not isinstance(target, Reader):
            raise ValueError(f"a target is a name, a folder or a reader, not {target!r:.80}")
        source = Pretrained.open(cropper)
        if not source.architecture.can_crop:
            raise ValueError(f"{cropper}: a {source.config.model_type} may not be a cropper")
        longest_edge = source.longest_edge if longest_edge is None else longest_edge
        return cls(source, source.load(mesh, dtype=dtype), longest_edge, target, mesh)

    def propose(self, images: Sequence[Picture], questions: Sequence[str]) -> np.ndarray:
        """Where to look in each picture for the answer to its question.

        Returns:
            int32 `[n, 4]` percent boxes.
        """
        check_texts(images, questions=questions)

        def rows() -> Iterator[Row]:
            for picture, question in zip(images, questions, strict=True):
                seen, (grid,) = self.see([picture])
                conversation = self.conversations.crop(question, grid)
                yield self.row(seen, conversation, self.grammar.max_length)

        boxes = self.run(_propose, rows(), self.grammar)
        return np.array(boxes, np.int32).reshape(-1, 4)

    def __call__(self, image: Picture, question: str) -> Zoom:
        """Looks closer at one picture, and answers with and without having done so.

        Raises:
            ReaderUnavailable: something kept the target from answering, such as a server's failure.
        """
        left, top, right, bottom = self.propose([image], [question])[0].tolist()
        box = (left, top, right, bottom)
        picture = host.to_rgb(image)
        crop = host.cut(picture, box)
        zoom = Zoom(box, Image.fromarray(crop), None, None)
        if self.target is None:
            return zoom
        replies = self.target.answer([[picture, crop], [picture]], [question] * 2)
        for reply in replies:
            if reply.unanswered:
                raise ReaderUnavailable(f"{self.target.name} did not answer: {reply.failure}")
        return zoom._replace(answer=replies[0].text, answer_without_crop=replies[1].text)
