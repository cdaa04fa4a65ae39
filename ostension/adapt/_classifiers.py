"""Frozen classifiers W for a tower to learn to fit: what Text4Vis compares with the text embeddings of class names.

    random        rows of independent normal numbers
    orthonormal   rows of the orthonormal matrix Q of a random normal one, Q R; at most as many as the embedding is wide
    lda           coefficients of linear discriminant analysis: (mean of class c - mean of all) S^-1, S within classes
    rows          embeddings of the names by another language model, from a file, or made here by a model of `transformers`

All are unit rows in the end. Rows of another width keep their cosines: they are turned into their principal directions, as many
as the embedding is wide, and those into random ones.

Source: the initialisations in Text4Vis's training script; its files of LDA and DistilBERT rows were never published. For LDA
scikit-learn's coefficients, with its two solvers: the pseudo-inverse without shrinkage, the plain inverse with.

Letters: N videos, C classes, D width of given rows, E embedding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from torch import Tensor

from ostension.errors import ConfigError, DataError, require_extra
from ostension.runtime import torch_generator
from ostension.shapes import Float, Int

RANK_TOLERANCE = 1e-4  # of directions that do not vary, beside the largest: scikit-learn's


def random_rows(classes: int, width: int, seed: int) -> Float[Tensor, "C E"]:
    """Unit rows in random directions."""
    drawn = torch.randn(classes, width, generator=torch_generator(seed, "classifier", "random"), dtype=torch.float64)
    return F.normalize(drawn, dim=-1).float()


def orthonormal_rows(classes: int, width: int, seed: int) -> Float[Tensor, "C E"]:
    """Unit rows at right angles.

    Raises:
        ConfigError: for more classes than there are right angles.
    """
    if classes > width:
        what = f"{classes} classes cannot be at right angles in {width} dimensions"
        raise ConfigError(what, expected=f"at most {width} classes, or classifier random")
    drawn = torch.randn(width, width, generator=torch_generator(seed, "classifier", "orthonormal"), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0][:classes].float()


def lda_rows(
    rows: Float[Tensor, "N E"], targets: Int[Tensor, " N"], classes: int, shrinkage: float = 0.0
) -> Float[Tensor, "C E"]:
    """Unit rows of LDA's coefficients, with classes as likely as they occur.

    Args:
        shrinkage: s in S = (1 - s) S + s tr(S) / E I; needed where there are fewer videos than dimensions.

    Raises:
        DataError: for a class without a video, or one video a class.
    """
    wide = rows.double()
    counts = torch.bincount(targets, minlength=classes)
    if int(counts.min()) == 0:
        raise DataError(f"class {int(counts.argmin())} has no video to fit LDA to", expected="one of each class at least")
    if len(wide) <= classes:
        what = f"{len(wide)} videos of {classes} classes say nothing of how a class varies"
        raise DataError(what, expected="several a class")
    means = torch.zeros(classes, wide.shape[1], dtype=torch.float64).index_add_(0, targets, wide) / counts[:, None]
    inner = wide - means[targets]
    centred = means - wide.mean(dim=0)
    if shrinkage > 0:
        scatter = inner.T @ inner / len(wide)
        spread = scatter.diagonal().mean() * torch.eye(len(scatter), dtype=torch.float64)
        found = torch.linalg.solve((1 - shrinkage) * scatter + shrinkage * spread, centred.T).T
    else:
        scale = inner.std(dim=0, correction=0)
        scale = torch.where(scale > 0, scale, 1.0)
        _, values, directions = torch.linalg.svd(inner / scale / (len(wide) - classes) ** 0.5, full_matrices=False)
        kept = int((values > RANK_TOLERANCE).sum())
        whitening = (directions[:kept] / scale).T / values[:kept]
        found = centred @ whitening @ whitening.T
    if not bool((found.norm(dim=-1) > 0).all()):
        raise DataError("LDA gives a class no direction", fix="more videos, or a shrinkage")
    return F.normalize(found, dim=-1).float()


def rows_of_names(source: str, class_names: Sequence[str], width: int, seed: int) -> Float[Tensor, "C E"]:
    """Unit rows of class names from a file of rows, or from a folder (or hub name) of a model for `transformers`.

    A file is ROWS.safetensors with a tensor "embeddings" and a JSON list "class_names" among its metadata, or ROWS.npy with the
    names in ROWS.txt, one a line. It may have more classes than are asked for.

    Raises:
        ConfigError: without a source.
        DataError: for a file that cannot be read, or lacks a class.
        MissingExtraError: for a model without `transformers`.
    """
    if not source:
        raise ConfigError("language_model is empty", expected="a file of rows, or a model of transformers")
    path = Path(source)
    if path.suffix in (".npy", ".safetensors"):
        names, rows = _read_rows(path)
        place = {name: index for index, name in enumerate(names)}
        missing = [name for name in class_names if name not in place]
        if missing:
            expected = f"rows of all {len(class_names)} classes"
            raise DataError(f"no row of the class {missing[0]!r}", source=path, expected=expected)
        chosen = rows[[place[name] for name in class_names]]
    else:
        chosen = _rows_of_model(source, class_names)
    return of_width(chosen, width, seed)


def of_width(rows: Float[Tensor, "C D"], width: int, seed: int) -> Float[Tensor, "C E"]:
    """Unit rows of another width with the same cosines, as far as they fit."""
    unit = F.normalize(rows.double(), dim=-1)
    if not bool(unit.isfinite().all()) or bool((unit.norm(dim=-1) < 0.5).any()):
        raise DataError("rows of class names that are zero or not finite", expected="an embedding of each")
    if unit.shape[1] == width:
        return unit.float()
    left, values, _ = torch.linalg.svd(unit, full_matrices=False)
    kept = min(width, len(values))
    drawn = torch.randn(width, width, generator=torch_generator(seed, "classifier", "width"), dtype=torch.float64)
    turned = (left[:, :kept] * values[:kept]) @ torch.linalg.qr(drawn)[0][:kept]
    return F.normalize(turned, dim=-1).float()


def _read_rows(path: Path) -> tuple[list[str], Tensor]:
    try:
        if path.suffix == ".npy":
            names = path.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
            rows = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float64))
        else:
            with safetensors.safe_open(path, "pt") as opened:
                names = json.loads((opened.metadata() or {})["class_names"])
                rows = opened.get_tensor("embeddings").double()
    except KeyError:
        raise DataError("no class names in its metadata", source=path, expected='"class_names", a JSON list') from None
    except (OSError, ValueError, TypeError, EOFError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"cannot be read: {reason}", source=path, expected="rows and class names") from None
    if not isinstance(names, list) or rows.ndim != 2 or len(names) != len(rows):
        raise DataError(f"{len(names)} class names and rows {tuple(rows.shape)}", source=path, expected="a row a class")
    return [str(name).strip() for name in names], rows


def _rows_of_model(source: str, class_names: Sequence[str]) -> Tensor:
    """The mean of the last states over a name's tokens, of any text model that `transformers` loads."""
    transformers = require_extra("transformers", "towers")
    try:
        tokenizer, model = transformers.AutoTokenizer.from_pretrained(source), transformers.AutoModel.from_pretrained(source)
    except (OSError, ValueError) as error:
        what = f"no language model can be loaded ({str(error).splitlines()[0]})"
        raise DataError(what, source=source, expected="a file .npy or .safetensors, or a model of transformers") from None
    inputs = tokenizer(list(class_names), return_tensors="pt", padding=True, truncation=True)
    with torch.no_grad():
        states = model.eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None].to(states.dtype)
    return (states * mask).sum(dim=1) / mask.sum(dim=1)
