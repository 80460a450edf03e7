"""The functions, classes and other globals of the script in calls.

How a global of the script gets to a call:

1. submit   pickling.calls pickles the call. Globals of the script are pickled as names, and these names are collected.
2. submit   root.script looks the names up in `__main__`, with all globals that they use in turn. For a global that is new, or bound
            to another object since the last call, it makes a *version*: a number, and a *payload*, which is the pickled value.
3. submit   The call gets the number of a *state*: a table that has the version of each global.
4. worker   main_module is in some state, too. If that is another one, the worker asks the root for the difference between the two,
            loads the payloads that it needs, and binds the values in a `__main__` of its own.
5. worker   The call is unpickled: each name is looked up in that `__main__`. Its result is pickled and unpickled in the same way.

names        which object has which name        top_level          the code above the guard, which a worker runs itself
state        versions, states, payloads         surroundings       sys.path, working directory, environment variables, ...
root         the root: what a call needs        filters            warning filters
main_module  the worker: a `__main__`           random_generators  a stream of random numbers for each worker
pickling     pickles that name globals, reducers for what pickle refuses, digests
"""
