"""A predictor that looks at pictures through several views of each.

Letters: B batch, V views, C classes, E embedding, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ostension.adapt._views import Views
from ostension.adapt.base import AdditionPredictor
from ostension.errors import ConfigError
from ostension.shapes import Float


class ViewsPredictor(AdditionPredictor):
    """Predicts through views, whose number and kind the settings say (`views`, `mix`; `steps` of tuning on them).

    The addition gives the classes' rows (B, C, E) of each picture's views as `rows_of_views`.
    """

    kind, depends = "views", "views"
    module: Any

    @torch.no_grad()
    def logits_of_views(self, views: Float[Tensor, "B V E"]) -> Float[Tensor, "B C"]:
        """Logits from unit rows of views, view 0 first; it is the one that is predicted."""
        parts = views.split(self.module.block)
        products = [torch.einsum("be,bce->bc", part[:, 0].double(), self.module.rows_of_views(part).double()) for part in parts]
        return (self.scale * torch.cat(products)).float()

    def logits(self, embeddings: Float[Tensor, "B E"]) -> Float[Tensor, "B C"]:
        """Logits from one view: allowed where nothing is tuned on them.

        Raises:
            ConfigError: otherwise.
        """
        if self.module.config.steps:
            raise ConfigError(
                f"{self.kind} tunes on several views of a picture", fix="give pictures, or rows of views to logits_of_views"
            )
        return self.logits_of_views(embeddings[:, None])

    def pixels(self, pictures: Sequence[Any], *, workers: int = 0) -> Float[Tensor, "B V 3 S S"]:
        views = Views(self.encoder, self.module.config.views, self.module.config.mix)
        return torch.stack([views.pixels(picture) for picture in pictures])

    def forward(self, images: Float[Tensor, "B *V 3 S S"]) -> Float[Tensor, "B C"]:
        """Logits of views of preprocessed images; without a place for views, each image counts as its only one."""
        views = images if images.ndim == 5 else images[:, None]
        return self.logits_of_views(torch.stack([self.module.image(own) for own in views]))

    def predict(self, images: Sequence[Any] | Tensor, *, batch_size: int = 32, workers: int = 0) -> Float[Tensor, "N C"]:
        return super().predict(images, batch_size=1 if isinstance(images, Sequence) else batch_size, workers=workers)
