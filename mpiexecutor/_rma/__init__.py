"""MPI's side of the channel: shared memory, notification, progress, and which ranks have failed.

memory        the interface between the ring and the memory that it lies in
window        such memory in an RMA window
shared_lock   a lock in shared memory, which the kernel frees when its holder dies
doorbell      how a thread sleeps, and how others on its node wake it
notifier      how ranks on other nodes are notified, and how a host is asked for progress
progress      threads of a host that make progress, so that ranks on other nodes get answers
failed_ranks  the ranks that this process knows to have failed
serving_ranks  the ranks that run calls for this one, and make no channel with it
recovery_thread  recovers what these have left behind, one failure after another, under a watchdog
"""
