# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Chat templates of exports: a cropper's asks for a box, once; what is no question stays."""

import json
import shutil

import pytest
import tiny_llava
from transformers.utils.chat_template_utils import render_jinja_template

from cropvlm_jax.hub import chat_template
from cropvlm_jax.hub.export import export
from cropvlm_jax.hub.pretrained import BUNDLED, Pretrained
from cropvlm_jax.models.smolvlm.conversations import CROP_INSTRUCTION
from cropvlm_jax.models.smolvlm.processor_files import ASK_FOR_BOX, CHAT_TEMPLATE

# As released, which has no part for a content that is a string.
RELEASED = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
ASKING = [chat_template.asking(base, ASK_FOR_BOX) for base in (CHAT_TEMPLATE, RELEASED)]
IMAGE = {"type": "image"}
END = "<end_of_utterance>\n"


def text(content):
    return {"type": "text", "text": content}


def user(*content):
    return {"role": "user", "content": list(content)}


def render(template, *messages, prompt=True):
    written, _ = render_jinja_template(
        [list(messages)], chat_template=template, add_generation_prompt=prompt
    )
    return written[0]


def asked(question):
    return f"{question}\n{CROP_INSTRUCTION}{END}"


@pytest.mark.parametrize("template", ASKING)
@pytest.mark.parametrize(
    "content",
    [
        (IMAGE, text("where is it?")),
        (IMAGE, text("  Where is it? \n")),
        (text("Where is it?"), IMAGE),
        (IMAGE, text(f"Where is it?\n{CROP_INSTRUCTION}")),
        (IMAGE, text(f"where is it?\n{CROP_INSTRUCTION} ")),
        (IMAGE, text("Where "), text("is it?")),
        ({"type": "image", "url": "picture.jpg"}, text("Where is it?")),
    ],
)
def test_a_plain_question_asks_for_a_box_once(template, content):
    expected = f"<|im_start|>User:<image>{asked('Where is it?')}Assistant:"
    assert render(template, user(*content)) == expected


@pytest.mark.parametrize("template", ASKING)
def test_the_prompt_is_that_of_the_conversations(template):
    conversations = Pretrained.open("zoom_digits/cropper", weights=False).conversations()
    for question in ("what is red?", "Was ist größer als 5 %?", "écrit où?", "a\nb", "{{ x }} {%"):
        ours = conversations.crop(question)
        start = ours.question.start
        theirs = render(template, user(IMAGE, text(question))).split("<image>")[1]
        tokenizer = Pretrained.open("zoom_digits/cropper", weights=False).tokenizer
        assert tokenizer.encode(theirs, add_special_tokens=False).ids == ours.ids[start:].tolist()


@pytest.mark.parametrize("template", ASKING)
def test_each_question_of_a_conversation_with_a_picture_asks(template):
    messages = [
        {"role": "system", "content": [text("Be exact.")]},
        user(IMAGE, text("Where is it?")),
        {"role": "assistant", "content": [text("[1, 2, 3, 4].")]},
        user(text("and the other?")),
    ]
    written = f"<|im_start|>System: Be exact.{END}User:<image>{asked('Where is it?')}"
    written += f"Assistant: [1, 2, 3, 4].{END}User: {asked('And the other?')}"
    assert render(template, *messages) == f"{written}Assistant:"
    assert render(template, *messages, prompt=False) == written
    strings = [*messages[:2], {"role": "assistant", "content": "[1, 2, 3, 4]."}]
    strings.append({"role": "user", "content": "And the other?"})
    assert render(template, *strings, prompt=False) == written


@pytest.mark.parametrize("template", ASKING)
@pytest.mark.parametrize(
    "messages",
    [
        [user(text("hello"))],
        [user(text("hello")), {"role": "assistant", "content": [text("Hi.")]}, user(text("and?"))],
        [user(IMAGE)],
        [user(IMAGE, text("   "))],
        [user(text("hello")), user(IMAGE)],
        [{"role": "assistant", "content": [IMAGE, text("see")]}],
        [user({"type": "video"}, text("what happens?"))],
    ],
)
def test_what_asks_nothing_of_a_picture_stays(template, messages):
    assert render(template, *messages) == render(chat_template.plain(template), *messages)


def test_a_template_asks_once_and_can_be_made_plain():
    for base in (CHAT_TEMPLATE, RELEASED):
        once = chat_template.asking(base, ASK_FOR_BOX)
        assert chat_template.asking(once, ASK_FOR_BOX) == once
        assert chat_template.plain(once) == base
        assert chat_template.asks_for_boxes(once) and not chat_template.asks_for_boxes(base)


@pytest.fixture
def copy(tmp_path):
    """A copy of the bundled cropper with a plain template."""
    folder = shutil.copytree(BUNDLED / "zoom_digits/cropper", tmp_path / "start")
    (folder / chat_template.FILE).write_text(RELEASED)
    (folder / "README.md").unlink(missing_ok=True)
    return folder


PLACES = [chat_template.FILE, *chat_template.JSON_FILES]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("role", ["cropper", "reader", None])
def test_an_export_has_one_template_wherever_it_was(copy, tmp_path, place, role):
    if place != chat_template.FILE:
        (copy / chat_template.FILE).unlink()
        file = copy / place
        content = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(content | {chat_template.KEY: RELEASED}))
    opened = Pretrained.open(copy)
    export(tmp_path / "out", opened.load(), opened, role=role)
    wanted = ASKING[1] if role == "cropper" else RELEASED
    assert chat_template.read(tmp_path / "out") == wanted
    if role == "cropper":
        found = [(tmp_path / "out" / name).read_text() for name in chat_template.JSON_FILES[1:]]
        assert not any(chat_template.KEY in content for content in found)
        assert not (tmp_path / "out" / chat_template.LEGACY).exists()

    again = Pretrained.open(tmp_path / "out")
    export(tmp_path / "again", again.load(), again)
    assert chat_template.read(tmp_path / "again") == wanted
    export(tmp_path / "reader", again.load(), again, role="reader")
    assert chat_template.read(tmp_path / "reader") == RELEASED


def test_prompts_of_this_package_do_not_depend_on_it(copy, tmp_path):
    plain = Pretrained.open(copy)
    export(tmp_path / "out", plain.load(), plain, role="cropper")
    asking = Pretrained.open(tmp_path / "out")
    for question in ("what is red?", "Where is it?"):
        for kind in ("crop", "answer"):
            one, other = (getattr(p.conversations(), kind)(question).ids for p in (plain, asking))
            assert one.tolist() == other.tolist()


def test_what_cannot_crop_is_no_cropper(tmp_path):
    tiny_llava.write_folder(tmp_path / "llava", tiny_llava.make_config())
    source = Pretrained.open(tmp_path / "llava")
    with pytest.raises(ValueError, match="llava: a llava may not be a cropper"):
        export(tmp_path / "out", source.load(), source, role="cropper")
    assert not (tmp_path / "out").exists()
