"""Reading: quotes in prompts, words among each picture's candidates, and the baseline of raw pixels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ostension.data.task import read_task
from ostension.errors import ConfigError, DataError
from ostension.evals import ocr
from ostension.runtime import numpy_generator


def test_texts_are_asked_for_in_quotes_once():
    assert ocr.quoted("a photo of the number: {}.") == 'a photo of the number: "{}".'
    assert ocr.quoted('a photo of the number: "{}".') == 'a photo of the number: "{}".'
    assert read_task("mnist").prompt_templates() == (ocr.quoted(ocr.NUMBER_TEMPLATE),)
    with pytest.raises(ConfigError, match="exactly one"):
        ocr.quoted("no place")


def test_each_picture_is_read_among_its_own_candidates(tmp_path):
    path = tmp_path / "words.csv"
    path.write_text("id,text,lexicon\n1.png,cat,cat dog\n2.png,dog,dog cow\n3.png,cow,\n")
    words = ocr.read_words(path)
    assert words.candidates == (("cat", "dog"), ("dog", "cow"), ("cat", "dog", "cow"))
    assert words.vocabulary() == ("cat", "dog", "cow")
    images = np.array([[0.0, 0.6, 0.8], [0.8, 0.0, 0.6], [0.0, 0.8, 0.6]], np.float32)
    # 1 is most like "cow", which is none of its candidates; 2 is most like "cat", likewise.
    assert ocr.choose_words(images, words.vocabulary(), np.eye(3, dtype=np.float32), words) == ("dog", "cow", "dog")


def test_without_lexicons_all_texts_are_candidates_and_memory_is_shared(tmp_path):
    path = tmp_path / "numbers.csv"
    path.write_text("id,text\n" + "".join(f"{n}.png,{n % 40}\n" for n in range(200)))
    words = ocr.read_words(path)
    assert len(words.vocabulary()) == 40 and len({id(few) for few in words.candidates}) == 1
    rows = np.eye(40, dtype=np.float32)
    assert ocr.choose_words(rows[np.arange(200) % 40], words.vocabulary(), rows, words) == words.texts


def test_words_that_cannot_be_judged_are_named(tmp_path):
    path = tmp_path / "words.csv"
    for text, said in [
        ("id,word\n1,cat\n", "no column 'text'"),
        ("id,text\n1,cat\n1,dog\n", "comes twice"),
        ("id,text\n1,\n", "has no text"),
        ("id,text,lexicon\n1,cat,dog cow\n", "lacks 'cat'"),
        ("id,text\n", "no rows"),
    ]:
        path.write_text(text)
        with pytest.raises(DataError, match=said):
            ocr.read_words(path)


def test_raw_pixels_tell_apart_what_differs_in_pixels():
    generator = numpy_generator(0, "pixels")
    labels = np.repeat(np.array([3, 5, 9]), 30)
    images = generator.integers(0, 60, (90, 8, 8), dtype=np.uint8)
    images[np.arange(90), labels % 8] += 120
    order = generator.permutation(90)
    train, test = order[:60], order[60:]
    assert (ocr.pixel_baseline(images[train], labels[train], images[test]) == labels[test]).all()


@pytest.mark.slow
def test_raw_pixels_of_mnist_come_near_the_remembered_baseline():
    folder = os.environ.get("OSTENSION_DATA")
    if not folder or not (path := Path(folder) / "mnist_t10k" / "mnist_t10k.npz").is_file():
        pytest.skip("OSTENSION_DATA has no mnist_t10k/mnist_t10k.npz")
    arrays = np.load(path)
    order = numpy_generator(0, "split").permutation(10_000)
    train, test = order[:6_000], order[6_000:]
    labels = arrays["labels"].astype(np.int64)
    found = ocr.pixel_baseline(arrays["images"][train], labels[train], arrays["images"][test])
    # A tenth of the training pictures costs one or two points of the 92.5 that 60,000 give.
    assert 0.895 < (found == labels[test]).mean() < ocr.PIXEL_BASELINE
