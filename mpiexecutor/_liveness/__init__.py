"""Which ranks live: from the death of a process to those who have to know.

supervisor       the parent of a rank: hides its death from the process manager, and tells the root
status_page      what a rank writes down of itself, for its supervisor
monitor          the root's side of the supervisors; the recovery of channels after a death
forwarder        the same for ranks on other nodes
process_manager  how a process takes leave of its process manager without MPI
"""
