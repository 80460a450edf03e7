"""How a pool ends, on its root: which of the ways there are is taken, and what is left. All that it has is a log of this test's."""

import contextlib
import threading
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import pytest
from fakes import LIMIT, in_a_thread

from mpiexecutor._liveness.commands import KILL, TERMINATE
from mpiexecutor._liveness.monitor import WorkerFailure
from mpiexecutor._pool import worker_pool as its_module
from mpiexecutor._pool.worker_pool import WorkerPool


class Exited(BaseException):
    """This process would have ended here, with this status."""


class Logged:
    """Something whose methods do nothing but note that they were called."""

    def __init__(self, log, name, **answers):
        self._log = log
        self._name = name
        self._answers = answers

    def __getattr__(self, method):
        if method.startswith("__"):
            raise AttributeError(method)

        def call(*arguments, **options):
            self._log.append((f"{self._name}.{method}", *arguments, *options.values()))
            answer = self._answers.get(method)
            return answer(*arguments) if callable(answer) else answer

        return call


class Scene:
    """A pool, and what is done with what it has."""

    def __init__(self, patch, *, sessions=(), whole=True, failed=False, started_here=False, patience=LIMIT):
        self.log = []
        patch.setattr(its_module, "_script_failed", lambda: failed)
        patch.setattr(its_module, "abort_job", lambda: self.log.append(("abort_job",)))
        patch.setattr(its_module, "end_without_mpi", lambda: self.exit(1))
        patch.setattr(its_module, "STUCK", patience)
        patch.setattr(its_module, "os", SimpleNamespace(_exit=self.exit))
        self.pool = pool = WorkerPool.__new__(WorkerPool)
        pool.closed = pool._wedged = False
        pool.scheduler = self.scheduler = Logged(self.log, "scheduler", sessions=list(sessions), is_stuck=False)
        pool._needs = contextlib.nullcontext()
        for part in ("links", "monitor"):
            setattr(pool, f"_{part}", Logged(self.log, part))
        pool._members = Logged(self.log, "members", part=whole)
        pool._job = Logged(self.log, "job") if started_here else None
        pool._thread = None
        pool._serving = []
        pool.ended_by = ""

    def exit(self, status):
        self.log.append(("exit", status))
        raise Exited

    @property
    def names(self):
        """What was called, without arguments."""
        return [name for name, *_ in self.log]


@pytest.fixture
def scene():
    """Yield a function that makes one."""
    with pytest.MonkeyPatch.context() as patch:
        yield lambda **how: Scene(patch, **how)


IDLE, BUSY = SimpleNamespace(idle=True), SimpleNamespace(idle=False)
GOODBYE = ["members.await_leavers", "members.part", "links.free", "members.leave"]


def test_all_calls_are_waited_for_and_then_all_part(scene):
    """Nothing is taken any more, workers leave, and what all have made together is given back. Once."""
    scene = scene(sessions=[BUSY, IDLE])
    scene.pool.close()
    closes = [
        ("scheduler.close", session, "cannot schedule new futures after interpreter shutdown", False) for session in (BUSY, IDLE)
    ]
    assert scene.log[:5] == [("scheduler.sessions",), *closes, ("scheduler.wait", BUSY), ("scheduler.wait", IDLE)]
    assert scene.names[5:] == ["scheduler.stop", *GOODBYE]
    scene.log.clear()
    scene.pool.close()
    assert scene.log == []


def test_if_one_has_died_what_was_made_together_is_left_as_it_is(scene):
    """MPI is not to be finalised, and the supervisors are shut down in the end."""
    scene = scene(whole=False)
    scene.pool.close()
    assert scene.names[:2] == ["scheduler.sessions", "scheduler.stop"]
    assert scene.names[2:] == ["members.await_leavers", "members.part", "links.abandon"]


def test_a_script_that_has_failed_waits_for_no_call(scene):
    """What was not sent is dropped; if a call is running the workers are ended at once."""
    scene = scene(sessions=[IDLE, BUSY], failed=True)
    scene.pool.close()
    assert [said[-1] for said in scene.log if said[0] == "scheduler.close"] == [True, True]
    assert scene.log[-1] == ("abort_job",)
    assert "scheduler.wait" not in scene.names


def test_a_script_that_has_failed_and_started_its_workers_ends_them_itself(scene):
    """Their failures are expected, so that nobody is warned of them."""
    scene = scene(sessions=[BUSY], failed=True, started_here=True)
    scene.pool.close()
    assert scene.names[2:] == ["monitor.expect_failures", "links.abandon", "abort_job"]


def test_a_script_that_has_failed_with_nothing_to_do_ends_as_any(scene):
    """The workers leave by themselves."""
    scene = scene(sessions=[IDLE], failed=True)
    scene.pool.close()
    assert scene.names[-len(GOODBYE) :] == GOODBYE


def test_an_interrupt_while_calls_are_waited_for_ends_the_workers(scene):
    """Nobody wants to wait any more; the interrupt goes on."""
    scene = scene(sessions=[BUSY])

    def interrupt(_):
        raise KeyboardInterrupt

    scene.scheduler._answers["wait"] = interrupt
    with pytest.raises(KeyboardInterrupt):
        scene.pool.close()
    assert scene.log[-1] == ("abort_job",)


def test_a_pool_that_was_given_up_parts_from_no_worker(scene):
    """They will never be of use again, and whoever is in the middle of a channel stays there."""
    scene = scene(sessions=[IDLE])
    scene.pool._give_up("mpiexec was killed")
    scene.pool.close()
    assert scene.names == [
        "scheduler.give_up",
        "scheduler.sessions",
        "scheduler.close",
        "scheduler.wait",
        "links.disown",
        "members.stay",
    ]


@pytest.mark.parametrize(("for_good", "stopped"), [(True, "kill"), (False, "warn")])
def test_a_worker_that_is_stopped_in_the_end_is_killed_if_it_has_nothing_else_to_do(scene, for_good, stopped):
    """Otherwise a warning says that the job waits for it."""
    scene = scene()
    scene.pool.close(for_good=for_good)
    assert ("members.await_leavers", stopped) in scene.log


def test_if_the_scheduler_is_stuck_when_it_is_given_up_this_process_ends(scene, caplog):
    """Inside MPI, where a dead worker holds a lock: no future could be settled."""
    scene = scene(patience=0.0)
    over = threading.Event()
    scene.scheduler._answers |= {"give_up": lambda _: over.wait(LIMIT), "is_stuck": True}
    with pytest.raises(Exited):
        scene.pool._give_up("a reason")
    over.set()
    assert scene.log[-1] == ("exit", 1)
    assert "a reason; this process is stuck inside MPI, too: the job is ended" in caplog.text


def test_to_give_up_may_take_long(scene):
    """A callback of a future does, say: as long as the scheduler itself can be entered, nothing is wrong."""
    scene = scene(patience=0.0)
    over, looked = threading.Event(), threading.Event()
    scene.scheduler._answers |= {"give_up": lambda _: over.wait(LIMIT), "is_stuck": lambda _: looked.set()}
    giving_up = in_a_thread(scene.pool._give_up, "a reason")
    assert looked.wait(LIMIT)
    assert not giving_up.done()
    over.set()
    giving_up.result(LIMIT)
    assert "exit" not in scene.names


@pytest.mark.parametrize(("of_all", "ends"), [(True, True), (False, False)])
def test_a_death_while_all_part_ends_the_job(scene, of_all, ends):
    """The others wait for it for ever. Before, and if a worker had died before, they do not."""
    scene = scene()
    scene.pool._members = SimpleNamespace(of_all=of_all)
    with pytest.raises(Exited) if ends else contextlib.nullcontext():
        scene.pool._note_failure()
    assert scene.log == ([("abort_job",), ("exit", 1)] if ends else [])


LOST = WorkerFailure(1, "host", 7, "was lost together with its supervisor", None)


@pytest.mark.parametrize(
    ("end", "lost", "without_supervisor", "reason"),
    [
        ("was killed by SIGKILL", None, [], "mpiexec was killed by SIGKILL"),
        ("was killed by SIGKILL", LOST, [], "mpiexec was killed by SIGKILL"),
        ("ended with status 9", LOST, [], f"{LOST}, and mpiexec has ended the job"),
        ("", LOST, [], f"{LOST}, and mpiexec has ended the job"),
        ("ended with status 3", None, [1, 2], "a worker without supervisor has died (ranks 1, 2), and mpiexec has ended the job"),
        ("ended with status 3", None, [], "mpiexec ended with status 3"),
        ("", None, [], "mpiexec has ended the job"),
    ],
)
def test_why_the_job_has_ended_is_said(scene, end, lost, without_supervisor, reason):
    """A killed mpiexec, a killed supervisor and a worker without one are told apart."""
    scene = scene(started_here=True)
    scene.pool._job._answers["mpiexec_end"] = end
    scene.pool._monitor = SimpleNamespace(first_lost=lost)
    registrations = {rank: SimpleNamespace(supervised=rank not in without_supervisor) for rank in (1, 2)}
    scene.pool._members = SimpleNamespace(registrations=registrations)
    scene.pool.alone = False
    scene.pool._lose_job()
    assert scene.log[-1] == ("scheduler.give_up", reason)


@pytest.mark.parametrize(("how", "name"), [(KILL, "kill_workers"), (TERMINATE, "terminate_workers")])
def test_a_pool_whose_workers_were_ended_takes_no_other_executor(scene, how, name):
    """From then on, not only when the workers are known to be dead: the error says why, and what to do."""
    scene = scene()
    scene.scheduler.__dict__["failure"] = ""
    scene.pool._members = SimpleNamespace(registrations={1: None, 2: None})
    scene.pool.check()
    scene.pool.end_workers(how)
    assert scene.log == [("monitor.kill_on_connect", rank, how) for rank in (1, 2)]
    with pytest.raises(BrokenProcessPool, match=rf"no workers any more, as {name}\(\) has ended them; .* start the script again"):
        scene.pool.check()


def test_a_pool_whose_workers_have_died_takes_no_other_executor(scene):
    """The error names the last death."""
    scene = scene()
    scene.scheduler.__dict__["failure"] = "all workers are lost; the last of them, ..."
    with pytest.raises(BrokenProcessPool, match=r"as all workers are lost; the last of them, .*: start the script again"):
        scene.pool.check()
