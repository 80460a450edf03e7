"""What ``python -m mpiexecutor`` does, and what the processes do that it, or a script, starts.

child   a process of a job that a script has started itself
spmd    --spmd: every rank runs the script
info    --info: a description of this MPI, for a report
"""
