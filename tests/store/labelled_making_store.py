"""A task of cats and dogs with its pictures."""

from __future__ import annotations

import numpy as np
from store_making import picture

from ostension.data.task_data import TaskData, open_task


def labelled_task(folder, cats: int = 2, embeddings: np.ndarray | None = None) -> TaskData:
    for label, count in (("cat", cats), ("dog", 2)):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            (folder / label / f"{index}.png").write_bytes(picture(index))
    record = folder.parent / f"{folder.name}.toml"
    record.write_text(
        'title = "Pets"\nversion = 1\ntemplates = ["a photo of a {}."]\nmetric = "accuracy"\nlicence = "mine"\n'
        f'citation = "nobody"\nsplits = {{ test = {{ count = {cats + 2} }} }}\nclasses = {{ cat = "cat", dog = "dog" }}\n'
    )
    if embeddings is None:
        return open_task(record, folder)
    path = folder.parent / f"{folder.name}.npz"
    np.savez(path, embeddings=embeddings, labels=np.array(["cat"] * cats + ["dog"] * 2))
    return open_task(record, path)
