# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The cropper from Python: it proposes where to look, and zooms in front of any reader.

    from cropvlm_jax import CropVLM

    model = CropVLM.from_pretrained("runs/zoom_digits/cropper", "rapidocr:v4@256")
    zoom = model("receipt.png", "What is the total amount?")
    print(zoom.box, zoom.answer)
    zooms = model.zoom(["1.png", "2.png"], "What is the total amount?")

Shape letters: n questions, B rows of a batch.
"""

import copy
import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float
from PIL import Image

from cropvlm_jax import geometry
from cropvlm_jax.data.batching import SupervisedBatch
from cropvlm_jax.data.budgets import Budget
from cropvlm_jax.evals.calibration import Calibration
from cropvlm_jax.grpo import rollout
from cropvlm_jax.hub.export import export
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.hub.replies import Replies
from cropvlm_jax.hub.upload import upload
from cropvlm_jax.models.vlm import VLM
from cropvlm_jax.pixels import host
from cropvlm_jax.readers.ahead import ahead
from cropvlm_jax.readers.asking import ask, ask_how_sure, check_tells_how_sure
from cropvlm_jax.readers.base import Reader
from cropvlm_jax.readers.batches import Row
from cropvlm_jax.readers.inputs import Picture, blamed_on_item, check_texts, for_each
from cropvlm_jax.readers.loaded import LoadedModel
from cropvlm_jax.readers.registry import open_reader
from cropvlm_jax.zooms import Zoom, answered

BYTES = 2**28  # of pictures that the target is asked about at once, so that memory is bounded


@functools.partial(jax.jit, static_argnums=(0, 3))
def likeliest_boxes(
    graphdef: nnx.GraphDef, params: Any, batch: SupervisedBatch, grammar: geometry.Grammar
) -> Float[Array, "B 4*K+2"]:
    """The likeliest reply of each row: its K boxes in percent, its probability, 0..1, its count.

    The first box of a reply and its probability are the first five numbers where K is 1.
    """
    model = nnx.merge(graphdef, params)
    image_tokens = model.encode_images(batch.images)
    replies = rollout.likeliest(model, grammar, image_tokens, batch.prompt, batch.prompt_valid)
    boxes = replies.boxes.reshape(len(replies.boxes), -1).astype(jnp.float32)
    return jnp.concatenate([boxes, jnp.exp(replies.log_probs), replies.count], -1)


class Reply(NamedTuple):
    """What the cropper says about a picture.

    Attributes:
        boxes: percent boxes in the order of a reply; none where nothing is to be looked at. Whole
            numbers; of two looks multiples of a hundredth, see `geometry.inside`.
        confidence: probability of the reply under the cropper, 0..1, among all that it can write;
            of two looks that of both replies.
    """

    boxes: tuple[geometry.FineBox, ...]
    confidence: float

    @classmethod
    def of(cls, look: np.ndarray) -> "Reply":
        """The reply of which `likeliest_boxes` tells, fp32 `[4 K + 2]`."""
        *edges, probability, count = look.tolist()
        numbers = map(int, edges[: 4 * int(count)])
        boxes = tuple(zip(numbers, numbers, numbers, numbers, strict=True))  # four at a time
        return cls(boxes, min(probability, 1.0))  # a rounded exp(0) may exceed it

    def then(self, second: "Reply") -> "Reply":
        """This reply of one box and what the second look says of its crop, as one."""
        (outer,), (inner,) = self.boxes, second.boxes or (geometry.FULL,)
        left, top, right, bottom = geometry.inside(np.array(outer), np.array(inner)).tolist()
        return Reply(((left, top, right, bottom),), self.confidence * second.confidence)


class _Asked(NamedTuple):
    """An item that the target is asked about.

    Attributes:
        picture: uint8 RGB `[H, W, 3]`.
        question: about it.
        reply: the cropper's.
    """

    picture: np.ndarray
    question: str
    reply: Reply


class CropVLM(LoadedModel):
    """The cropper, which says where to look, in front of a target, which answers.

    Attributes:
        grammar: the boxes that the cropper's tokenizer can write.
        second_grammar: what it can reply when it is shown its crop; None where it looks once.
        target: the reader that answers, or None where only boxes are wanted.
        calibration: makes `Zoom.confidence` the probability that an answer is right; None leaves it
            the probability of the cropper's reply.
        budget: that the cropper is told after each question; None where it is told none.
    """

    calibration: Calibration | None = None
    budget: str | None = None

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
        self.grammar, self.target = source.grammar(), target
        self.second_grammar = source.second_grammar()
        most = getattr(target, "most_pictures", None)
        if target is not None and most is not None and most <= self.grammar.max_boxes:
            raise ValueError(
                f"{target.name} takes {most} picture(s) a question, and this cropper's replies of "
                f"{source.replies} show it up to {1 + self.grammar.max_boxes}: take another target"
            )

    @classmethod
    def from_pretrained(
        cls,
        cropper: str | Path,
        target: str | Path | Reader | None = None,
        *,
        dtype: Any = jnp.float32,
        longest_edge: int | None = None,
        processor: Mapping[str, Any] | None = None,
        calibration: str | Path | None = None,
        budget: str | None = None,
        mesh: Mesh | None = None,
    ) -> "CropVLM":
        """Loads a cropper, and a target where one is named.

        Args:
            cropper: a folder, a bundled model or a model of the Hugging Face Hub; or a LoRA adapter
                in PEFT's format, which is merged into its base model.
            target: any name that `open_reader` takes, such as a VLM's folder, "openai:gpt-4.1-nano"
                or "rapidocr:v4@256"; or a reader that is open. None where only boxes are wanted.
            dtype: of the computation and the weights.
            longest_edge: pixels that pictures' longest sides are resized to for the cropper; None
                takes what its own processor says.
            processor: settings of the target's image processor that replace its own, under Hugging
                Face's names; for a VLM that is named.
            calibration: a file that `evals.calibration.Calibration` wrote, for this target.
            budget: the name of one of the budgets that the cropper was trained with, such as "low",
                which it is told after each question; None tells it none.
            mesh: whose devices share the weights of both, as `VLMReader.from_pretrained` takes it.
        """
        known = None if calibration is None else Calibration.read(calibration)
        if known is not None and target is None:
            raise ValueError(f"calibration={calibration} is of a target's answers: give a target")
        if isinstance(target, (str, Path)):
            target = open_reader(target, processor=processor, dtype=dtype, mesh=mesh)
        elif target is not None and not isinstance(target, Reader):
            raise ValueError(f"a target is a name, a folder or a reader, not {target!r:.80}")
        elif processor:
            raise ValueError(
                f"processor={dict(processor)} is for a target that is opened here by its name"
            )
        source = Pretrained.open(cropper)
        if not source.architecture.can_crop:
            raise ValueError(f"{cropper}: a {source.config.model_type} may not be a cropper")
        if budget is not None:
            _check_budget(source, budget)
        longest_edge = source.longest_edge if longest_edge is None else longest_edge
        model = cls(source, source.load(mesh, dtype=dtype), longest_edge, target, mesh)
        model.calibration, model.budget = known, budget
        return model

    def with_budget(self, budget: str) -> "CropVLM":
        """The same cropper and target, with the same weights, told a budget after each question.

        Raises:
            ValueError: the cropper was not trained with this budget.
        """
        _check_budget(self.source, budget)
        told = copy.copy(self)
        told.budget = budget
        return told

    @property
    def settings(self) -> dict[str, str]:
        """What its boxes depend on besides pictures, questions and weights, for records."""
        told = {} if self.source.replies == Replies() else {"replies": str(self.source.replies)}
        return told if self.budget is None else told | {"budget": self.budget}

    @property
    def always_one_box(self) -> bool:
        """Whether each reply names one box: not several, and not none."""
        return self.grammar.max_boxes == 1 and not self.grammar.abstain

    def propose(self, images: Sequence[Picture], questions: str | Sequence[str]) -> np.ndarray:
        """Where to look in each picture for the answer to its question.

        Args:
            images: pictures of any kinds and sizes.
            questions: one for all pictures, or one for each.

        Returns:
            int32 `[n, 4]` percent boxes: of a cropper that writes several the first ones, and the
            whole picture's where it writes none; of one that looks twice fp64. `replies` tells all.
        """
        return self.look(images, questions)[0]

    def look(
        self, images: Sequence[Picture], questions: str | Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where to look, as `propose` says it, and how sure the cropper is.

        Returns:
            `[n, 4]` percent boxes; and fp32 `[n]`, the probability of each one's reply under the
            cropper among all that it can write, 0..1.
        """
        replies = self.replies(images, questions)
        boxes = [reply.boxes[0] if reply.boxes else geometry.FULL for reply in replies]
        kind = np.int32 if self.second_grammar is None else np.float64
        sure = np.array([reply.confidence for reply in replies], np.float32)
        return np.array(boxes, kind).reshape(-1, 4), sure

    def replies(self, images: Sequence[Picture], questions: str | Sequence[str]) -> list[Reply]:
        """All that the cropper says of each picture; arguments and errors as of `propose`.

        A cropper that looks twice is then asked about its crops, in conversations of their own.
        """
        questions = for_each(images, questions)
        check_texts(images, questions=questions)

        def row(asked: tuple[int, tuple[Picture, str]]) -> Row:
            number, (picture, question) = asked
            with blamed_on_item(number, len(images)):
                return self.crop_row(picture, question)

        rows = ahead(row, enumerate(zip(images, questions, strict=True), 1))
        replies = [Reply.of(look) for look in self.run(likeliest_boxes, rows, self.grammar)]
        if self.second_grammar is None:
            return replies
        asked = [number for number, reply in enumerate(replies) if reply.boxes]
        closer = (self.second_row(images[i], questions[i], replies[i]) for i in asked)
        looks = self.run(likeliest_boxes, closer, self.second_grammar)
        for number, look in zip(asked, looks, strict=True):
            replies[number] = replies[number].then(Reply.of(look))
        return replies

    def crop_row(self, picture: Picture, question: str) -> Row:
        """The conversation that asks where to look, as a row of a batch for `likeliest_boxes`.

        Raises:
            OSError: the picture cannot be read.
            ValueError: picture or question cannot be used.
        """
        seen, (grid,) = self.see([picture])
        conversation = self.conversations.crop(self._told(question), grid)
        return self.row(seen, conversation, self.grammar.max_length)

    def second_row(self, picture: Picture, question: str, reply: Reply) -> Row:
        """The conversation about the crop of a first reply, which is seen as one tile.

        As of `crop_row`, with `second_grammar`; `Reply.then` puts both replies together.
        """
        assert self.second_grammar is not None
        crop = host.cut(host.to_rgb(picture), reply.boxes[0])
        seen, grid = self.source.see(crop, self.source.tile_size)
        conversation = self.conversations.crop(self._told(question), grid)
        return self.row(seen, conversation, self.second_grammar.max_length)

    def _told(self, question: str) -> str:
        """What the cropper is asked: the question, and its budget where there is one."""
        return question if self.budget is None else Budget(self.budget, price=0.0).after(question)

    def __call__(
        self, image: Picture, question: str, *, compare: bool = True, keep_if_surer: bool = False
    ) -> Zoom:
        """Looks closer at one picture, and answers with and without having done so; see `zoom`."""
        return self.zoom([image], [question], compare=compare, keep_if_surer=keep_if_surer)[0]

    def zoom(
        self,
        images: Sequence[Picture],
        questions: str | Sequence[str],
        *,
        compare: bool = True,
        keep_if_surer: bool = False,
    ) -> list[Zoom]:
        """Looks closer at pictures, and answers with and without having done so.

        All boxes are proposed before the target is asked, so that a picture or a question that
        cannot be used is an error before anything is paid for. What the target does not answer is
        said in its `Zoom`.

        Args:
            images: pictures of any kinds and sizes: paths, bytes of files, PIL images or arrays.
            questions: one for all pictures, or one for each.
            compare: whether the target is also asked about the picture alone, a second request
                where there are crops.
            keep_if_surer: harm control: where the target is less sure of its answer with the crops
                than of that without, `answer` is that without. Asks for both, whatever `compare`
                says; readers that do not tell likelihoods as they answer are asked for these, too.

        Returns:
            A `Zoom` of each picture, in their order.

        Raises:
            OSError: a picture cannot be read; of several items the error says which.
            ReaderUnavailable: the target answers nothing at all, such as a server that is gone.
            ValueError: a picture or a question cannot be used, or the target does not tell the
                likelihoods that `keep_if_surer` needs.
        """
        if keep_if_surer:
            check_tells_how_sure(self.target)
        questions = for_each(images, questions)
        replies = self.replies(images, questions)
        zooms: list[Zoom] = []
        asked: list[_Asked] = []
        size = 0
        for image, question, reply in zip(images, questions, replies, strict=True):
            asked.append(_Asked(host.to_rgb(image), question, reply))
            size += asked[-1].picture.nbytes
            if size >= BYTES:
                zooms += self._answer(asked, compare, keep_if_surer)
                asked, size = [], 0
        return zooms + self._answer(asked, compare, keep_if_surer)

    def _answer(self, asked: Sequence[_Asked], compare: bool, keep_if_surer: bool) -> list[Zoom]:
        """Crops, and the target's answers about all these items at once, where there is one."""
        crops = [[host.cut(item.picture, box) for box in item.reply.boxes] for item in asked]
        zooms = [
            Zoom(
                boxes=item.reply.boxes,
                crops=tuple(map(Image.fromarray, cut)),
                confidence=item.reply.confidence,
                reply_probability=item.reply.confidence,
            )
            for item, cut in zip(asked, crops, strict=True)
        ]
        if self.target is None:
            return zooms
        shown = [[item.picture, *cut] for item, cut in zip(asked, crops, strict=True)]
        both = [i for i, cut in enumerate(crops) if cut and (compare or keep_if_surer)]
        put = ask_how_sure if keep_if_surer else ask
        replies = put(
            self.target,
            shown + [[asked[i].picture] for i in both],
            [item.question for item in asked] + [asked[i].question for i in both],
        )
        alone = dict(zip(both, replies[len(asked) :], strict=True))
        found = [
            answered(zoom, reply, alone.get(i), compare=compare, keep_if_surer=keep_if_surer)
            for i, (zoom, reply) in enumerate(zip(zooms, replies[: len(asked)], strict=True))
        ]
        if self.calibration is None:
            return found
        return [zoom._replace(confidence=self.calibration.confidence(zoom)) for zoom in found]

    def save_pretrained(self, folder: str | Path, *, dtype: Any = None) -> None:
        """Writes the cropper as a folder that this package and `transformers` load.

        An adapter is merged into its base model. The target is not written. README.md, a model
        card, says how to run it; one that you wrote or changed stays.

        Args:
            folder: where to; an older model folder there is replaced.
            dtype: of the stored weights; None keeps the model's.

        Raises:
            FileExistsError: `folder` holds something that is not a model.
        """
        self._export(folder, dtype, name=None)

    def _export(self, folder: str | Path, dtype: Any, name: str | None) -> None:
        """Writes the cropper; its card calls it `name`, or as the folder is called."""
        export(
            folder,
            nnx.merge(self.graphdef, self.params),
            self.source,
            dtype=dtype,
            longest_edge=self.longest_edge,
            role="cropper",
            name=name,
        )

    def push_to_hub(
        self,
        repo: str,
        *,
        dtype: Any = None,
        private: bool | None = None,
        message: str = "Upload cropper",
        token: str | None = None,
    ) -> str:
        """Publishes the cropper, as `save_pretrained` writes it, on the Hugging Face Hub.

        Args:
            repo: "user/name"; made if it is not there.
            dtype: of the stored weights; None keeps the model's.
            private: whether a new repository is private; None is the account's default.
            message: of the commit.
            token: of the account; None takes the environment's HF_TOKEN or the login that
                `hf auth login` keeps.

        Returns:
            The address of the repository.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "cropper"
            self._export(folder, dtype, name=repo)
            return upload(folder, repo, private=private, message=message, token=token)


def _check_budget(source: Pretrained, budget: str) -> None:
    if budget not in source.replies.budgets:
        names = ", ".join(source.replies.budgets) or "none"
        raise ValueError(f"budget={budget!r}: the budgets that {source.name} was told are {names}")
