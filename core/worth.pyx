# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""What a server's free CPUs and memory are worth, and what of them is wasted: the policy ``worth`` in numbers.

``core.host_policy.worth`` says the rule. Here is the table that all servers share, and its evaluation, which takes a
fraction of a microsecond.
"""

from libc.math cimport INFINITY, floor
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free

from core.host_figures cimport UNIT, Host, Subset, critical_of
from core.paper_accounting cimport paper_room

from math import gcd

# The scarcer resource counts; the other does when it is nearly as scarce.
SHARPNESS = 64
FRAGMENTATION = 0.05
"""What waste counts beside worth."""
PACKING = 0.005
"""What the share that stays free counts: of servers that are equally good, the fuller."""

cdef double FRAGMENTATION_ = FRAGMENTATION
cdef double PACKING_ = PACKING
cdef double GRID = 1 << 30

cdef enum:
    MOST_PARTS = 60  # of a CPU
    MOST_STEPS = 1536
    MOST_GRAINS = 1024


def parts_of(market):
    """Parts of a CPU in which every popular shape is whole, if there are not too many."""
    for parts in range(1, MOST_PARTS):
        if all([parts * UNIT % shape.level == 0 for shape in market.shapes]):
            return parts
    return MOST_PARTS


cdef class Worth:
    """What is learnt from a market (``core.demand.Market``; None: nothing). Does not change."""

    def __cinit__(self, market):
        cdef int k
        cdef int64_t total = 0
        self.cpus = self.memory = 1.0
        self.cpu_use = self.memory_use = 1.0
        if market is None:
            return
        if len(market.shapes) > MOST_SHAPES:
            raise ValueError(f"{len(market.shapes)} shapes, more than {MOST_SHAPES}")
        self.cpus, self.memory = market.cpus, market.memory_mib or 1.0
        self.cpu_use, self.memory_use = market.cpu_use, market.memory_use
        self.shape_count = len(market.shapes)
        for shape in market.shapes:
            total += shape.count
        levels = []
        for k, shape in enumerate(market.shapes):
            if shape.level not in levels:
                self.levels[len(levels)] = shape.level
                levels.append(shape.level)
            self.shapes[k].level = levels.index(shape.level)
            self.shapes[k].vcpus = shape.vcpus
            self.shapes[k].memory = shape.memory_mib
            self.shapes[k].fraction = shape.vcpus * float(UNIT) / shape.level
            self.shapes[k].share = shape.count / float(total)
        self.level_count = len(levels)
        self.fill(market)

    def __dealloc__(self):
        free(self.table)

    cdef int fill(self, market) except -1:
        """The knapsack: how much value copies of popular shapes can have in so many CPUs and so much memory."""
        cdef int k, x, z, step, grain, width
        cdef double value, filled
        cdef double by_cpu = self.cpu_use ** SHARPNESS
        cdef double by_memory = self.memory_use ** SHARPNESS
        cdef double *row
        cdef double *rest
        self.steps = max(1, min(market.most_cpus * parts_of(market), MOST_STEPS))
        self.per_cpu = self.steps / float(market.most_cpus)
        self.grain = max(gcd(*[shape.memory_mib for shape in market.shapes]), -(-market.most_mib // MOST_GRAINS), 1)
        self.grains = market.most_mib // self.grain
        width = self.grains + 1
        self.table = <double *>calloc((self.steps + 1) * <size_t>width, sizeof(double))
        if self.table is NULL:
            raise MemoryError()
        for k, shape in enumerate(market.shapes):
            value = by_cpu * self.shapes[k].fraction / self.cpus + by_memory * self.shapes[k].memory / self.memory
            value /= by_cpu + by_memory
            wide = -(-(shape.vcpus * UNIT * self.steps) // (shape.level * market.most_cpus))
            high = -(-shape.memory_mib // self.grain)
            if wide > self.steps or high > self.grains:
                continue
            step, grain = wide, high
            with nogil:
                for x in range(step, self.steps + 1):
                    row = self.table + x * <size_t>width + grain
                    rest = self.table + (x - step) * <size_t>width
                    for z in range(width - grain):
                        filled = rest[z] + value
                        row[z] = filled if filled > row[z] else row[z]
        return 0

    # One host

    cdef void see(self, const Host *host, bint paper, View *view) noexcept nogil:
        cdef int k, at
        cdef const Subset *subset
        cdef double sold = 0.0
        for k in range(host.subset_count):
            sold += host.subsets[k].vcpus * <double>UNIT / host.subsets[k].level
        view.free = host.cpus - host.held - sold
        view.free_mib = host.free_mib
        view.cpus = host.free
        if paper:
            for at in range(3):
                view.one[at] = view.vms[at] = 0
            for k in range(host.subset_count):
                at = host.subsets[k].level // UNIT - 1
                view.one[at] = host.subsets[k].vcpus
                view.vms[at] = host.subsets[k].vms
            return
        for k in range(self.level_count):
            view.reach[k] = host.free
            view.sold[k] = 0
            view.widest[k] = 0
            view.alone[k] = critical_of(host, self.levels[k]) - 1
            for at in range(host.subset_count):
                subset = host.subsets + at
                if subset.level == self.levels[k]:
                    view.reach[k] += subset.cpus
                    view.sold[k] = subset.vcpus
                    view.widest[k] = subset.widest
                    view.alone[k] = subset.critical - 1 - subset.vms
                    break

    cdef void add(self, View *view, int32_t level, int64_t vcpus, int64_t memory, int64_t extra) noexcept nogil:
        """Make it the view of the host with a VM more, for which its level gains so many CPUs."""
        cdef int k
        view.free -= vcpus * <double>UNIT / level
        view.free_mib -= memory
        view.cpus -= extra
        for k in range(3):
            if level == (k + 1) * UNIT:
                view.one[k] += vcpus
                view.vms[k] += 1
        for k in range(self.level_count):
            if self.levels[k] == level:
                view.sold[k] += vcpus
                view.alone[k] -= 1
                view.widest[k] = max(view.widest[k], vcpus)
            else:
                view.reach[k] -= extra

    cdef double worth_of(self, double free_cpus, int64_t free_mib) noexcept nogil:
        cdef double x = free_cpus * self.per_cpu + 1e-6
        cdef int64_t z = min(free_mib // self.grain, <int64_t>self.grains)
        if self.table is NULL or x < 0 or z < 0:
            return 0.0
        return self.table[<int>min(x, <double>self.steps) * <size_t>(self.grains + 1) + z]

    cdef double waste_of(self, const View *view, int64_t cpus, bint paper) noexcept nogil:
        cdef double full[MOST_SHAPES]  # by level: vCPUs that it has room for
        cdef double first[MOST_SHAPES]  # the same as long as it is not oversubscribed
        cdef double first_vms[MOST_SHAPES]  # how many VMs that is so for; 0: none
        cdef double widest[MOST_SHAPES]  # more than that many vCPUs has no VM that fits
        cdef double free_cpus = max(view.free, 0.0)
        cdef double free_mib = <double>max(view.free_mib, <int64_t>0)
        cdef double waste = 0.0
        cdef double copies, early, by_memory, idle_cpus, idle_mib
        cdef const Popular *shape
        cdef int k, at
        for k in range(self.level_count):
            first[k] = first_vms[k] = 0
            if paper:
                at = self.levels[k] // UNIT - 1
                full[k] = max(<int64_t>0, paper_room(view.one, view.vms, 2, cpus, at))
                widest[k] = cpus - view.one[0] if at == 0 or view.vms[1] + view.vms[2] == 0 else INFINITY
            else:
                full[k] = max(<int64_t>0, view.reach[k] * self.levels[k] // UNIT - view.sold[k])
                widest[k] = view.reach[k] if view.reach[k] >= view.widest[k] else 0
                if view.alone[k] > 0:
                    first_vms[k] = view.alone[k]
                    first[k] = max(<int64_t>0, view.reach[k] - view.sold[k])
        for k in range(self.shape_count):
            shape = self.shapes + k
            at = shape.level
            copies = <double><int64_t>(full[at] / shape.vcpus)
            if first_vms[at] > 0:
                early = <double><int64_t>(first[at] / shape.vcpus)
                if early < first_vms[at]:
                    copies = early
            if shape.vcpus > widest[at]:
                copies = 0.0
            if shape.memory > 0:
                by_memory = <double><int64_t>(free_mib / shape.memory)
                copies = min(copies, by_memory)
            idle_cpus = free_cpus - copies * shape.fraction
            idle_mib = free_mib - copies * shape.memory
            if idle_cpus < 0:
                idle_cpus = 0.0
            waste += shape.share * (self.cpu_use * idle_cpus / self.cpus + self.memory_use * idle_mib / self.memory)
        return waste

    cdef double standing_of(self, const View *view, int64_t cpus, bint paper) noexcept nogil:
        return self.worth_of(view.free, view.free_mib) - FRAGMENTATION_ * self.waste_of(view, cpus, paper)

    cdef double standing(self, const Host *host, bint paper) noexcept nogil:
        """What the host is good for as it is."""
        cdef View view
        self.see(host, paper, &view)
        return self.standing_of(&view, host.cpus, paper)

    cdef double cost(
        self, const Host *host, double standing, int32_t level, int64_t vcpus, int64_t memory, int64_t extra, bint paper
    ) noexcept nogil:
        """What a VM that fits costs there, on a grid on which small errors of computing vanish."""
        cdef View view
        cdef double loss, idle_cpus, idle_mib
        self.see(host, paper, &view)
        self.add(&view, level, vcpus, memory, extra)
        loss = standing - self.standing_of(&view, host.cpus, paper)
        idle_cpus = max(view.free, 0.0) / host.cpus
        idle_mib = <double>view.free_mib / host.memory if host.memory else 0.0
        loss += PACKING_ * (self.cpu_use * idle_cpus + self.memory_use * idle_mib)
        return floor(loss * GRID + 0.5) / GRID

    def of(self, double free_cpus, free_mib):
        """The worth of so many CPUs, whole or not, and so many MiB: shares of a server's scarcer resource."""
        return self.worth_of(free_cpus, max(0, free_mib))
