"""Runs, one card each: one after the other here, in processes of this machine, or on a Dask cluster.

A worker has one run at a time and sends the card back: no folder is shared. A run whose Dask worker dies is run again,
up to Dask's own `allowed-failures`, three. A killed campaign resumes, and never repeats or loses a run.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import pickle
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from vireid_lite.attacks import UniversalAttack, train_modified_victim
from vireid_lite.behaviour import made_with
from vireid_lite.errors import InputError
from vireid_lite.files import ATTACK_CODE, cache_folder, exclusive, source_hash, stable_hash, write_atomically
from vireid_lite.machine import Compute, device_name, peak_memory_mib, pick_device, versions
from vireid_lite.metrics.evaluation import Evaluation, direction_name
from vireid_lite.study.campaign import Results, Root, Run, opened, read_campaign
from vireid_lite.study.cards import CARDS, is_stale, read_card, what_ran, write_card
from vireid_lite.study.run import clean_scores, run_attack, score_modified, scores_for_card, told_moved
from vireid_lite.victims import load_or_train

ANSWER = 10.0  #: seconds a scheduler has to answer
NO_WORKER = 60.0  #: seconds to wait for a first worker, or for the next when all died; starting again takes some

# One run at a time in a process, also where two campaigns share a cluster whose workers have several threads.
_ALONE = threading.Lock()
_CLEAN: dict[str, list[Evaluation]] = {}


def run_one(run: Run, out: Path, device: str = "auto", root: Root = None, progress: bool = False) -> Path:
    """Train, or load, the victim of one run, attack it if the run says so, score both directions, write the card.

    With a surrogate the attack is made on that network and its data, trained or loaded first.
    """
    if root:  # a worker lives long, and files change
        opened.cache_clear()
    configuration, dataset, chosen = run.with_images(root), run.open(root), pick_device(device)
    how = {"device": chosen, "progress": progress}
    # Read before anything runs: a file edited meanwhile is not what made the card.
    code, made, note = source_hash(*ATTACK_CODE), made_with(configuration, ["interventions"] * run.anatomy), None
    if run.modification:
        modified = train_modified_victim(run.recipe, dataset, run.modification, seed=run.seed, **how)
        trained, started = modified.card, time.perf_counter()
        results = score_modified(modified, dataset, chosen)
    else:
        networks, compute = [run, *filter(None, [run.surrogate])], run.compute if run.compute != Compute() else None
        options = {**how, "compute": compute}
        victims = [load_or_train(each.recipe, each.open(root), seed=each.seed, **options) for each in networks]
        (model, trained), started = victims[0], time.perf_counter()
        with contextlib.ExitStack() as running:
            for network, _ in victims:
                running.enter_context(run.compute.on(network, chosen))
            if run.attack is None:
                evaluated = clean_scores(model, dataset, **how)
                results = {"scores": {direction_name(each.query_modality): scores_for_card(each) for each in evaluated}}
            else:
                attacks = cache_folder() / "attacks"
                note = attacks / f"{stable_hash([configuration, trained['key'], code])}.pt"
                how |= {"identities": run.identities, "split": run.split, "take_apart": run.anatomy, "state_path": note}
                how |= {"learn_from": run.learn_from, "start": run.start}
                for (network, _), its in zip(victims[1:], networks[1:], strict=True):
                    network.people = None if its.allow_seen_people else network.people
                    how["surrogate"] = network, its.open(root)
                seed, learner = run.seed if run.attack_seed is None else run.attack_seed, run.start or run.attack
                if isinstance(learner, UniversalAttack):  # one delta serves many targets, and what is made of it
                    data = (configuration.get("surrogate") or configuration)["dataset"]
                    learned = {**learner.describe(), "altered": "no"}, run.identities, run.learn_from, seed
                    made_by = [victims[-1][1]["key"], data, learned, code]
                    how["keep"] = attacks / f"{stable_hash(made_by)}.safetensors"
                victim = stable_hash([trained["key"], configuration["dataset"], run.split])
                if victim not in _CLEAN:  # one victim serves many attacks, and several searches of SYSU-MM01
                    _CLEAN[victim] = clean_scores(model, dataset, run.split, chosen)
                found = run_attack(run.attack, model, dataset, seed=seed, clean=_CLEAN[victim], **how)
                told_moved(run.attack.stays, found.exact)  # or there is nothing that a card could hold
                results = found.describe()
    seconds, memory = time.perf_counter() - started, peak_memory_mib(chosen)
    if run.attack is None:
        results |= {"history": trained["history"], "train_seconds": trained["seconds"]}
        seconds, memory = seconds + trained["wall_seconds"], max(memory, trained["peak_memory_mib"])
    results |= {"wall_seconds": seconds, "peak_memory_mib": memory, "device": device_name(chosen)}
    results |= {"threads": torch.get_num_threads(), "versions": versions(), "made_with": made}
    path = write_card(out, configuration, results)
    if note:
        note.unlink(missing_ok=True)
    return path


def run_campaign(
    path: Path, out: Path, *, root: Root = None, rerun_stale: bool = False, **options: object
) -> dict[str, list[str]]:
    """Run every run of the file whose card is not in `out` yet; return card names under "done", "ran" and "stale".

    What its [[tune]] tables ask for is `tuning.tune`'s.
    rerun_stale: make cards again that are stale, and only named otherwise. options: as of `run_all`, and so its errors.
    """
    opened.cache_clear()
    there, runs = {what_ran(card.name): card.name for card in out.glob(CARDS)}, {}
    for run in read_campaign(path):  # what the folder has under another name is not run again
        name = run.card_name(root)
        runs[name if (out / name).exists() else there.get(what_ran(name), name)] = run
    made = [name for name in runs if (out / name).exists()]
    stale = [name for name in made if is_stale(read_card(out / name))]
    todo = [run for name, run in runs.items() if name not in made or (rerun_stale and name in stale)]
    ran = [written.name for written in run_all(todo, out, root=root, title=path.stem, **options)]
    return {"done": [name for name in made if name not in stale], "ran": ran, "stale": stale}


def run_grid(
    runs: list[Run], out: Path, *, threads: int = 1, root: Root = None, rerun_stale: bool = False, **options: object
) -> dict[str, list[str]]:
    """Run those of a grid's runs that no card in `out` is of, wherever it came from; otherwise as `run_campaign`.

    threads: PyTorch's, of a run; on a CPU the scores are the same to the bit at the same number, here as on a cluster
    of this machine.
    """
    opened.cache_clear()
    found = Results(out).plan(runs, root, data=True, rerun_stale=rerun_stale)
    for run in found.todo:
        run.with_images(root)  # data that are not there are refused before anything runs
    written = run_all(found.todo, out, cluster=True, threads=threads, root=root, **options)
    return {"done": found.done, "ran": [path.name for path in written], "stale": found.stale}


def run_all(
    todo: list[Run],
    out: Path,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    cluster: bool = False,
    threads: int | None = None,
    device: str = "auto",
    root: Root = None,
    progress: bool = True,
    title: str = "",
    task: Callable[..., Path] = run_one,
) -> Iterator[Path]:
    """Run the runs and yield the path of each card as it is written; the folder is held against other processes.

    Args:
        workers: processes side by side on this machine, which end with this one however that ends.
        scheduler: the address of a running Dask cluster, such as "tcp://host:8786", instead.
        cluster: let the processes of this machine be Dask's, which survive the death of one.
        threads: PyTorch's, of each run here; None: shared out. A scheduler's workers have Dask's (`--nthreads`).
        device: as a worker sees it; so is root.

    Raises:
        InputError: where Dask is not installed, a scheduler does not answer or has no worker, a worker runs other code
            than this process, or a run cannot be made; and, after all others finished, where a run ended its workers.
    """
    workers, given_up, former = 1 if scheduler else max(1, min(workers, len(todo))), [], torch.get_num_threads()
    threads = None if scheduler else threads or (former if workers == 1 else max(1, (os.cpu_count() or 1) // workers))
    with _ALONE:
        code = scheduler and source_hash()
    shown = progress and not scheduler and workers == 1
    calls = [_Call((task, run, device, root, code, threads, shown)) for run in todo]
    bar = tqdm(total=len(todo), unit="run", desc=title, disable=not progress)
    with exclusive(out, wait=False), bar, _executor(scheduler if todo else None, workers, cluster) as (pool, places):
        try:
            for number, result in _finished(calls, pool, places, scheduler):
                try:
                    name, card = result()
                except Exception as error:
                    if type(error).__name__ != "KilledWorker":
                        raise
                    given_up.append(todo[number].card_name(root))
                else:
                    write_atomically(out / name, card)
                    bar.update()
                    yield out / name
        except Exception as error:
            raise _said(error, scheduler) from None
        finally:
            torch.set_num_threads(former)
    if given_up:
        why = "all others are finished. The usual cause is memory: use fewer workers on a machine, or a larger one"
        raise InputError(f"cluster: {', '.join(given_up)} ended one worker after the other; {why}")


class _Call(tuple):
    """A run that is made where it is unpickled: a scheduler only passes bytes on, and needs no package but Dask."""

    def __reduce__(self):
        return _card, tuple(self)


def _card(task: Callable, run: Run, device: str, root: Root, code: str | None, threads: int | None, progress: bool):
    """Run one run on this worker, alone and with its threads; return its card's file name and bytes."""
    with _ALONE, tempfile.TemporaryDirectory() as folder:
        if code and code != source_hash():
            raise ImportError("its code is another")
        if threads is None:
            from distributed import get_worker

            threads = get_worker().state.nthreads
        torch.set_num_threads(threads)
        path = task(run, Path(folder), device, root, progress)
        return path.name, path.read_bytes()


def _finished(calls: list[_Call], pool: Executor | None, places: Callable, scheduler: str | None) -> Iterator:
    """Yield the number of each run as it is finished, and what returns its card or raises what went wrong.

    As many runs are under way as there are workers, so that none is blamed for the death that its neighbour caused.
    """
    if pool is None:
        yield from ((number, partial(_card, *call)) for number, call in enumerate(calls))
        return
    waiting, running = deque(enumerate(calls)), {}
    while waiting or running:
        while waiting and len(running) < max(1, places()):
            number, call = waiting.popleft()
            running[pool.submit(pickle.loads, pickle.dumps(call))] = number
        done, _ = wait(running, NO_WORKER, FIRST_COMPLETED)
        if not done and not places():
            raise InputError(f"cluster: no worker for {NO_WORKER:.0f} s; start one with: dask worker {scheduler}")
        yield from [(running.pop(future), future.result) for future in done]


def _said(error: Exception, scheduler: str | None) -> Exception:
    """Return an error as one line that says how to mend it, where it is not the run's own."""
    kept = "finished cards are kept, run the same command again"
    if isinstance(error, BrokenProcessPool):
        return InputError(f"campaign: a worker died; {kept}")
    if isinstance(error, CancelledError):
        return InputError(f"cluster: the connection is lost; {kept}")
    if scheduler and isinstance(error, ImportError | AttributeError):
        what = f"a worker does not run this machine's vireid_lite ({error})"
        return InputError(f"cluster {scheduler}: {what}; install the same there, and start it again")
    return error


@contextlib.contextmanager
def _executor(scheduler: str | None, workers: int, cluster: bool) -> Iterator[tuple[Executor | None, Callable]]:
    """Hold what runs the runs, None for this process, and what tells how many workers there are."""
    if scheduler is None and workers == 1:
        yield None, int
    elif scheduler is None and not cluster:
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_follow)
        try:
            yield pool, lambda: workers
        except BaseException:
            # What runs now is resumed by the next campaign; nobody should wait for it.
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    else:
        with _connected(scheduler, workers) as client:
            pool = client.get_executor(pure=False, retries=0)
            try:
                yield pool, lambda: len(client.nthreads())
            finally:
                pool.shutdown(wait=False)


def _follow() -> None:
    """End this worker with the campaign even when that is killed."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def _connected(scheduler: str | None, workers: int) -> Iterator:
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
            mend = "give its address, such as tcp://host:8786, or start one with: dask scheduler"
            raise InputError(f"cluster: no Dask scheduler answers at {scheduler}; {mend}") from None
        # That the connection is lost is said in one line above.
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        with Client(scheduler, timeout=ANSWER, set_as_default=False) as client:
            yield client
        return
    # Dask would set OMP_NUM_THREADS in this process too, and sample every stack.
    options = {"distributed.nanny.pre-spawn-environ": {}, "distributed.worker.profile.enabled": False}
    # A dashboard address of None is port 8787, and a warning where that is taken.
    here = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}, "host": "127.0.0.1"}
    here |= {"silence_logs": logging.CRITICAL, "memory_limit": 0, "n_workers": workers, "threads_per_worker": 1}
    with dask.config.set(options), LocalCluster(**here) as local, Client(local, set_as_default=False) as client:
        yield client


async def _greet(scheduler: str) -> None:
    """Shake hands with a scheduler, for a Client waits for ever where something else listens; OSError or ValueError."""
    from distributed import Security
    from distributed.comm import connect

    security = Security().get_connection_args("client")
    comm = await asyncio.wait_for(connect(scheduler, timeout=ANSWER, **security), ANSWER)
    await comm.close()
