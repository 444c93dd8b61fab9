"""The ClientApp of a site. Flower runs it in a process of its own for every message.

Whatever goes wrong in it, Flower sends the words of the error to the server. So every error is turned here into a line
of public words (:func:`~dptrain.federated.site.told`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch  # noqa: F401  # before Flower's records are read: they look for it
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from ..errors import ConfigError
from .exchange import DeclinedError
from .messages import content_of, offer_in
from .site import take_round, told

DECLINED = 100  # code of Flower's Error; its own are below


def client_app(file_of: Callable[[Context], Path]) -> ClientApp:
    """Return a ClientApp whose site has its settings in the file that ``file_of`` names."""
    app = ClientApp()

    def train(message: Message, context: Context) -> Message:
        """Take the site's steps of one round, or say in a line why not."""
        try:
            with told():
                return Message(content_of(take_round(file_of(context), offer_in(message.content))), reply_to=message)
        except DeclinedError as error:
            return Message(Error(DECLINED, str(error)), reply_to=message)

    app.train()(train)
    return app


def _of_the_node(context: Context) -> Path:
    """The file that the SuperNode was started with; what the server configures is never asked."""
    file = context.node_config.get("site")
    if not isinstance(file, str):
        raise ConfigError("start the SuperNode with --node-config 'site=\"/path/to/site.yaml\"'")
    return Path(file)


def simulated(files: Sequence[str | Path]) -> ClientApp:
    """Return the ClientApp of all sites of a simulation, each by its number."""
    places = [Path(file).absolute() for file in files]
    return client_app(lambda context: places[int(context.node_config["partition-id"])])


app = client_app(_of_the_node)
