# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Readers: chat endpoints over real HTTP, and real OCR readers."""

import base64
import concurrent.futures
import io
import logging
import shutil
import stat

import numpy as np
import pytest
from chat_server import KEY, endpoint, picture, serving
from PIL import Image, ImageDraw, ImageFont

from cropvlm_jax.hub.pretrained import resolve
from cropvlm_jax.readers import chat, registry
from cropvlm_jax.readers.base import ReaderUnavailable, Reply
from cropvlm_jax.readers.chat import ChatReader
from cropvlm_jax.readers.ocr import OCRReader
from cropvlm_jax.readers.registry import open_reader


@pytest.fixture
def server():
    with serving() as server:
        yield server


RECOVERED = [
    "500 ok", "429 ok", "429after ok", "429date ok", "503 502 ok", "half ok", "invalid ok",
    "html ok", "shapeless ok", "wrong ok", "slow ok", "trickle ok", "408 ok", "half invalid 500 ok",
]  # fmt: skip
FAILED = {
    "500": "HTTP 500: ", "429": "HTTP 429: ", "half": "connection: ", "invalid": "broken body: ",
    "shapeless": "broken body: ", "choiceless": "broken body: ", "slow": "timeout: ",
    "trickle": "timeout: ", "400": "HTTP 400: ",
    "refusal": "refusal: I can't help", "filtered": "refusal: content filter", "empty": "empty",
    "nothing": "empty",
}  # fmt: skip


def test_no_item_is_lost_and_every_failure_is_said(server, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    questions = [*RECOVERED, *FAILED, "plain"]
    target = endpoint(server, tmp_path)
    images = [[picture(i)] for i in range(len(questions))]
    replies = dict(zip(questions, target.answer(images, questions), strict=True))
    for question in RECOVERED:
        assert replies[question] == Reply("said ok."), question
        assert server.tries[f"{question}\n{chat.ANSWER_BRIEFLY}"] == len(question.split())
    for question, failure in FAILED.items():
        reply = replies[question]
        assert reply.text == "" and reply.failure.startswith(failure), (question, reply)
        assert reply.unanswered == (reply.kind not in ("refusal", "empty"))
        tries = 4 if reply.unanswered and question != "400" else 1
        assert server.tries[f"{question}\n{chat.ANSWER_BRIEFLY}"] == tries
    assert replies["plain"] == Reply("said plain.")
    waits = {q.split("\n")[0]: np.diff(times) for q, times in server.times.items() if times[1:]}
    assert waits["429after ok"][0] >= 0.3
    assert waits["500 ok"][0] < 0.3

    # Asked again, only what was not answered is sent; the rest comes from the disk.
    server.requests.clear()
    rerun = endpoint(server, tmp_path, attempts=1).answer(images, questions)
    again = dict(zip(questions, rerun, strict=True))
    asked = (body["messages"][0]["content"][-1]["text"] for *_, body in server.requests)
    sent = {text.split("\n")[0] for text in asked}
    assert sent == {q for q in FAILED if replies[q].unanswered or replies[q].kind == "empty"}
    assert {"500", "429", "half", "invalid", "slow", "trickle", "400"} < sent
    assert all(again[q] == replies[q] for q in questions if q not in sent)

    # The key was sent, and is nowhere else, though the server repeats it.
    assert all(headers["authorization"] == f"Bearer {KEY}" for _, headers, _ in server.requests)
    assert "***" in replies["500"].failure
    assert KEY not in caplog.text and "attempt" in caplog.text
    assert KEY not in "".join(map(str, (*replies.values(), vars(target).get("name"))))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == len(questions) - len(sent)
    assert not any(KEY.encode() in path.read_bytes() for path in files)


def test_halves_of_surrogate_pairs_are_mended_in_replies_and_refused_in_questions(server, tmp_path):
    target = endpoint(server, tmp_path, attempts=1)
    questions = ["lone", "lonerefusal", "400lone"]
    for _ in range(2):  # from the server, then from the disk
        replies = target.answer([[picture()]] * 3, questions)
        assert replies[0] == Reply("said \ufffd")
        assert replies[1] == Reply("", "refusal: No \ufffd.")
        assert all(reply.failure.encode() or reply.text for reply in replies)
    with pytest.raises(ValueError, match="question 1 cannot be written as UTF-8"):
        target.answer([[picture()]], ["\ud83d"])


def test_what_is_sent(server, tmp_path):
    target = endpoint(server, tmp_path, longest_edge=20, max_tokens=7)
    assert target.name == "m@20"
    small, large = picture(1), picture(2, 30, 40)
    target.answer([[small, large]], ["ok"])
    ((path, _, body),) = server.requests
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 7)
    *pictures, text = body["messages"][0]["content"]
    assert text["text"].startswith("ok\n")
    seen = []
    for part in pictures:
        head, data = part["image_url"]["url"].split(",")
        assert head == "data:image/png;base64"
        seen.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))))
    np.testing.assert_array_equal(seen[0], small)  # smaller pictures stay as they are
    assert seen[1].shape == (15, 20, 3)


def test_the_cache_tells_apart_whatever_changes_a_reply(server, tmp_path):
    one, other = picture(1), picture(2)
    for images, question, options in [
        ([one], "ok", {}),
        ([other], "ok", {}),
        ([one, other], "ok", {}),
        ([other, one], "ok", {}),
        ([one], "ok ok", {}),
        ([one], "ok", dict(max_tokens=9)),
        ([picture(3, 30, 40)], "ok", dict(longest_edge=20)),
        ([picture(3, 30, 40)], "ok", dict(longest_edge=10)),
    ]:
        for times in (1, 0):  # sent once, and then no more
            server.requests.clear()
            endpoint(server, tmp_path, **options).answer([images], [question])
            assert len(server.requests) == times
    for path in tmp_path.rglob("*.json"):
        path.write_text('{"text": "sai')  # as if the disk had been full
    server.requests.clear()
    assert endpoint(server, tmp_path).answer([[one]], ["ok"]) == [Reply("said ok.")]
    assert len(server.requests) == 1


def test_requests_under_way_are_limited(server, tmp_path):
    questions = [f"pause {i}" for i in range(12)]
    endpoint(server, tmp_path, concurrency=3).answer([[picture()]] * 12, questions)
    assert 2 <= server.busiest <= 3 and len(server.requests) == 12


@pytest.mark.parametrize("status", ["401", "403", "404"])
def test_a_wrong_key_or_model_ends_the_run_at_once(server, tmp_path, status):
    with pytest.raises(ReaderUnavailable, match=f"m at .*HTTP {status}.*") as raised:
        endpoint(server, tmp_path).answer([[picture()]] * 40, [status] * 40)
    assert KEY not in str(raised.value)
    assert len(server.requests) < 40


def test_openai_needs_a_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        open_reader("openai:gpt-4.1-nano")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    target = open_reader("openai:ft:gpt-4.1-nano:me::1@512", "http://127.0.0.1:9/v1")
    assert (target.model, target.longest_edge) == ("ft:gpt-4.1-nano:me::1", 512)
    assert KEY not in repr(vars(target)["name"])


# Readers ------------------------------------------------------------------------------------------


def page() -> tuple[np.ndarray, np.ndarray]:
    """A page with small print, and a crop of what is printed."""
    image = Image.new("RGB", (1600, 1200), "white")
    font = ImageFont.load_default(22)
    ImageDraw.Draw(image).text((1000, 700), "TOTAL 48.15", fill="black", font=font)
    return np.asarray(image), np.asarray(image.crop((900, 650, 1300, 800)))


@pytest.mark.parametrize("spec", ["rapidocr:v4@200", "rapidocr:v6@200", "tesseract@400"])
def test_a_real_reader_reads_in_the_crop_what_it_cannot_read_in_the_picture(spec):
    if spec.startswith("rapidocr:v4"):
        pytest.importorskip("rapidocr_onnxruntime")  # of which there is none for Python 3.13
    if spec.startswith("tesseract") and not shutil.which("tesseract"):
        pytest.skip("no tesseract here: apt-get install tesseract-ocr")
    reader = open_reader(spec)
    whole, crop = page()
    alone, both, crop_alone = reader.answer([[whole], [whole, crop], [crop]], ["What?"] * 3)
    assert reader.name == spec
    assert "48.15" not in alone.text and alone.kind in ("", "empty")
    assert "48.15" in both.text and "48.15" in crop_alone.text and not both.failure


def test_a_reader_reads_each_picture_once_at_its_input_size():
    seen = []

    def read(picture):
        seen.append(picture.shape)
        if picture[0, 0, 0] == 255:
            raise ValueError("cannot")
        return f" {picture[0, 0, 0]} "

    grey = [np.full((20, 10 * i, 3), i, np.uint8) for i in range(1, 4)]
    reader = OCRReader("mine", read, longest_edge=40)
    asked = [[grey[0], grey[1]], [grey[0].copy(), grey[2]], [grey[0]]]
    assert reader.answer(asked, ["?"] * 3) == [Reply("1\n2"), Reply("1\n3"), Reply("1")]
    assert reader.answer(asked, ["?"] * 3)[0] == Reply("1\n2")
    assert sorted(seen) == [(26, 40, 3), (40, 20, 3), (40, 40, 3)]
    broken = np.full((20, 20, 3), 255, np.uint8)
    first, second = reader.answer([[broken], [grey[0], broken]], ["?"] * 2)
    assert first.failure == second.failure == "engine: cannot" and first.unanswered
    reader.answer([[broken]], ["?"])
    assert len(seen) == 5  # failures are no text to remember
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        replies = pool.map(lambda _: reader.answer(asked, ["?"] * 3), range(32))
    assert all(reply == [Reply("1\n2"), Reply("1\n3"), Reply("1")] for reply in replies)


def test_tesseract_is_asked_over_pipes_and_may_fail(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt-get install tesseract-ocr"):
        open_reader("tesseract@384")
    program = tmp_path / "tesseract"
    program.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo "tesseract 5.9"; exit; }\n'
        '[ "$5" = -l ] || exit 3\necho "no data" >&2\nexit 1\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    target = open_reader("tesseract")
    assert target.settings == {"tesseract": "tesseract 5.9"}  # another one's records are not taken
    (reply,) = target.answer([[picture()]], ["?"])
    assert reply.failure == "engine: tesseract: no data"


def test_readers_by_name():
    assert open_reader("zoom_digits/target").name == "zoom_digits/target"
    nameless = ("", "openai", "openai:", "rapidocr", "vlm", "vlm:", "tesseract:eng", "openai@256")
    for spec in ("rapidocr:v5", "ocr:v4", "rapidocr:", "tesseract@0", "x/y@0", *nameless):
        with pytest.raises(ValueError, match=spec):
            open_reader(spec)
    boxes = ["rapidocr:v4", "tesseract@384", "tesseract", "openai:x", "vlm:zoom_digits/target@64"]
    assert all(map(registry.is_black_box, boxes))
    assert not any(map(registry.is_black_box, ["zoom_digits/target", "tesseract-vlm/x", "open"]))


def test_a_folder_may_have_an_at_sign_in_its_name(tmp_path):
    folder = shutil.copytree(resolve("zoom_digits/target"), tmp_path / "reader@32")
    for spec in (folder, str(folder)):
        assert open_reader(spec).longest_edge == 64  # its own, not 32
    assert open_reader(f"{folder}@128").longest_edge == 128
    assert registry.is_vlm(folder) and not registry.is_vlm("tesseract@256")


def test_pictures_of_any_kind_with_or_without_lists_of_their_own(server, tmp_path):
    array = picture(1, 30, 40)
    Image.fromarray(array).save(tmp_path / "a.png")
    path, image = tmp_path / "a.png", Image.fromarray(array)
    shapes = []

    def read(seen):
        shapes.append((seen.shape, seen.dtype))
        return str(int(seen.sum()))

    for reader in (OCRReader("mine", read), endpoint(server, tmp_path / "cache")):
        flat = reader.answer([array, image, path, str(path), path.read_bytes()], ["ok"] * 5)
        nested = reader.answer([[array], [image], [path, array]], ["ok"] * 3)
        assert len({*flat, *nested[:2]}) == 1 and not flat[0].failure
        for wrong, message in [
            ([array, 3], "item 2: a picture is .* not int"),
            ([[array, None]] * 2, "item 1: a picture is .* not NoneType"),
            ([array], "1 images but 2 questions"),
            ([array, []], "1 to 5 pictures"),
            ([[array] * 6, array], "1 to 5 pictures"),
            (array, "images must be a list of pictures, not ndarray"),
            ([array, np.zeros((4, 4, 3))], "item 2: .*must be uint8"),
            ([array, np.zeros((0, 4, 3), np.uint8)], "item 2: .*no pixels"),
        ]:
            with pytest.raises(ValueError, match=message):
                reader.answer(wrong, ["ok"] * 2)
        with pytest.raises(FileNotFoundError, match="item 1: .*none.png"):
            reader.answer([tmp_path / "none.png", array], ["ok"] * 2)
        assert reader.answer([], []) == []
    assert set(shapes) == {((30, 40, 3), np.dtype(np.uint8))}


def test_a_vlm_says_answers_likelihoods_and_tokens():
    target = open_reader("vlm:zoom_digits/target@64")
    image = picture(0, 64, 64)
    (reply,) = target.answer([[image, image]], ["What digit is in the red frame?"])
    assert reply.text and not reply.failure
    likelihood = target.log_likelihood([[image]], ["What digit is in the red frame?"], ["3"])
    assert likelihood.shape == (1,) and likelihood[0] < 0
    tokens = target.source.config.image_seq_len
    assert target.image_tokens([[image, image], [image]]) == 3 * tokens


def test_an_answer_of_no_tokens_is_refused():
    with pytest.raises(ValueError, match="m: max_tokens=0 must be at least 1"):
        ChatReader("m", base_url="http://localhost:1/v1", max_tokens=0)
