"""How this process comes to be a rank of an MPI job, and how MPI ends in it.

process  MPI of this process: how it is initialised, how it is finalised
job      a script that no mpiexec has started starts a job and is its rank 0
mpiexec  which mpiexec belongs to this MPI, and its options
"""
