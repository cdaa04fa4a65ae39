"""Queries as arithmetic: what is a term, what is a word with a hyphen, and which vector comes of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ostension.errors import DataError, UsageError
from ostension.store.query import Expression, Term, parse, vectors


class Words:
    """Embeds a text or a path as the unit vector of its length's direction; notes what it was asked."""

    def __init__(self):
        self.asked = []

    def embed_texts(self, texts):
        self.asked.append(list(texts))
        return np.array([[len(text), 1.0, 0.0] for text in texts], np.float32)

    def embed_images(self, images, batch_size=32):
        self.asked.append(list(images))
        return np.array([[0.0, 1.0, len(image)] for image in images], np.float32)


def terms(text):
    return [(term.kind, term.value, term.weight) for term in parse(text).terms]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog on the beach", [("text", "a dog on the beach", 1)]),
        ("a black-and-white t-shirt", [("text", "a black-and-white t-shirt", 1)]),
        ("-5 degrees", [("text", "-5 degrees", 1)]),
        ("rock 'n' roll", [("text", "rock 'n' roll", 1)]),
        ("sunset - people + boat", [("text", "sunset", 1), ("text", "people", -1), ("text", "boat", 1)]),
        ("- people + @p-17", [("text", "people", -1), ("id", "p-17", 1)]),
        ("0.5*image:my dog.jpg - 2 * cat", [("image", "my dog.jpg", 0.5), ("text", "cat", -2)]),
        ("'yin - yang' + x", [("text", "yin - yang", 1), ("text", "x", 1)]),
        ('2*"4*4" - "@me"', [("text", "4*4", 2), ("text", "@me", -1)]),
        ('@"me - you.jpg" + a', [("id", "me - you.jpg", 1), ("text", "a", 1)]),
        ("x - 2*image:'a + b.png'", [("text", "x", 1), ("image", "a + b.png", -2)]),
        ("'tis - 'twas", [("text", "'tis", 1), ("text", "'twas", -1)]),
        ('"a" b', [("text", '"a" b', 1)]),
        ("c++ - c", [("text", "c++", 1), ("text", "c", -1)]),
    ],
)
def test_what_is_read(text, expected):
    assert terms(text) == expected
    assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize("text", ["", "   ", "a - ", "a + - b", "@", "image:", "3*", "a - @ ", '""'])
def test_an_empty_term_is_refused(text):
    with pytest.raises(UsageError, match="an empty"):
        parse(text)


def test_too_many_terms_and_weights_of_nothing_are_refused():
    with pytest.raises(UsageError, match="65 terms; expected 64 at most"):
        parse(" + ".join("a" * 65))
    with pytest.raises(UsageError, match="only weights of 0"):
        parse("0*cat")


def test_the_vector_is_the_unit_vector_of_the_weighted_sum_of_unit_vectors():
    rows = {"one": [1.0, 0.0, 0.0], "two": [0.0, 3.0, 0.0]}
    items = lambda ids: np.array([rows[name] for name in ids])
    total = 2 * np.array([1, 0, 0]) - np.array([0, 1, 0]) + 0.5 * np.array([3, 1, 0]) / np.sqrt(10)
    found = parse("2*@one - @two + 0.5*cat").vector(Words(), items)
    np.testing.assert_allclose(found, total / np.linalg.norm(total), atol=1e-7)


def test_texts_of_many_queries_are_embedded_together_and_once():
    model = Words()
    found = vectors([parse("cat - a dog"), parse("a dog"), parse("image:x + cat")], model)
    assert found.shape == (3, 3) and found.dtype == np.float32
    assert model.asked == [["cat", "a dog"], ["x"]]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_terms_that_cancel_have_no_direction():
    with pytest.raises(DataError, match="the terms of 'cat - cat' cancel each other"):
        parse("cat - cat").vector(Words())


def test_what_is_missing_to_embed_is_told():
    with pytest.raises(UsageError, match="without a model"):
        parse("cat").vector(None)
    with pytest.raises(UsageError, match="there is no store here"):
        parse("@one").vector(Words())


pieces = st.sampled_from(["a", "b-c", "-", "+", " ", "  ", "'", '"', "\\", "*", "2*", ".5*", "@x", "image:", "\n", "é"])


@given(st.lists(pieces, max_size=12).map("".join) | st.text(max_size=20))
@settings(max_examples=120, deadline=None)
def test_any_text_is_read_or_refused_cleanly_and_what_is_read_is_written_back(text):
    try:
        found = parse(text)
    except UsageError:
        return
    assert parse(str(found)) == found


@example(words=[('"', 1.0), ('"', 1.0)])
@example(words=[("-", 1.0), ("a -", 1.0), ("b", 1.0)])
@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=8).filter(str.strip), st.sampled_from([1.0, -1.0, 0.5, -2.25])),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=120, deadline=None)
def test_any_words_can_be_written_as_a_query(words):
    expression = Expression(tuple(Term("text", text, weight) for text, weight in words))
    assert parse(str(expression)) == expression
