"""The processes that share the jobs of one command: one, or those that `accelerate launch` started, on any nodes.

They exchange small Python objects over gloo, whatever the device, and point to point, each with the first of them: in a
collective a process waits for its neighbours, and one that is gone would hold up those that are not beside it.
"""

from __future__ import annotations

import os
import pickle
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
from accelerate import PartialState

from animatediff.errors import UserError

T = TypeVar("T")

START = timedelta(minutes=30)  # until all processes have joined
WAIT = timedelta(days=30)  # for a process that is alive and still at work
# Seconds, seconds, times: the connection to a node that has lost its power breaks after six minutes.
KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 30, "TCP_KEEPCNT": 10}


class Gone(UserError):
    """A process of this command is gone; ends the command with status 1."""

    status = 1

    def __init__(self, left: int, count: int) -> None:
        super().__init__(
            f"{count - left} of the {count} processes of this command are gone; what the others made is kept, "
            "run the same command again for the rest"
        )


def join(device: str) -> PartialState:
    """This process's place among those that share the work, on CPUs where `device` is cpu or there is no CUDA."""
    launched = int(os.environ.get("LOCAL_RANK", -1)) >= 0
    backend = {"backend": "gloo"} if launched else {}
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=START, **backend)
    if state.num_processes > 1:
        _keep_alive()
    return state


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives in the first process, in all of them. Gone where the first is gone."""
    state = PartialState()
    if not state.is_main_process:
        try:
            return _receive(0)
        except RuntimeError:  # as torch raises when the other end has closed
            raise _gone(1, state) from None
    value = make()
    for rank in range(1, state.num_processes):
        with suppress(RuntimeError):  # `gather` will tell
            _send(value, rank)
    return value


def gather(mine: Sequence[T]) -> list[T]:
    """Everything that the processes hold, in the order of their ranks, in each of them once all have come here.

    Where one is gone, Gone in the first process of every node, and a quiet end with status 1 in its others: by then
    all of this node have come here, for a launcher ends the others as soon as one of them ends with an error.
    """
    state = PartialState()
    if state.num_processes == 1:
        return list(mine)
    try:
        parts = _exchange(mine, range(state.num_processes))
    except RuntimeError:  # the first is gone, for all of this node
        start = state.process_index - state.local_process_index
        parts = {state.process_index: mine}
        with suppress(RuntimeError):
            parts = _exchange(mine, range(start, start + int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    if len(parts) < state.num_processes:
        raise _gone(len(parts), state)
    return [item for rank in sorted(parts) for item in parts[rank]]


def _gone(left: int, state: PartialState) -> BaseException:
    return Gone(left, state.num_processes) if state.is_local_main_process else SystemExit(Gone.status)


def _exchange(mine: Sequence[T], ranks: range) -> dict[int, Sequence[T]]:
    """What the processes `ranks` hold, by rank, without those that are gone. RuntimeError where the first is."""
    first, rank = ranks[0], PartialState().process_index
    if rank != first:
        _send(mine, first)
        return _receive(first)
    parts = {first: mine}
    for other in ranks[1:]:
        with suppress(RuntimeError):
            parts[other] = _receive(other)
    for other in [other for other in parts if other != first]:
        with suppress(RuntimeError):
            _send(parts, other)
    return parts


def _send(value: Any, rank: int) -> None:
    data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
    for tensor in (torch.tensor([len(data)]), data):
        _wait(torch.distributed.isend(tensor, rank))


def _receive(rank: int) -> Any:
    length = torch.zeros(1, dtype=torch.int64)
    _wait(torch.distributed.irecv(length, rank))
    data = torch.zeros(int(length), dtype=torch.uint8)
    _wait(torch.distributed.irecv(data, rank))
    return pickle.loads(data.numpy().tobytes())


def _wait(work: Any) -> None:
    """As work.wait(WAIT), in a thread, so that Ctrl-C and SIGTERM are heard meanwhile."""
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            work.wait(WAIT)
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def _keep_alive() -> None:
    """Have the system ask, on every connection of this process, whether the other end is still there."""
    for connection in psutil.Process().net_connections("tcp"):
        with suppress(OSError), socket.socket(fileno=os.dup(connection.fd)) as each:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEP_ALIVE.items():
                if hasattr(socket, name):
                    each.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
