"""Runs on Dask workers: the same cards as without them, a dead worker costs its run only, and one line for the rest."""

import itertools
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from test_kills import CAMPAIGN, SPAWN
from vireid_lite.campaign import prepare, read_campaign, run_one

from vireid_lite import cluster
from vireid_lite.errors import InputError
from vireid_lite.provenance import cache_folder, write_atomically
from vireid_lite.study.cards import card_name
from vireid_lite.study.workers import run_on_cluster

OPTIONS = {"workers": 2, "device": "cpu", "root": None, "progress": False}
# What a card says of the machine and the moment, not of the run.
MEASURED = {"seconds", "train_seconds", "wall_seconds", "peak_memory_mib", "date"}


@pytest.fixture(scope="module")
def todo(tmp_path_factory):
    path = tmp_path_factory.mktemp("campaign") / "campaign.toml"
    path.write_text(CAMPAIGN)
    return read_campaign(path)[:3]


@pytest.fixture(scope="module", autouse=True)
def _workers_from_one_import():
    """Fork the workers from the server of test_kills, for the import of torch in each would take a minute."""
    dask = pytest.importorskip("dask")
    from distributed.utils import get_mp_context

    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context()  # names what Dask would preload; then comes what is needed here
        SPAWN.set_forkserver_preload(
            ["vireid_lite.campaign", "vireid_lite.study.workers", "test_kills", "test_cluster"]
        )
        yield


@pytest.fixture(scope="module")
def scheduler():
    """The address of a cluster that somebody else started: one worker of two threads."""
    from distributed import LocalCluster

    options = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}, "memory_limit": 0}
    with LocalCluster(n_workers=1, threads_per_worker=2, **options) as started:
        yield started.scheduler_address


def of_run(card: object) -> object:
    """Return a card without its measurements."""
    if isinstance(card, dict):
        return {key: of_run(value) for key, value in card.items() if key not in MEASURED}
    return [of_run(value) for value in card] if isinstance(card, list) else card


def serial(runs: list[dict], tmp_path: Path, threads: int) -> dict[str, dict]:
    """Return the cards of a process that does one run after the other, from a cache of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VIREID_CACHE", str(tmp_path / "serial"))
            paths = [run_one(run, tmp_path, "cpu") for run in runs]
    finally:
        torch.set_num_threads(before)
    return {path.name: of_run(json.loads(path.read_bytes())) for path in paths}


def cards(finished: list[tuple[str, bytes]]) -> dict[str, dict]:
    """Return cards by name; none may come twice."""
    assert len(dict(finished)) == len(finished)
    return {name: of_run(json.loads(data)) for name, data in finished}


def dies_once(run, out, device, root):
    """Run, but be killed in the middle of seed 1 when it is run for the first time."""
    note = cache_folder() / "died"
    if run["seed"] == 1 and not note.exists():
        note.touch()
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return run_one(run, out, device, root)


def kills(run, out, device, root):
    """Write a card, except for seed 0, which ends whoever runs it."""
    if run["seed"] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return writes(run, out)


def refuses(run, out, device, root):
    """Write a card, except for seed 1, which cannot be made."""
    if run["seed"] == 1:
        raise InputError("RegDB: idx/train.txt is missing; check DATA_ROOT")
    return writes(run, out)


def writes(run, out):
    (out / f"{run['seed']}.json").write_text("{}")
    return out / f"{run['seed']}.json"


def notes_times(run, out, device, root):
    """Note when a run began and ended, and with how many threads."""
    began = time.time()
    time.sleep(0.3)
    (out / "card.json").write_text(json.dumps([began, time.time(), torch.get_num_threads()]))
    return out / "card.json"


def holds_a_worker(note: Path) -> None:
    """Keep a worker of this machine busy, in a process group of its own, as a shell starts it."""
    os.setpgrp()
    # What a job in the background inherits is to ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with cluster._connected(None, 1) as client:
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


def test_a_killed_worker_costs_its_run_only_and_the_cards_are_those_of_one_process(todo, tmp_path, capsys):
    options = OPTIONS | {"scheduler": None, "progress": True}
    found = cards(list(run_on_cluster(todo, **options, _run_one=dies_once)))
    assert capsys.readouterr().err.count("died with run 2 of 3") == 1
    assert found == serial(todo, tmp_path, threads=max(1, os.cpu_count() // 2))
    assert not multiprocessing.active_children()


def test_two_campaigns_never_share_a_worker(scheduler):
    finished = []
    options = OPTIONS | {"scheduler": scheduler, "_run_one": notes_times}

    def campaign():
        finished.extend(run_on_cluster([{}, {}], **options))

    both = [threading.Thread(target=campaign) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    times = sorted(json.loads(data) for _, data in finished)
    assert [threads for _, _, threads in times] == [2] * 4
    assert all(ended <= began for (_, ended, _), (began, _, _) in itertools.pairwise(times))


def test_a_run_that_cannot_be_made_says_so_and_the_others_are_kept(todo, scheduler):
    finished = run_on_cluster(todo, **OPTIONS, scheduler=scheduler, _run_one=refuses)
    assert next(finished) == ("0.json", b"{}")
    with pytest.raises(InputError, match=r"^RegDB: idx/train.txt is missing; check DATA_ROOT$"):
        next(finished)


def test_other_code_is_refused_before_anything_runs(todo, scheduler, monkeypatch):
    cluster._code.cache_clear()
    monkeypatch.setattr(cluster, "source_hash", lambda: "0" * 12)
    with pytest.raises(
        InputError, match=r"worker tcp://127.0.0.1:\d+ does not run this machine's vireid_lite"
    ) as error:
        next(run_on_cluster(todo, **OPTIONS, scheduler=scheduler, _run_one=kills))
    assert len(str(error.value).splitlines()) == 1
    cluster._code.cache_clear()


def test_a_run_that_always_kills_its_worker_is_named_after_all_others(todo, scheduler, monkeypatch):
    monkeypatch.setattr(cluster, "DEATHS", 2)
    finished = []
    with pytest.raises(InputError) as error:
        finished.extend(run_on_cluster(todo, **OPTIONS, scheduler=scheduler, _run_one=kills))
    assert f"{card_name(prepare(todo[0])[2])} ended 2 workers" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert sorted(name for name, _ in finished) == ["1.json", "2.json"]


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_local_workers_end_with_the_client(ending, tmp_path):
    client = SPAWN.Process(target=holds_a_worker, args=(tmp_path / "worker",))
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


def test_a_scheduler_that_does_not_answer_is_named(todo, monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for address in (f"tcp://127.0.0.1:{port}", "nonsense://here", "tcp://127.0.0.1"):
            with pytest.raises(InputError, match=f"no Dask scheduler answers at {address};") as error:
                next(run_on_cluster(todo, **OPTIONS, scheduler=address))
            assert len(str(error.value).splitlines()) == 1
    with pytest.raises(InputError, match=f"no Dask scheduler answers at tcp://127.0.0.1:{port}"):
        next(run_on_cluster(todo, **OPTIONS, scheduler=f"tcp://127.0.0.1:{port}"))


def test_a_scheduler_without_workers_is_not_waited_for_for_ever(todo, monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setattr(cluster, "NO_WORKER", 0.5)
    options = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
    with (
        LocalCluster(n_workers=0, **options) as empty,
        pytest.raises(InputError, match=r"no worker for .* dask worker tcp"),
    ):
        next(run_on_cluster(todo, **OPTIONS, scheduler=empty.scheduler_address))


def test_without_dask_the_extra_to_install_is_named(todo, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install 'vireid-lite\[cluster\]'"):
        next(run_on_cluster(todo, **OPTIONS, scheduler=None))


def test_nothing_to_do_starts_nothing(monkeypatch):
    monkeypatch.setattr(cluster, "_connected", lambda *_: pytest.fail("a cluster was started"))
    assert list(run_on_cluster([], **OPTIONS, scheduler=None)) == []
