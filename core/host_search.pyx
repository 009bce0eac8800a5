# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The cheapest of many hosts for a VM, where a cost is dear to compute and hosts change one at a time.

For each of the latest requests, what every host would cost is kept, and the least of each block of them. A host that
has changed is computed again for a request when that is next asked for, nobody else is.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from core.host_figures cimport KNOWN, OPEN, PROGRESS, UNIT, WORTH, Host, growth_of, progress_of
from core.paper_accounting cimport paper_cpus


cdef class HostSearch:
    """Over hosts that somebody else owns, who tells what has changed. Of equals the first is the cheapest."""

    def __cinit__(self, int kernel, bint paper=False):
        self.kernel = kernel
        self.paper = paper
        self.worth = Worth(None)
        self.changes = 1

    def __dealloc__(self):
        self.forget()

    cdef void forget(self) noexcept nogil:
        cdef int k
        for k in range(SLOTS):
            free(self.slots[k].costs)
            free(self.slots[k].least)
        memset(self.slots, 0, SLOTS * sizeof(Slot))
        free(self.standing)
        free(self.stood)
        free(self.changed)
        self.standing = NULL
        self.stood = NULL
        self.changed = NULL
        self.count = 0

    cdef int cover(self, Host *hosts, int count) except -1:
        """These are the hosts from now on; nothing is known of them."""
        self.forget()
        self.hosts = hosts
        self.standing = <double *>malloc(max(1, count) * sizeof(double))
        self.stood = <uint64_t *>calloc(max(1, count), sizeof(uint64_t))
        self.changed = <uint64_t *>calloc(max(1, count), sizeof(uint64_t))
        if self.standing is NULL or self.stood is NULL or self.changed is NULL:
            self.forget()
            raise MemoryError()
        self.count = count
        self.renewed = self.changes
        return 0

    cdef void change(self, int host) noexcept nogil:
        """A host is not as it was."""
        self.log[self.changes % LOG] = host
        self.changed[host] = self.changes
        self.changes += 1

    cdef void value_by(self, Worth worth):
        """All costs are others from now on."""
        self.worth = worth
        self.changes += LOG
        self.renewed = self.changes

    cdef int64_t growth(self, const Host *host, int32_t level, int64_t vcpus) noexcept nogil:
        """CPUs more in use with the VM; negative only with the paper's accounting."""
        cdef int64_t sold[3]
        cdef int64_t vms[3]
        cdef int k, at
        if not self.paper:
            return growth_of(host, level, vcpus)
        for at in range(3):
            sold[at] = vms[at] = 0
        for k in range(host.subset_count):
            at = host.subsets[k].level // UNIT - 1
            sold[at] = host.subsets[k].vcpus
            vms[at] = host.subsets[k].vms
        at = level // UNIT - 1
        sold[at] += vcpus
        vms[at] += 1
        return paper_cpus(sold, vms, host.critical) - host.used

    cdef double cost(self, int number, int32_t level, int64_t vcpus, int64_t memory) noexcept nogil:
        """Infinite if the VM does not fit."""
        cdef const Host *host = self.hosts + number
        cdef int64_t extra
        if host.state != KNOWN or host.closed != OPEN or memory > host.free_mib:
            return INFINITY
        extra = self.growth(host, level, vcpus)
        if extra > host.free:
            return INFINITY
        if self.kernel == PROGRESS:
            return -progress_of(host, extra, memory)
        if self.kernel != WORTH:
            return 0.0
        if self.stood[number] <= self.changed[number] or self.stood[number] < self.renewed:
            self.standing[number] = self.worth.standing(host, self.paper)
            self.stood[number] = self.changes
        return self.worth.cost(host, self.standing[number], level, vcpus, memory, extra, self.paper)

    cdef Slot *slot_of(self, int32_t level, int32_t vcpus, int64_t memory) except NULL:
        """The costs for a request, up to date; in the place of the least recently asked if it is new."""
        cdef Slot *slot
        cdef Slot *oldest = self.slots
        cdef int k, block, host
        cdef int blocks = (self.count + BLOCK - 1) // BLOCK
        cdef uint64_t at
        self.asked += 1
        for k in range(SLOTS):
            slot = self.slots + k
            if slot.memory == memory and slot.vcpus == vcpus and slot.level == level and slot.costs is not NULL:
                break
            if slot.asked < oldest.asked:
                oldest = slot
        else:
            slot = oldest
            if slot.costs is NULL:
                slot.costs = <double *>malloc(max(1, self.count) * sizeof(double))
                slot.least = <double *>malloc(max(1, blocks) * sizeof(double))
                if slot.costs is NULL or slot.least is NULL:
                    free(slot.costs)
                    free(slot.least)
                    memset(slot, 0, sizeof(Slot))
                    raise MemoryError()
            slot.level, slot.vcpus, slot.memory, slot.seen = level, vcpus, memory, 0
        slot.asked = self.asked
        if slot.seen < self.renewed:
            for block in range(blocks):
                for host in range(block * BLOCK, min((block + 1) * BLOCK, self.count)):
                    slot.costs[host] = self.cost(host, level, vcpus, memory)
                self.summarise(slot, block)
        elif self.changes - slot.seen > <uint64_t>LOG:
            for host in range(self.count):
                if self.changed[host] >= slot.seen:
                    self.set_cost(slot, host, self.cost(host, level, vcpus, memory))
        else:
            for at in range(slot.seen, self.changes):
                host = self.log[at % LOG]
                if self.changed[host] == at:  # else it comes again, later
                    self.set_cost(slot, host, self.cost(host, level, vcpus, memory))
        slot.seen = self.changes
        return slot

    cdef void set_cost(self, Slot *slot, int host, double cost) noexcept nogil:
        cdef double before = slot.costs[host]
        cdef int block = host // BLOCK
        slot.costs[host] = cost
        if cost <= slot.least[block]:
            slot.least[block] = cost
        elif before == slot.least[block]:
            self.summarise(slot, block)

    cdef void summarise(self, Slot *slot, int block) noexcept nogil:
        cdef double least = INFINITY
        cdef int host
        for host in range(block * BLOCK, min((block + 1) * BLOCK, self.count)):
            least = slot.costs[host] if slot.costs[host] < least else least
        slot.least[block] = least

    cdef int cheapest(self, const Slot *slot) noexcept nogil:
        """The first of the cheapest hosts, -1 if the VM fits on none."""
        cdef double least = INFINITY
        cdef int found = -1
        cdef int block, host
        for block in range((self.count + BLOCK - 1) // BLOCK):
            if slot.least[block] < least:
                least = slot.least[block]
                found = block
        if found < 0:
            return -1
        for host in range(found * BLOCK, min((found + 1) * BLOCK, self.count)):
            if slot.costs[host] == least:
                return host
        return -1
