"""The ServerApp: averages what the sites release, evaluates on public images, and keeps the weights and the record.

It has no image of any site, and nothing that it does changes a site's guarantee.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import chdir
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from ..detection.data import DetectionDataset
from ..detection.evaluate import evaluate
from ..detection.model import save_weights
from ..errors import ConfigError
from ..run.tracking import NoTracker, Tracker
from ..statement.results import append_rows
from ..support.devices import usable_device
from ..support.files import write_atomically, write_json, write_text
from ..training.average import copy_into
from .exchange import DeclinedError, check_parameters
from .messages import ARRAYS, CONFIG, NUMBERS, SIZE, config_of, release_in
from .public_model import PublicModel
from .record import RECORD, noted, sites_in, to_markdown, to_record
from .settings import ServerSettings, read_server

logger = logging.getLogger(__name__)

STATE = "federation.pt"


class SitesAverage(FedAvg):
    """Flower's FedAvg by declared sizes, over the replies that are what a site of these terms sends.

    Args:
        server: Keeps the sites' records.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(
            fraction_evaluate=0.0,
            weighted_by_key=SIZE,
            arrayrecord_key=ARRAYS,
            configrecord_key=CONFIG,
            train_metrics_aggr_fn=self._told,
        )
        self.server = server

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every site that is there; the first round waits for as many as the settings say."""
        self.min_available_nodes = self.min_train_nodes = self.server.settings.sites if server_round == 1 else 1
        return super().configure_train(server_round + self.server.before, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what is sound; of no reply at all the round leaves what was."""
        sound = []
        for reply in replies:
            if reply.has_error():
                logger.warning("a site answers: %s", reply.error.reason)
                continue
            try:
                self.server.note(reply.content, server_round + self.server.before)
            except DeclinedError as error:
                logger.warning("a reply is left out: %s", error)
                continue
            sound.append(reply)
        return super().aggregate_train(server_round, sound)

    def _told(self, replies: list[RecordDict], _: str) -> MetricRecord:
        return MetricRecord({"sites": len(replies), "images-declared": sum(int(r[NUMBERS][SIZE]) for r in replies)})


class Server:
    """What the server keeps from round to round, in ``output_dir``."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings, self.config = settings, settings.config
        self.public = PublicModel.of(settings)
        self.folder = Path(self.config.output_dir)
        self.sites, self.before = self._resumed()
        self.done = self.before
        device = torch.device(usable_device(self.config.device))
        self.model = self.public.model.to(device)
        self._val = DetectionDataset(self.public.data, "val", self.config.imgsz) if self.public.data.val else None

    def _resumed(self) -> tuple[dict[str, Any], int]:
        """Read the sites and the rounds of a federation that goes on."""
        if not self.config.resume:
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise ConfigError(f"output_dir={self.folder} is not empty: choose a new folder, or give resume: true")
            return {}, 0
        try:
            state = torch.load(self.folder / STATE, map_location="cpu", weights_only=True)
            record, parameters = state["record"], state["parameters"]
            same = record["terms"] == self.terms()
        except Exception as error:  # a damaged file fails in many ways
            raise ConfigError(f"{self.folder / STATE} cannot be read: leave resume out to begin anew") from error
        if not same:
            raise ConfigError(f"the federation in {self.folder} has other settings: give those, or another output_dir")
        copy_into(self.public.trained, parameters)
        return sites_in(record), record["rounds_done"]

    def terms(self) -> dict[str, Any]:
        """The terms as plain values."""
        return {**asdict(self.public.terms), "classes": list(self.public.terms.classes)}

    def note(self, content: RecordDict, number: int) -> None:
        """Take a site's reply into the record.

        Raises:
            DeclinedError: It is not what a site of these terms sends in this round, or the site has answered already.
        """
        release = release_in(content)
        check_parameters(release.parameters, {name: p.detach().cpu() for name, p in self.public.trained.items()})
        if release.number != number:
            raise DeclinedError(f"the site {release.name} answers round {release.number} in round {number}")
        if self.sites.get(release.name) is not None and self.sites[release.name].rounds[-1] == number:
            raise DeclinedError(f"two sites are called {release.name}")
        self.sites = noted(self.sites, release)

    def arrays(self) -> ArrayRecord:
        """What the first round begins with."""
        return ArrayRecord({name: p.detach().cpu() for name, p in self.public.trained.items()})

    def take_in(self, number: int, arrays: ArrayRecord, tracker: Tracker) -> MetricRecord | None:
        """Keep the average of a round, and evaluate it on the server's own public images."""
        self.done = self.before + number
        if number == 0 and self.before:
            return None
        copy_into(self.public.trained, arrays.to_torch_state_dict())
        save_weights(self.model, self.folder / "weights" / "last.pt")
        record = to_record(self.sites, self.done, self.terms())
        parameters = {name: p.detach().cpu() for name, p in self.public.trained.items()}
        state = {"record": record, "parameters": parameters}
        write_atomically(self.folder / STATE, lambda stream: torch.save(state, stream))
        write_json(self.folder / RECORD, record)
        write_text(self.folder / "federation.md", to_markdown(record))
        row: dict[str, float] = {
            "step": self.done,
            "dp/epsilon": 0.0,
            "dp/epsilon_claimed": 0.0,
            "dp/delta": 0.0,
            "sites": 0,
        }
        for name, site in self.sites.items():
            row["dp/epsilon"] = max(row["dp/epsilon"], site.epsilon_so_far)
            row["dp/epsilon_claimed"] = max(row["dp/epsilon_claimed"], site.epsilon)
            row["dp/delta"] = max(row["dp/delta"], site.delta)
            row["sites"] += site.rounds[-1] == self.done
            tracker.metrics({f"site/{name}/epsilon": site.epsilon_so_far}, self.done)
        values: dict[str, float] = {}
        if self._val is not None:
            result = evaluate(self.model, self._val, device=next(self.model.parameters()).device)
            values = dict(result.values)
        append_rows(self.folder / "results.csv", [{**row, **values}])
        tracker.metrics({key: value for key, value in {**row, **values}.items() if key != "step"}, self.done)
        return MetricRecord({key.removeprefix("metrics/"): float(value) for key, value in values.items()}) or None

    def tracker(self) -> Tracker:
        """The MLflow run of the federation, whose steps are rounds."""
        if not self.config.tracking.enabled:
            return NoTracker()
        note, tracking = self.folder / "mlflow_run", self.config.tracking
        tags = {"dptrain.model": Path(self.config.model).name, "dptrain.federated": "true"}
        known = note.read_text().strip() if note.exists() else None
        tracker = Tracker.start(tracking.uri, tracking.experiment, tracking.run_name, tags, known)
        write_text(note, tracker.run_id)
        if known is None:
            tracker.parameters({key: value for key, value in self.terms().items() if key != "classes"})
        return tracker


def serve(grid: Grid, settings: ServerSettings) -> Server:
    """Play all rounds, or those that are left."""
    server = Server(settings)
    server.folder.joinpath("weights").mkdir(parents=True, exist_ok=True)
    with server.tracker() as tracker:
        SitesAverage(server).start(
            grid,
            server.arrays(),
            num_rounds=settings.rounds - server.before,
            timeout=settings.round_timeout,
            train_config=config_of(server.public.terms),
            evaluate_fn=lambda number, arrays: server.take_in(number, arrays, tracker),
        )
        for file in (RECORD, "federation.md", "weights/last.pt"):
            tracker.file(server.folder / file)
    return server


def server_app(file: str | Path | None = None) -> ServerApp:
    """Return the ServerApp with its settings in a file; by default the one that the run configures as ``settings``."""
    app = ServerApp()

    def main(grid: Grid, context: Context) -> None:
        """Average what the sites release, for as many rounds as the settings say."""
        place = Path(str(context.run_config["settings"]) if file is None else file).absolute()
        with chdir(place.parent):
            serve(grid, read_server(place))

    app.main()(main)
    return app


app = server_app()
