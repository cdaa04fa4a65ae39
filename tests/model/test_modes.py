"""Evaluation mode for a while."""

from __future__ import annotations

import pytest
from torch import nn

from ostension.model.modes import evaluating


def test_each_part_gets_its_own_mode_back_also_after_an_error():
    module = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2), nn.Dropout()).train()
    module[1].eval()  # a layer that somebody froze
    with pytest.raises(KeyError), evaluating(module):
        assert not any(part.training for part in module.modules())
        raise KeyError
    assert [part.training for part in module.modules()] == [True, True, False, True]
