"""The script's own names inside calls: functions, classes and other globals of ``__main__``.

    script (root)                                           worker
    names      which globals a call needs                   main_module   one __main__ for each executor
    pickling   calls name what belongs to the script  ──>   pickling      names are looked up there
    state      globals with versions, asked for once  ──>   main_module   compares, fetches, binds
    top_level  the code above the guard               ──>   top_level     runs it
    surroundings  sys.path, folder, environment       ──>   surroundings  applied when calls of this executor run

`kinds` remakes what pickle refuses: locks, open files, caches; `digests` tells whether a worker's own global equals the script's.
A call never carries a global. It carries the number of a `State`: which version of each global it needs. A worker that is not in
that state asks the root for the difference. Results name the script's functions and classes, too, so neither side's are changed.
"""
