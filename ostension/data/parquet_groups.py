"""The rows of a Parquet file, in groups that can be read alone and are quick to read.

The smallest such part of a file is its row group. Writers make them of 100 rows or of a million; a random order reads nearly a
whole one for each sample, and a large one does not even fit in memory. So a file with large row groups is unpacked once, into
Arrow's own format in the cache folder: small batches, uncompressed, read through a memory map that all processes share. Images
are compressed already, so the copy is about as large as the file. Files with small row groups are read as they are, and the
groups last used are kept.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.data.arrays import cache_folder, cannot_write, one_at_a_time
from ostension.data.remote import RemoteFile, attempt
from ostension.errors import DataError
from ostension.files import atomic_path, sha256_json

CACHE_BYTES = 128 << 20  # of row groups, for each process
UNPACK_BYTES = 32 << 20  # a row group of more, uncompressed, is too large to be read for one sample
UNPACKED_ROWS = 64  # in a batch of the copy: images are large, so small batches cost nothing


class RowGroups:
    """Some columns of a Parquet file, group by group.

    Attributes:
        footer: SHA-256 of the file's footer, which has the place, size and range of values of every part.
        num_bytes: size of the file.
        ends: the row at which each group ends.

    Raises:
        DataError: if the file cannot be read.
    """

    _opened: Any
    _kept: OrderedDict[int, Any]

    def __init__(self, location: Path | RemoteFile):
        self.location = location
        self._version: tuple[str, int] | None = None
        self._columns: list[str] = []
        self._copy: Path | None = None
        self._reset()
        metadata = self._file().metadata
        self._version = self.footer, self.num_bytes = _read_footer(location)
        self.ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)], dtype=np.int64)

    @property
    def schema(self) -> Any:
        """The columns, as pyarrow has them."""
        return self._file().schema_arrow

    def choose(self, columns: Sequence[str]) -> None:
        """Say which columns will be read; unpacks them if the row groups are large.

        Raises:
            DataError: if the file is broken, or the copy cannot be kept.
        """
        self._columns = list(columns)
        largest = max((self._size(group) for group in range(len(self.ends))), default=0)
        if largest > UNPACK_BYTES:
            self._copy = self._unpacked(largest)
            self._reset()
            batches = self._file()
            rows = [batches.get_batch(number).num_rows for number in range(batches.num_record_batches)]
            self.ends = np.cumsum(rows, dtype=np.int64)

    def is_full(self, *leaves: str) -> bool:
        """Whether the file says that none of some leaf columns lacks a value; False if it does not say."""
        metadata = self._parquet().metadata
        groups = map(metadata.row_group, range(metadata.num_row_groups))
        parts = (group.column(at) for group in groups for at in range(group.num_columns))
        statistics = [part.statistics for part in parts if part.path_in_schema in leaves]
        return bool(statistics) and all(
            found is not None and found.has_null_count and found.null_count == 0 for found in statistics
        )

    def column(self, number: int, name: str) -> Any:
        """One column of one group, which is not kept."""
        return self._read(number, [name])[name]

    def group(self, number: int) -> Any:
        """The chosen columns of one group.

        Raises:
            DataError: if it cannot be read.
        """
        with self._lock:
            if self._copy is not None:
                return self._read(number, self._columns)
            table = self._kept.pop(number, None)
            if table is None:
                table = self._read(number, self._columns)
                self._kept_bytes += table.nbytes
            self._kept[number] = table
            while len(self._kept) > 1 and self._kept_bytes > CACHE_BYTES:
                self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
            return table

    def _read(self, number: int, columns: list[str]) -> Any:
        import pyarrow

        def read(_: Any) -> Any:
            return self._file().read_row_group(number, columns=columns, use_threads=False)

        try:
            if self._copy is not None:
                return self._file().get_batch(number)
            return attempt(self.location.url, read) if isinstance(self.location, RemoteFile) else read(None)
        except (pyarrow.ArrowException, OSError) as error:
            what = f"row group {number} cannot be read: {_line(error)}"
            raise DataError(what, source=self.location) from None

    def _file(self) -> Any:
        """The file or its copy, open; in another process it is opened again and compared."""
        if self._opened is None:
            import pyarrow
            import pyarrow.ipc

            if self._copy is None:
                self._opened = self._parquet()
            else:
                try:
                    self._opened = pyarrow.ipc.open_file(pyarrow.memory_map(str(self._copy)))
                except (pyarrow.ArrowException, OSError) as error:
                    what = f"the copy cannot be read: {_line(error)}"
                    raise DataError(what, source=self._copy, fix="delete it: it will be made again") from None
            if self._version is not None and _read_footer(self.location) != self._version:
                raise DataError("changed while in use", source=self.location)
        return self._opened

    def _parquet(self) -> Any:
        import pyarrow
        import pyarrow.parquet

        location = self.location
        handle: Any = location if isinstance(location, Path) else location.copy
        if isinstance(location, RemoteFile) and handle is None:
            handle = attempt(location.url, lambda files: files.open(files._strip_protocol(location.url), "rb"))
        try:
            # Through a map, or a buffer: so that a large row group is unpacked piece by piece.
            options = {"memory_map": True} if isinstance(handle, Path) else {"buffer_size": 1 << 20}
            return pyarrow.parquet.ParquetFile(handle, pre_buffer=False, **options)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"cannot be read as Parquet: {_line(error)}", source=location) from None

    def _size(self, group: int) -> int:
        """Bytes of the chosen columns of a row group, uncompressed."""
        parts = self._file().metadata.row_group(group)
        columns = (parts.column(at) for at in range(parts.num_columns))
        return sum(part.total_uncompressed_size for part in columns if part.path_in_schema.split(".")[0] in self._columns)

    def _unpacked(self, largest: int) -> Path:
        """The copy, made if there is none yet."""
        import pyarrow
        import pyarrow.ipc

        path = cache_folder("copies") / sha256_json(["parquet", self.footer, self.num_bytes, self._columns])[:32] / "rows.arrow"
        with one_at_a_time(path.parent.name):
            if path.is_file():
                return path
            what = f"row groups of up to {largest / 1e6:,.0f} MB; a copy for random access is kept in {path.parent}"
            logging.getLogger("ostension.data").warning(f"{self.location}: {what}")
            file = self._file()
            schema = pyarrow.schema([file.schema_arrow.field(name) for name in self._columns])
            try:
                with atomic_path(path) as partial, pyarrow.ipc.new_file(str(partial), schema) as writer:
                    for batch in file.iter_batches(batch_size=UNPACKED_ROWS, columns=self._columns, use_threads=False):
                        writer.write_batch(batch.select(self._columns).cast(schema))
            except (pyarrow.ArrowException, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise cannot_write(path, error) from None
                raise DataError(f"cannot be read: {_line(error)}", source=self.location) from None
        return path

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_opened", "_kept", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._reset()
        self.__dict__.update(state)

    def _reset(self) -> None:
        self._opened = None
        self._kept = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()


def _read_footer(location: Path | RemoteFile) -> tuple[str, int]:
    """The SHA-256 of the footer, and the size of the file."""
    if isinstance(location, RemoteFile):
        length = int.from_bytes(location.read(location.size - 8, 4), "little")
        return hashlib.sha256(location.read(location.size - 8 - length, length)).hexdigest(), location.size
    with open(location, "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        length = int.from_bytes(os.pread(handle.fileno(), 4, size - 8), "little")
        return hashlib.sha256(os.pread(handle.fileno(), length, size - 8 - length)).hexdigest(), size


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
