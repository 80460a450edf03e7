"""What the root tells its workers, and how a rank begins and ends to be one."""

import logging
import multiprocessing
import os
import random
import signal
import sys
import warnings
from pathlib import Path

import pytest

from mpiexecutor._pool.registration import LOST_AFTER_VARIABLE, Registration, WorkerConfiguration
from mpiexecutor._pool.serve import _serving
from mpiexecutor._script.main_module import MainModules
from mpiexecutor._script.names import LOOKUP
from mpiexecutor._script.random_generators import STREAM


def orders_of(*nodes: str) -> WorkerConfiguration:
    """Give those of rank 0, with workers on these nodes."""
    here = Registration.of_this_process(supervised=True)
    return WorkerConfiguration.of_this_process(
        0, {rank: here._replace(node=node or here.node) for rank, node in enumerate(nodes, 1)}
    )


def test_a_supervisor_turns_to_the_root_where_it_can():
    """On the root's node there is one monitor."""
    configuration = orders_of("", "", "b")
    assert configuration.far == [3]
    assert [configuration.monitoring_ranks(rank) for rank in (1, 2)] == [[0], [0]]
    assert configuration.monitor_name(0) == configuration.monitor


def test_elsewhere_it_turns_to_the_worker_after_its_own_and_to_its_own_last():
    """Whoever tells of a death is to live; and the work is shared."""
    configuration = orders_of("b", "", "c", "b", "b")
    assert configuration.far == [1, 3, 4, 5]
    assert [configuration.monitoring_ranks(rank) for rank in configuration.far] == [[4, 5, 1], [3], [5, 1, 4], [1, 4, 5]]
    assert len({configuration.monitor_name(rank) for rank in range(6)}) == 6


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, 30.0), ("2.5", 2.5), ("0", 30.0), ("soon", 30.0), ("inf", 30.0), ("nan", 30.0)]
)
def test_silence_has_a_limit_that_can_be_set(text, seconds, monkeypatch, caplog):
    """What is no number of seconds is said, and not used: the other ranks wait already."""
    monkeypatch.delenv(LOST_AFTER_VARIABLE, raising=False)
    if text is not None:
        monkeypatch.setenv(LOST_AFTER_VARIABLE, text)
    with caplog.at_level(logging.WARNING):
        assert orders_of("").lost_after == seconds
    said = f"{LOST_AFTER_VARIABLE} is a number of seconds above 0, not {text!r}: it is taken to be 30"
    assert caplog.messages == ([] if text in {None, "2.5"} else [said])


def own_things():
    """Give what belongs to this process, and calls may change."""
    log = logging.getLogger("mpiexecutor.test_orders")
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
    log = logging.getLogger("mpiexecutor.test_orders")
    before = own_things()
    with _serving():
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
