# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Model cards of exports: what they say is so, their snippets run, a user's own card stays."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import tiny_llava
from flax import nnx
from huggingface_hub import ModelCard
from PIL import Image

from cropvlm_jax.api import CropVLM
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.hub import chat_template
from cropvlm_jax.hub.adapter_export import export_adapter
from cropvlm_jax.hub.export import export, export_processor
from cropvlm_jax.hub.model_card import NOT_RECORDED, Run
from cropvlm_jax.hub.pretrained import BUNDLED, Pretrained
from cropvlm_jax.models import lora
from cropvlm_jax.models.smolvlm.processor_files import CHAT_TEMPLATE
from cropvlm_jax.readers.vlm import VLMReader

NAME = "zoom_digits/cropper"
RUN = Run(
    title="GRPO, 1,200 steps",
    facts={"data `mine`": "split train | a"},
    settings=["--config.grpo.beta=0.01"],
    metrics={"eval/reward": 0.123456},
    measured_after=1_100,
)
SCENES = [ZoomDigits("test", 4)[i] for i in range(4)]
PICTURES = [Image.fromarray(scene["image"]) for scene in SCENES]
QUESTIONS = [scene["question"] for scene in SCENES]


def card(folder: pathlib.Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def snippet(folder: pathlib.Path) -> str:
    """The first snippet of a card."""
    return re.findall(r"```python\n(.*?)```", card(folder).text, re.DOTALL)[0]


@pytest.fixture
def source(tmp_path):
    """The bundled cropper, in a folder with a plain README.md of someone else."""
    folder = shutil.copytree(BUNDLED / NAME, tmp_path / "start")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n## Training\n\nSecret.\n\n## End\n")
    return Pretrained.open(folder)


def test_it_says_what_is_known(source, tmp_path):
    export(tmp_path / "out", source.load(), source, run=RUN)
    data, text = card(tmp_path / "out").data, card(tmp_path / "out").text
    assert data.library_name == "transformers" and data.pipeline_tag == "image-text-to-text"
    assert data.license == "mit" and "mit: that is what the card of the model says" in text
    assert {"cropvlm", "cropvlm_jax", "cropper"} <= set(data.tags)
    assert data.base_model is None and "No base model on the Hugging Face Hub is known" in text
    for part in (
        "### GRPO, 1,200 steps",
        "| data `mine` | split train \\| a |",
        "--config.grpo.beta=0.01",
        "On held-out examples after step 1100:",
        "| `eval/reward` | 0.1235 |",
        f'folder = "{tmp_path / "out"}"',
        "`[x1, y1, x2, y2].`",
        "a longest edge of 64 px, as one tile",
        "2511.19820",
    ):
        assert part in text, part
    assert "Secret" not in text and "$" not in text


def test_earlier_training_and_the_base_are_handed_on(source, tmp_path, monkeypatch):
    def download(name, **options):
        assert "README.md" in options["allow_patterns"]
        return str(source.folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    hub = Pretrained.open("some/base")
    export(tmp_path / "sft", hub.load(), hub, role="cropper", run=RUN)
    sft = Pretrained.open(tmp_path / "sft")
    later = Run("GRPO, 2 steps", {"started from": "`sft`"})
    export(tmp_path / "grpo", sft.load(), sft, run=later)
    last = Pretrained.open(tmp_path / "grpo")
    export(tmp_path / "half", last.load(), last, dtype="bfloat16", name="user/name")
    for folder in ("sft", "grpo", "half"):
        data = card(tmp_path / folder).data
        assert (data.base_model, data.license) == ("some/base", "mit")
        assert data.base_model_relation == "finetune"
        assert "[some/base](https://huggingface.co/some/base)" in card(tmp_path / folder).text
    titles = re.findall(r"^### (.*)$", card(tmp_path / "half").text, re.MULTILINE)
    assert titles == ["GRPO, 2 steps", "GRPO, 1,200 steps"]
    assert 'folder = "user/name"' in card(tmp_path / "half").text
    assert "This run evaluated no held-out examples." in card(tmp_path / "half").text


def test_what_is_not_known_is_said(source, tmp_path):
    for content in (None, "", "---\n: [\n---\n", "---\n- a\n---\n", "no metadata"):
        (source.folder / "README.md").unlink(missing_ok=True)
        if content is not None:
            (source.folder / "README.md").write_text(content)
        export(tmp_path / "out", source.load(), source)
        text = card(tmp_path / "out").text
        assert card(tmp_path / "out").data.license is None
        assert "Unknown: no card" in text and NOT_RECORDED in text


def test_a_user_s_own_card_stays(source, tmp_path):
    out, model = tmp_path / "out", source.load()
    export(out, model, source)
    written = (out / "README.md").read_text()
    export(out, model, source, run=RUN)
    assert "GRPO, 1,200 steps" in (out / "README.md").read_text() != written  # it was ours
    changed = (out / "README.md").read_text().replace("1,200", "1,300")
    for own in ("Mine.\n", changed, f"Mine.\n{written}", f"{written}More.\n"):
        (out / "README.md").write_text(own)
        export(out, model, source)
        export_processor(out, source, 64)
        assert (out / "README.md").read_text() == own
        shutil.copyfile(source.folder / "config.json", out / "config.json")
    opened = Pretrained.open(out)
    (out / "README.md").write_text(changed)
    export(tmp_path / "next", opened.load(), opened)  # what a user corrected is handed on
    assert "GRPO, 1,300 steps" in card(tmp_path / "next").text


def run_snippet(folder: pathlib.Path, monkeypatch) -> dict:
    """Runs the first snippet of a card, as it is printed, where there is a picture."""
    PICTURES[0].save(folder.parent / "picture.jpg")
    monkeypatch.chdir(folder.parent)
    space: dict = {}
    exec(snippet(folder), space)
    return space


def test_the_snippet_of_an_adapter(source, tmp_path, monkeypatch):
    model = lora.add(source.load(), lora.LoRAConfig(rank=2), nnx.Rngs(0))
    model.connector.lora_b[...] += 0.05
    export_adapter(tmp_path / "adapter", model, str(source.folder))
    export_processor(tmp_path / "adapter", source, source.longest_edge, "cropper", RUN)
    assert card(tmp_path / "adapter").data.library_name == "peft"
    space = run_snippet(tmp_path / "adapter", monkeypatch)
    theirs = [space["propose"](*asked) for asked in zip(PICTURES, QUESTIONS, strict=True)]
    ours = CropVLM.from_pretrained(tmp_path / "adapter").propose(PICTURES, QUESTIONS)
    np.testing.assert_array_equal(theirs, ours)
    base = CropVLM.from_pretrained(source.folder).propose(PICTURES, QUESTIONS)
    assert not np.array_equal(base, ours)

    merged = Pretrained.open(tmp_path / "adapter")  # is a cropper because the adapter is one
    export(tmp_path / "merged", merged.load(), merged)
    assert "GRPO, 1,200 steps" in card(tmp_path / "merged").text
    assert "cropper" in card(tmp_path / "merged").data.tags


def test_an_adapter_names_its_base(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(BUNDLED / NAME))
    export_processor(tmp_path / "hub", Pretrained.open("some/base"), 64, "cropper", RUN)
    data = card(tmp_path / "hub").data
    assert (data.base_model, data.base_model_relation) == ("some/base", "adapter")
    assert '("some/base", dtype="float32")' in snippet(tmp_path / "hub")
    export_processor(tmp_path / "bundled", Pretrained.open(NAME), 64, "cropper", RUN)
    assert card(tmp_path / "bundled").data.base_model is None
    assert f'(resolve("{NAME}"), dtype="float32")' in snippet(tmp_path / "bundled")


@pytest.mark.parametrize("kind", ["smolvlm", "llava"])
def test_the_snippet_of_a_reader(kind, tmp_path, monkeypatch):
    name = "zoom_digits/target"
    if kind == "llava":
        name = tmp_path / "llava"
        tiny_llava.write_folder(name, tiny_llava.make_config())
    source = Pretrained.open(name)
    export(tmp_path / "out", source.load(), source, role="reader", run=RUN)
    assert "reader" in card(tmp_path / "out").data.tags
    space = run_snippet(tmp_path / "out", monkeypatch)
    asked = [[picture, picture.crop((0, 0, 40, 40))] for picture in PICTURES]
    theirs = [space["answer"](*pair) for pair in zip(asked, QUESTIONS, strict=True)]
    ours = VLMReader.from_pretrained(tmp_path / "out").answer(asked, QUESTIONS, max_tokens=32)
    assert theirs == [reply.text for reply in ours]


def test_the_bundled_cards():
    for name, role in ((NAME, "cropper"), ("zoom_digits/target", "reader")):
        text = (BUNDLED / name / "README.md").read_text()
        assert role in card(BUNDLED / name).data.tags
        assert card(BUNDLED / name).data.license == "apache-2.0"
        scores = json.loads(pathlib.Path("experiments/zoom_digits/start_weights.json").read_text())
        last = scores[name.split("/")[1]]["courses"][-1]["validation"]
        for metric, value in last.items():
            assert f"| `{metric}` | {value:.4g} |" in text


def test_what_is_published_from_python_is_a_cropper(source, monkeypatch):
    (source.folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)  # as of an older export
    published = []

    def upload(folder, repo, **options):
        published.append((card(folder), chat_template.read(folder)))
        return repo

    monkeypatch.setattr("cropvlm_jax.api.upload", upload)
    CropVLM.from_pretrained(source.folder).push_to_hub("user/name")
    (written, template), *_ = published
    assert 'folder = "user/name"' in written.text and "cropper" in written.data.tags
    assert chat_template.asks_for_boxes(template)
