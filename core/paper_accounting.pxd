# cython: language_level=3
"""How the SlackVM paper's simulator counts the CPUs in use on a server with levels 1:1, 2:1 and 3:1.

A level with fewer VMs than the critical size has one CPU per vCPU; levels 2:1 and 3:1 share one set of CPUs at 2:1
where that takes fewer.
"""

from libc.stdint cimport int64_t

cdef inline int64_t alone(int64_t vcpus, int64_t vms, int64_t ratio, int64_t critical) noexcept nogil:
    return vcpus if vms < critical else (vcpus + ratio - 1) // ratio

cdef inline int64_t paper_cpus(const int64_t *vcpus, const int64_t *vms, int64_t critical) noexcept nogil:
    """vcpus, vms: at 1:1, 2:1 and 3:1."""
    cdef int64_t apart = alone(vcpus[1], vms[1], 2, critical) + alone(vcpus[2], vms[2], 3, critical)
    cdef int64_t together = alone(vcpus[1] + vcpus[2], vms[1] + vms[2], 2, critical)
    return vcpus[0] + min(apart, together)

cdef inline int64_t paper_room(
    const int64_t *vcpus, const int64_t *vms, int64_t critical, int64_t cpus, int at
) noexcept nogil:
    """vCPUs that one more level of these (at: 0 to 2) could be sold, as far as VMs of many sizes can fill it."""
    cdef int64_t left = cpus - vcpus[0]
    cdef int other = 3 - at
    cdef int64_t apart, together
    if at == 0:
        return cpus - paper_cpus(vcpus, vms, critical)
    apart = (left - alone(vcpus[other], vms[other], other + 1, critical)) * (at + 1) - vcpus[at]
    together = 2 * left - vcpus[1] - vcpus[2]
    return max(apart, together)

cdef inline int64_t paper_widest(
    const int64_t *vcpus, const int64_t *vms, int64_t critical, int64_t cpus, int at
) noexcept nogil:
    """vCPUs of the widest VM of one more at such a level that is admitted; negative for none."""
    cdef int64_t left = cpus - vcpus[0]
    cdef int64_t both = vcpus[1] + vcpus[2]
    cdef int other = 3 - at
    cdef int64_t apart, together
    if at == 0:
        return cpus - paper_cpus(vcpus, vms, critical)
    apart = left - alone(vcpus[other], vms[other], other + 1, critical)
    if vms[at] + 1 >= critical:
        apart *= at + 1
    together = left if vms[1] + vms[2] + 1 < critical else 2 * left
    return max(apart - vcpus[at], together - both)
