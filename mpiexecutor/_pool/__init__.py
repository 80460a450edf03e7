"""The worker pool of a communicator: one root and its workers, from their coming together until they part.

crew          the root's side; how it is made, shared by executors and closed; a worker's life
membership    how the root hears of the others, and how they part
registration  what ranks tell each other at the beginning and at the end
"""
