"""Calls, from the future to the function in a worker and back.

messages   all that root and workers say to each other, and its encoding
scheduler  root: the dispatcher sends calls, the collector settles futures
session    root: the calls of one executor that have no outcome yet
functions  functions that many calls share: numbered by the root, kept by the workers
worker     worker: the loop that takes messages, runs calls and replies
outcomes   what comes of a call, and how it is pickled
bulk       large objects, from the root to one worker
options    the arguments of an executor, checked
"""
