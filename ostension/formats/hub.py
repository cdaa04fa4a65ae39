"""Models on the Hugging Face hub: the files of one model, downloaded once and then read from the library's cache.

`huggingface_hub` does the work: it resumes a download that was cut, shows progress, checks sizes, and keeps everything in
its own cache. Without a connection, or with HF_HUB_OFFLINE=1, the cache alone answers.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ostension.errors import CheckpointError, require_extra
from ostension.formats import hf_common, open_clip, ours
from ostension.formats.manifest import MANIFEST
from ostension.formats.source import HUB, choose_weights

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SMALL_FILES = (
    ours.CONFIG,
    ours.PROVENANCE,
    MANIFEST,
    open_clip.CONFIG,
    hf_common.PREPROCESSOR,
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
)


def fetch(name: str, layout: str | None = None) -> tuple[Path, str]:
    """The local folder of the model `ORG/NAME[@REVISION]` and its commit, downloading what is not there yet.

    Raises:
        CheckpointError: for a malformed name, one that the hub does not have or does not give, or when there is neither a
            connection nor a copy in the cache.
        MissingExtraError: without the extra `hub`.
    """
    repo, _, revision = name.partition("@")
    if not _NAME.fullmatch(repo) or ".." in repo:
        raise CheckpointError(f"{HUB}{name} is not the name of a model", expected=f"{HUB}ORG/NAME or {HUB}ORG/NAME@REVISION")
    library = require_extra("huggingface_hub", "hub")
    if require_extra("huggingface_hub.constants", "hub").HF_HUB_OFFLINE:
        return _cached(library, repo, revision or "main", layout, "HF_HUB_OFFLINE is set")
    errors = require_extra("huggingface_hub.errors", "hub")
    try:
        return _download(library, repo, revision or None, layout)
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{HUB}{name} asks its users to accept its terms", fix="accept them on the model's page, then: hf auth login"
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{HUB}{repo} has no revision {revision!r}", expected="a branch, a tag or a commit") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"the hub has no model {repo!r}, or it is private", fix="check the name; for a private one: hf auth login"
        ) from None
    except CheckpointError:
        raise
    except Exception as error:  # the library passes on whatever its HTTP client raises
        if not _is_connection(error, errors):
            raise CheckpointError(
                f"{HUB}{name} could not be downloaded: {_first_line(error)}", fix="run it again: it resumes"
            ) from None
        print(f"ostension: no connection to the hub ({_first_line(error)}); looking in its cache", file=sys.stderr)
        return _cached(library, repo, revision or "main", layout, "there is no connection to the hub")


def _download(library, repo: str, revision: str | None, layout: str | None) -> tuple[Path, str]:
    info = library.HfApi().model_info(repo, revision=revision)
    names = {sibling.rfilename for sibling in info.siblings or ()}
    weights = choose_weights(names, layout)
    if weights is None:
        shown = ", ".join(sorted(names)[:5]) or "nothing"
        raise CheckpointError(
            f"{HUB}{repo} holds no weights that can be read (it has {shown})", expected="a CLIP or SigLIP model"
        )
    wanted = [name for name in _SMALL_FILES if name in names] + [weights]
    if weights.endswith(".index.json"):
        stem, suffix = weights.removesuffix(".index.json").rsplit(".", 1)
        wanted += [name for name in names if re.fullmatch(rf"{re.escape(stem)}-\d+-of-\d+\.{suffix}", name)]
    # By the branch's name, so that the cache knows which commit it stands for; the folder is that commit's.
    folder = Path(library.snapshot_download(repo, revision=revision, allow_patterns=wanted))
    return folder, folder.name


def _cached(library, repo: str, revision: str, layout: str | None, why: str) -> tuple[Path, str]:
    errors = require_extra("huggingface_hub.errors", "hub")
    try:
        folder = Path(library.snapshot_download(repo, revision=revision, local_files_only=True))
    except errors.IncompleteSnapshotError as error:
        folder = Path(error.snapshot_path)  # we never ask for every file of a repository
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, FileNotFoundError, ValueError):
        raise CheckpointError(f"{HUB}{repo} is not in the hub's cache (revision {revision!r}), and {why}", fix=_FIX) from None
    names = {path.name for path in folder.iterdir()}
    if choose_weights(names, layout) is None:
        raise CheckpointError(f"{HUB}{repo} is in the hub's cache without its weights, and {why}", fix=_FIX)
    return folder, folder.name


_FIX = "connect once to download it, or give a local folder"


def _is_connection(error: Exception, errors) -> bool:
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, OSError)) and not isinstance(
        error, errors.HfHubHTTPError
    ):
        return True
    return type(error).__name__ in (
        "ConnectError",
        "ConnectTimeout",
        "ReadTimeout",
        "ProxyError",
        "NetworkError",
        "RemoteProtocolError",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n", 1)[0] or type(error).__name__)[:200]
