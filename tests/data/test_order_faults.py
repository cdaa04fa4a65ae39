"""Order and resume over real shards: uneven ones, fewer than processes, one sample, changes of the world size."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from shard_making import decode, members, write_tar

from ostension.data.arrays import cached_arrays
from ostension.data.loader import Loader
from ostension.data.mixture import Mixture
from ostension.data.open import open_pairs
from ostension.data.pairs import Joined
from ostension.data.sampler import Sampler
from ostension.data.tables import Table
from ostension.errors import DataError


@pytest.fixture
def uneven(tmp_path):
    start = 0
    for number, count in enumerate((1, 40, 3, 0, 13)):
        content = members(count, start) or [("lonely.txt", b"a text without an image")]
        write_tar(tmp_path / f"{number}.tar", content)
        start += count
    return open_pairs(tmp_path)


def ids(batches):
    return [batch.ids.tolist() for batch in batches]


def test_uneven_shards_and_one_without_pairs_are_passed_once_an_epoch(uneven):
    loader = Loader(uneven, Sampler(57, 8, 3), decode)
    seen = [number for batch in loader.batches(0, 7) for number in batch.images[:, 0].tolist()]
    assert len(seen) == len(set(seen)) == 56 and uneven.summary().rejects == {"text without image": 1}


def test_more_processes_and_workers_than_shards_get_equal_full_parts(tmp_path):
    source = open_pairs(write_tar(tmp_path / "a.tar", members(24)))
    order = Sampler(24, 12, 0)
    whole = ids(Loader(source, order, decode).batches(0, 2))
    parts = [
        ids(Loader(source, order, decode, workers=3, kind="threads").batches(0, 2, rank=rank, world_size=6))
        for rank in range(6)
    ]
    assert {len(part) for rank in parts for part in rank} == {2}
    assert [[sample for rank in parts for sample in rank[step]] for step in range(2)] == whole


def test_one_sample_makes_batches_of_one_and_nothing_larger(tmp_path):
    source = open_pairs(write_tar(tmp_path / "a.tar", members(1)))
    loader = Loader(source, Sampler(1, 1), decode, workers=2, kind="threads")
    assert ids(loader.batches(0, 5)) == [[0]] * 5
    assert len({batch.images[0, 1] for batch in loader.batches(0, 5)}) == 5  # another crop in every epoch
    with pytest.raises(DataError, match="fewer than one global batch"):
        Sampler(1, 2)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_run_resumed_in_the_middle_of_an_epoch_with_other_processes_sees_what_was_left(uneven, tmp_path, mixed):
    (tmp_path / "other").mkdir()
    other = open_pairs(write_tar(tmp_path / "other" / "b.tar", members(9, 500)))
    source = Joined([uneven, other])
    order = Mixture((57, 9), (5, 1), 6, 4) if mixed else Sampler(66, 6, 4)

    def run(start, stop, world_size):
        loader = Loader(source, order, decode, seed=1)
        ranks = [list(loader.batches(start, stop, rank=rank, world_size=world_size)) for rank in range(world_size)]
        return [np.concatenate([rank[step].images for rank in ranks]).tolist() for step in range(stop - start)]

    whole = run(0, 11, 1)
    assert run(4, 11, 1) == whole[4:]  # the same bits
    for world_size in (2, 3, 6):
        assert run(0, 4, world_size) + run(4, 11, 2) == whole


def test_drawing_with_replacement_resumes_too(uneven):
    order = Sampler(57, 12, 4, replacement=True)
    loader = Loader(uneven, order, decode, seed=1)
    whole = [batch.images.tolist() for batch in loader.batches(0, 6)]
    assert [batch.images.tolist() for batch in loader.batches(3, 6)] == whole[3:]
    assert any(len({sample for sample, _ in batch}) < 12 for batch in whole)
    assert all(len({tuple(row) for row in batch}) == 12 for batch in whole)  # a sample drawn twice is cropped twice


WORKER = """
import pickle, sys
import numpy as np
import ostension.data.loader

def own():
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

before = own()
source = pickle.loads(sys.stdin.buffer.read())
for index in np.random.default_rng(0).integers(0, len(source), 1000).tolist():
    source.key(index)
print(own() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="the memory of a process is read as Linux tells it")
def test_a_worker_holds_nothing_for_each_row_of_a_table(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("filepath,title\n" + "".join(f"images/{row:07}.jpg,caption number {row}\n" for row in range(200_000)))
    message = pickle.dumps(Table(path))
    assert len(message) < 2000
    done = subprocess.run([sys.executable, "-c", WORKER], input=message, capture_output=True, check=True)
    assert int(done.stdout) < 6_000  # kB; the rows as Python objects would be 80 MB


def test_processes_that_open_new_data_at_once_index_it_once(tmp_path, cache_folder):
    path = write_tar(tmp_path / "a.tar", members(200))
    code = f"from ostension.data.open import open_pairs; print(open_pairs({str(path)!r}).fingerprint())"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert len({process.communicate(timeout=120)[0] for process in running}) == 1
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == ["a.tar", "a.tar.idx"]
    made = []
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: cached_arrays("test", [1], lambda: (made.append(1) or {"x": np.arange(3)}, {})), range(8)))
    assert made == [1]
