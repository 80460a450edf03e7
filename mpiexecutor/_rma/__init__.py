"""The MPI side of the channel: shared memory, notification, progress, and failed ranks.

memory           the interface between the ring and its memory
window           such memory in an RMA window
shared_lock      a lock in shared memory, which the kernel frees when its holder dies
doorbell         how a thread sleeps, and how others on its node wake it
notifier         how ranks on other nodes are notified, and how a host is asked for progress
progress         threads of a host that make progress, so that ranks on other nodes get answers
failed_ranks     the ranks that this process knows to have failed
serving_ranks    the ranks that run calls for this one, and so make no channel with it
recovery_thread  a thread that recovers from one failure after another, and its watchdog
"""
