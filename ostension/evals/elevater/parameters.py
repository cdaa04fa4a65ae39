"""How many parameters a method trains, and ELEVATER's score of doing well with few."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from ostension.evals.elevater.heads import HeadConfig

UNIT = 1e8  # of the parameters in the score


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters:
    """Numbers of parameters, as the leaderboard counts them.

    Attributes:
        trainable: those that training moves.
        total: of the backbone, the head and its scale.
        visual: of the image tower as it is used (a merged head has dropped the projection).
        backbone: of both towers as they are used.
    """

    trainable: int
    total: int
    visual: int
    backbone: int

    @staticmethod
    def of_zero_shot(model: Mapping[str, int]) -> Parameters:
        """Nothing is trained and there is no head.

        Args:
            model: `Inputs.parameters()`.
        """
        return Parameters(trainable=0, total=model["backbone"], visual=model["visual"], backbone=model["backbone"])

    @staticmethod
    def of_head(
        model: Mapping[str, int], config: HeadConfig, classes: int, width: int, *, dropped: int = 0, tower: bool = False
    ) -> Parameters:
        """A head of `classes` x `width` on the model.

        Args:
            model: `Inputs.parameters()`.
            dropped: parameters of the projection that a merged head has taken in.
            tower: the image tower is trained too.
        """
        head = classes * width + classes
        visual, backbone = model["visual"] - dropped, model["backbone"] - dropped
        trainable = head + config.train_scale + (visual if tower else 0)
        return Parameters(trainable=trainable, total=backbone + head + 1, visual=visual, backbone=backbone)


def parameter_efficiency(score: float, trainable: float | int) -> float:
    """PE = score * exp(-log10(P / 1e8 + 1)): the score itself when nothing is trained, less by a factor e for 9e8 parameters.

    Source: remembered from the leaderboard's pages (EvalAI); the toolkit does not hold it.
    """
    return score * math.exp(-math.log10(trainable / UNIT + 1))
