"""Which ranks live, and what happens when one fails. For the whole path of a failure see recovery.py.

supervisor       the parent of a rank: hides its death from the process manager, and reports it to the root
children         processes that a supervisor starts for the isolated calls of its rank
supervised       the rank's side: how it gets a supervisor, and sends it messages
commands         the messages between root, supervisor and rank
status_page      a page on which a rank writes its status, for its supervisor and its root
monitor          the root's side of the supervisors: which workers live, have failed, are silent
recovery         what a pool does after a failure: it recovers its channels, then settles calls
forwarder        how failures on other nodes are reported to the root
process_manager  how a process leaves its process manager without MPI
"""
