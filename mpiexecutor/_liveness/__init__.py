"""Which ranks live, and what is done when one fails. For the whole path of a failure see recovery.py.

supervisor       the parent of a rank: hides its death from the process manager, and tells the root
children         processes that a supervisor starts for the isolated calls of its rank
supervised       the rank's side: how it gets a supervisor, and what it tells it
commands         what root, supervisor and rank say to each other
status_page      what a rank writes about itself, for its supervisor and its root
monitor          the root's side of the supervisors: which workers live, have failed, are silent
recovery         what a pool does after a failure: it recovers its channels, then settles calls
forwarder        how the root hears of failures on other nodes
process_manager  how a process leaves its process manager without MPI
"""
