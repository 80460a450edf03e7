"""Requests of workers for functions and for globals of the script, answered by bulk transfer."""

from pickle import PicklingError

from mpiexecutor._calls.bulk import BulkTransfer
from mpiexecutor._calls.messages import Wanted
from mpiexecutor._calls.outcomes import pickled, with_cause
from mpiexecutor._script.main_module import NotAdmitted
from mpiexecutor._script.state import Registry, State

from .state import SchedulerState


class Requests:
    """Answers requests. A worker waits for each answer."""

    def __init__(self, state: SchedulerState, registry: Registry, bulk: BulkTransfer) -> None:
        self._state = state
        self._registry = registry
        self._bulk = bulk
        self._opened: dict[int, set[int]] = {}  # by rank: executors whose `__main__` the worker has

    def refuse(self, request: Wanted) -> None:
        """Refuse a request: the worker fails the call, whose outcome the root ignores."""
        self._bulk.send(request.rank, None)

    def answer(self, request: Wanted) -> None:
        """Send what is wanted, or refuse if no call refers to it any more.

        The lock is not held: this may pickle, or start a thread and wait for it, and finalizers may run meanwhile.
        """
        rank, executor, number, known = request
        shared = self._registry.find(number)
        if shared is None:
            self.refuse(request)
            return
        with self._state.lock:
            if isinstance(shared, State) and not self._admit(rank, executor):
                self._bulk.send(rank, pickled(NotAdmitted()))
                return
            opened = self._opened.setdefault(rank, set())
            ended = opened - self._state.sessions.keys()
            opened -= ended
            opened.add(executor)
        try:
            found = shared.pickled(known, sorted(ended))
        except BaseException as error:  # noqa: BLE001 - raised by a global's own code: the worker raises it again
            reason = PicklingError(f"the script's globals cannot be pickled: {type(error).__name__}: {error}")
            found = pickled(with_cause(reason, self._state.location))
        self._bulk.send(rank, found)

    def _admit(self, rank: int, executor: int) -> bool:
        """Whether a worker may run calls of an executor. The lock is held."""
        state = self._state
        session = state.sessions.get(executor)
        if session is None:
            return True
        taken: set[int] = set()
        for other in state.sessions.values():
            taken |= other.ranks or set()
        free = set(range(state.location.ranks)) - {state.location.rank} - state.lost - taken
        return session.admit(rank, state.lost, others_are_free=bool(free) and rank in taken)
