"""The queue: jobs wait their turn, one runs at a time, and each can be asked how it stands, or to stop."""

from __future__ import annotations

import contextvars
import json
import secrets
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from animatediff.apps.page.options import Options
from animatediff.apps.page.orders import Order
from animatediff.apps.page.work import Cancelled, Progress, produce
from animatediff.errors import UserError
from animatediff.inference.engine import Engine
from animatediff.inference.jobs import ALREADY_DONE, FAILED, Job, plan
from animatediff.inference.run import settings_of
from animatediff.pipelines.method import Run

WAITING, RUNNING, DONE, FAILED_, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
REMEMBERED = 500  # tickets that have ended


@dataclass
class Ticket:
    """One job of a visitor, and how it stands."""

    id: str
    visitor: str
    order: Order
    state: str = WAITING
    stage: str = ""
    step: int = 0
    steps: int = 0
    note: str = ""
    preview: bytes | None = None
    previews: int = 0
    output: Path | None = None
    prepared: str = ""  # id of what a preparation made
    step_times: list[float] = field(default_factory=list)
    context: contextvars.Context = field(default_factory=contextvars.copy_context)  # whose request it came with

    @property
    def seconds_left(self) -> float | None:
        """Of sampling, by the pace of the last steps; None before two are done."""
        times = self.step_times[-8:]
        if len(times) < 2 or self.step >= self.steps:
            return None
        return (times[-1] - times[0]) / (len(times) - 1) * (self.steps - self.step)


class Desk:
    """Takes orders, hands out tickets, and works them off one after the other in a thread of its own."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.tickets: OrderedDict[str, Ticket] = OrderedDict()
        self._engines: OrderedDict[str, Engine] = OrderedDict()
        self._change = threading.Condition()
        self._lent: Callable[[Job, Path], Iterator[Progress]] = options.gpu(self._produce)
        self._closing = False
        self._worker = threading.Thread(target=self._work, name="desk", daemon=True)
        self._worker.start()

    def submit(self, order: Order, visitor: str) -> Ticket:
        """A ticket for the order. UserError where the visitor, or all together, have too many waiting."""
        with self._change:
            waiting = [ticket for ticket in self.tickets.values() if ticket.state == WAITING]
            if sum(ticket.visitor == visitor for ticket in waiting) >= self.options.max_waiting:
                raise UserError(f"{self.options.max_waiting} jobs of yours are waiting already; cancel one, or wait")
            if len(waiting) >= self.options.max_queue:
                raise UserError(f"{len(waiting)} jobs are waiting, which is all the queue holds; try again later")
            ticket = Ticket(secrets.token_hex(16), visitor, order)
            self.tickets[ticket.id] = ticket
            ended = [old.id for old in self.tickets.values() if old.state not in (WAITING, RUNNING)]
            for id in ended[: max(0, len(ended) - REMEMBERED)]:
                del self.tickets[id]
            self._change.notify_all()
            return ticket

    def get(self, id: str) -> Ticket:
        """The ticket of that id. UserError where it is not known, as after a restart."""
        if id not in self.tickets:
            raise UserError("that job is not known here any more; finished ones are in the gallery")
        return self.tickets[id]

    def place(self, ticket: Ticket) -> int:
        """How many jobs come before it; 0 once it runs."""
        with self._change:
            before = 0
            for other in self.tickets.values():
                if other is ticket:
                    break
                before += other.state in (WAITING, RUNNING)
            return before if ticket.state == WAITING else 0

    def cancel(self, id: str) -> Ticket:
        """Take a waiting job off the queue; a running one stops at its next step."""
        ticket = self.get(id)
        with self._change:
            if ticket.state == WAITING:
                ticket.state = CANCELLED
            elif ticket.state == RUNNING:
                self._stop_file(ticket).touch()
                ticket.stage = "stopping"
            self._change.notify_all()
        return ticket

    def wait(self, ticket: Ticket) -> Ticket:
        """Until the ticket's job has ended."""
        with self._change:
            self._change.wait_for(lambda: ticket.state not in (WAITING, RUNNING))
        return ticket

    def close(self) -> None:
        """Cancel every job, wait for the one that runs to stop, and take no more."""
        for ticket in list(self.tickets.values()):
            self.cancel(ticket.id)
        with self._change:
            self._closing = True
            self._change.notify_all()
        self._worker.join()

    def clips_in_use(self) -> set[str]:
        """Ids of the clips that jobs which have not ended read."""
        with self._change:
            open_ones = [ticket for ticket in self.tickets.values() if ticket.state in (WAITING, RUNNING)]
            return {id for ticket in open_ones for id in ticket.order.clips}

    def _stop_file(self, ticket: Ticket) -> Path:
        return self.options.uploads / f"stop-{ticket.id}"

    def _next(self) -> Ticket | None:
        with self._change:
            while not self._closing:
                for ticket in self.tickets.values():
                    if ticket.state == WAITING:
                        ticket.state, ticket.stage = RUNNING, "loading models"
                        return ticket
                self._change.wait()
            return None

    def _work(self) -> None:
        while (ticket := self._next()) is not None:
            try:
                ticket.context.run(self._serve, ticket)
                state, note = DONE, ""
            except Cancelled:
                state, note = CANCELLED, ""
            except UserError as error:
                state, note = FAILED_, str(error)
            except Exception as error:
                traceback.print_exception(error)
                state, note = FAILED_, f"this is a defect of the program, and was noted: {type(error).__name__}"
            self._stop_file(ticket).unlink(missing_ok=True)
            with self._change:
                ticket.state, ticket.note, ticket.stage, ticket.preview = state, note or ticket.note, "", None
                self._change.notify_all()

    def _serve(self, ticket: Ticket) -> None:
        self.options.uploads.mkdir(parents=True, exist_ok=True)
        if ticket.order.prepare is not None:
            ticket.prepared = ticket.order.prepare(lambda *news: self._hear_preparation(ticket, *news)).id
            return
        job = plan([Job(ticket.order.run, "the page")])[0]
        if job.status == FAILED:
            raise UserError(job.note)
        if job.status == ALREADY_DONE:
            ticket.output, ticket.note = job.output, "this very video was made before"
            return
        self.engine(job.run).load()
        for news in self._lent(job, self._stop_file(ticket)):
            self._hear(ticket, news)
        ticket.output = job.output

    def _produce(self, job: Job, stop: Path) -> Iterator[Progress]:
        engine = self.engine(job.run)  # loaded above, but for a device's process that is older than the engine
        engine.load()
        yield from produce(engine, job, stop)

    def _hear_preparation(self, ticket: Ticket, stage: str, done: int, total: int) -> None:
        if self._stop_file(ticket).exists():
            raise Cancelled
        if stage != ticket.stage:
            ticket.step_times.clear()
        self._hear(ticket, Progress(stage, done, total))

    def _hear(self, ticket: Ticket, news: Progress) -> None:
        with self._change:
            if ticket.stage != "stopping":
                ticket.stage = news.stage
            if news.step:
                ticket.step, ticket.steps = news.step, news.steps
                ticket.step_times.append(time.monotonic())
            if news.preview is not None:
                ticket.preview, ticket.previews = news.preview, ticket.previews + 1

    def engine(self, run: Run) -> Engine:
        """The engine with the models of this run; the one used longest ago gives way."""
        key = models_key(run)
        if key not in self._engines:
            while len(self._engines) >= self.options.keep:
                self._engines.popitem(last=False)[1].unload()
            self._engines[key] = Engine(run)
        self._engines.move_to_end(key)
        return self._engines[key]


def models_key(run: Run) -> str:
    """Runs with equal keys can be made by one engine: what is fixed when models are loaded is the same."""
    once: list[Any] = []
    for part in (run, settings_of(run)):
        once += [[entry.name, getattr(part, entry.name)] for entry in fields(part) if entry.metadata.get("once")]
    return json.dumps(once)
