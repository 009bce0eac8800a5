# cython: language_level=3
"""The figures of a host as C structures, and how many CPUs a level needs there (``core.admission``)."""

from libc.stdint cimport int16_t, int32_t, int64_t

# As in core.level and core.admission, which compiled code cannot import.
cdef enum:
    UNIT = 1000
    HIGHEST = 64 * UNIT
    MAX_CPUS = 1 << 20
    MAX_VCPUS = 1 << 30

# States of a host.
cdef enum:
    ABSENT = 0
    WITHOUT_FIGURES = 1
    KNOWN = 2

# Why a host is closed: 0 is not at all.
cdef enum:
    OPEN = 0

# Which host is the best: places in core.host_table.KERNELS.
cdef enum:
    CONSTANT = 0
    PROGRESS = 1
    WORTH = 2

ctypedef struct Subset:
    int32_t level
    int32_t critical
    int32_t following  # the ratio with one more VM
    int32_t cpus
    int32_t vcpus
    int32_t vms
    int32_t widest

ctypedef struct CriticalSize:
    int32_t level
    int32_t size

ctypedef struct Host:
    int64_t memory
    int64_t allocated
    int64_t free_mib
    int64_t generation
    double optimal  # MiB per CPU of the hardware
    double distance  # from it, of what is in use
    Subset *subsets  # in order of creation
    CriticalSize *criticals  # those of single levels
    int32_t subset_count
    int32_t critical_count
    int32_t cpus
    int32_t free
    int32_t held
    int32_t used
    int32_t vms
    int32_t critical
    int16_t closed
    char state
    char skipped

cdef inline int64_t ceiling(int64_t dividend, int64_t divisor) noexcept nogil:
    return (dividend + divisor - 1) // divisor

cdef inline Subset *subset_of(const Host *host, int32_t level) noexcept nogil:
    cdef int k
    for k in range(host.subset_count):
        if host.subsets[k].level == level:
            return host.subsets + k
    return NULL

cdef inline int32_t critical_of(const Host *host, int32_t level) noexcept nogil:
    """The critical size of a level, whether the host has it or not."""
    cdef int k
    for k in range(host.critical_count):
        if host.criticals[k].level == level:
            return host.criticals[k].size
    return host.critical

cdef inline int64_t need_of(const Subset *subset, int64_t ratio, int64_t vcpus) noexcept nogil:
    """CPUs for the VMs there are and one more; vcpus 0: without."""
    return max(max(<int64_t>subset.widest, vcpus), ceiling((subset.vcpus + vcpus) * UNIT, ratio))

cdef inline int64_t growth_of(const Host *host, int32_t level, int64_t vcpus) noexcept nogil:
    """CPUs that a level must gain for one more VM."""
    cdef Subset *subset = subset_of(host, level)
    if subset is NULL:
        return vcpus
    return max(<int64_t>0, need_of(subset, subset.following, vcpus) - subset.cpus)

cdef inline double penalty_of(const Host *host) noexcept nogil:
    return 1.0 + <double>host.used / <double>host.cpus

cdef inline double progress_of(const Host *host, int64_t extra, int64_t memory) noexcept nogil:
    """The same operations in the same order as progress_on; no product is added to, so none can be fused."""
    cdef double after = <double>(host.allocated + memory) / <double>(host.used + extra)
    cdef double off = after - host.optimal
    cdef double gain = host.distance - (off if off >= 0 else -off)
    if gain < 0:
        return gain * penalty_of(host)
    return gain
