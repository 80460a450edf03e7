"""What surrounds the calls of an executor."""

import logging
import multiprocessing
import os
import sys
import warnings
from pathlib import Path

import pytest
from script_pair import own_main

from mpiexecutor._script import surroundings
from mpiexecutor._script.state import Origin
from mpiexecutor._script.surroundings import Snapshot, Surroundings, import_path, remove_rank_variables

TEXT = """
    import multiprocessing, os, sys, warnings

    def surroundings():
        return (
            sys.path[0], sys.argv, os.getcwd(), os.environ.get("OF_THE_SCRIPT"), sys.getrecursionlimit(),
            bytes(multiprocessing.current_process().authkey), [item[:3] for item in warnings.filters[:1]],
        )

    def change(path, folder, text, limit):
        sys.path.insert(0, path)
        sys.argv.append(text)
        os.chdir(folder)
        os.environ["OF_THE_SCRIPT"] = text
        sys.setrecursionlimit(limit)
        warnings.simplefilter("error", BytesWarning)
"""


@pytest.fixture(autouse=True)
def restored(tmp_path):
    """Have the surroundings of the tests at the end."""
    with own_main():
        yield


def change(folder, name, limit):
    """Change the surroundings of the script."""
    (folder / name).mkdir()
    sys.path.insert(0, f"/path/{name}")
    sys.argv = ["script", name]
    os.chdir(folder / name)
    os.environ["OF_THE_SCRIPT"] = name
    sys.setrecursionlimit(limit)
    multiprocessing.current_process().authkey = name.encode()
    warnings.filterwarnings("ignore", category=ImportWarning)
    return f"/path/{name}", ["script", name], str(folder / name), name, limit, name.encode(), [("ignore", None, ImportWarning)]


def test_each_executor_has_those_that_the_script_had_when_it_was_made(pair, tmp_path):
    """Also when calls of two alternate."""
    this = pair(TEXT)
    first_ones = change(tmp_path, "first", 2000)
    first = this.executor()
    second_ones = change(tmp_path, "second", 3000)
    second = this.executor()
    change(tmp_path, "third", 4000)
    for worker in (1, 2):
        for executor, expected in [(first, first_ones), (second, second_ones), (first, first_ones), (second, second_ones)]:
            assert this.call("surroundings()", worker, executor) == expected
    assert Path.cwd().name == "third"


def test_what_calls_change_is_that_of_their_executor(pair, tmp_path):
    """It is there again when its calls come again."""
    this = pair(TEXT)
    change(tmp_path, "first", 2000)
    first, second = this.executor(), this.executor()
    expected = this.call("surroundings()", executor=second)
    (tmp_path / "by a call").mkdir()
    this.main.folder = str(tmp_path / "by a call")
    this.call("change('/by/a/call', folder, 'changed', 2500)", executor=first)
    assert this.call("surroundings()", executor=second) == expected
    path, arguments, folder, variable, limit, _, filters = this.call("surroundings()", executor=first)
    assert (path, arguments[-1], folder, variable, limit) == ("/by/a/call", "changed", this.main.folder, "changed", 2500)
    assert filters == [("error", None, BytesWarning)]


def test_variables_that_the_script_has_not_changed_are_the_workers_own(monkeypatch):
    """Those of its node; what the script has set or removed is as there."""
    monkeypatch.setattr(surroundings, "_BEFORE", [{"KEPT": "root", "CHANGED": "root", "REMOVED": "root"}])
    for name in list(os.environ):
        monkeypatch.delenv(name)
    os.environ.update(KEPT="root", CHANGED="script", SET="script")
    here = Surroundings.of_this_process()
    assert here.changed == {"CHANGED": "script", "SET": "script", "REMOVED": None}
    del os.environ["SET"]
    os.environ.update(KEPT="worker", CHANGED="worker", REMOVED="worker", OWN="worker")
    here.apply()
    assert dict(os.environ) == {"KEPT": "worker", "CHANGED": "script", "OWN": "worker", "SET": "script"}


def test_the_initial_environment_is_that_of_the_process():
    """As it was started, whatever was changed since."""
    os.environ["OF_THE_SCRIPT"] = "changed"
    found = surroundings._initial_environment()
    assert "OF_THE_SCRIPT" not in found
    assert found["PATH"]


def test_without_proc_the_initial_environment_is_that_at_the_import(monkeypatch):
    """As near as one can come."""

    def fail(_):
        raise OSError

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert surroundings._initial_environment() is surroundings._AT_IMPORT


def test_a_folder_that_is_not_there_is_left_out(tmp_path):
    """On another node perhaps."""
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    here, kept = Surroundings.of_this_process(), Snapshot()
    os.chdir(tmp_path)
    gone.rmdir()
    here.apply()
    kept.restore()
    assert str(Path.cwd()) == str(tmp_path)


def test_a_folder_that_was_removed_is_no_error(tmp_path):
    """The script goes on in it."""
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    here, kept = Surroundings.of_this_process(), Snapshot()
    assert here.folder is None
    os.chdir(tmp_path)
    here.apply()
    kept.restore()
    assert str(Path.cwd()) == str(tmp_path)


def test_only_what_imports_look_at_is_taken_of_the_path():
    """Anything may be there."""
    sys.path.insert(0, Path("/a/path"))
    sys.path.insert(0, None)
    sys.path.insert(0, "/text")
    assert import_path()[0] == "/text"
    assert all(type(entry) is str for entry in import_path())


def test_without_arguments_there_are_none(monkeypatch):
    """Where Python is embedded."""
    monkeypatch.delattr(sys, "argv")
    here = Surroundings.of_this_process()
    assert here.arguments == []
    here.apply()
    assert sys.argv == []


def test_the_path_stays_the_same_list():
    """Others may hold it."""
    path = sys.path
    Surroundings.of_this_process().apply()
    Snapshot().restore()
    assert sys.path is path


def test_what_is_restored_is_a_copy():
    """Later changes don't reach it."""
    kept = Snapshot()
    before = list(sys.path), list(sys.argv), list(warnings.filters)
    sys.path.append("/later")
    sys.argv.append("later")
    warnings.filterwarnings("ignore", "later")
    kept.restore()
    assert (sys.path, sys.argv, warnings.filters) == before
    sys.argv.append("once more")


# -- loggers, and how multiprocessing starts processes


RUNS_AGAIN = pytest.mark.parametrize("origin", [Origin.TOP_LEVEL])
LOGS = """
    import io, logging
    stream, other = io.StringIO(), io.StringIO()
    logging.basicConfig(stream=stream, format="%(name)s %(message)s", level=logging.INFO)
    log = logging.getLogger("of_the_script")
    log.addHandler(logging.StreamHandler(other))
    def note(text):
        log.info(text)
        return stream.getvalue().splitlines(), other.getvalue().splitlines()
    def change():
        log.propagate = False
        log.setLevel(logging.ERROR)
"""


@RUNS_AGAIN
def test_each_executor_has_the_loggers_that_its_own_top_level_has_set_up(pair):
    """Not those of an executor before, or in between: basicConfig would do nothing, and each line would be written twice."""
    logging.root.handlers.clear()  # of pytest
    this = pair(LOGS)
    first, second, third = (this.executor() for _ in range(3))
    assert this.call("note('a')", executor=first) == (["of_the_script a"], ["a"])
    assert this.call("note('b')", executor=second) == (["of_the_script b"], ["b"])
    assert this.call("note('c')", executor=first) == (["of_the_script a", "of_the_script c"], ["a", "c"])
    this.call("change()", executor=first)
    assert this.call("note('d')", executor=third) == (["of_the_script d"], ["d"])
    assert this.call("note('e')", executor=first) == (["of_the_script a", "of_the_script c"], ["a", "c"])
    assert this.call("note('f')", executor=second) == (["of_the_script b", "of_the_script f"], ["b", "f"])


@RUNS_AGAIN
def test_each_executor_has_the_start_method_that_its_own_top_level_has_set(pair):
    """multiprocessing takes one only once."""
    text = """
        import multiprocessing
        multiprocessing.set_start_method("spawn")
        def method(): return multiprocessing.get_start_method(allow_none=True)
        def change(): multiprocessing.set_start_method("forkserver", force=True)
    """
    multiprocessing.set_start_method(None, force=True)  # as in a new process: other tests may have used one
    this = pair(text)
    first, second = this.executor(), this.executor()
    assert [this.call("method()", executor=each) for each in (first, second)] == ["spawn", "spawn"]
    this.call("change()", executor=first)
    assert [this.call("method()", executor=each) for each in (second, first)] == ["spawn", "forkserver"]
    assert this.failures == []


def test_loggers_and_the_start_method_are_restored():
    """Those that have come since are as new."""
    known = logging.getLogger("surroundings.known")
    handler, other = logging.NullHandler(), logging.NullHandler()
    known.addHandler(handler)
    known.setLevel(logging.ERROR)
    known.propagate = False
    multiprocessing.set_start_method("spawn", force=True)
    of_root = list(logging.root.handlers), logging.root.level
    kept = Snapshot()
    new = logging.getLogger("surroundings.new")
    for logger in (logging.root, known, new):
        logger.addHandler(other)
        logger.setLevel(1)
    known.removeHandler(handler)
    known.propagate, new.propagate = True, False
    multiprocessing.set_start_method("fork", force=True)
    kept.restore()
    assert (known.handlers, known.level, known.propagate) == ([handler], logging.ERROR, False)
    assert (new.handlers, new.level, new.propagate) == ([], logging.NOTSET, True)
    assert (logging.root.handlers, logging.root.level) == of_root
    assert multiprocessing.get_start_method(allow_none=True) == "spawn"
    assert not new.isEnabledFor(1)


OF_RANKS = [
    "PMI_RANK",
    "PMI_FD",
    "PMI2_X",
    "PMIX_NAMESPACE",
    "PMIX_MCA_mca_base_component_show_load_errors_uri",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_MCA_ess_base_jobid",
    "OMPI_MCA_orte_hnp_uri",
    "OMPI_MCA_pmix",
    "PRTE_MCA_prte_ess_vpid",
    "PRTE_LAUNCHED",
    "HYDI_CONTROL_FD",
    "MPI_LOCALRANKID",
    "I_MPI_HYDRA_UUID",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
]
SETTINGS = [
    "OMPI_MCA_btl",
    "OMPI_MCA_rmaps_base_oversubscribe",
    "OMPI_MCA_osc",
    "PMIX_MCA_gds",
    "PRTE_MCA_rmaps_default_mapping_policy",
    "MPIR_CVAR_NOLOCAL",
    "I_MPI_FABRICS",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_NTASKS",
    "PMI",
    "PATH",
    "OF_THE_SCRIPT",
]


def test_variables_of_the_rank_are_left_out(monkeypatch):
    """A program that a call starts is none; what users set stays."""
    for name in OF_RANKS + SETTINGS:
        monkeypatch.setenv(name, "1")
    remove_rank_variables()
    assert [name for name in OF_RANKS if name in os.environ and name != "PMIX_MCA_gds"] == []
    assert [name for name in SETTINGS if name not in os.environ] == []
