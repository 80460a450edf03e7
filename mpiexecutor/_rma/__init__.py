"""MPI's side of the channel: shared memory, notification, progress, and which ranks have failed.

memory        the seam between the ring and whatever memory it lives in
window        that memory in an RMA window
doorbell      sleeping and waking on one node
notifier      waking ranks on other nodes
progress      what the host of a channel does so that ranks on other nodes get answers
failed_ranks  the ranks that this process knows to have failed
recovery_thread  recovers what these have left behind, one failure after another, under a watchdog
"""
