"""How this process becomes a rank of an MPI job, and how MPI ends in it.

process    MPI of this process: how it is initialised, and how it is finalised
job        a script that no mpiexec has started starts a job, and becomes its rank 0
rank_zero  how it becomes rank 0
rendezvous how the processes of a job connect to the script
limits     resources that the machine may lack for a job
mpiexec    the mpiexec that belongs to this MPI, and its options
output     the output of the job's processes is copied to that of the script
"""
