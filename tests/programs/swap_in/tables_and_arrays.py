"""Data of a script: arrays, tables and graphs of objects, as globals, arguments and results; and how often they are pickled.

The large globals count by themselves how often they are pickled and unpickled: that tells more than times do.
"""

import collections
import datetime
import decimal
import fractions
import functools
import os
import pathlib

import numpy as np

PPE = bool(os.environ.get("PPE"))
if PPE:
    from concurrent.futures import ProcessPoolExecutor as Executor
else:
    from mpiexecutor import RMAChannelExecutor as Executor

BY_VALUE = bool(os.environ.get("BY_VALUE"))  # pickles of NumPy do not keep what is a part of what
WORKERS = 2
pickled = []
unpickled = []


class Table:
    """A large table that writes down when it is pickled."""

    def __init__(self, n, name="table"):
        self.name, self.rows = name, {i: str(i) for i in range(n)}

    def __getstate__(self):
        pickled.append(self.name)
        return self.__dict__

    def __setstate__(self, state):
        self.__dict__.update(state)
        unpickled.append(self.name)

    def get(self, key):
        return self.rows[key]


class CountedArray(np.ndarray):
    def __reduce__(self):
        pickled.append("array")
        return array_back, (np.asarray(self).copy(),)


def array_back(values):
    unpickled.append("array")
    return values.view(CountedArray)


class Holder:
    table = None
    limits = np.array([1.0, 2.0])


grid = np.arange(12.0).reshape(3, 4)
same_grid = grid
column = grid[:, 1]
frozen = np.arange(5)
frozen.flags.writeable = False
records = np.array([("a", 1, 2.5), ("b", 2, 3.5)], dtype=[("name", "U5"), ("n", "i4"), ("x", "f8")])
masked = np.ma.array([1, 2, 3], mask=[0, 1, 0])
objects = np.array([1, "two", None], dtype=object)
times = np.array(["2020-01-01", "2020-01-02"], dtype="M8[D]")
fortran = np.asfortranarray(np.arange(6).reshape(2, 3))
empty = np.empty((0, 3))
table = None
big = None
later = None
left = {"name": "left"}
right = {"name": "right", "other": left}
left["other"] = right
pairs = [left, right]
nested = {"a": [1, (2, {3, 4}), {"b": frozenset([5])}], ("t", 1): b"bytes", None: range(3)}


def sum_row(i):
    return float(grid[i].sum())


def aliases():
    return same_grid is grid, column.base is not None or True, list(column)


def column_shares_memory():
    grid[0, 1] = -5
    return float(column[0])


def change_grid(value):
    grid[:] = value
    return float(grid.sum()), float(same_grid.sum())


def writable():
    found = grid.copy(), records, times, fortran
    for array in (grid, records, times, fortran, column):
        array[...] = array
    return [array.flags.writeable for array in found]


def frozen_there():
    return frozen.flags.writeable, int(frozen.sum())


def argument_is_writable(array):
    array[...] = 7
    return array.flags.writeable, array


def all_writable(arrays):
    for array in arrays:
        array[0] = 9
    return [float(array[0]) for array in arrays]


def structured():
    return list(records["name"]), int(records["n"].sum()), records.dtype.names, float(records[records["n"] > 1]["x"][0])


def many_kinds():
    return int(masked.sum()), list(objects), str(times[1] - times[0]), fortran.flags.f_contiguous, empty.shape


def look_up(key):
    return table.get(key), unpickled.count("table")


def look_up_many(keys):
    return [table.get(key) for key in keys]


def from_big(i):
    return float(big[i]), unpickled.count("array")


def through_class(key):
    return Holder.table.get(key), list(Holder.limits)


def through_closure():
    def inner(key):
        return table.get(key)

    return inner(5)


def counts():
    return os.getpid(), unpickled.count("table"), unpickled.count("array")


def cycle():
    return left["other"] is right, right["other"] is left, pairs[0] is left, left["other"]["other"]["name"]


def look_at_nested():
    return nested


def scaled(array, factor=2):
    return array * factor


def length(data):
    return len(data), type(data).__name__


def change_bytes(data):
    data[0] = 65
    return data


def view_of(data):
    return bytes(memoryview(data)[1:3])


def same_array_twice(a, b):
    a[0] = 100
    return float(b[0]), a is b


def array_and_view(whole, part):
    return float(whole.sum()), float(part.sum())


def dates(day, delta):
    return day + delta


def make_rows(n):
    return [{"id": i, "values": np.full(3, i), "tags": ("t", i)} for i in range(n)]


def words_of(text):
    return collections.Counter(text.split())


def merge(a, b):
    return a + b


def large(n):
    return np.arange(n)


def exact(x):
    return x / 3


def attempt(name, found, wanted=True):
    try:
        value = found()
        ok = wanted(value) if callable(wanted) else value == wanted
        said = f"found {value!r}"
    except BaseException as error:
        ok, said = False, f"found {type(error).__name__}: {error}"
    print(f"{name}: {'ok' if ok else 'WRONG, ' + said[:300]}", flush=True)


def main():
    global table, big, later
    table = Table(20_000)
    big = np.arange(200_000.0).view(CountedArray)
    Holder.table = Table(100, "held")
    with Executor(WORKERS) as ex:

        def run(function, *args):
            return ex.submit(function, *args).result(60)

        attempt("an array as global", lambda: [run(sum_row, i) for i in range(3)], [6.0, 22.0, 38.0])
        attempt("two names for one array, and a part of it", lambda: run(aliases), (True, True, [1.0, 5.0, 9.0]))
        attempt("arrays that are globals are writable", lambda: run(writable), [True] * 4)
        attempt(
            "a part of an array changes with it",
            lambda: run(column_shares_memory),
            lambda found: found == -5.0 or (BY_VALUE and found == 1.0),
        )
        attempt("a read-only array is to be read", lambda: run(frozen_there)[1], 10)
        attempt(
            "arguments are writable, read-only ones, too",
            lambda: [
                run(argument_is_writable, a)[0]
                for a in (np.zeros(3), frozen, np.broadcast_to(1.0, (2, 2)).copy(), np.zeros(100_000))
            ],
            [True] * 4,
        )
        attempt(
            "a list of arrays is writable",
            lambda: run(all_writable, [frozen, np.zeros(50_000), np.frombuffer(bytes(16))]),
            [9.0] * 3,
        )
        attempt(
            "the script's arrays are left alone",
            lambda: (frozen.tolist(), frozen.flags.writeable, grid[0, 1]),
            ([0, 1, 2, 3, 4], False, 1.0),
        )
        attempt(
            "results are writable",
            lambda: (
                [run(scaled, a).flags.writeable for a in (np.ones(3), frozen, np.ones(100_000))]
                + [run(large, 300_000).flags.writeable]
            ),
            [True] * 4,
        )
        attempt(
            "a structured array",
            lambda: (
                run(structured),
                run(scaled, records["x"]).tolist(),
                run(argument_is_writable, records.copy()["n"])[1].tolist(),
            ),
            ((["a", "b"], 3, ("name", "n", "x"), 3.5), [5.0, 7.0], [7, 7]),
        )
        attempt(
            "masked, object, date, Fortran and empty arrays", lambda: run(many_kinds), (4, [1, "two", None], "1 days", True, (0, 3))
        )
        attempt("an array that a call changes stays so on its worker", lambda: run(change_grid, 2), (24.0, 24.0))
        attempt("a large table, submit", lambda: [run(look_up, i)[0] for i in range(40)], [str(i) for i in range(40)])
        attempt(
            "a large table, map",
            lambda: [list(ex.map(look_up, [i, i + 1], timeout=60))[1][0] for i in range(30)],
            [str(i + 1) for i in range(30)],
        )
        attempt(
            "a large table through a closure and in a list",
            lambda: (run(through_closure), run(look_up_many, [1, 2])),
            ("5", ["1", "2"]),
        )
        attempt(
            "a large array, submit and map",
            lambda: ([run(from_big, i)[0] for i in range(40)], [next(ex.map(from_big, [i]))[0] for i in range(30)]),
            ([float(i) for i in range(40)], [float(i) for i in range(30)]),
        )
        attempt(
            "each goes to each worker once",
            lambda: (max(run(counts)[1] for _ in range(12)), max(run(counts)[2] for _ in range(12))),
            lambda found: max(found) <= 1,
        )
        attempt(
            "each is pickled once for each worker at most",
            lambda: (pickled.count("table"), pickled.count("array")),
            lambda found: max(found) <= WORKERS,
        )
        attempt("a table on a class", lambda: [run(through_class, i) for i in range(10)], [(str(i), [1.0, 2.0]) for i in range(10)])
        attempt("a table on a class goes to each worker once", lambda: pickled.count("held") <= WORKERS)
        attempt(
            "the same table as an argument is of now",
            lambda: (table.rows.update({1: "changed"}), run(Table.get, table, 1))[1],
            "changed",
        )
        attempt("a cycle of two globals", lambda: run(cycle), (True, True, True, "left"))
        attempt("nested data as global and back", lambda: run(look_at_nested) == nested)
        attempt("nested data there and back", lambda: run(dict, nested) == nested)
        attempt("one array as two arguments", lambda: run(same_array_twice, *[np.zeros(4)] * 2), (100.0, True))
        attempt(
            "an array and a part of it as arguments",
            lambda: run(array_and_view, *(lambda whole: (whole, whole[2:4]))(np.arange(10.0))),
            (45.0, 5.0),
        )
        attempt(
            "bytes, bytearray, memoryview",
            lambda: (
                [run(length, d) for d in (b"abc", bytearray(b"ab"))],
                run(change_bytes, bytearray(b"xyz")),
                run(view_of, b"abcd"),
                run(view_of, bytearray(b"abcd")),
            ),
            ([(3, "bytes"), (2, "bytearray")], bytearray(b"Ayz"), b"bc", b"bc"),
        )
        attempt(
            "an array as shape of records, map",
            lambda: [r.tolist() for r in ex.map(scaled, [grid[0], grid[1]], [1, 2])],
            [[0.0, 1.0, 2.0, 3.0], [8.0, 10.0, 12.0, 14.0]],
        )
        attempt(
            "dates, paths, fractions, decimals",
            lambda: (
                run(dates, datetime.date(2020, 2, 28), datetime.timedelta(2)),
                run(pathlib.Path.with_suffix, pathlib.Path("a.b"), ".c"),
                run(exact, fractions.Fraction(1)),
                run(exact, decimal.Decimal(1)),
                run(exact, 1.0),
            ),
            (datetime.date(2020, 3, 1), pathlib.Path("a.c"), fractions.Fraction(1, 3), decimal.Decimal(1) / 3, 1 / 3),
        )
        attempt(
            "rows of dicts with arrays",
            lambda: [(r["id"], r["values"].tolist(), r["tags"]) for r in run(make_rows, 2)],
            [(0, [0, 0, 0], ("t", 0)), (1, [1, 1, 1], ("t", 1))],
        )
        attempt(
            "words counted, and merged by reduce",
            lambda: functools.reduce(merge, ex.map(words_of, ["a b", "b c", "c c"])),
            collections.Counter("abbccc"),
        )
        attempt("a large result", lambda: int(run(large, 500_000).sum()), 499_999 * 500_000 // 2)
        attempt("large integers and exact floats", lambda: (run(pow, 3, 500), run(float.hex, 0.1)), (3**500, (0.1).hex()))
        later = Table(10, "later")
        attempt("a table that comes later", lambda: PPE or [run(look_up_later, i) for i in range(8)] == [str(i) for i in range(8)])
        attempt("the later one goes once, too", lambda: pickled.count("later") <= WORKERS)
        attempt(
            "and does not bring the others again",
            lambda: (pickled.count("table") - 1, pickled.count("array")),
            lambda found: max(found) <= WORKERS,
        )
    before = pickled.count("table")
    with Executor(WORKERS) as ex:
        attempt(
            "another executor has the table of now",
            lambda: [ex.submit(look_up, 1).result(60)[0] for _ in range(8)],
            ["changed"] * 8,
        )
        attempt("which goes once to each of its workers", lambda: pickled.count("table") - before <= WORKERS)


def look_up_later(key):
    return later.get(key)


if __name__ == "__main__":
    main()
