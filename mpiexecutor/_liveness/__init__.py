"""Which ranks live: from the death of a process to those who have to know.

supervisor       the parent of a rank: hides its death from the process manager, and tells the root
supervised       the rank's side: how it gets a supervisor, and what it tells it
commands         what root, supervisor and rank say to each other
status_page      what a rank writes down of itself, for its supervisor and its root
monitor          the root's side of the supervisors: who lives, who has died, who is silent
recovery         what is done about a death: the channels of executors forget the dead, then their calls are seen to
forwarder        the same for ranks on other nodes
process_manager  how a process takes leave of its process manager without MPI
"""
