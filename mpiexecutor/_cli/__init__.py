"""The work of ``python -m mpiexecutor``, and the processes that this command, or a script, starts.

script  one rank of this command: rank 0 runs the script, the others run its calls
spmd    --spmd: every rank runs the script
info    --info: a description of this MPI, for a report
child   a process of a job that a script has started itself: a worker, or the placeholder of rank 0
"""
