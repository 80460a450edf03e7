"""How a rank begins and ends to be a worker."""

import logging
import multiprocessing
import os
import random
import signal
import sys
import warnings
from pathlib import Path

import pytest

from mpiexecutor._pool.serve import serving
from mpiexecutor._script.main_module import MainModules
from mpiexecutor._script.names import LOOKUP
from mpiexecutor._script.random_generators import STREAM


def own_things():
    """Return what belongs to this process, and calls may change."""
    log = logging.getLogger("mpiexecutor.test_serve")
    return {
        "main": (sys.modules["__main__"], sys.modules.get("__mp_main__"), LOOKUP.bring, STREAM.key),
        "surroundings": (list(sys.path), list(sys.argv), Path.cwd(), dict(os.environ), sys.getrecursionlimit()),
        "warnings": list(warnings.filters),
        "loggers": [(list(each.handlers), each.level, each.propagate) for each in (logging.root, log)],
        "start method": multiprocessing.get_start_method(allow_none=True),
        "authkey": bytes(multiprocessing.current_process().authkey),
        "random": random.getstate(),
        "standard input": sys.stdin,
        "interrupt": signal.getsignal(signal.SIGINT),
    }


def test_a_rank_that_has_served_is_as_it_was_before(main, tmp_path):
    """Whatever calls have changed, and with it what served them: a rank goes on after RMACommExecutor's block."""
    log = logging.getLogger("mpiexecutor.test_serve")
    before = own_things()
    with serving():
        MainModules(1, lambda *_: {}, pytest.fail).enter(1)
        sys.modules["__main__"] = sys.modules["__mp_main__"] = type(sys)("__main__")
        sys.path.insert(0, "/of/a/call")
        sys.argv.append("of a call")
        os.chdir(tmp_path)
        os.environ["OF_A_CALL"] = "1"
        sys.setrecursionlimit(sys.getrecursionlimit() + 1)
        warnings.simplefilter("ignore")
        for logger in (logging.root, log):
            logger.addHandler(logging.NullHandler())
            logger.setLevel(1)
        log.propagate = False
        multiprocessing.set_start_method("spawn", force=True)
        multiprocessing.current_process().authkey = b"of a call"
        random.seed()
        meanwhile = own_things()
    assert [name for name in before if meanwhile[name] == before[name]] == []
    after = own_things()
    assert [name for name in before if after[name] != before[name]] == []
