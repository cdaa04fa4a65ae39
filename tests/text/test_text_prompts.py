"""Templates, class names and composed prompts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostension.errors import ConfigError, DataError, LimitError
from ostension.text.prompts import (
    as_classes,
    as_templates,
    check_template,
    class_names,
    compose,
    fill,
    prompt_set,
    prompt_set_names,
    template_names,
    templates,
)
from ostension.text.tokenizer import TokenizerConfig, build_tokenizer

# Numbers of classes and templates, from the table of data sets in the paper and OpenAI's published list.
PUBLISHED = {
    "birdsnap": (500, 1), "caltech101": (102, 34), "cifar10": (10, 18), "cifar100": (100, 18), "clevr_counts": (8, 1),
    "country211": (211, 5), "dtd": (47, 8), "eurosat": (10, 3), "fer2013": (7, 6), "fgvc_aircraft": (100, 2),
    "flowers102": (102, 1), "food101": (101, 1), "gtsrb": (43, 3), "hateful_memes": (2, 1), "imagenet": (1000, 80),
    "kinetics700": (700, 28), "kitti": (4, 1), "mnist": (10, 1), "oxford_pets": (37, 1), "pcam": (2, 1),
    "resisc45": (45, 18), "sst2": (2, 1), "stanford_cars": (196, 8), "stl10": (10, 2), "sun397": (397, 2),
    "ucf101": (101, 48), "voc2007": (20, 1),
}  # fmt: skip


# Data


def test_the_27_data_sets_have_the_published_numbers_of_classes_and_templates():
    assert {name: (len(class_names(name)), len(templates(name))) for name in prompt_set_names()} == PUBLISHED


def test_every_published_list_passes_our_own_checks():
    for name in prompt_set_names():
        one = prompt_set(name)
        assert as_classes(one.classes) == one.classes
        assert as_templates(one.templates) == one.templates
        assert as_classes(list(one.class_names))
    for name in template_names():
        assert as_templates(name) == as_templates(templates(name))


def test_imagenets_names_are_the_edited_ones():
    names = class_names("imagenet")
    assert names[0] == "tench"
    assert names[21] == "kite (bird of prey)"
    assert (names[134], names[517]) == ("crane bird", "construction crane")
    assert names[677] == "metal nail"
    assert names[-1] == "toilet paper"
    assert sorted(name for name in set(names) if names.count(name) > 1) == ["missile", "sunglasses"]


def test_the_seven_selected_templates_are_of_the_eighty_and_in_order():
    eighty, seven = templates("openai_imagenet"), templates("openai_imagenet_best7")
    assert (len(eighty), eighty[0], eighty[-1]) == (80, "a bad photo of a {}.", "a tattoo of the {}.")
    assert seven[0] == "itap of a {}."
    assert seven[-1] == "a photo of the small {}."
    assert set(seven) < set(eighty)
    assert len(set(eighty)) == 80


def test_odd_lists_are_as_published():
    assert prompt_set("fer2013").classes[5] == ("surprised", "shocked", "spooked")
    assert class_names("fer2013")[5] == "surprised"
    assert templates("kitti") == ("{}",)
    assert templates("mnist") == ('a photo of the number: "{}".',)
    assert class_names("clevr_counts") == ("10", "3", "4", "5", "6", "7", "8", "9")
    assert class_names("voc2007")[15:18] == ("sofa", "diningtable", "pottedplant")
    assert templates("coop_dtd") == ("{} texture.",)
    assert templates("photo") == ("a photo of a {}.",)


@pytest.mark.parametrize("look_up", [templates, class_names, prompt_set])
def test_an_unknown_name_lists_the_nearest_three(look_up):
    with pytest.raises(ConfigError, match=r"unknown .* 'cifar11'; expected one of the known names; nearest: 'cifar10', .*, "):
        look_up("cifar11")


# Checks


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ([], "there are no templates"),
        (["a photo"], r"templates\[0\] is 'a photo', with no \{\}; expected one"),
        (["a {}.", "a {} of {}"], r"templates\[1\] is 'a \{\} of \{\}', with 2 times"),
        (["a {name}"], "with no"),
        (["{0}"], "with no"),
        ([""], "with no"),
        ([3], r"templates\[0\] is 3"),
        (5, "the templates are 5"),
        (b"a {}", "the templates are b'a"),
        (["a {}", "b {}", "a {}"], r"templates\[2\] is 'a \{\}', as is templates\[0\]"),
        ("a photo of", "unknown set of templates 'a photo of'"),
    ],
)
def test_templates_that_cannot_be_meant_are_refused(given_, message):
    with pytest.raises(ConfigError, match=message):
        as_templates(given_)


def test_one_template_a_list_or_a_name_are_templates():
    assert as_templates("a {}") == ("a {}",)
    assert as_templates(["a {}", "{}"]) == ("a {}", "{}")
    assert as_templates("openai_imagenet_best7") == templates("openai_imagenet_best7")
    assert check_template("{} }{") == "{} }{"


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ([], "there are no class names"),
        ("cat", "the class names are 'cat'; expected a list"),
        (None, "the class names are None"),
        (["cat", ""], r"class_names\[1\] is ''; expected a name that is not empty"),
        (["cat", " \t"], r"class_names\[1\]"),
        (["cat", "dog", "cat"], r"class_names\[2\] is 'cat', as is class_names\[0\]"),
        (["hot dog", "hot  dog "], r"class_names\[1\] is 'hot dog ', as is class_names\[0\]"),
        ([["cat", "kitten"], ["kitten"]], r"class_names\[1\] is 'kitten', as is class_names\[0\]"),
        ([["cat", "cat"]], "as is"),
        (["cat", 3], r"class_names\[1\] is 3; expected a text"),
        (["cat", ["dog", 3]], r"class_names\[1\] is 3"),
        (["cat", []], "has no name"),
        ([b"cat"], r"class_names\[0\] is b'cat'"),
    ],
)
def test_class_names_that_cannot_be_meant_are_refused(given_, message):
    with pytest.raises(DataError, match=message):
        as_classes(given_)


def test_only_a_whole_published_set_may_repeat_a_name():
    assert len(as_classes(class_names("imagenet"))) == 1000
    with pytest.raises(DataError, match="missile"):
        as_classes(class_names("imagenet")[:800])


def test_names_that_differ_in_case_are_different():
    assert as_classes(["Apple", "apple"]) == (("Apple",), ("apple",))


def test_five_thousand_class_names_are_as_good_as_five(tokenizer):
    names = [f"thing number {index}" for index in range(5000)]
    rows = compose(tokenizer, ["a photo of {}.", "{}"], names)
    assert len(rows) == 5000
    assert rows[4321] == tokenizer.ragged(["a photo of thing number 4321.", "thing number 4321"])


def test_braces_in_a_class_name_are_ordinary_characters(tokenizer):
    assert fill("a photo of a {}.", "set {}") == "a photo of a set {}."
    assert fill("{}!", "{0} {name} {{}}") == "{0} {name} {{}}!"
    assert compose(tokenizer, "a {} here", ["{}", "{x}"]) == [tokenizer.ragged([f"a {name} here"]) for name in ("{}", "{x}")]


# Composition


def assert_composed(tokenizer, forms, names):
    expected = [tokenizer.ragged([fill(form, name) for form in forms], truncate=True) for name in names]
    assert compose(tokenizer, forms, names, truncate=True) == expected


def test_composed_imagenet_equals_the_filled_prompts(tokenizer):
    forms, names = templates("openai_imagenet"), class_names("imagenet")
    assert_composed(tokenizer, forms[::9], names)
    assert_composed(tokenizer, forms, names[::37])


def test_all_published_prompts_compose_as_filled(tokenizer):
    for name in set(prompt_set_names()) - {"imagenet", "kinetics700", "ucf101"}:
        one = prompt_set(name)
        assert_composed(tokenizer, one.templates, one.class_names[:40])


# Words that stick: letters, digits, apostrophes, punctuation, spaces, entities, what ftfy repairs, what lower-cases in context.
EDGES = st.sampled_from(
    [
        *(
            "",
            " ",
            "  ",
            "a",
            "s",
            "S",
            "t",
            "LL",
            "re",
            "'",
            "''",
            "('",
            '"',
            ".",
            ",",
            "-",
            "_",
            "{",
            "}",
            "1",
            "42",
            "&",
            "&a",
        ),
        *("amp;", ";", "#", "lt", "é", "Ã", "©", "Σ", "ΑΣ", "“", "\n", "\t", "\x00", "\x1b[", "\u0301", "ﬁ", "<", "漢", "ſ"),
        "<|endoftext|>",
    ]
)
WORDS = st.sampled_from(["", "photo of", "dog", "tiger's", "o'", "50", "re-do", "a & b", "naïve", "Ã©", "x" * 300])


@settings(max_examples=120, deadline=None)
@given(
    before=st.tuples(WORDS, EDGES), after=st.tuples(EDGES, WORDS), name=st.tuples(EDGES, WORDS, EDGES),
    mode=st.sampled_from(["openai", "hf"]), length=st.sampled_from([5, 77]),
)  # fmt: skip
def test_composing_equals_tokenising_the_filled_prompt(before, after, name, mode, length):
    tokenizer = build_tokenizer(TokenizerConfig(mode=mode, context_length=length))
    template = "".join(before) + "{}" + "".join(after)
    if template.count("{}") == 1 and "".join(name).strip():
        assert_composed(tokenizer, [template], ["".join(name)])


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(max_codepoint=126), max_size=6), st.text(max_size=6), st.text(min_size=1, max_size=6))
def test_composing_equals_tokenising_whatever_the_characters(before, after, name):
    template = before + "{}" + after
    if template.count("{}") == 1 and name.strip():
        assert_composed(build_tokenizer(TokenizerConfig()), [template], [name])


def test_glued_parts_are_tokenised_together(tokenizer):
    forms = ["{}s", "un{}", "'{}'", '"{}"', "{}.", "no.{}", "({})", "{}1", "&{};", "x{} "]
    assert_composed(tokenizer, forms, ["dog", "tiger", "Washington D.C.", "lt", "'s", "1", "(big) cat", "a "])


def test_a_class_of_several_names_has_the_prompts_of_all(tokenizer):
    forms = ["a {} face", "they look {}."]
    rows = compose(tokenizer, forms, [["happy", "smiling"], "sad"])
    assert rows[0] == tokenizer.ragged(["a happy face", "they look happy.", "a smiling face", "they look smiling."])
    assert rows[1] == tokenizer.ragged(["a sad face", "they look sad."])


def test_a_prompt_that_does_not_fit_is_an_error_or_a_counted_cut():
    tokenizer = build_tokenizer(TokenizerConfig(context_length=6))
    forms, names = ["a {}", "a photo of {}."], ["cat", "big dog", "naïve cat of cats"]
    with pytest.raises(LimitError, match=r"class 'cat': the text 'a photo of cat\.' has more than 6 tokens"):
        compose(tokenizer, forms, names)
    rows = compose(tokenizer, forms, names, truncate=True)
    assert rows == [tokenizer.ragged([fill(form, name) for form in forms], truncate=True) for name in names]
    assert all(len(row) <= 6 and row[-1] == tokenizer.end_id for class_rows in rows for row in class_rows)
    assert tokenizer.num_truncated == 2 * (1 + 1 + 2)


def test_tokens_are_separate_lists(tokenizer):
    rows = compose(tokenizer, ["{}", "a {}"], ["cat", "dog"])
    rows[0][0].append(5)
    assert compose(tokenizer, ["{}", "a {}"], ["cat", "dog"])[0][0] == tokenizer.ragged("cat")[0]


# The page


def test_the_pages_python_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "howto" / "prompts.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(block, {})
    assert "oxford_pets" in capsys.readouterr().out
