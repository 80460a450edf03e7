"""The worker pool of a communicator: one root and its workers, from their coming together until they part.

worker_pool   the root's side: how it is made, shared by executors and closed
serve         a worker's life
child         the life of a child process that runs a worker's isolated calls
links         what connects them: two channels, and bulk transfer
membership    how root and members join, hear of failures, and part: for executors and --spmd
registration  what ranks tell each other at the beginning and at the end
"""
