"""Groups by several numbers a pair: same image, same caption, or linked through other pairs."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from ostension.losses import LossConfig, batch_loss, linked


def test_pairs_with_any_number_in_common_are_linked_and_so_are_those_linked_by_others():
    images = torch.tensor([7, 7, 5, 4, 3, 9])
    captions = torch.tensor([1, 2, 2, 8, 6, 6])
    assert linked(torch.stack([images, captions], 1)).tolist() == [0, 0, 0, 3, 4, 4]


def test_a_long_chain_is_one_group_and_columns_are_not_compared_with_each_other():
    rows = torch.arange(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert linked(torch.stack([rows // 2, (rows + 1) // 2], 1)[order]).unique().numel() == 1
    assert linked(torch.tensor([[1, 2], [2, 1]])).tolist() == [0, 1]


def test_the_loss_of_linked_groups_is_the_loss_of_their_numbers():
    generator = torch.Generator().manual_seed(1)
    image, text = (normalize(torch.randn(6, 4, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    groups = torch.tensor([[7, 1], [7, 2], [5, 2], [4, 8], [3, 6], [9, 6]])
    for chunk_rows in (None, 2):
        for duplicates in ("share", "ignore"):
            config = LossConfig(duplicates=duplicates, chunk_rows=chunk_rows)
            found = [
                batch_loss(image, text, torch.tensor(3.0, dtype=torch.float64), config=config, groups=numbers)
                for numbers in (groups, torch.tensor([0, 0, 0, 3, 4, 4]))
            ]
            assert found[0].loss == found[1].loss and found[0].image_accuracy == found[1].image_accuracy
