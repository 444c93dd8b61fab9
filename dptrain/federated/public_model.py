"""The model of the server: all of it public, and the same at every site but for what trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..datasets.sources import DataConfig, load_data
from ..detection import DetectionModel
from ..gradients import trainable_parameters
from ..run.build import model_to_train
from ..sealing.weights import is_weights, weights_hash
from .exchange import Terms, class_list, frozen_hash
from .settings import ServerSettings


@dataclass(frozen=True)
class PublicModel:
    """A detector with its start weights, and the terms that follow from it.

    Attributes:
        trained: The parameters that are sent and averaged.
        data: The classes, and the public val split if there is one.
    """

    model: DetectionModel
    trained: Mapping[str, nn.Parameter]
    data: DataConfig
    terms: Terms

    @classmethod
    def of(cls, settings: ServerSettings) -> PublicModel:
        """Load what the settings name.

        Raises:
            DptrainError: It cannot be loaded.
        """
        config = settings.config
        data = load_data(config.data, config.labels, trains=False)
        model = model_to_train(config, data)
        trained = trainable_parameters(model)
        frozen = {name: tensor for name, tensor in model.state_dict().items() if name not in trained}
        start = Path(config.model)
        terms = Terms(
            settings.rounds,
            settings.steps_per_round,
            weights_hash(start) if is_weights(start) else "random",
            frozen_hash(frozen),
            class_list(model.names),
        )
        return cls(model, trained, data, terms)
