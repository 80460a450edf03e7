"""The worker pool of a communicator: one root and its workers, from registration to shutdown.

worker_pool   the root's side: how a pool is made, shared by executors and closed
serve         the life of a worker
child         the life of a child process that runs a worker's isolated calls
links         the connections of a pool: two channels, and bulk transfer
membership    how root and members join, monitor each other, and part: for executors and --spmd
registration  the messages between root and workers at the beginning and at the end
"""
