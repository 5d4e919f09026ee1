"""Runs on a Dask cluster: worker processes of this machine, or those of any scheduler that can be reached."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import pickle
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from tqdm import tqdm

from vireid_lite.cards import card_name
from vireid_lite.errors import InputError
from vireid_lite.files import source_hash

ANSWER = 10.0  # seconds a scheduler has to answer, and a worker to hand over a card

NO_WORKER = 60.0  # seconds to wait for a first worker, or for the next when all died; starting again takes some

LOOK = 1.0  # seconds between two looks at which workers there are

DEATHS = 3  # workers a run may end: one can be killed for what its neighbour took, three hardly

# One run at a time in a process, also where two campaigns share a cluster whose workers have several threads.
_ALONE = threading.Lock()


def run_on_cluster(
    todo: list[dict],
    *,
    scheduler: str | None,
    workers: int,
    device: str,
    root: object,
    progress: bool,
    threads: int | None = None,
    _run_one: Callable[..., Path] | None = None,
) -> Iterator[tuple[str, bytes]]:
    """Run each run on a Dask cluster, and yield the file name and the bytes of its card as soon as it is finished.

    todo: runs as `campaign.read_campaign` returns them. scheduler: an address such as "tcp://host:8786"; None starts
    `workers` processes on this machine, which share its cores and end with this process however that ends.
    device, root: as for `campaign.run_one`, and as a worker sees them. progress: say when a worker died.
    threads: of each worker of this machine; None shares the cores out.

    A worker has one run at a time, with as many PyTorch threads as Dask gives the worker (`--nthreads`), and sends the
    card back: no folder is shared. A run whose worker dies is run again by the next free one. Close the generator
    (`contextlib.closing`) to end it early: the workers of this machine then end, and those of a scheduler finish the
    run they are at and drop it.
    Raises InputError where Dask is not installed, the scheduler does not answer or has no worker, a worker runs other
    code than this process, or a run cannot be made; and, after all others finished, where a run has ended 3 workers.
    """
    # Not at the top: a campaign imports this module.
    from vireid_lite.campaign import prepare, run_one

    if not todo:
        return
    where = f"cluster {scheduler or 'of this machine'}"
    waiting, running, given_up, deaths = deque(range(len(todo))), {}, [], Counter()
    checked, seen, ended = set(), time.monotonic(), threading.Event()
    with _connected(scheduler, min(max(1, workers), len(todo)), threads) as client:
        while waiting or running:
            with _connection_lost(client, where):
                present = set(client.nthreads())
                checked = (checked & present) | _same_code(client, sorted(present - checked))
                # A run is sent to one worker by name: it queues behind nothing, and only its own deaths are counted.
                for address in sorted(checked - running.keys())[: len(waiting)]:
                    number = waiting.popleft()
                    call = pickle.dumps(_Call(_card, _run_one or run_one, todo[number], device, root))
                    future = client.submit(pickle.loads, call, workers=[address], pure=False)
                    future.add_done_callback(lambda _: ended.set())
                    running[address] = number, future
            seen = time.monotonic() if present else seen
            if time.monotonic() - seen > NO_WORKER:
                raise InputError(f"{where}: no worker for {NO_WORKER:.0f} s; start one with: dask worker {scheduler}")
            ended.wait(LOOK)
            ended.clear()
            with _connection_lost(client, where):
                present = set(client.nthreads())
                outcomes = {address: _outcome(future, address in present) for address, (_, future) in running.items()}
            failure = None
            for address, outcome in outcomes.items():
                if outcome is None:
                    continue
                number, _ = running.pop(address)
                if isinstance(outcome, tuple):
                    yield outcome
                elif isinstance(outcome, _WorkerDied):
                    deaths[number] += 1
                    (waiting if deaths[number] < DEATHS else given_up).append(number)
                    if progress:
                        tqdm.write(f"worker {address} died with run {number + 1} of {len(todo)}", sys.stderr)
                else:
                    failure = outcome
            if failure:
                raise failure
    if given_up:
        names = ", ".join(card_name(prepare(todo[number], root)[2]) for number in given_up)
        raise InputError(
            f"{where}: {names} ended {DEATHS} workers; all others are finished. The usual cause is memory: use fewer "
            "workers on a machine, or a larger one"
        )


@contextmanager
def _connection_lost(client, where: str) -> Iterator[None]:
    """Say in one line that the scheduler went away; what it raises depends on the moment."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or client.status == "closed":
            raise InputError(
                f"{where}: the connection is lost; finished cards are kept, run the same command again"
            ) from None
        raise


class _WorkerDied(Exception):
    """The worker of a run is gone."""


class _Call:
    """A call that is made where it is unpickled: a scheduler only passes bytes on, and needs no package but Dask."""

    def __init__(self, function: Callable, *arguments: object):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _card(run_one: Callable[..., Path], run: dict, device: str, root: object) -> tuple[str, bytes]:
    """Run one run on this worker, alone and with the worker's threads; return its card's file name and bytes."""
    from distributed import get_worker

    worker = get_worker()
    # In the worker's own folder, which Dask deletes even after a kill.
    with _ALONE, tempfile.TemporaryDirectory(dir=worker.local_directory) as folder:
        torch.set_num_threads(worker.state.nthreads)
        path = run_one(run, Path(folder), device, root)
        return path.name, path.read_bytes()


def _outcome(future, present: bool) -> tuple[str, bytes] | BaseException | None:
    """Return a run's card, its error, _WorkerDied where its worker is not there any more, or None while it runs."""
    from distributed import KilledWorker

    if future.status == "error":
        error = future.exception()
        return _WorkerDied() if isinstance(error, KilledWorker) else error
    if future.status == "finished":
        # A worker can die between its run's end and this.
        try:
            return future.result(timeout=ANSWER)
        except TimeoutError:
            pass
    elif future.status != "pending":
        raise ConnectionError("the scheduler forgot a run")
    return None if present else _WorkerDied()


def _same_code(client, addresses: list[str]) -> set[str]:
    """Return the workers that answer; raise InputError where one of them runs other code than this process."""
    answers = client.run(_code, workers=addresses, on_error="return") if addresses else {}
    same = {address for address, answer in answers.items() if answer == _code()}
    for address in sorted(same ^ answers.keys()):
        # One that died meanwhile is no worker of ours.
        if address in client.nthreads():
            answer = answers[address]
            what = f" ({type(answer).__name__}: {answer})".splitlines()[0] if isinstance(answer, Exception) else ""
            raise InputError(
                f"cluster: worker {address} does not run this machine's vireid_lite{what}; install the same there, and "
                "start it again"
            )
    return same


@cache
def _code() -> str:
    """Return the hash of the whole package as this process has it: of its first call, which also imports what runs."""
    importlib.import_module("vireid_lite.campaign")
    return source_hash()


@contextmanager
def _connected(scheduler: str | None, workers: int, threads: int | None = None) -> Iterator:
    """Hold a Dask client: of the scheduler, or of a cluster of this machine's processes, which ends with it."""
    try:
        import dask
        from distributed import Client, LocalCluster
    except ModuleNotFoundError:
        raise InputError("cluster: Dask is not installed; pip install 'vireid-lite[cluster]'") from None
    if scheduler is not None:
        try:
            # In a thread, because a notebook has an event loop in this one.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, _greet(scheduler)).result()
        except (OSError, ValueError, MemoryError):
            # The last where another server's greeting is read as the length of a message.
            raise InputError(
                f"cluster: no Dask scheduler answers at {scheduler}; give its address, such as tcp://host:8786, or "
                "start one with: dask scheduler"
            ) from None
        # That the connection is lost is said in one line above.
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        with Client(scheduler, timeout=ANSWER, set_as_default=False) as client:
            yield client
        return
    options = {
        # Dask would set OMP_NUM_THREADS in this process too, and sample every stack.
        "distributed.nanny.pre-spawn-environ": {},
        "distributed.worker.profile.enabled": False,
    }
    threads = threads or max(1, (os.cpu_count() or 1) // workers)
    cluster = {"n_workers": workers, "threads_per_worker": threads, "memory_limit": 0}
    # A dashboard address of None is port 8787, and a warning where that is taken.
    cluster |= {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
    with (
        dask.config.set(options),
        LocalCluster(**cluster, silence_logs=logging.CRITICAL) as local,
        Client(local, set_as_default=False) as client,
    ):
        yield client


async def _greet(scheduler: str) -> None:
    """Shake hands with a scheduler, for a Client waits for ever where something else listens; OSError or ValueError."""
    from distributed import Security
    from distributed.comm import connect

    security = Security().get_connection_args("client")
    comm = await asyncio.wait_for(connect(scheduler, timeout=ANSWER, **security), ANSWER)
    await comm.close()
