# cython: language_level=3
from libc.stdint cimport int32_t, int64_t, uint32_t

from core.host_figures cimport Host

cdef enum:
    MOST_SHAPES = 24
    TABLES = 1024  # places for tables; 2 to the power of TABLE_BITS
    TABLE_BITS = 10
    MOST_TABLES = 768

# A popular shape. fraction: CPUs that it is sold as, vCPUs / level.
ctypedef struct Popular:
    int32_t level  # place in levels
    double vcpus
    double memory
    double fraction
    double share  # of all arrivals of popular shapes
    double value  # what one adds to worth
    int32_t steps[2]  # CPUs and memory that it takes in a table, by its scale
    int32_t grains[2]
    bint shared  # above 1:1: whether a host would refuse it is asked

# How fine a table is. per_cpu: steps of a CPU; grain: MiB.
ctypedef struct Scale:
    double per_cpu
    int64_t grain
    int32_t steps
    int32_t grains

# The worth of every room where some shapes are refused (one bit each); rows by CPUs, as far as somebody has asked.
ctypedef struct Table:
    uint32_t refused
    int32_t rows
    double *cells  # NULL: a free place

# A host, or one with a VM more, as far as worth and waste depend on it.
ctypedef struct View:
    double free  # CPUs that are not sold
    int64_t free_mib
    int64_t one[3]  # paper accounting: vCPUs at 1:1, 2:1, 3:1
    int64_t vms[3]
    int64_t critical
    int64_t reach[MOST_SHAPES]  # by place in levels: CPUs that the level has or could have
    int64_t sold[MOST_SHAPES]  # its vCPUs
    int64_t alone[MOST_SHAPES]  # VMs that it gets at 1:1 before it is oversubscribed
    int64_t widest[MOST_SHAPES]

cdef class Worth:
    cdef int shape_count
    cdef int level_count
    cdef Popular shapes[MOST_SHAPES]
    cdef int32_t levels[MOST_SHAPES]
    cdef double cpus
    cdef double memory
    cdef double cpu_use
    cdef double memory_use
    cdef Scale scales[2]  # of the table without refusals, and of those with some
    cdef Table tables[TABLES]
    cdef int table_count
    cdef int64_t filled  # cells

    cdef int measure(self, market) except -1
    cdef int set_scale(self, int which, market, steps, grain) except -1
    cdef size_t bytes_of(self, uint32_t refused) noexcept nogil
    cdef Table *table_for(self, uint32_t refused) noexcept nogil
    cdef void fill(self, Table *table, int step) noexcept nogil
    cdef void forget(self) noexcept nogil
    cdef void see(self, const Host *host, bint paper, View *view) noexcept nogil
    cdef void add(self, View *view, int32_t level, int64_t vcpus, int64_t memory, int64_t extra) noexcept nogil
    cdef double standing_of(self, const View *view, int64_t cpus, bint paper) noexcept nogil
    cdef double worth_of(self, double free_cpus, int64_t free_mib, uint32_t refused) noexcept nogil
    cdef double waste_of(self, const View *view, int64_t cpus, bint paper, uint32_t *refused) noexcept nogil
    cdef double standing(self, const Host *host, bint paper) noexcept nogil
    cdef double cost(
        self, const Host *host, double standing, int32_t level, int64_t vcpus, int64_t memory, int64_t extra, bint paper
    ) noexcept nogil
