# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""What a server's free CPUs and memory are worth, and what of them is wasted: the policy ``worth`` in numbers.

``core.host_policy.worth`` says the rule. Here is the table that all servers share, and its evaluation, which takes a
fraction of a microsecond.
"""

from libc.math cimport floor
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.string cimport memset

from core.host_figures cimport UNIT, Host, Subset, critical_of
from core.paper_accounting cimport paper_room, paper_widest

from math import gcd

cdef extern from "<sys/mman.h>" nogil:
    enum: PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS
    void *MAP_FAILED
    void *mmap(void *address, size_t length, int protection, int flags, int descriptor, long offset)
    int munmap(void *address, size_t length)

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
    FINE_CELLS = 1 << 17  # up to which all tables are alike
    COARSE_STEPS = 256  # else, of those with refusals: there can be hundreds
    COARSE_GRAINS = 128
    KEPT_CELLS = 1 << 21


def parts_of(market):
    """Parts of a CPU in which every popular shape is whole, if there are not too many."""
    for parts in range(1, MOST_PARTS):
        if all([parts * UNIT % shape.level == 0 for shape in market.shapes]):
            return parts
    return MOST_PARTS


cdef class Worth:
    """What is learnt from a market (``core.demand.Market``; None: nothing).

    It does not change but for tables that it keeps; with too many, it begins anew.
    """

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
        self.measure(market)

    def __dealloc__(self):
        self.forget()

    cdef int measure(self, market) except -1:
        """How fine tables are, and what of them each shape takes."""
        cdef int k
        cdef double by_cpu = self.cpu_use ** SHARPNESS
        cdef double by_memory = self.memory_use ** SHARPNESS
        cdef Popular *one
        cdef Scale *scale
        cdef int fine
        steps = max(1, min(market.most_cpus * parts_of(market), MOST_STEPS))
        grain = max(gcd(*[shape.memory_mib for shape in market.shapes]), -(-market.most_mib // MOST_GRAINS), 1)
        self.set_scale(0, market, steps, grain)
        if (steps + 1) * (market.most_mib // grain + 1) > FINE_CELLS:
            steps, grain = min(steps, COARSE_STEPS), max(grain, -(-market.most_mib // COARSE_GRAINS))
        self.set_scale(1, market, steps, grain)
        for k, shape in enumerate(market.shapes):
            one = self.shapes + k
            one.value = by_cpu * one.fraction / self.cpus + by_memory * one.memory / self.memory
            one.value /= by_cpu + by_memory
            for fine in range(2):
                scale = self.scales + fine
                wide = -(-(shape.vcpus * UNIT * scale.steps) // (shape.level * market.most_cpus))
                one.steps[fine] = min(wide, scale.steps + 1)
                one.grains[fine] = min(-(-shape.memory_mib // scale.grain), scale.grains + 1)
            one.shared = shape.level > UNIT
        return 0

    cdef int set_scale(self, int which, market, steps, grain) except -1:
        self.scales[which].steps = steps
        self.scales[which].per_cpu = steps / float(market.most_cpus)
        self.scales[which].grain = grain
        self.scales[which].grains = market.most_mib // grain
        return 0

    cdef void forget(self) noexcept nogil:
        cdef int k
        for k in range(TABLES):
            if self.tables[k].cells is not NULL:
                munmap(self.tables[k].cells, self.bytes_of(self.tables[k].refused))
        memset(self.tables, 0, TABLES * sizeof(Table))
        self.table_count = 0
        self.filled = 0

    cdef size_t bytes_of(self, uint32_t refused) noexcept nogil:
        """Of a table."""
        cdef const Scale *scale = self.scales + (refused != 0)
        return (scale.steps + 1) * <size_t>(scale.grains + 1) * sizeof(double)

    cdef Table *table_for(self, uint32_t refused) noexcept nogil:
        """NULL without memory for it."""
        cdef uint32_t at = (refused * <uint32_t>2654435761) >> (32 - TABLE_BITS)
        cdef Table *table
        cdef void *cells
        while self.tables[at].cells is not NULL:
            if self.tables[at].refused == refused:
                return self.tables + at
            at = (at + 1) % TABLES
        if self.table_count == MOST_TABLES or self.filled > KEPT_CELLS:
            self.forget()
            return self.table_for(refused)
        table = self.tables + at
        # From the kernel itself: pages that no row is written to take no memory, and all of it is given back.
        cells = mmap(NULL, self.bytes_of(refused), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if cells == MAP_FAILED:
            return NULL
        table.cells = <double *>cells
        table.refused = refused
        table.rows = 0
        self.table_count += 1
        return table

    cdef void fill(self, Table *table, int step) noexcept nogil:
        """The knapsack, up to so many CPUs: how much value copies of the shapes that are not refused can have."""
        cdef int x, z, k
        cdef int which = table.refused != 0
        cdef int grains = self.scales[which].grains
        cdef size_t width = grains + 1
        cdef const Popular *one
        cdef double *row
        cdef const double *rest
        cdef double value
        for x in range(table.rows, step + 1):
            for k in range(self.shape_count):
                one = self.shapes + k
                if table.refused >> k & 1 or one.steps[which] > x or one.grains[which] > grains:
                    continue
                row = table.cells + x * width + one.grains[which]
                rest = table.cells + (x - one.steps[which]) * width
                for z in range(grains + 1 - one.grains[which]):
                    value = rest[z] + one.value
                    row[z] = value if value > row[z] else row[z]
        self.filled += (step + 1 - table.rows) * <int64_t>width
        table.rows = step + 1

    # One host

    cdef void see(self, const Host *host, bint paper, View *view) noexcept nogil:
        cdef int k, at
        cdef const Subset *subset
        cdef double sold = 0.0
        for k in range(host.subset_count):
            sold += host.subsets[k].vcpus * <double>UNIT / host.subsets[k].level
        view.free = host.cpus - host.held - sold
        view.free_mib = host.free_mib
        view.critical = host.critical
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

    cdef double worth_of(self, double free_cpus, int64_t free_mib, uint32_t refused) noexcept nogil:
        cdef const Scale *scale = self.scales + (refused != 0)
        cdef double x = min(free_cpus * scale.per_cpu + 1e-6, <double>scale.steps)
        cdef Table *table
        if self.shape_count == 0 or x < 0 or free_mib < 0:
            return 0.0
        table = self.table_for(refused)
        if table is NULL:
            return 0.0
        if <int>x >= table.rows:
            self.fill(table, <int>x)
        return table.cells[<int>x * <size_t>(scale.grains + 1) + min(free_mib // scale.grain, <int64_t>scale.grains)]

    cdef double waste_of(self, const View *view, int64_t cpus, bint paper, uint32_t *refused) noexcept nogil:
        """refused: gets the popular shapes above 1:1 that the host would not take, though what is free suffices."""
        cdef double full[MOST_SHAPES]  # by level: vCPUs that it has room for
        cdef double first[MOST_SHAPES]  # the same as long as it is not oversubscribed
        cdef double first_vms[MOST_SHAPES]  # how many VMs that is so for; 0: none
        cdef double widest[MOST_SHAPES]  # more than that many vCPUs has no VM that fits
        cdef double free_cpus = max(view.free, 0.0)
        cdef double free_mib = <double>max(view.free_mib, <int64_t>0)
        cdef int steps = <int>min(free_cpus * self.scales[0].per_cpu + 1e-6, <double>self.scales[0].steps)
        cdef double waste = 0.0
        cdef double copies, early, by_memory, idle_cpus, idle_mib
        cdef const Popular *shape
        cdef int k, at
        refused[0] = 0
        for k in range(self.level_count):
            first[k] = first_vms[k] = 0
            if paper:
                at = self.levels[k] // UNIT - 1
                full[k] = max(<int64_t>0, paper_room(view.one, view.vms, view.critical, cpus, at))
                widest[k] = paper_widest(view.one, view.vms, view.critical, cpus, at)
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
            if copies == 0.0 and shape.shared and shape.steps[0] <= steps and shape.memory <= free_mib:
                refused[0] |= <uint32_t>1 << k
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
        cdef uint32_t refused
        cdef double waste = self.waste_of(view, cpus, paper, &refused)
        return self.worth_of(view.free, view.free_mib, refused) - FRAGMENTATION_ * waste

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

    def of(self, double free_cpus, free_mib, refused=()):
        """The worth of so many CPUs, whole or not, and so many MiB, in shares of a server's scarcer resource, if copies
        of these popular shapes (their places) are refused.
        """
        cdef uint32_t bits = 0
        cdef int steps = <int>min(free_cpus * self.scales[0].per_cpu + 1e-6, <double>self.scales[0].steps)
        for place in refused:
            if self.shapes[<int>place].steps[0] <= steps and self.shapes[<int>place].memory <= free_mib:
                bits |= <uint32_t>1 << <int>place  # the others do not fit anyway
        return self.worth_of(free_cpus, max(0, free_mib), bits)
