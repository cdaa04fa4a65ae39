"""Files at URLs (`s3://`, `gs://`, `https://`, `memory://`, ...) read by ranges, through fsspec.

A file's size and version (entity tag, or time of change) are asked for once, on opening; what is derived from it is kept
in the cache folder under URL, size and version. A server that gives no ranges is read once: the file is copied into the
cache folder.

A network that fails is not a bad sample. It is tried again, and then ends the run with one line (`UnreachableError`, which
the loader does not catch); a resumed run goes on with the same samples.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ostension.data.arrays import cache_folder, cannot_write, one_at_a_time
from ostension.errors import ConfigError, DataError, LimitError, MissingExtraError, OstensionError, require_extra
from ostension.files import sha256_json

EXTRA = "remote"
ATTEMPTS = 4
FIRST_WAIT_S = 0.5  # doubled after each attempt
THREADS = 16  # requests at a time when many files are looked up
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
T = TypeVar("T")
# Where file systems say which version of a file they have; the first one that is there counts.
_VERSIONS = ("ETag", "etag", "VersionId", "generation", "LastModified", "Last-Modified", "mtime", "updated", "created")


class UnreachableError(OstensionError):
    """A file that is there but cannot be read now."""


def is_url(text: str) -> bool:
    """Whether `text` begins as a URL does, `scheme://`."""
    return _SCHEME.match(text) is not None


def shown(url: str) -> str:
    """A URL without what may be secret: password and query."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file at a URL, as it was when it was opened.

    Attributes:
        size: bytes.
        version: the file system's mark of this content; empty where it gives none.
        copy: the copy in the cache folder, for a server without ranges.
    """

    url: str
    size: int
    version: str
    copy: Path | None = None

    def __str__(self) -> str:
        return shown(self.url)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return _name(self.url)

    @property
    def suffix(self) -> str:
        """The name's ending, with its dot."""
        return PurePosixPath(self.name).suffix

    def cache_key(self) -> list[Any]:
        """What names this content: URL, size, version."""
        return [self.url, self.size, self.version]

    def read(self, offset: int, count: int) -> bytes:
        """The `count` bytes at `offset`.

        Raises:
            UnreachableError: if they cannot be read, after some attempts.
            DataError: if the file has fewer, so has changed.
        """
        if self.copy is not None:
            with _local_errors(self.copy), open(self.copy, "rb") as handle:
                data = os.pread(handle.fileno(), count, offset)
        else:
            data = attempt(self.url, lambda files: _range(files, self.url, self.size, offset, count)) if count else b""
        if len(data) != count:
            raise DataError(f"ends before byte {offset + count}: it changed while in use", source=self)
        return data

    @contextlib.contextmanager
    def downloaded(self) -> Iterator[Path]:
        """The whole file, here, while entered."""
        if self.copy is not None:
            yield self.copy
            return
        folder = cache_folder("downloads")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(suffix=".partial", dir=folder)
        except OSError as error:
            raise cannot_write(folder, error) from None
        os.close(descriptor)
        path = Path(name)
        try:
            self._download(path)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def with_ranges(self) -> RemoteFile:
        """The file such that ranges can be read: itself, or with a copy in the cache folder.

        Raises:
            UnreachableError: if it cannot be read.
            DataError: if the copy cannot be kept.
        """
        if self.copy is not None or not self.url.lower().startswith("http") or self.size < 2:
            return self
        if self._copy_path().is_file():
            return dataclasses.replace(self, copy=self.kept())
        if attempt(self.url, lambda files: _gives_ranges(files, self.url, self.size)):
            return self
        note = f"{self}: the server gives no ranges; a copy of {self.size / 1e6:,.1f} MB is kept in {cache_folder('copies')}"
        logging.getLogger("ostension.data").warning(note)
        return dataclasses.replace(self, copy=self.kept())

    def kept(self) -> Path:
        """A copy of the whole file in the cache folder, made if there is none of this version yet.

        Raises:
            UnreachableError: if it cannot be read.
            DataError: if the copy cannot be written.
        """
        path = self._copy_path()
        with one_at_a_time(path.parent.name):
            if path.is_file() and path.stat().st_size == self.size:
                return path
            with self.downloaded() as partial:
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(partial, path)
                except OSError as error:
                    raise cannot_write(path, error) from None
        return path

    def _copy_path(self) -> Path:
        return cache_folder("copies") / sha256_json(self.cache_key())[:32] / self.name

    def _download(self, path: Path) -> None:
        attempt(self.url, lambda files: files.get_file(_path(files, self.url), str(path)))
        if path.stat().st_size != self.size:
            raise UnreachableError(f"{path.stat().st_size} of {self.size} bytes came", source=self)


def look_up(urls: Sequence[str]) -> list[RemoteFile | None]:
    """The files at some URLs, None for each that does not exist.

    Raises:
        UnreachableError: if a server cannot be asked.
        ConfigError, MissingExtraError: for a protocol that is unknown, or whose package is not installed.
    """
    for scheme in {_scheme(url) for url in urls}:
        file_system(next(url for url in urls if _scheme(url) == scheme))  # says once what is missing
    with concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix="ostension-lookup") as pool:
        return list(pool.map(_look_up, urls))


def matching(pattern: str) -> list[str]:
    """The URLs that a pattern with `*` stands for, sorted.

    Raises:
        UnreachableError: if the folder cannot be listed.
    """
    found = attempt(pattern, lambda files: files.glob(_path(files, pattern)))
    return sorted(path if is_url(path) else f"{_scheme(pattern)}://{path.lstrip('/')}" for path in found)


def file_system(url: str) -> Any:
    """fsspec's file system for a URL; one in each process.

    Raises:
        ConfigError: for a protocol that fsspec does not know.
        MissingExtraError: if fsspec, or the protocol's own package, is not installed.
    """
    fsspec, scheme = require_extra("fsspec", EXTRA), _scheme(url)
    try:
        return fsspec.filesystem(scheme)
    except ValueError:
        known = "http(s), s3, gs, file or another that fsspec knows"
        raise ConfigError(f"the protocol {scheme}://", source=shown(url), expected=known) from None
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        raise MissingExtraError(
            f"{scheme}:// needs a package that cannot be imported ({error})",
            source=shown(url),
            fix=f"install it with: pip install {package}" if package else None,
        ) from None


def attempt(url: str, act: Callable[[Any], T]) -> T:
    """What `act(file system)` gives; after an error of the network it is tried again, later and later.

    Raises:
        UnreachableError: if the last attempt fails too, or the file may not be read.
    """
    files = file_system(url)
    for number in itertools.count(1):
        try:
            return act(files)
        except OstensionError:
            raise
        except Exception as error:  # each protocol has its own; none of them is ours
            denied = isinstance(error, (FileNotFoundError, PermissionError)) or getattr(error, "status", None) in (401, 403)
            if denied or number == ATTEMPTS:
                fix = None if denied else "check the address and the network; a run can be resumed"
                raise UnreachableError(f"cannot be read: {_line(error)}", source=shown(url), fix=fix) from None
            time.sleep(FIRST_WAIT_S * 2 ** (number - 1))
    raise AssertionError


def read_whole(url: str, limit: int, source: object) -> bytes:
    """A small file at a URL.

    Raises:
        DataError: if there is none.
        LimitError: if it has more than `limit` bytes.
    """
    found = _look_up(url)
    if found is None:
        raise DataError(f"{_name(url)!r} cannot be read: no such file", source=source)
    if found.size > limit:
        raise LimitError(f"{_name(url)!r} has {found.size} bytes", source=source, expected=f"at most {limit}")
    return attempt(url, lambda files: files.cat_file(_path(files, url)))


def _look_up(url: str) -> RemoteFile | None:
    def ask(files: Any) -> RemoteFile | None:
        try:
            info = files.info(_path(files, url))
        except FileNotFoundError as error:
            # fsspec says the same of a server that cannot be reached; the cause tells.
            cause = error.__cause__
            if cause is None or getattr(cause, "status", None) in (404, 410):
                return None
            raise cause if isinstance(cause, Exception) else ConnectionError(str(cause)) from None
        if info.get("type") == "directory":
            return None
        if not isinstance(info.get("size"), int):
            raise DataError("the server does not say how large this is", source=shown(url), fix="download it")
        version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
        return RemoteFile(url, info["size"], version)

    return attempt(url, ask)


def _range(files: Any, url: str, size: int, offset: int, count: int) -> bytes:
    if not url.lower().startswith("http"):
        return files.cat_file(_path(files, url), start=offset, end=offset + count)
    # Unlike cat_file this stops when a server answers with more than was asked for.
    with files.open(url, size=size, cache_type="none") as handle:
        return handle._fetch_range(offset, offset + count)


def _gives_ranges(files: Any, url: str, size: int) -> bool:
    try:
        return len(_range(files, url, size, size - 1, 1)) == 1
    except ValueError:  # how fsspec says that it got the whole file
        return False


@contextlib.contextmanager
def _local_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnreachableError(f"cannot be read: {(error.strerror or 'no such file').lower()}", source=path) from None


def _line(error: Exception) -> str:
    """An error of somebody else's as one short line; the type where it says nothing."""
    text = " ".join(str(error).split())[:200]
    return re.sub(r"\?\S+", "", text) or type(error).__name__


def _scheme(url: str) -> str:
    found = _SCHEME.match(url)
    assert found, url
    return found[1].lower()


def _path(files: Any, url: str) -> str:
    """What a file system calls a URL."""
    return files._strip_protocol(url)


def _name(url: str) -> str:
    return shown(url).rstrip("/").rpartition("/")[2]
