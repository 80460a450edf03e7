"""Which MPI this is, by the text of its version."""

import enum


class Flavour(enum.Enum):
    """An MPI, which a launcher or a library belongs to."""

    MPICH = "MPICH"
    OPEN_MPI = "Open MPI"
    INTEL_MPI = "Intel MPI"
    UNKNOWN = "an unknown MPI"  # its launcher gets no flags, and is taken to match the library


def flavour_of(version: str) -> Flavour:
    """Return the MPI that a launcher or a library names in the text of its version."""
    for sign, flavour in (
        ("Open MPI", Flavour.OPEN_MPI),
        ("PRRTE", Flavour.OPEN_MPI),
        ("MPICH", Flavour.MPICH),
        ("Intel", Flavour.INTEL_MPI),
        ("HYDRA", Flavour.MPICH),
    ):
        if sign in version:
            return flavour
    return Flavour.UNKNOWN
