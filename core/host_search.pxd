# cython: language_level=3
from libc.stdint cimport int32_t, int64_t, uint64_t

from core.host_figures cimport Host
from core.worth cimport Worth

cdef enum:
    BLOCK = 64  # hosts whose least cost is kept
    SLOTS = 64  # requests whose costs are kept
    LOG = 4096  # changes that are known one by one

ctypedef struct Slot:
    int32_t level
    int32_t vcpus
    int64_t memory
    uint64_t seen  # changes when its costs were brought up to date
    uint64_t asked  # the latest use, in requests
    double *costs  # by host; infinite: does not fit
    double *least  # by block of hosts

cdef class HostSearch:
    cdef Host *hosts
    cdef int count
    cdef int kernel
    cdef bint paper
    cdef Worth worth
    cdef double *standing  # by host, valid if its change is not younger
    cdef uint64_t *stood  # by host: changes when it was computed
    cdef uint64_t *changed  # by host: its latest place in the log
    cdef int32_t log[LOG]
    cdef uint64_t changes
    cdef uint64_t renewed  # changes when worth was
    cdef uint64_t asked
    cdef Slot slots[SLOTS]

    cdef int cover(self, Host *hosts, int count) except -1
    cdef void change(self, int host) noexcept nogil
    cdef void value_by(self, Worth worth)
    cdef int64_t growth(self, const Host *host, int32_t level, int64_t vcpus) noexcept nogil
    cdef double cost(self, int number, int32_t level, int64_t vcpus, int64_t memory) noexcept nogil
    cdef Slot *slot_of(self, int32_t level, int32_t vcpus, int64_t memory) except NULL
    cdef int cheapest(self, const Slot *slot) noexcept nogil
    cdef void set_cost(self, Slot *slot, int host, double cost) noexcept nogil
    cdef void summarise(self, Slot *slot, int block) noexcept nogil
    cdef void forget(self) noexcept nogil
