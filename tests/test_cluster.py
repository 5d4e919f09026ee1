"""Runs on workers: the same cards as without them, a dead worker costs its run only, and one line for the rest."""

import itertools
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from functools import partial
from pathlib import Path

import forks
import psutil
import pytest
import torch
from test_kills import CAMPAIGN

from vireid_lite.errors import InputError
from vireid_lite.files import write_atomically
from vireid_lite.study import workers
from vireid_lite.study.campaign import read_campaign
from vireid_lite.study.cards import read_card
from vireid_lite.study.workers import run_all, run_one

OPTIONS = {"device": "cpu", "progress": False, "cluster": True}
# What a card says of the machine and the moment, not of the run.
MEASURED = ("train_seconds", "wall_seconds", "peak_memory_mib", "date", "history")


@pytest.fixture(scope="module")
def todo(tmp_path_factory):
    path = tmp_path_factory.mktemp("campaign") / "campaign.toml"
    path.write_text(CAMPAIGN)
    return read_campaign(path)[:3]


@pytest.fixture(scope="module", autouse=True)
def _workers_from_one_import():
    """Fork the workers from the server of `forks`, for the import of torch in each would take a minute."""
    dask = pytest.importorskip("dask")
    from distributed.utils import get_mp_context

    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context()  # names what Dask would preload; then comes what is needed here
        forks.start()
        yield


@pytest.fixture(scope="module")
def scheduler():
    """The address of a cluster that somebody else started: one worker of two threads."""
    from distributed import LocalCluster

    options = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}, "memory_limit": 0}
    with LocalCluster(n_workers=1, threads_per_worker=2, **options) as started:
        yield started.scheduler_address


def of_run(path: Path) -> str:
    """Return a card's text without its measurements."""
    return json.dumps({name: item for name, item in read_card(path).items() if name not in MEASURED})


def dies_once(note, run, out, *how):
    """Run, but be killed in the middle of seed 1 when it is run for the first time, as the file `note` tells."""
    if run.seed == 1 and not note.exists():
        note.touch()
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return run_one(run, out, *how)


def kills(run, out, *_):
    """Write a card, except for seed 0, which ends whoever runs it."""
    if run.seed == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return writes(run, out)


def refuses(run, out, *_):
    """Write a card, except for seed 1, which cannot be made."""
    if run.seed == 1:
        raise InputError("RegDB: idx/train.txt is missing; check DATA_ROOT")
    return writes(run, out)


def writes(run, out):
    (out / f"{run.seed}.json").write_text("{}")
    return out / f"{run.seed}.json"


def notes_times(run, out, *_):
    """Note when a run began and ended, and with how many threads."""
    began = time.time()
    time.sleep(0.3)
    (out / f"{began}.json").write_text(json.dumps([began, time.time(), torch.get_num_threads()]))
    return out / f"{began}.json"


def holds_a_worker(note: Path) -> None:
    """Keep a worker of this machine busy, in a process group of its own, as a shell starts it."""
    os.setpgrp()
    # What a job in the background inherits is to ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with workers._connected(None, 1) as client:
        client.submit(time.sleep, 600)
        write_atomically(note, str(next(iter(client.run(os.getpid).values()))).encode())
        time.sleep(600)


def gone(pid: int) -> bool:
    """Return whether a process has ended; one that nobody asked for its exit status has, too."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def until(condition, seconds: float = 60) -> bool:
    """Return whether the condition comes true in time."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def alone(todo, tmp_path_factory):
    """The cards that this process makes, one after the other."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIREID_CACHE", str(folder / "cache"))
        return {path.name: of_run(path) for path in run_all(todo, folder / "cards", **OPTIONS | {"threads": 1})}


@pytest.mark.parametrize("cluster", [True, False])
def test_cards_are_those_of_one_process_though_a_dask_worker_was_killed(cluster, todo, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("VIREID_CACHE", str(tmp_path / "cache"))
    task = partial(dies_once, tmp_path / "died") if cluster else run_one
    options = OPTIONS | {"cluster": cluster, "threads": 1, "task": task}
    found = {path.name: of_run(path) for path in run_all(todo, tmp_path / "many", workers=2, **options)}
    assert (tmp_path / "died").exists() == cluster
    assert found == alone
    assert len(found) == 3
    assert not multiprocessing.active_children()


def test_two_campaigns_never_share_a_worker(todo, scheduler, tmp_path):
    finished = []
    options = OPTIONS | {"scheduler": scheduler, "task": notes_times}

    def campaign(folder):
        finished.extend(run_all(todo[:2], folder, **options))

    both = [threading.Thread(target=campaign, args=[tmp_path / name]) for name in "ab"]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    times = sorted(json.loads(path.read_text()) for path in finished)
    assert [threads for _, _, threads in times] == [2] * 4
    assert all(ended <= began for (_, ended, _), (began, _, _) in itertools.pairwise(times))


def test_a_run_that_cannot_be_made_says_so_and_the_others_are_kept(todo, scheduler, tmp_path):
    finished = run_all(todo, tmp_path, **OPTIONS, scheduler=scheduler, task=refuses)
    with pytest.raises(InputError, match=r"^RegDB: idx/train.txt is missing; check DATA_ROOT$"):
        list(finished)
    assert "1.json" not in {path.name for path in tmp_path.glob("[!.]*")}


def test_other_code_is_refused_before_anything_runs(todo, scheduler, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "source_hash", lambda: "0" * 12)
    with pytest.raises(InputError, match="a worker does not run this machine's vireid_lite") as error:
        list(run_all(todo, tmp_path, **OPTIONS, scheduler=scheduler, task=kills))
    assert len(str(error.value).splitlines()) == 1
    assert not list(tmp_path.glob("[!.]*"))


def test_a_run_that_always_kills_its_worker_is_named_after_all_others(todo, scheduler, tmp_path):
    with pytest.raises(InputError) as error:
        list(run_all(todo, tmp_path, **OPTIONS, scheduler=scheduler, task=kills))
    assert f"{todo[0].card_name()} ended one worker after the other" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["1.json", "2.json"]


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_local_workers_end_with_the_client(ending, tmp_path):
    client = forks.process(holds_a_worker, tmp_path / "worker")
    client.start()
    assert until((tmp_path / "worker").exists)
    worker = int((tmp_path / "worker").read_text())
    assert not gone(worker)
    if ending == signal.SIGKILL:
        client.kill()
    else:
        # Ctrl-C reaches the whole group.
        os.killpg(client.pid, ending)
    client.join(60)
    assert client.exitcode not in (None, 0)
    assert until(lambda: gone(worker))


def test_a_scheduler_that_does_not_answer_is_named(todo, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for address in (f"tcp://127.0.0.1:{port}", "nonsense://here", "tcp://127.0.0.1"):
            with pytest.raises(InputError, match=f"no Dask scheduler answers at {address};") as error:
                list(run_all(todo, tmp_path, **OPTIONS, scheduler=address))
            assert len(str(error.value).splitlines()) == 1
    with pytest.raises(InputError, match=f"no Dask scheduler answers at tcp://127.0.0.1:{port}"):
        list(run_all(todo, tmp_path, **OPTIONS, scheduler=f"tcp://127.0.0.1:{port}"))


def test_a_scheduler_without_workers_is_not_waited_for_for_ever(todo, tmp_path, monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setattr(workers, "NO_WORKER", 0.5)
    options = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
    with (
        LocalCluster(n_workers=0, **options) as empty,
        pytest.raises(InputError, match=r"no worker for .* dask worker tcp"),
    ):
        list(run_all(todo, tmp_path, **OPTIONS, scheduler=empty.scheduler_address))


def test_without_dask_the_extra_to_install_is_named(todo, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install 'vireid-lite\[cluster\]'"):
        list(run_all(todo, tmp_path, workers=2, **OPTIONS))


def test_nothing_to_do_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_connected", lambda *_: pytest.fail("a cluster was started"))
    assert list(run_all([], tmp_path, workers=2, **OPTIONS)) == []
