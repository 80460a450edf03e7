"""Calls, from the future to the function in a worker and back.

map_results root: the calls of a map, and the iterators over their results
submission  root: calls are pickled in the thread that submits them
scheduling  root: from calls to messages, and from replies to futures
worker      worker: the loop that takes messages, runs calls and replies
batch       worker: the calls of one message, and what waits there
messages    all that root and workers say to each other, and its encoding
functions   functions that many calls share: numbered by the root, kept by the workers
bulk        large objects, from the root to one worker
outcomes    what comes of a call, and how it is pickled
options     the arguments of an executor, checked
"""
