"""Insertion points: layouts, equality of fast and plain path, neutral inserts, errors."""

from __future__ import annotations

import pytest
import torch

from ostension.errors import ConfigError, LimitError
from ostension.model.insert import TextInsert, VisualInsert, lay_out

WORDS = torch.tensor([[11, 12, 13, 14]])


@pytest.fixture
def model(tiny):
    return tiny("tiny-vit").double()


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32, dtype=torch.float64)


def names(count=6, extra=0, length=24):
    """SOS name . EOT, with names of one to three tokens; `extra` words stand before the name."""
    rows = torch.zeros(count, length, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids = [1022, *[11, 12, 13, 14][:extra], *range(50 + i, 50 + i + 1 + i % 3), 9, 1023]
        row[: len(ids)] = torch.tensor(ids)
    return rows


def spelled(position, number, **options):
    """The keys of "SOS 7 8 . EOT" with `number` contexts (c0, c1, ...)."""
    tokens = torch.tensor([[1022, 7, 8, 9, 1023, 0, 0, 0, 0, 0, 0]])
    context = torch.zeros(number, 4)
    layout = lay_out(tokens, torch.tensor([4]), TextInsert(context=context, position=position, **options), 11)
    words = {1022: "SOS", 1023: "EOT", 9: "."}
    keys = layout.keys[0, : int(layout.ends[0]) + 1].tolist()
    return " ".join(f"c{-1 - key}" if key < 0 else words.get(key, str(key)) for key in keys)


@pytest.mark.parametrize(
    ("position", "number", "expected"),
    [
        ("end", 3, "SOS c0 c1 c2 7 8 . EOT"),
        ("front", 3, "SOS 7 8 c0 c1 c2 . EOT"),
        ("middle", 3, "SOS c0 7 8 c1 c2 . EOT"),
        ("middle", 4, "SOS c0 c1 7 8 c2 c3 . EOT"),
        ("middle", 1, "SOS 7 8 c0 . EOT"),
        ("end", 0, "SOS 7 8 . EOT"),
    ],
)
def test_contexts_stand_where_the_layout_says(position, number, expected):
    assert spelled(position, number) == expected


def test_the_closing_tokens_can_be_none():
    assert spelled("front", 2, suffix_length=0) == "SOS 7 8 . c0 c1 EOT"


def test_word_embeddings_as_context_equal_the_words(model):
    context = model.text.token_embedding(WORDS[0])
    for plain in (True, False):
        inserted = model.encode_text(names(), insert=TextInsert(context=context), plain=plain)
        assert (inserted - model.encode_text(names(extra=4))).abs().max() < 1e-12


def test_equal_rows_of_contexts_equal_the_shared_context(model):
    context = torch.randn(5, 32, dtype=torch.float64)
    shared = model.encode_text(names(), insert=TextInsert(context=context, position="middle"))
    each = model.encode_text(names(), insert=TextInsert(context=context.expand(6, 5, 32), position="middle"))
    images = model.encode_text(names(), insert=TextInsert(context=context.expand(2, 1, 5, 32), position="middle"))
    assert (shared - each).abs().max() < 1e-12
    assert images.shape == (2, 6, 32) and (images - shared).abs().max() < 1e-12


@pytest.mark.parametrize("position", ["front", "middle", "end"])
@pytest.mark.parametrize("shape", [(5,), (6, 5), (2, 1, 5), (2, 6, 5)])
@pytest.mark.parametrize("depth", [0, 2])
def test_the_fast_path_equals_the_plain_path_with_contexts(model, position, shape, depth):
    context = torch.randn(*shape, 32, dtype=torch.float64, requires_grad=True)
    deep = torch.randn(depth, 5, 32, dtype=torch.float64, requires_grad=True) if depth else None
    insert = TextInsert(context=context, position=position, deep=deep)
    leaves = [leaf for leaf in (context, deep) if leaf is not None]
    results = []
    for plain in (True, False):
        embeddings = model.encode_text(names(), insert=insert, plain=plain)
        weights = torch.linspace(-1, 1, embeddings.numel(), dtype=torch.float64).view_as(embeddings)
        results.append((embeddings.detach(), *torch.autograd.grad((embeddings * weights).sum(), leaves)))
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() < 1e-12 * max(1.0, float(one.abs().max()))


def test_deep_contexts_replace_the_states_before_their_block_only(model):
    context, deep = torch.randn(5, 32, dtype=torch.float64), torch.randn(1, 5, 32, dtype=torch.float64)
    taps = ("blocks.0", "blocks.1")
    one = model.text_features(names(), taps, insert=TextInsert(context=context))
    other = model.text_features(names(), taps, insert=TextInsert(context=context, deep=deep))
    assert torch.equal(one["blocks.0"], other["blocks.0"])
    assert not torch.allclose(one["blocks.1"][:, 6:], other["blocks.1"][:, 6:])
    assert torch.equal(one["blocks.1"][:, 0], other["blocks.1"][:, 0])  # the start token sees itself alone


def test_deep_contexts_forget_the_shallow_ones_after_every_block_was_replaced(model):
    deep = torch.randn(2, 5, 32, dtype=torch.float64)
    contexts = torch.zeros(5, 32, dtype=torch.float64), torch.randn(5, 32, dtype=torch.float64)
    last = [model.text_features(names(), ("blocks.2",), insert=TextInsert(context=c, deep=deep))["blocks.2"] for c in contexts]
    assert torch.equal(last[0][:, 0], last[1][:, 0])


def test_an_empty_context_and_an_idle_hook_are_neutral(model):
    plain = model.encode_text(names())
    for insert in (
        TextInsert(),
        TextInsert(context=torch.empty(0, 32, dtype=torch.float64)),
        TextInsert(hook=lambda index, x: x),
        TextInsert(adapter=lambda embedding: embedding),
    ):
        assert (model.encode_text(names(), insert=insert) - plain).abs().max() < 1e-12


def test_a_text_hook_sees_every_block_and_changes_what_follows(model):
    seen = []

    def double(index, x):
        seen.append((index, tuple(x.shape)))
        return x * 2 if index == 1 else x

    changed = model.encode_text(names(), insert=TextInsert(hook=double))
    assert seen == [(index, (6, 24, 32)) for index in range(3)]
    assert not torch.allclose(changed, model.encode_text(names()))


def test_a_prompt_that_no_longer_fits_is_an_error(model):
    with pytest.raises(LimitError, match="a prompt of 6 tokens and 20 contexts takes 26 positions; expected at most 24"):
        model.encode_text(names(), insert=TextInsert(context=torch.zeros(20, 32)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": torch.zeros(3)}, "the text context has the shape"),
        ({"context": torch.zeros(3, 32), "position": "top"}, "'front', 'middle' or 'end'"),
        ({"deep": torch.zeros(1, 3, 32)}, "without a context"),
        ({"context": torch.zeros(3, 32), "deep": torch.zeros(1, 4, 32)}, r"expected \(J, 3, 32\)"),
        ({"suffix_length": -1}, "suffix_length is -1"),
    ],
)
def test_an_insert_that_cannot_be_meant_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TextInsert(**options)


def test_a_context_for_another_number_of_prompts_is_refused(model):
    with pytest.raises(ConfigError, match=r"is for 4 prompts and there are 6; one context per image is \(B, 1, N, W\)"):
        model.encode_text(names(), insert=TextInsert(context=torch.zeros(4, 3, 32)))


@pytest.mark.parametrize("place", ["before_ln_pre", "after_ln_pre"])
def test_no_visual_tokens_are_neutral_and_zeros_are_not(model, images, place):
    plain = model.encode_image(images)
    none = model.encode_image(images, insert=VisualInsert(tokens=torch.empty(0, 48, dtype=torch.float64), place=place))
    zeros = model.encode_image(images, insert=VisualInsert(tokens=torch.zeros(4, 48, dtype=torch.float64), place=place))
    assert (plain - none).abs().max() < 1e-12
    assert (plain - zeros).abs().max() > 1e-6


def test_visual_tokens_have_no_order_and_may_differ_between_images(model, images):
    tokens = torch.randn(3, 4, 48, dtype=torch.float64)
    embeddings = model.encode_image(images, insert=VisualInsert(tokens=tokens))
    assert (embeddings - model.encode_image(images, insert=VisualInsert(tokens=tokens.flip(1)))).abs().max() < 1e-12
    for i in range(3):
        alone = model.encode_image(images[i : i + 1], insert=VisualInsert(tokens=tokens[i]))
        assert (embeddings[i] - alone[0]).abs().max() < 1e-12


def test_before_ln_pre_the_tokens_are_normalised(model, images):
    tokens = torch.randn(4, 48, dtype=torch.float64)
    before = model.encode_image(images, insert=VisualInsert(tokens=tokens, place="before_ln_pre"))
    after = model.encode_image(images, insert=VisualInsert(tokens=model.visual.ln_pre(tokens), place="after_ln_pre"))
    assert (before - after).abs().max() < 1e-12


def test_deep_visual_tokens_replace_those_of_the_block_before(model, images):
    tokens, deep = torch.randn(4, 48, dtype=torch.float64), torch.randn(2, 4, 48, dtype=torch.float64)
    first = VisualInsert(tokens=tokens, deep=deep)
    taps = ("blocks.0", "blocks.1")
    found = model.image_features(images, taps, insert=first)
    shallow = model.image_features(images, taps, insert=VisualInsert(tokens=tokens))
    assert torch.equal(found["blocks.0"], shallow["blocks.0"])
    by_hand = torch.cat([found["blocks.0"][:, :17], deep[0].expand(3, 4, 48)], dim=1)
    assert (model.visual.transformer.resblocks[1](by_hand) - found["blocks.1"]).abs().max() < 1e-12


def test_deep_tokens_may_be_made_from_the_patches_of_the_block(model, images):
    tokens, deep = torch.randn(4, 48, dtype=torch.float64), torch.randn(2, 4, 48, dtype=torch.float64)
    seen = []

    def make(index, patches):
        seen.append((index, tuple(patches.shape)))
        return None if index == 0 else deep[index - 1].expand(3, 4, 48)

    made = model.encode_image(images, insert=VisualInsert(tokens=tokens, deep=make))
    assert (made - model.encode_image(images, insert=VisualInsert(tokens=tokens, deep=deep))).abs().max() < 1e-12
    assert seen == [(index, (3, 17, 48)) for index in range(3)]


def test_gradients_reach_visual_tokens_and_no_frozen_weight(model, images):
    model.requires_grad_(False)
    tokens = torch.randn(4, 48, dtype=torch.float64, requires_grad=True)
    model.encode_image(images, insert=VisualInsert(tokens=tokens)).sum().backward()
    assert tokens.grad is not None and bool(tokens.grad.any())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_inserted_tokens_take_no_part_in_a_pooling_head(tiny, images):
    siglip = tiny("tiny-siglip").double()
    insert = VisualInsert(tokens=torch.randn(4, 48, dtype=torch.float64))
    found = siglip.image_features(images, ("blocks.1", "patches"), insert=insert)
    assert found["blocks.1"].shape == (3, 20, 48) and found["patches"].shape == (3, 16, 48)


def test_a_visual_hook_changes_what_follows_in_both_kinds_of_tower(tiny, images):
    for name, size in (("tiny-vit", 32), ("tiny-resnet", 64)):
        model, pictures = tiny(name), torch.randn(2, 3, size, size)
        seen = []

        def hook(index, x, seen=seen):
            seen.append(index)
            return x * (1 + index)  # adding a constant would be taken out by the next norm

        changed = model.encode_image(pictures, insert=VisualInsert(hook=hook))
        assert seen == list(range(3 if name == "tiny-vit" else 4))
        assert not torch.allclose(changed, model.encode_image(pictures))


def test_adapters_act_on_the_embedding(tiny):
    for name, size in (("tiny-vit", 32), ("tiny-resnet", 64)):
        model, pictures = tiny(name), torch.randn(2, 3, size, size)
        insert = VisualInsert(adapter=lambda embedding: embedding * 3)
        assert torch.allclose(model.encode_image(pictures, insert=insert), model.encode_image(pictures) * 3)
    insert = TextInsert(adapter=lambda embedding: embedding * 3)
    assert torch.allclose(model.encode_text(names(), insert=insert), model.encode_text(names()) * 3)


def test_a_resnet_refuses_visual_tokens(tiny):
    with pytest.raises(ConfigError, match="visual tokens are for a vision transformer"):
        tiny("tiny-resnet").encode_image(torch.zeros(1, 3, 64, 64), insert=VisualInsert(tokens=torch.zeros(2, 48)))
