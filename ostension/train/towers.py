"""Where the towers' first weights come from, where they are not random: a folder, a file, a package of weights."""

from __future__ import annotations

import dataclasses

from ostension.formats.towers import fill, load_tower
from ostension.model.clip import CLIP


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowersConfig:
    """Sources of weights, as `formats.towers.load_tower` names them; what a tower is made of the model's settings say.

    Attributes:
        image, text: a folder or file, `package:NAME`, or `hf-hub:ORG/NAME`; None leaves the tower as it is.
    """

    image: str | None = None
    text: str | None = None

    def fill(self, model: CLIP) -> None:
        """Give `model` those weights; projections only where the sources have them in the model's width.

        Raises:
            CheckpointError, MissingExtraError: for a source that cannot be read, or is not installed.
            ConfigError: for a tower that is not the model's.
        """
        config = model.config
        if self.image is not None:
            pool = getattr(config.vision, "pool", None)
            fill(model, load_tower(self.image, "image", image_size=config.vision.image_size, pool=pool))
        if self.text is not None:
            pool = getattr(config.text, "pool", None)
            fill(model, load_tower(self.text, "text", context_length=config.text.context_length, pool=pool))
