"""Processes that share one command's jobs, four on two nodes, some of which are killed."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from animatediff.inference import processes

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.inference.test_processes"])
COUNT, OF_A_NODE = 4, 2


def work(rank: int, port: int, killed: int, early: bool, said: Any, go: Any, arrived: Any) -> None:
    """One process: joins, hears what the first has to do, waits for `go`, and gathers; says how it ended."""
    place = {"RANK": rank, "WORLD_SIZE": COUNT, "LOCAL_RANK": rank % OF_A_NODE, "LOCAL_WORLD_SIZE": OF_A_NODE}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": 1}
    os.environ |= {key: str(value) for key, value in place.items()}
    processes.join("cpu")
    ended: Any
    try:
        if early and rank == killed:
            os.kill(os.getpid(), 9)
        told = processes.from_first(lambda: "the plan")
        if rank == killed:
            os.kill(os.getpid(), 9)
        if rank == COUNT - 1:
            go.wait()
            arrived.set()
        ended = told, processes.gather([rank, -rank])
    except processes.Gone as gone:
        ended = str(gone)
    except SystemExit as end:
        ended = end.code
    said.put((rank, ended, arrived.is_set()))
    said.close()
    said.join_thread()
    if rank != 0:
        go.wait()


@pytest.fixture
def start() -> Iterator[Any]:
    running: list[Any] = []
    shared: list[Any] = []  # a process that starts looks for them by name

    def start(killed: int, early: bool = False) -> tuple[Any, Any]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        said, go, arrived = CONTEXT.Queue(), CONTEXT.Event(), CONTEXT.Event()
        shared.extend([said, go, arrived])
        for rank in range(COUNT):
            running.append(CONTEXT.Process(target=work, args=(rank, port, killed, early, said, go, arrived)))
            running[-1].start()
        return said, go

    yield start
    for process in running:
        process.kill()
        process.join()


def ends(said: Any, count: int) -> dict[int, tuple[Any, bool]]:
    """How the next `count` processes ended, and whether the last one had come to the end by then."""
    return {rank: (ended, arrived) for rank, ended, arrived in (said.get(timeout=120) for _ in range(count))}


def gone(lost: int) -> str:
    rerun = "what the others made is kept, run the same command again for the rest"
    return f"{lost} of the {COUNT} processes of this command are gone; {rerun}"


def test_all_hear_the_first_and_hold_what_all_made(start):
    said, go = start(killed=-1)
    go.set()
    everything = [0, 0, 1, -1, 2, -2, 3, -3]
    assert ends(said, 4) == dict.fromkeys(range(4), (("the plan", everything), True))


def test_one_that_is_gone_is_told_by_the_first_process_of_each_node_once_the_others_have_ended(start):
    said, go = start(killed=1)
    go.set()
    assert ends(said, 3) == {0: (gone(1), True), 2: (gone(1), True), 3: (1, True)}


def test_without_the_first_those_of_a_node_wait_for_each_other(start):
    """A launcher ends the others of its node as soon as one ends with an error."""
    said, go = start(killed=0)
    assert ends(said, 1) == {1: (1, False)}, "on the node of the one that is gone"
    go.set()
    assert ends(said, 2) == {2: (gone(2), True), 3: (1, True)}


def test_the_first_is_gone_before_it_has_told_the_plan(start):
    said, _ = start(killed=0, early=True)
    assert {rank: ended for rank, (ended, _) in ends(said, 3).items()} == {1: 1, 2: gone(3), 3: 1}
