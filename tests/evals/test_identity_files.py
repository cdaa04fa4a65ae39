"""Files that a protocol's settings name are part of what its result depends on."""

from __future__ import annotations

import dataclasses

from ostension.evals import identity
from ostension.evals.identity import files_sha256, method_sha256
from ostension.evals.protocol import PROTOCOLS, load_protocol


def test_a_result_depends_on_what_is_in_the_files_that_settings_name(tmp_path):
    protocol = load_protocol("robustness")
    (tmp_path / "lists" / "video").mkdir(parents=True)
    lists, bed, task = tmp_path / "lists" / "video" / "labels.json", tmp_path / "bed.csv", tmp_path / "own.toml"
    for path in (lists, bed, task):
        path.write_text("one")
    config = protocol.Config(frames=str(tmp_path / "lists"), testbed=str(bed), shifts=("imagenet_a", str(task)))
    before = files_sha256(config, protocol.FILES)
    assert set(before) == {"frames/video/labels.json", "testbed", f"shifts/{task}"}
    for path, name in ((lists, "frames/video/labels.json"), (bed, "testbed"), (task, f"shifts/{task}")):
        path.write_text("two")
        after = files_sha256(config, protocol.FILES)
        assert {key for key in after if after[key] != before[key]} == {name}
        before = after
    bed.unlink()
    assert files_sha256(config, protocol.FILES)["testbed"] == ""
    assert files_sha256(protocol.Config(), protocol.FILES) == {}


def test_every_protocol_names_settings_that_it_has():
    for name in PROTOCOLS.names():
        module = load_protocol(name)
        fields = {field.name for field in dataclasses.fields(module.Config)}
        assert set(getattr(module, "FILES", ())) <= fields, name


def test_a_result_of_a_method_depends_on_what_its_shared_parts_compute_and_not_on_what_it_says(monkeypatch, tmp_path):
    before = method_sha256("coop")
    assert before != method_sha256("kgcoop") and before == method_sha256("coop")
    find = identity._path
    for module, old, new, changes in (
        ("ostension.adapt._fit", "KEEP_S = 5.0", "KEEP_S = 6.0", True),
        ("ostension.adapt.coop", 'title="CoOp"', 'title="Context Optimization"', False),
        ("ostension.adapt.coop", "Contexts around class names.", "Contexts.", False),
        ("ostension.adapt.coop", "INIT_STD = 0.02", "INIT_STD = 0.03", True),
    ):
        source = find(module).read_text()
        assert source.count(old) == 1
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.py"
        path.write_text(source.replace(old, new))
        monkeypatch.setattr(identity, "_path", lambda name, module=module, path=path: path if name == module else find(name))
        assert (method_sha256("coop") != before) is changes, (module, new)
    assert method_sha256("zero-shot") == method_sha256("no-such-method")
