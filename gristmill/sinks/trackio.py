"""trackio: mean reward, pass@k and lift by turn on one run of the dashboard, the loss by step on one for each turn.

The database is in the workspace (`trackio/`; look with `TRACKIO_DIR=… trackio show`) or wherever `folder` says, or on a
Space. Runs are found again by their name, which holds the start of the run's key. trackio adds what it is sent: after a
kill a point may be there twice, at the same step with the same value.
"""

from __future__ import annotations

import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.recipe import TrackioSinkRecipe
from gristmill.sinks.events import Decided, Evaluated, Event, Produced, RunOf, RunStarted, Trained
from gristmill.statistics import Estimate

if TYPE_CHECKING:
    from gristmill.workspace import Workspace


class TrackioSink:
    """Logs to a trackio project."""

    def __init__(self, settings: TrackioSinkRecipe, workspace: Workspace) -> None:
        self.settings = settings
        folder = Path(settings.folder) if settings.folder else workspace.root / "trackio"
        os.environ["TRACKIO_DIR"] = str(folder)  # read when trackio is imported
        import trackio

        self.trackio = trackio
        self._recipes: dict[str, dict[str, Any]] = {}

    def send(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._recipes[event.run.key] = event.recipe
                self._log(event.run, None, [({"run": float(event.number)}, None)])
            case Trained():
                self._log(event.run, event.turn, [({"loss": v}, step) for step, v in enumerate(event.losses, 1)])
            case Evaluated(evaluation=found) if event.stage == "evaluate":
                named = {"mean_reward": found.estimate}
                named |= {f"pass@{k}": one for k, one in found.pass_at.items()}
                named |= {f"reward/{one.name}": one.estimate for one in found.categories}
                numbers = {name: value for key, one in named.items() for name, value in _interval(key, one).items()}
                self._log(event.run, None, [(numbers, event.turn)])
            case Decided():
                self._log(event.run, None, [(_interval("lift", event.decision.lift), event.turn)])
            case Produced() if event.ref.kind == "dataset":
                counts = event.manifest.counts
                numbers = {name: float(counts[name]) for name in ("examples", "rows_kept", "rows_read")}
                self._log(event.run, None, [(numbers, event.turn)])

    def close(self) -> None:
        """Every log was finished."""

    def _log(self, of: RunOf, turn: int | None, points: list[tuple[dict[str, float], int | None]]) -> None:
        name = f"{of.name}-{of.key[:8]}" + ("" if turn is None else f" turn {turn}")
        with redirect_stdout(StringIO()):  # it talks, and standard output is for results
            run = self.trackio.init(
                project=self.settings.project or of.name,
                name=name,
                group=f"{of.name}-{of.key[:8]}",
                space_id=self.settings.space,
                config=self._recipes.get(of.key, {}) | {"gristmill.run": of.key},
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
            try:
                for numbers, step in points:
                    run.log(numbers, step=step)
            finally:
                self.trackio.finish()  # type: ignore[no-untyped-call]


def _interval(name: str, one: Estimate) -> dict[str, float]:
    values = {name: one.mean, f"{name}/low": one.low, f"{name}/high": one.high}
    return {key: value for key, value in values.items() if value is not None}
