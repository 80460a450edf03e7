"""Utilities without MPI.

flavour      which MPI this is
inbox        a queue between threads whose time-outs are reliable
periodic     a thread that checks something at intervals
pickling     objects to bytes and back
polling      wait for other ranks by checking a condition
process_end  the actions of a process at its end, in one order
processors   whether the machine has a processor to spare
seconds      all timeouts and intervals, in one place
segments     large buffers from one process of a node to another, by one copy
watched      a step that may hang, in a thread that can be left
"""
