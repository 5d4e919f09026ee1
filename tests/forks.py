"""A server that forks processes for the tests: it has imported torch and done what every run does first."""

import multiprocessing
import os
import sys
from multiprocessing import forkserver
from unittest import mock

from vireid_lite.behaviour import entries
from vireid_lite.files import ATTACK_CODE, VICTIM_CODE, source_hash
from vireid_lite.study import grids, workers  # noqa: F401

SPAWN = multiprocessing.get_context("forkserver")
SERVED = ["forks", "test_kills", "test_cluster"]  # a module of tests that is missing here is imported by every process


def start() -> None:
    """Start the server unless it runs; it passes over what it cannot import, so it is told where tests are."""
    SPAWN.set_forkserver_preload(SERVED)
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))):
        forkserver.ensure_running()


def process(target, *arguments) -> multiprocessing.Process:
    """Return a process, not started, that the server will fork."""
    start()
    return SPAWN.Process(target=target, args=arguments)


if not multiprocessing.parent_process() and "pytest" not in sys.modules:  # in the server
    for code in ((), ("data",), VICTIM_CODE, ATTACK_CODE):
        source_hash(*code)
    entries()
