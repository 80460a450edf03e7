"""Calls, from the future to the function in a worker and back.

A call enters these files in this order:

    root     map_results (calls of a map), submission: pickles a call  ->  scheduling: queues it, sends it, settles its future
    both     messages: the messages between root and workers, and their encoding
    worker   worker: the loop that takes messages and runs calls  ->  batch: the calls of one message, and their outcomes

A map passes series of calls to the scheduler, without futures: see scheduling/series.py.

Beside them:

    functions  functions that many calls share: numbered on the root, cached by workers
    isolation  calls that a child process of the worker runs
    bulk       bulk transfer of functions and globals, from the root to one worker
    outcomes   results and errors as bytes; the errors that futures raise
    options    the options of an executor, and their rules
"""
