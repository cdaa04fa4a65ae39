"""Every protocol and every summary keeps its contract, whoever wrote it."""

from __future__ import annotations

import ast
import dataclasses
import inspect

import pytest

from ostension.config import from_tree, to_tree
from ostension.data.task import read_task, task_names
from ostension.evals.identity import code_sha256
from ostension.evals.protocol import PROTOCOLS, SUMMARIES, EvalProtocol, Summary, load_protocol

TASKS = [read_task(name) for name in task_names()]


@pytest.mark.parametrize("name", PROTOCOLS.names())
def test_a_protocol_keeps_its_contract(name):
    protocol = load_protocol(name)
    assert isinstance(protocol, EvalProtocol) and isinstance(protocol.SPLITS, tuple)
    assert set(protocol.SPLITS) <= {"train", "val", "test"}
    config = protocol.Config()
    assert dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen
    assert from_tree(protocol.Config, to_tree(config)) == config  # every setting can be said on the command line
    assert list(inspect.signature(protocol.run).parameters) == ["inputs", "config", "seed"]
    assert PROTOCOLS.summary(name).endswith(".")
    for task in TASKS:
        reason = protocol.reason_not(task)
        assert reason is None or (isinstance(reason, str) and reason and "\n" not in reason)
    assert any(protocol.reason_not(task) is None for task in TASKS) or name in ONLY_OWN_TASKS


ONLY_OWN_TASKS = {"geolocation", "typographic"}  # no shipped record has geotags, or pictures with words on them


@pytest.mark.parametrize("name", SUMMARIES.names())
def test_a_summary_keeps_its_contract(name):
    module = SUMMARIES.load(name)
    assert isinstance(module, Summary) and module.run([]) == [] and SUMMARIES.summary(name).endswith(".")


def test_the_code_of_a_protocol_is_its_own_and_what_it_imports():
    hashes = {name: code_sha256(f"{PROTOCOLS.package}.{name.replace('-', '_')}") for name in PROTOCOLS.names()}
    assert len(set(hashes.values())) == len(hashes)


@pytest.mark.parametrize("name", PROTOCOLS.names())
def test_a_protocol_draws_from_no_global_state(name):
    for node in ast.walk(ast.parse(PROTOCOLS.source(name))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "random":
            assert node.attr == "Generator", f"{name}: {ast.unparse(node)}"
