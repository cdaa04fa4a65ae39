"""The text fast path equals the plain one: float64, gradients, layouts, chunks, duplicates."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ostension.errors import DataError
from ostension.model import text_tower
from ostension.model.clip import CLIP
from ostension.model.prefix_tree import plan
from ostension.model.presets import preset


def both(model, tokens, insert=None, leaves=()):
    """Embeddings and gradients of the plain and of the fast path."""
    results = []
    for plain in (True, False):
        embeddings = model.encode_text(tokens, insert=insert, plain=plain)
        weights = torch.linspace(-1, 1, embeddings.numel(), dtype=embeddings.dtype).view_as(embeddings)
        gradients = torch.autograd.grad((embeddings * weights).sum(), [*model.text.parameters(), *leaves])
        results.append((embeddings.detach(), gradients))
    return results


def assert_equal_paths(results, tolerance=1e-12):
    (plain, plain_gradients), (fast, fast_gradients) = results
    assert (plain - fast).abs().max() < tolerance * max(1.0, float(plain.abs().max()))
    for one, other in zip(plain_gradients, fast_gradients, strict=True):
        assert (one - other).abs().max() <= tolerance * max(1.0, float(one.abs().max()))


def test_the_fast_path_equals_the_plain_path_with_gradients(tiny, tokens):
    assert_equal_paths(both(tiny("tiny-vit").double(), tokens))


def test_without_gradients_and_in_chunks_it_is_the_same(tiny, tokens, monkeypatch):
    model = tiny("tiny-vit").double()
    with torch.no_grad():
        plain = model.encode_text(tokens, plain=True)
        for nodes in (20, 200, 10_000):
            monkeypatch.setattr(text_tower, "MAX_NODES", nodes)
            assert (model.encode_text(tokens) - plain).abs().max() < 1e-12


def test_the_first_end_token_counts_where_the_configuration_says_so(tiny, tokens):
    config = preset("tiny-vit")
    model = tiny(dataclasses.replace(config, text=dataclasses.replace(config.text, pool="eos", eos_id=9))).double()
    assert_equal_paths(both(model, tokens))


def test_what_stands_after_the_end_token_does_not_matter(tiny, tokens):
    model = tiny("tiny-vit").double()
    noise = torch.randint(1, 1000, tokens.shape)
    after = torch.arange(tokens.shape[1]) > tokens.argmax(dim=1)[:, None]
    with torch.no_grad():
        assert (model.encode_text(tokens) - model.encode_text(torch.where(after, noise, tokens))).abs().max() < 1e-12


def test_rows_shorter_than_the_context_are_taken(tiny, tokens):
    model = tiny("tiny-vit").double()
    short = tokens[:, : int(tokens.argmax(dim=1).max()) + 1]
    with torch.no_grad():
        assert (model.encode_text(tokens) - model.encode_text(short)).abs().max() < 1e-12


def test_rows_longer_than_the_context_are_refused(tiny):
    with pytest.raises(DataError, match="25 positions; expected at most the context length 24"):
        tiny("tiny-vit").encode_text(torch.ones(1, 25, dtype=torch.int64))


def test_a_single_row_and_a_row_of_one_token_are_taken(tiny):
    model = tiny("tiny-vit").double()
    for rows in ([[1023]], [[1022, 4, 1023]], [[1023, 0, 0], [1022, 3, 1023]]):
        rows = torch.tensor(rows)
        assert (model.encode_text(rows) - model.encode_text(rows, plain=True)).abs().max() < 1e-12


def test_checkpointing_changes_no_gradient(tiny, tokens):
    model = tiny("tiny-vit").double()
    _, kept = both(model, tokens)
    model.set_checkpointing(text=True)
    plain, recomputed = both(model, tokens)
    assert_equal_paths([kept, recomputed])
    assert_equal_paths([plain, recomputed])


def test_a_tower_without_a_causal_mask_has_the_same_two_paths(tiny, tokens):
    assert_equal_paths(both(tiny("tiny-siglip").double(), tokens))


def test_ids_of_another_integer_type_are_taken(tiny, tokens):
    model = tiny("tiny-vit")
    assert torch.equal(model.encode_text(tokens.int()), model.encode_text(tokens))


def test_a_tower_without_a_causal_mask_sees_its_padding(tiny):
    model = tiny("tiny-siglip")
    one = torch.full((1, 24), 1)
    other = one.clone()
    other[0, 20] = 5
    assert not torch.allclose(model.encode_text(one), model.encode_text(other))


rows_of_ids = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=7), min_size=1, max_size=30)


@given(rows=rows_of_ids, max_nodes=st.sampled_from([None, 1, 10]))
@settings(deadline=None, max_examples=80)
def test_the_tree_covers_every_row_once_and_holds_its_prefix(rows, max_nodes):
    keys = torch.zeros(len(rows), 7, dtype=torch.int64)
    for row, ids in zip(keys, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    ends = torch.tensor([len(ids) - 1 for ids in rows])
    seen = []
    for tree, covered in plan(keys, ends, max_nodes):
        spelled = []
        for group in tree.groups:
            own = torch.arange(group.nodes.start, group.nodes.stop).view(group.rows, -1)
            nodes = torch.cat([group.borrowed, own], dim=1)
            assert bool((tree.positions[nodes] == torch.arange(group.length)).all())
            spelled += [tree.keys[path[: end + 1]].tolist() for path, end in zip(nodes, group.ends.tolist(), strict=True)]
        for row, place in zip(covered.tolist(), tree.rows.tolist(), strict=True):
            assert spelled[place] == rows[row]
        seen += covered.tolist()
    assert sorted(seen) == list(range(len(rows)))


def test_prompts_of_one_template_compute_its_words_once():
    names = torch.arange(100, 300)
    prompts = torch.stack([torch.tensor([1022, 5, 6, 7, 8, int(name), 9, 1023]) for name in names])
    ((tree, _),) = plan(prompts, prompts.argmax(dim=1))
    assert len(tree.keys) == 5 + 3 * len(names)


def test_prompts_that_share_nothing_worth_the_trouble_are_not_cut_up():
    prompts = torch.arange(1, 1 + 40 * 12).view(40, 12)
    prompts[:, 0] = 0
    ((tree, _),) = plan(prompts, torch.full((40,), 11))
    assert [(group.start, group.length, group.rows) for group in tree.groups] == [(0, 12, 40)]


def test_equal_prompts_are_computed_once(tiny, tokens):
    model = tiny("tiny-vit")
    ((tree, _),) = plan(tokens[:1].repeat(50, 1), tokens[:1].argmax(dim=1).repeat(50))
    assert sum(group.rows for group in tree.groups) == 1
    embeddings = model.encode_text(tokens)
    assert torch.equal(embeddings[:10], embeddings[200:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32(tokens, dtype):
    model = CLIP(preset("small-64")).eval()
    rows = torch.where(tokens == 1023, 4609, torch.where(tokens == 1022, 4608, tokens))
    with torch.no_grad():
        exact = model.encode_text(rows, normalize=True)
        rough = model.to(dtype).encode_text(rows, normalize=True)
    assert rough.dtype == torch.float32
    assert float((exact * rough).sum(dim=1).min()) > 0.999
