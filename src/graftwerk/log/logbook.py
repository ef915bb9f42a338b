"""The one object that the loop logs to; it hands everything on to the sinks.

A run folder gets `log.jsonl` (everything, never truncated), `metrics.csv` (one row per
evaluation), `curves.png`, `stdout.txt`, `stderr.txt`, `environment.jsonl` and, if asked for,
TensorBoard events and the files of trackers. Logging never stops training: a sink that fails is
named once and dropped, or kept where its next write may succeed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from graftwerk.errors import ConfigError
from graftwerk.log.capture import Capture
from graftwerk.log.config import Log
from graftwerk.log.console import open_console
from graftwerk.log.curves import Curves
from graftwerk.log.jsonl import JsonLines
from graftwerk.log.metrics_csv import MetricsCsv
from graftwerk.log.sink import Sink
from graftwerk.log.summary import SummaryFile
from graftwerk.log.system import SystemMetrics
from graftwerk.log.versions import Environment
from graftwerk.storage import advice

SinkT = TypeVar("SinkT", bound=Sink)


class Logbook:
    """Logs one run on its main process. Made by `open_logbook`."""

    def __init__(self, run_id: str, steps_per_epoch: int, device: str) -> None:
        self.run_id = run_id
        """Belongs in the checkpoint, so that trackers continue the same run."""
        self._steps_per_epoch = steps_per_epoch
        self._system = SystemMetrics(device)
        self._sinks: list[Sink] = []
        self._complained: set[Sink] = set()

    def record(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Training at `step` steps done: loss, lr, images_per_second, remaining_seconds, …

        `data_wait` is the share of the time spent waiting for data. System metrics are added.
        """
        values = {**values, **self._system.sample()}
        self._each(lambda sink: sink.record(step, epoch, values))

    def row(self, epoch: float, values: Mapping[str, float]) -> None:
        """An evaluation after `epoch` epochs: train_loss, eval_loss, eval_top1, …, lr.

        Only values that a resumed run repeats exactly: no times.
        """
        step = round(epoch * self._steps_per_epoch)
        self._each(lambda sink: sink.row(step, epoch, values))

    def event(self, name: str, /, **facts: Any) -> None:
        """Something that happened once: resumed, saved, image_skipped, …; shown as well."""
        self._each(lambda sink: sink.event(name, facts))

    def say(self, text: str) -> None:
        self._each(lambda sink: sink.say(text))

    def figure(self, name: str, path: Path, step: int) -> None:
        """A picture file, for the sinks that show pictures."""
        self._each(lambda sink: sink.figure(name, path, step))

    def progress(self, step: int) -> None:
        """`step` optimizer steps are done."""
        self._each(lambda sink: sink.progress(step))

    def close(self, status: str) -> None:
        """`status` is "finished", or says why the run ends here. A second call does nothing."""
        while self._sinks:
            sink = self._sinks.pop()
            try:
                sink.close(status)
            except Exception as error:
                self._warn(type(sink).__name__, error, "is not affected")

    def add(self, name: str, make: Callable[[], SinkT]) -> SinkT | None:
        """Open one more sink, if that can be done; `close` goes backwards.

        A missing package is the person's to mend: `ConfigError` is raised.
        """
        try:
            sink = make()
        except ConfigError:
            raise
        except Exception as error:
            self._warn(name, error, "goes on without it")
            return None
        self._sinks.append(sink)
        return sink

    def _each(self, call: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                call(sink)
            except Exception as error:
                self._failed(sink, error)

    def _failed(self, sink: Sink, error: Exception) -> None:
        keep = sink.durable and isinstance(error, OSError)
        if not keep and sink in self._sinks:
            self._sinks.remove(sink)
        if sink not in self._complained:
            self._complained.add(sink)
            then = "goes on and tries again" if keep else "goes on without it"
            self._warn(type(sink).__name__, error, then)

    def _warn(self, sink: str, error: Exception, then: str) -> None:
        what = "; ".join(filter(None, [f"{type(error).__name__}: {error}", advice(error)]))
        self.event("sink_failed", reason=f"{sink}: {what}; training {then}")


def open_logbook(
    folder: Path,
    log: Log,
    *,
    run: Mapping[str, Any],
    facts: Mapping[str, Any],
    run_id: str | None,
    resumed_at: int,
    total_steps: int,
    steps_per_epoch: int,
) -> Logbook:
    """Open the logbook of a run folder on the main process.

    `run` is the config as a plain tree, `facts` what was derived from it; `facts["device"]`
    ("cpu", "cuda:0") is the device whose load is logged. `run_id` comes from the checkpoint, or is
    None for a new one (`Logbook.run_id`). `resumed_at` steps were done before. Raises
    `ConfigError` where a tracker is asked for and not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run_id = run_id or secrets.token_hex(4)
    logbook = Logbook(run_id, steps_per_epoch, str(facts.get("device", "cpu")))
    try:
        logbook.add("log.jsonl", lambda: JsonLines(folder))
        capture = logbook.add("stdout.txt", lambda: Capture(folder))
        logbook.add(
            "console",
            lambda: open_console(
                log.console,
                folder,
                capture,
                resumed_at=resumed_at,
                total_steps=total_steps,
                steps_per_epoch=steps_per_epoch,
            ),
        )
        logbook.add("environment.jsonl", lambda: Environment(folder))
        logbook.add("summary.txt", lambda: SummaryFile(folder))
        logbook.add("metrics.csv", lambda: MetricsCsv(folder, resumed_at / steps_per_epoch))
        logbook.add("curves.png", lambda: Curves(folder, steps_per_epoch))
        _add_optional(logbook, folder, log, run, resumed_at)
        started = {**facts, "step": resumed_at, "run_id": run_id}
        logbook.event("resumed" if resumed_at else "started", **started)
    except BaseException as error:
        logbook.close(f"not opened: {error}")
        raise
    return logbook


def _add_optional(
    logbook: Logbook, folder: Path, log: Log, run: Mapping[str, Any], resumed_at: int
) -> None:
    """The sinks whose packages are imported only where the config asks for them."""
    if log.tensorboard:
        from graftwerk.log.tensorboard import TensorBoard

        logbook.add("log.tensorboard", lambda: TensorBoard(folder, run, resumed_at))
    if log.wandb:
        from graftwerk.log.trackers import Wandb

        logbook.add("log.wandb", lambda: Wandb(folder, log.project, run, logbook.run_id))
    if log.trackio:
        from graftwerk.log.trackers import Trackio

        logbook.add("log.trackio", lambda: Trackio(folder, log.project, run, logbook.run_id))
