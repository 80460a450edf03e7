"""The warning filters of the script in its workers."""

import logging
import pickle
import re
import warnings

import pytest
from script_pair import own_main, script_of

from mpiexecutor._script.filters import dump_filters, load_filters


@pytest.fixture(autouse=True)
def restored():
    """Have the filters of the tests at the end."""
    with own_main():
        yield


def test_filters_go_there_in_order():
    """With patterns, categories, modules and lines."""
    warnings.resetwarnings()
    warnings.filterwarnings("ignore", message="text", category=UserWarning, module="a.b", lineno=5)
    warnings.simplefilter("error", DeprecationWarning)
    before = list(warnings.filters)
    needed = set()
    pickled = pickle.loads(pickle.dumps(dump_filters(needed)))
    assert needed == set()
    warnings.resetwarnings()
    load_filters(pickled)
    assert warnings.filters == before
    assert warnings.filters[1][1].flags == re.compile("text", re.IGNORECASE).flags


def test_a_category_of_the_script_is_named():
    """So it is the worker's own."""
    script = script_of("class Own(UserWarning): pass\n")
    warnings.resetwarnings()
    warnings.simplefilter("ignore", script.Own)
    needed = set()
    pickled = dump_filters(needed)
    assert needed == {"Own"}
    there = script_of("class Own(UserWarning): pass\n")
    load_filters(pickled)
    assert warnings.filters[0][2] is there.Own


def test_a_filter_that_cannot_be_loaded_is_left_out(caplog):
    """With a word; the others hold."""
    script_of("class Own(UserWarning): pass\n")
    warnings.resetwarnings()
    warnings.simplefilter("ignore", BytesWarning)
    warnings.simplefilter("ignore", __import__("__main__").Own)
    pickled = dump_filters(set())
    script_of("")
    with caplog.at_level(logging.ERROR):
        load_filters(pickled)
    assert [item[2] for item in warnings.filters] == [BytesWarning]
    assert caplog.messages == ["a warning filter of the script cannot be used in its workers"]


def test_a_filter_of_the_script_holds_in_calls(pair):
    """With a category that only the script has; what calls set stays."""
    text = """
        import warnings
        class Own(UserWarning): pass
        def f():
            with warnings.catch_warnings(record=True) as caught:
                warnings.warn("text", Own)
                warnings.warn("text", UserWarning)
            return [each.category.__name__ for each in caught]
        def show(): warnings.simplefilter("always")
    """
    this = pair(text)
    this.run("warnings.simplefilter('always')\nwarnings.simplefilter('ignore', Own)")
    assert this.call("f()") == ["UserWarning"]
    this.call("show()")
    assert this.call("f()") == ["Own", "UserWarning"]
