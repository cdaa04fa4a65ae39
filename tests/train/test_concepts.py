"""Concepts: nouns read off captions, the vocabulary's file, retrieval by the model, prompts."""

from __future__ import annotations

import pytest
import torch

from ostension.errors import ConfigError, DataError
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.train.concepts import (
    ConceptRetriever,
    Concepts,
    ConceptsConfig,
    build_concepts,
    concept_prompt,
    noun_heads,
    prompted_rows,
)

CAPTIONS = [
    "A black dog runs through the tall grass .", "Two dogs on a beach", "The dog is running in the grass",
    "a man wearing a hat",
    "A man in a red hat is standing near the beach", "The woman and her dog", "grinning face", "a ball , a dog and a hat",
]  # fmt: skip


@pytest.mark.parametrize(
    ("caption", "heads"),
    [
        ("A black dog runs through the tall grass .", ["dog", "grass"]),
        ("a man wearing a hat", ["man", "hat"]),
        ("Two dogs on a beach", ["dogs", "beach"]),
        ("The glass and its contents", ["glass", "contents"]),
        ("3 cats", ["cats"]),
        ("grinning face", ["face"]),
        ("grinning face with big eyes", ["face", "eyes"]),
        ("dogs running in grass", ["dogs", "grass"]),
        ("in of", []),
        ("", []),
    ],
)
def test_the_heads_of_noun_phrases_are_found(caption, heads):
    assert noun_heads(caption) == heads


def test_concepts_are_nouns_by_frequency_and_plurals_count_as_singulars():
    found = build_concepts(CAPTIONS, ConceptsConfig(min_count=2))
    assert found.words[:2] == ("dog", "hat") and found.counts[0] == 5
    assert set(found.words) == {"dog", "hat", "grass", "beach", "man"}
    assert build_concepts(CAPTIONS, ConceptsConfig(size=1)).words == ("dog",)


def test_a_list_brings_its_words_and_phrases_whatever_stands_around_them():
    found = build_concepts(CAPTIONS, ConceptsConfig(min_count=1, head_share=1.0), nouns=["red hat", "running"])
    assert {"red hat", "running"} <= set(found.words)
    assert "wearing" not in found.words


def test_captions_without_nouns_are_told(tmp_path):
    with pytest.raises(DataError, match="no concepts"):
        build_concepts(["of and", "in"], ConceptsConfig(min_count=1))


def test_the_file_gives_back_what_was_saved_and_nothing_else_is_taken(tmp_path):
    found = build_concepts(CAPTIONS, ConceptsConfig(min_count=2))
    found.save(tmp_path / "concepts.json")
    again = Concepts.load(tmp_path / "concepts.json")
    assert again == found and again.fingerprint() == found.fingerprint()
    (tmp_path / "other.json").write_text('{"format": 1, "concepts": 3}')
    with pytest.raises(DataError, match="no vocabulary"):
        Concepts.load(tmp_path / "other.json")


def test_the_nearest_concepts_come_first():
    model = CLIP(preset("tiny-vit"), seed=1)
    retriever = ConceptRetriever(model, Concepts(words=("dog", "hat", "grass"), counts=(3, 2, 1)))
    images = torch.nn.functional.normalize(retriever.rows[[2, 0]] + 0.01, dim=1)
    found = retriever.top(images, 2)
    scores = images @ retriever.rows.T
    assert found[:, 0].tolist() == scores.argmax(dim=1).tolist() == [2, 0]
    assert retriever.names(images, 1) == [["grass"], ["dog"]]
    with pytest.raises(ConfigError, match="1 to the 3"):
        retriever.top(images, 4)


def test_a_prompt_stands_before_the_caption_and_takes_half_of_the_context_at_most():
    tokenizer = CLIP(preset("tiny-vit"), seed=1).tokenizer
    concepts = [["dog", "hat"], [f"word{index}" for index in range(99)], []]
    rows, firsts = prompted_rows(tokenizer, concepts, ["a dog", "x " * 99, "b"])
    assert rows[0] == [tokenizer.start_id, *tokenizer.encode("dog, hat:"), *tokenizer.encode("a dog"), tokenizer.end_id]
    assert rows[0][firsts[0] : -1] == tokenizer.encode("a dog") and firsts[2] == 1
    assert len(rows[1]) == tokenizer.context_length and firsts[1] <= tokenizer.context_length // 2
    assert concept_prompt(tokenizer, []) == [tokenizer.start_id]
