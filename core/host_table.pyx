# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The figures of many hosts in C arrays, and the search for the best of them.

How the best of 100,000 hosts is found in microseconds:

Hosts stand in blocks of 32 (``core/host_bounds.h``). For a request, each block has a bound: no host in it scores
higher. Bounds of all blocks are computed in single precision, rounded up by more than the arithmetic can be wrong. Then
the block with the highest bound is computed exactly, in the double precision of Python, until the highest is exact:
mostly one block, and of many hosts that are equally good each block once.

The bounds for the latest requests are kept. A host that has changed costs the bound of its block, nothing else.
"""

from libc.math cimport INFINITY, fabs
from libc.stdint cimport int16_t, int32_t, int64_t, uint16_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from core.host_figures cimport (
    ABSENT, HIGHEST, KNOWN, MAX_CPUS, MAX_VCPUS, OPEN, PROGRESS, UNIT, WITHOUT_FIGURES, WORTH, CriticalSize, Host,
    Subset, growth_of, need_of, penalty_of, progress_of,
)
from core.host_search cimport HostSearch, Slot
from core.worth cimport Worth

cdef extern from "host_bounds.h":
    enum: LANES
    enum: ONE_TO_ONE
    double ROUNDING
    ctypedef struct host_block:
        float *used
        float *memory
        float *optimal
        float *distance
        float *penalty
        int32_t *free_mib
        int16_t *free_cpus
        float ceiling
    ctypedef struct level_block:
        int16_t *fit
        int16_t *base
        int16_t *cpus
        uint16_t *rest
    ctypedef struct exact_block:
        double *memory
        double *optimal
        double *distance
        double *penalty
    ctypedef struct vm_request:
        int32_t level
        int32_t vcpus
        int32_t fit
        int32_t free_mib
        int32_t whole
        int32_t rest
        double memory
    ctypedef double (*bounds_of_blocks)(
        host_block *, level_block *, int, vm_request *, double, double *) noexcept nogil
    ctypedef void (*scores_of_block)(
        host_block *, exact_block *, level_block *, vm_request *, double *) noexcept nogil
    ctypedef struct kernel:
        bounds_of_blocks bounds
        scores_of_block scores
    kernel kernels[2]
    int use_registers_of(int most)

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size)


def use_registers(int most):
    """Compute with registers of at most so many bits from now on: 128, 256 or 512; the choices are the same.

    Returns how many are used, because the processor has them.
    """
    return use_registers_of(most)


use_registers(512)

KERNELS = {"constant": 0, "progress": 1, "worth": 2}
"""The compiled scores by name: ``constant`` is 0.0 for every host, ``progress`` is ``core.admission.progress_on``,
``worth`` that of ``core.host_policy.worth``.
"""

UNKNOWN = "unknown"
"""Why a host is closed whose figures count in no total."""

MAX_HOSTS = 1 << 20
"""Numbers of hosts are below this."""

cdef enum:
    MAX_16 = 0x7FFF
    MAX_32 = 0x7FFFFFFF
    SHAPES = 64  # requests whose bounds are kept
    GROUP = 64  # blocks whose highest bound is kept
    LOG = 4096  # changes that are known one by one
    LINE = 64  # bytes of a cache line

cdef int64_t MAX_MEMORY = 1LL << 40
cdef int64_t MAX_GENERATION = 1LL << 62

# What may stand in the place of the winner of a block.
cdef enum:
    BOUND = -1  # not looked at; the score is a bound
    NOBODY = -2

# Places in the table's reasons.
cdef enum:
    CLOSED_AS_UNKNOWN = 1


ctypedef struct Level:
    int32_t level
    int32_t hosts
    int64_t cpus
    int64_t vcpus
    int64_t vms
    int64_t needed
    int64_t available
    int64_t potential
    level_block **groups  # GROUP blocks each


ctypedef struct Totals:
    int64_t cpus
    int64_t free
    int64_t held
    int64_t memory
    int64_t allocated
    int64_t free_mib
    int64_t vms


ctypedef struct Shape:
    int kernel
    int32_t level
    int32_t vcpus
    int64_t memory
    uint64_t seen  # changes of the table when its bounds were brought up to date
    uint64_t asked  # the latest use, in requests
    double *score  # by block
    int32_t *winner  # by block: a host, BOUND or NOBODY
    double *best  # by group of blocks


cdef inline double score_of(int kernel, const Host *host, int64_t extra, int64_t memory) noexcept nogil:
    return progress_of(host, extra, memory) if kernel == PROGRESS else 0.0


cdef int64_t figure(object source, str name, int64_t least, int64_t most) except? -1:
    cdef int64_t value
    given = getattr(source, name)
    try:
        value = given
    except OverflowError:
        value = -1
    if value < least or value > most:
        raise ValueError(f"{name} is {given}, not from {least} to {most}")
    return value


cdef int64_t capped(object number, int64_t most) except? -1:
    """At most that, whatever the size of the Python number."""
    try:
        return min(<int64_t>number, most)
    except OverflowError:
        return most if number > 0 else -1


cdef void *grown(void *old, size_t size) except NULL:
    cdef void *made = realloc(old, size)
    if made is NULL:
        raise MemoryError()
    return made


cdef void *aligned(size_t size) except NULL:
    """Memory where a cache line begins; size in whole lines."""
    cdef void *made = aligned_alloc(LINE, size)
    if made is NULL:
        raise MemoryError()
    return made


cdef void *moved(void *old, size_t used, size_t size) except NULL:
    """The same, in place of an old one."""
    cdef void *made = aligned(size)
    if used:
        memcpy(made, old, used)
    free(old)
    return made


cdef void erase(level_block *column, int lane) noexcept nogil:
    column.fit[lane] = -1
    column.base[lane] = 0
    column.cpus[lane] = 0
    column.rest[lane] = ONE_TO_ONE


cdef bint fill(level_block *column, int lane, const Subset *subset, int64_t free_cpus) noexcept nogil:
    """Write a level of a host into its column; whether the column can hold it."""
    cdef int64_t reach = subset.cpus + free_cpus
    cdef int64_t fit = min(reach, reach * subset.following // UNIT - subset.vcpus)
    cdef int64_t served = <int64_t>subset.vcpus * UNIT
    cdef int64_t base = served // subset.following - subset.cpus
    if reach < subset.widest or fit < 0:
        fit = 0
    column.fit[lane] = min(fit, <int64_t>MAX_16)
    column.base[lane] = max(min(base, <int64_t>MAX_16), -<int64_t>MAX_16)
    column.cpus[lane] = min(subset.cpus, <int32_t>MAX_16)
    column.rest[lane] = ONE_TO_ONE if subset.following == UNIT else served % subset.following
    return -MAX_16 < base < MAX_16 and subset.cpus < MAX_16 and subset.widest <= subset.cpus


cdef class HostTable:
    """Hosts by number, from 0. For one thread.

    Numbers are meant to be dense: memory is taken up to the highest, about 300 bytes a host with three levels.
    """

    cdef Host *hosts
    cdef int end  # above the highest number
    cdef int present
    cdef list criticals  # by host, its critical_sizes
    cdef list reasons
    cdef host_block *blocks
    cdef exact_block *exact
    cdef uint64_t *changed  # by block, its latest place in the log
    cdef int block_count
    cdef int block_space
    cdef Level **levels
    cdef int32_t *level_numbers
    cdef int level_count
    cdef int level_space
    cdef level_block *absent  # a group of blocks where nobody has the level
    cdef Totals totals
    cdef Subset *scratch
    cdef int scratch_space
    cdef HostSearch by_worth
    cdef int32_t most_cpus  # of a single host, of those that were put lately
    cdef int64_t most_mib
    cdef Shape shapes[SHAPES]
    cdef int32_t log[LOG]
    cdef uint64_t changes
    cdef uint64_t requests

    def __cinit__(self):
        cdef int number
        self.criticals = []
        self.by_worth = HostSearch(WORTH)
        self.reasons = ["", UNKNOWN]
        self.absent = <level_block *>aligned(GROUP * sizeof(level_block))
        for number in range(GROUP * LANES):
            erase(self.absent + number // LANES, number % LANES)

    def __dealloc__(self):
        cdef int k
        for k in range(self.end):
            free(self.hosts[k].subsets)
            free(self.hosts[k].criticals)
        for k in range(self.level_count):
            self.free_level(self.levels[k])
        self.forget_shapes()
        free(self.absent)
        free(self.hosts)
        free(self.blocks)
        free(self.exact)
        free(self.changed)
        free(self.levels)
        free(self.level_numbers)
        free(self.scratch)

    def __len__(self):
        return self.present

    # Changing

    def put(self, int host, status, str closed=""):
        """The figures of a host, new or not. closed: why it may not be chosen, "" if it may.

        ValueError for figures that no host has (``core.admission.fault`` says more); nothing has changed then.
        """
        cdef Host new
        cdef Host *old
        cdef Subset *spare
        cdef CriticalSize *sizes
        cdef int k
        self.read(status, &new)
        new.closed = self.reason(closed)
        self.reach(host)
        for k in range(new.subset_count):
            self.make_column(self.scratch[k].level, host // LANES)
        old = self.hosts + host
        if new.subset_count > old.subset_count:
            spare = <Subset *>grown(NULL, new.subset_count * sizeof(Subset))
        else:
            spare = old.subsets
        sizes = old.criticals
        if status.critical_sizes != self.criticals[host]:
            sizes = <CriticalSize *>grown(NULL, max(1, len(status.critical_sizes)) * sizeof(CriticalSize))
            for k, (level, size) in enumerate(status.critical_sizes):
                sizes[k].level = capped(level, HIGHEST + 1)
                sizes[k].size = max(0, capped(size, MAX_VCPUS))
        self.take_out(host)
        if sizes is not old.criticals:
            free(old.criticals)
        if spare is not old.subsets:
            free(old.subsets)
        if new.subset_count:
            memcpy(spare, self.scratch, new.subset_count * sizeof(Subset))
        new.subsets = spare
        new.criticals = sizes
        new.critical_count = len(status.critical_sizes)
        new.state = KNOWN
        self.present += old.state == ABSENT
        old[0] = new
        self.criticals[host] = status.critical_sizes
        if closed != UNKNOWN:
            self.most_cpus = max(self.most_cpus, new.cpus)
            self.most_mib = max(self.most_mib, new.memory)
        self.bring_in(host)

    def close(self, int host, str reason):
        """Say why a host may not be chosen, from now on; "" if it may.

        A number that is not there becomes a host without figures, which cannot be opened: ValueError.
        """
        cdef int16_t closed = self.reason(reason)
        if host < 0 or host >= self.end or self.hosts[host].state != KNOWN:
            if not closed:
                raise ValueError(f"host {host} has no figures")
            self.reach(host)
            if self.hosts[host].state == ABSENT:
                self.hosts[host].state = WITHOUT_FIGURES
                self.present += 1
            self.hosts[host].closed = closed
            return
        self.count(host, -1)
        self.hosts[host].closed = closed
        self.count(host, 1)
        self.show(host)

    def drop(self, int host):
        """Forget a host; its number may be used again. KeyError if there is none."""
        self.known(host)
        self.take_out(host)
        free(self.hosts[host].subsets)
        free(self.hosts[host].criticals)
        memset(self.hosts + host, 0, sizeof(Host))
        self.criticals[host] = ()
        self.present -= 1
        self.show(host)
        self.free_levels()

    cdef int read(self, status, Host *new) except -1:
        """Figures into new, and levels into scratch."""
        cdef tuple levels = status.levels
        cdef tuple exceptions = status.critical_sizes
        cdef Subset *subset
        cdef int k
        cdef int32_t critical
        cdef double current
        memset(new, 0, sizeof(Host))
        new.cpus = figure(status, "cpus", 1, MAX_CPUS)
        new.free = figure(status, "free_cpus", 0, MAX_CPUS)
        new.held = figure(status, "held_cpus", 0, MAX_CPUS)
        new.memory = figure(status, "memory_mib", 0, MAX_MEMORY)
        new.allocated = figure(status, "allocated_mib", 0, MAX_MEMORY)
        new.free_mib = figure(status, "free_mib", 0, MAX_MEMORY)
        new.vms = figure(status, "vms", 0, MAX_VCPUS)
        new.generation = figure(status, "generation", 0, MAX_GENERATION)
        new.critical = figure(status, "critical_size", 0, MAX_VCPUS)
        new.subset_count = len(levels)
        if new.subset_count > self.scratch_space:
            self.scratch = <Subset *>grown(self.scratch, new.subset_count * sizeof(Subset))
            self.scratch_space = new.subset_count
        for k in range(new.subset_count):
            found = levels[k]
            subset = self.scratch + k
            subset.level = figure(found, "level", UNIT, HIGHEST)
            subset.cpus = figure(found, "cpus", 0, MAX_CPUS)
            subset.vcpus = figure(found, "vcpus", 0, MAX_VCPUS)
            subset.vms = figure(found, "vms", 0, MAX_VCPUS)
            subset.widest = figure(found, "widest", 0, MAX_VCPUS)
            critical = new.critical
            for level, size in exceptions:
                if level == subset.level:
                    critical = min(max(size, 0), MAX_VCPUS)
            subset.critical = critical
            subset.following = subset.level if subset.vms + 1 >= critical else UNIT
            new.used += subset.cpus
            if new.used > 2 * MAX_CPUS:
                raise ValueError(f"the levels have more than {MAX_CPUS} CPUs")
        new.optimal = <double>new.memory / <double>new.cpus
        current = <double>new.allocated / <double>new.used if new.used else new.optimal
        new.distance = fabs(current - new.optimal)
        return 0

    cdef int16_t reason(self, str word) except -1:
        if not word:
            return 0
        if word not in self.reasons:
            if len(self.reasons) > MAX_16:
                raise ValueError("too many different reasons")
            self.reasons.append(word)
        return self.reasons.index(word)

    cdef int reach(self, int host) except -1:
        """Make room for a number."""
        cdef int block, space, k, added
        if host < 0 or host >= MAX_HOSTS:
            raise ValueError(f"host {host} is no number from 0 to {MAX_HOSTS - 1}")
        if host < self.end:
            return 0
        block = host // LANES
        if block >= self.block_space:
            space = (max(block + 1, self.block_space * 3 // 2) + GROUP - 1) // GROUP * GROUP
            self.hosts = <Host *>grown(self.hosts, space * LANES * sizeof(Host))
            self.blocks = <host_block *>moved(
                self.blocks, self.block_count * sizeof(host_block), space * sizeof(host_block)
            )
            self.exact = <exact_block *>moved(
                self.exact, self.block_count * sizeof(exact_block), space * sizeof(exact_block)
            )
            self.changed = <uint64_t *>grown(self.changed, space * sizeof(uint64_t))
            for k in range(self.level_count):
                self.levels[k].groups = <level_block **>grown(
                    self.levels[k].groups, space // GROUP * sizeof(level_block *)
                )
                for added in range(self.block_space // GROUP, space // GROUP):
                    self.levels[k].groups[added] = self.absent
            self.block_space = space
        if block >= self.block_count:
            self.forget_shapes()
            memset(self.hosts + self.block_count * LANES, 0, (block + 1 - self.block_count) * LANES * sizeof(Host))
            for added in range(self.block_count, block + 1):
                self.changed[added] = 0
                memset(self.blocks + added, 0, sizeof(host_block))
                self.blocks[added].ceiling = -INFINITY
                memset(self.exact + added, 0, sizeof(exact_block))
                for k in range(LANES):
                    self.blocks[added].free_mib[k] = -1
            self.block_count = block + 1
        self.criticals.extend([()] * (host + 1 - self.end))
        self.end = host + 1
        self.by_worth.forget()
        return 0

    # One host in the columns and in the totals

    cdef int level_at(self, int32_t level) noexcept nogil:
        cdef int k
        for k in range(self.level_count):
            if self.level_numbers[k] == level:
                return k
        return -1

    cdef Level *level_of(self, int32_t level) noexcept nogil:
        cdef int at = self.level_at(level)
        return NULL if at < 0 else self.levels[at]

    cdef level_block *column(self, const Level *level, int block) noexcept nogil:
        """A level (NULL: one that no host has) in a block, and in those after it in its group."""
        return (self.absent if level is NULL else level.groups[block // GROUP]) + block % GROUP

    cdef int make_column(self, int32_t level, int block) except -1:
        """See to it that the hosts of a block can have a level."""
        cdef int at = self.level_at(level)
        cdef int k
        cdef Level *made
        if at < 0:
            if self.level_count == self.level_space:
                k = max(8, 2 * self.level_space)
                self.levels = <Level **>grown(self.levels, k * sizeof(Level *))
                self.level_numbers = <int32_t *>grown(self.level_numbers, k * sizeof(int32_t))
                self.level_space = k
            made = <Level *>grown(NULL, sizeof(Level))
            memset(made, 0, sizeof(Level))
            made.level = level
            made.groups = <level_block **>malloc(self.block_space // GROUP * sizeof(level_block *))
            if made.groups is NULL:
                free(made)
                raise MemoryError()
            for k in range(self.block_space // GROUP):
                made.groups[k] = self.absent
            at = self.level_count
            self.levels[at] = made
            self.level_numbers[at] = level
            self.level_count += 1
        made = self.levels[at]
        if made.groups[block // GROUP] == self.absent:
            made.groups[block // GROUP] = <level_block *>aligned(GROUP * sizeof(level_block))
            memcpy(made.groups[block // GROUP], self.absent, GROUP * sizeof(level_block))
        return 0

    cdef void free_level(self, Level *level) noexcept nogil:
        cdef int k
        for k in range(self.block_space // GROUP):
            if level.groups[k] != self.absent:
                free(level.groups[k])
        free(level.groups)
        free(level)

    cdef void count(self, int number, int sign) noexcept nogil:
        """Add a host to the totals, or take it out."""
        cdef Host *host = self.hosts + number
        cdef Subset *subset
        cdef Level *level
        cdef int k
        if host.state != KNOWN or host.closed == CLOSED_AS_UNKNOWN:
            return
        self.totals.cpus += sign * host.cpus
        self.totals.free += sign * host.free
        self.totals.held += sign * host.held
        self.totals.memory += sign * host.memory
        self.totals.allocated += sign * host.allocated
        self.totals.free_mib += sign * host.free_mib
        self.totals.vms += sign * host.vms
        for k in range(host.subset_count):
            subset = host.subsets + k
            level = self.levels[self.level_at(subset.level)]
            level.cpus += sign * subset.cpus
            level.vcpus += sign * <int64_t>subset.vcpus
            level.vms += sign * subset.vms
            level.needed += sign * need_of(subset, subset.level if subset.vms >= subset.critical else UNIT, 0)
            level.available += sign * (<int64_t>subset.cpus * subset.following - <int64_t>subset.vcpus * UNIT)
            level.potential += sign * <int64_t>host.free * subset.following

    cdef void take_out(self, int number) noexcept nogil:
        """Remove a host from the totals and from the columns of its levels."""
        cdef Host *host = self.hosts + number
        cdef Level *level
        cdef int k
        self.count(number, -1)
        for k in range(host.subset_count):
            level = self.levels[self.level_at(host.subsets[k].level)]
            level.hosts -= 1
            erase(self.column(level, number // LANES), number % LANES)

    cdef void bring_in(self, int number) noexcept nogil:
        cdef Host *host = self.hosts + number
        cdef int k
        self.count(number, 1)
        for k in range(host.subset_count):
            self.levels[self.level_at(host.subsets[k].level)].hosts += 1
        self.show(number)
        self.free_levels()

    cdef void free_levels(self) noexcept nogil:
        """Forget the levels that no host has."""
        cdef int k
        for k in range(self.level_count - 1, -1, -1):
            if self.levels[k].hosts == 0:
                self.free_level(self.levels[k])
                self.level_count -= 1
                self.levels[k] = self.levels[self.level_count]
                self.level_numbers[k] = self.level_numbers[self.level_count]

    cdef void show(self, int number) noexcept nogil:
        """Write what bounds are computed from, and that the block has changed."""
        cdef Host *host = self.hosts + number
        cdef int block = number // LANES
        cdef int lane = number % LANES
        cdef host_block *to = self.blocks + block
        cdef Subset *subset
        cdef level_block *column
        cdef exact_block *exactly = self.exact + block
        cdef bint plain = host.used <= host.cpus
        cdef int k
        to.free_mib[lane] = -1
        if host.state == KNOWN:
            for k in range(host.subset_count - 1, -1, -1):  # of a level that is there twice, the first counts
                subset = host.subsets + k
                column = self.column(self.levels[self.level_at(subset.level)], block)
                plain &= fill(column, lane, subset, host.free)
            exactly.memory[lane] = <double>host.allocated
            exactly.optimal[lane] = host.optimal
            # What the columns cannot hold scores above everything in them, and so is always looked at by itself.
            exactly.distance[lane] = host.distance if plain else INFINITY
            exactly.penalty[lane] = penalty_of(host)
            to.used[lane] = <float>host.used
            to.memory[lane] = <float>host.allocated
            to.optimal[lane] = <float>host.optimal
            to.distance[lane] = host.distance + (host.distance + host.optimal) * ROUNDING if plain else INFINITY
            to.penalty[lane] = penalty_of(host)
            to.free_cpus[lane] = min(host.free, <int>MAX_16)
            if host.closed == OPEN:
                to.free_mib[lane] = min(host.free_mib, <int64_t>MAX_32)
        to.ceiling = -INFINITY
        for k in range(LANES):
            if to.free_mib[k] >= 0 and to.distance[k] > to.ceiling:
                to.ceiling = to.distance[k]
        self.log[self.changes % LOG] = block
        self.changed[block] = self.changes
        self.changes += 1
        if number < self.by_worth.count:
            self.by_worth.change(number)

    # Choosing

    def best(self, int kernel, level, vcpus, memory_mib, without=()):
        """(host, score) of the best open host that fits and is not in without, or None; of equals the first."""
        cdef vm_request vm
        cdef int64_t memory = self.ask(&vm, level, vcpus, memory_mib)
        cdef Shape *shape
        cdef int at, host
        cdef list skipped = self.there(without)
        if self.block_count == 0:
            return None
        if kernel == WORTH:
            return self.cheapest(&vm, memory, skipped)
        shape = self.shape_of(kernel, &vm, memory)
        for host in skipped:
            self.hosts[host].skipped = 1
            self.set_block(shape, host // LANES, INFINITY, BOUND)
        at = self.search(shape, &vm)
        for host in skipped:
            self.hosts[host].skipped = 0
        found = None if at < 0 else (shape.winner[at], shape.score[at])
        for host in skipped:
            self.set_block(shape, host // LANES, INFINITY, BOUND)
        return found

    cdef tuple cheapest(self, const vm_request *vm, int64_t memory, list skipped):
        """As ``best``, by worth."""
        cdef Slot *slot
        cdef int number
        cdef double cost = INFINITY
        self.cover()
        slot = self.by_worth.slot_of(vm.level, vm.vcpus, memory)
        costs = [slot.costs[host] for host in skipped]
        for host in skipped:
            self.by_worth.set_cost(slot, host, INFINITY)
        number = self.by_worth.cheapest(slot)
        if number >= 0:
            cost = slot.costs[number]
        for host, before in zip(skipped, costs):
            self.by_worth.set_cost(slot, host, before)
        return None if number < 0 else (number, -cost)

    cdef int cover(self) except -1:
        """Make the search by worth see the hosts where they are now."""
        if self.by_worth.count != self.end:
            self.by_worth.cover(self.hosts, self.end)
        return 0

    def value_by(self, Worth worth not None):
        """What the free room of hosts is worth from now on; before the first call, nothing."""
        self.by_worth.value_by(worth)

    def outgrew(self, int cpus, int64_t memory_mib):
        """Whether a host that was put since ``supply`` has more of either."""
        return self.most_cpus > cpus or self.most_mib > memory_mib

    def supply(self):
        """The fields of ``core.demand.Supply``, of the hosts that ``sums`` is of."""
        cdef Host *host
        cdef int number
        cdef int servers = 0
        cdef int32_t most_cpus = 0
        cdef int64_t most_mib = 0
        cdef Totals sums
        for number in range(self.end):
            host = self.hosts + number
            if host.state == KNOWN and host.closed != CLOSED_AS_UNKNOWN:
                servers += 1
                most_cpus = max(most_cpus, host.cpus)
                most_mib = max(most_mib, host.memory)
        self.most_cpus, self.most_mib = most_cpus, most_mib
        sold = []
        for number in range(self.level_count):
            if self.levels[number].vcpus:
                sold.append((self.levels[number].level, self.levels[number].vcpus))
        sold.sort()
        sums = self.totals
        return servers, sums.cpus, sums.memory, most_cpus, most_mib, tuple(sold), sums.allocated

    cdef int64_t ask(self, vm_request *vm, level, vcpus, memory_mib) except -1:
        """Make a request of C numbers; its memory is returned in full. More than any host has becomes just that."""
        cdef int64_t memory = capped(memory_mib, MAX_MEMORY + 1)
        vm.level = capped(level, HIGHEST + 1)
        vm.vcpus = capped(vcpus, MAX_CPUS + 1)
        if vm.level < UNIT or vm.level > HIGHEST or vm.vcpus < 1 or memory < 0:
            raise ValueError(f"no host is asked for {vcpus} vCPUs and {memory_mib} MiB at level {level}")
        vm.fit = min(vm.vcpus, <int32_t>MAX_16)
        vm.free_mib = min(memory, <int64_t>MAX_32)
        vm.memory = <double>memory
        vm.whole = vm.vcpus * UNIT // vm.level
        vm.rest = vm.vcpus * UNIT % vm.level
        return memory

    cdef list there(self, hosts):
        """Those of these numbers that are hosts."""
        cdef list found = []
        for host in hosts:
            if 0 <= host < self.end:
                found.append(host)
        return found

    cdef void forget_shapes(self) noexcept nogil:
        cdef int k
        for k in range(SHAPES):
            free(self.shapes[k].score)
            free(self.shapes[k].winner)
            free(self.shapes[k].best)
        memset(self.shapes, 0, SHAPES * sizeof(Shape))

    cdef Shape *shape_of(self, int kernel, vm_request *vm, int64_t memory) except NULL:
        """The bounds for a request, up to date; in the place of the least recently asked if it is new."""
        cdef Shape *shape
        cdef Shape *oldest = self.shapes
        cdef int k
        cdef int groups = (self.block_count + GROUP - 1) // GROUP
        self.requests += 1
        for k in range(SHAPES):
            shape = self.shapes + k
            if (
                shape.score is not NULL
                and shape.memory == memory
                and shape.vcpus == vm.vcpus
                and shape.level == vm.level
                and shape.kernel == kernel
            ):
                shape.asked = self.requests
                self.refresh(shape, vm)
                return shape
            if shape.asked < oldest.asked:
                oldest = shape
        if oldest.score is NULL:
            oldest.score = <double *>malloc(self.block_count * sizeof(double))
            oldest.winner = <int32_t *>malloc(self.block_count * sizeof(int32_t))
            oldest.best = <double *>malloc(groups * sizeof(double))
            if oldest.score is NULL or oldest.winner is NULL or oldest.best is NULL:
                self.forget_shapes()
                raise MemoryError()
        oldest.kernel = kernel
        oldest.level = vm.level
        oldest.vcpus = vm.vcpus
        oldest.memory = memory
        oldest.asked = self.requests
        self.fill_shape(oldest, vm)
        return oldest

    cdef void fill_shape(self, Shape *shape, vm_request *vm) noexcept nogil:
        cdef Level *level = self.level_of(vm.level)
        cdef double reached = -INFINITY
        cdef int group, first
        shape.seen = self.changes
        memset(shape.winner, 0xFF, self.block_count * sizeof(int32_t))
        for group in range((self.block_count + GROUP - 1) // GROUP):
            first = group * GROUP
            reached = kernels[shape.kernel].bounds(
                self.blocks + first,
                self.column(level, first),
                min(<int>GROUP, self.block_count - first),
                vm,
                reached,
                shape.score + first,
            )
            self.summarise(shape, group)

    cdef void refresh(self, Shape *shape, vm_request *vm) noexcept nogil:
        """The bounds of the blocks that have changed since."""
        cdef Level *level
        cdef uint64_t k
        cdef int block
        cdef double bound
        if self.changes - shape.seen > <uint64_t>min(<int>LOG, self.block_count):
            self.fill_shape(shape, vm)
            return
        level = self.level_of(vm.level)
        for k in range(shape.seen, self.changes):
            block = self.log[k % LOG]
            if self.changed[block] == k:  # else it comes again, later
                kernels[shape.kernel].bounds(self.blocks + block, self.column(level, block), 1, vm, -INFINITY, &bound)
                self.set_block(shape, block, bound, BOUND)
        shape.seen = self.changes

    cdef void set_block(self, Shape *shape, int block, double score, int winner) noexcept nogil:
        cdef double before = shape.score[block]
        cdef int group = block // GROUP
        shape.score[block] = score
        shape.winner[block] = winner
        if score >= shape.best[group]:
            shape.best[group] = score
        elif before == shape.best[group]:
            self.summarise(shape, group)

    cdef void summarise(self, Shape *shape, int group) noexcept nogil:
        cdef double best = -INFINITY
        cdef int block
        for block in range(group * GROUP, min((group + 1) * GROUP, self.block_count)):
            if shape.score[block] > best:
                best = shape.score[block]
        shape.best[group] = best

    cdef int search(self, Shape *shape, vm_request *vm) noexcept nogil:
        """The block of the best host, -1 if no host fits.

        The first of the highest blocks is made exact until it is.
        """
        cdef int groups = (self.block_count + GROUP - 1) // GROUP
        cdef Level *level = self.level_of(vm.level)
        cdef int group, k, block
        cdef double best
        while True:
            group = 0
            for k in range(1, groups):
                if shape.best[k] > shape.best[group]:
                    group = k
            best = shape.best[group]
            if best == -INFINITY:
                return -1
            for block in range(group * GROUP, min((group + 1) * GROUP, self.block_count)):
                if shape.score[block] == best:
                    if shape.winner[block] == BOUND:
                        self.look(shape, vm, block, self.column(level, block))
                    if shape.score[block] == best and shape.winner[block] != BOUND:
                        return block
            self.summarise(shape, group)

    cdef void look(self, Shape *shape, vm_request *vm, int block, level_block *column) noexcept nogil:
        """Make a block exact."""
        cdef double scores[LANES]
        cdef double best = -INFINITY
        cdef int winner = NOBODY
        cdef bint huge = vm.fit == MAX_16 or vm.free_mib == MAX_32  # columns cannot tell whether that fits
        cdef int lane
        cdef Host *host
        kernels[shape.kernel].scores(self.blocks + block, self.exact + block, column, vm, scores)
        for lane in range(LANES):
            if scores[lane] > best:
                host = self.hosts + block * LANES + lane
                if host.skipped:
                    continue
                if huge or scores[lane] == INFINITY:
                    scores[lane] = self.score_alone(shape, host)
                if scores[lane] > best:
                    best = scores[lane]
                    winner = block * LANES + lane
        shape.score[block] = best
        shape.winner[block] = winner

    cdef double score_alone(self, Shape *shape, const Host *host) noexcept nogil:
        """Of an open host, from its figures; -INFINITY if the VM does not fit."""
        cdef int64_t extra = growth_of(host, shape.level, shape.vcpus)
        if extra > host.free or shape.memory > host.free_mib:
            return -INFINITY
        return score_of(shape.kernel, host, extra, shape.memory)

    # Reading

    def refusals(self, level, vcpus, memory_mib, without=()):
        """Hosts by why they would not take such a VM: "cpu", "memory", or the reason of closed ones."""
        cdef vm_request vm
        cdef int64_t memory = self.ask(&vm, level, vcpus, memory_mib)
        cdef list counts = [0] * len(self.reasons)
        cdef list skipped = self.there(without)
        cdef int64_t cpu = 0
        cdef int64_t short = 0
        cdef int number
        cdef Host *host
        for number in skipped:
            self.hosts[number].skipped = 1
        for number in range(self.end):
            host = self.hosts + number
            if host.state == ABSENT or host.skipped:
                continue
            if host.closed != OPEN:
                counts[host.closed] += 1
            elif growth_of(host, vm.level, vm.vcpus) > host.free:
                cpu += 1
            elif memory > host.free_mib:
                short += 1
        for number in skipped:
            self.hosts[number].skipped = 0
        found = {}
        for reason, count in [("cpu", cpu), ("memory", short), *zip(self.reasons, counts)]:
            if count:
                found[reason] = found.get(reason, 0) + count
        return found

    def numbers(self):
        """Numbers of the hosts that are there, ascending."""
        return [number for number in range(self.end) if self.hosts[number].state != ABSENT]

    def judged(self, int kernel, int number, level, vcpus, memory_mib):
        """(score, reason) of one host: None and why not, or its score and ""."""
        cdef vm_request vm
        cdef int64_t memory = self.ask(&vm, level, vcpus, memory_mib)
        cdef Host *host
        cdef int64_t extra
        self.known(number)
        host = self.hosts + number
        if host.closed != OPEN:
            return None, self.reasons[host.closed]
        extra = growth_of(host, vm.level, vm.vcpus)
        if extra > host.free:
            return None, "cpu"
        if memory > host.free_mib:
            return None, "memory"
        if kernel == WORTH:
            self.cover()
            return -self.by_worth.cost(number, vm.level, vm.vcpus, memory), ""
        return score_of(kernel, host, extra, memory), ""

    def figures(self, int number):
        """What ``core.status.HostStatus`` is made of, levels as (level, critical size, ratio with one more VM, CPUs,
        vCPUs, VMs, widest); None for a host without figures. KeyError if there is none.
        """
        cdef Host *host
        cdef Subset *subset
        cdef int k
        self.known(number)
        host = self.hosts + number
        if host.state != KNOWN:
            return None
        levels = []
        for k in range(host.subset_count):
            subset = host.subsets + k
            sizes = (subset.cpus, subset.vcpus, subset.vms, subset.widest)
            levels.append((subset.level, subset.critical, subset.following, *sizes))
        return (
            (host.cpus, host.free, host.held, host.memory, host.allocated, host.free_mib, host.vms, host.generation),
            levels,
            host.critical,
            self.criticals[number],
        )

    def sums(self):
        """The sums of the figures of all hosts that are not closed as unknown, and of each level, ascending."""
        cdef Totals *sums = &self.totals
        cdef Level *level
        cdef int k
        levels = []
        for k in range(self.level_count):
            level = self.levels[k]
            if level.vms:
                levels.append(
                    (level.level, level.cpus, level.vcpus, level.vms, level.needed, level.available, level.potential)
                )
        levels.sort()
        return (sums.cpus, sums.free, sums.held, sums.memory, sums.allocated, sums.free_mib, sums.vms), levels

    cdef int known(self, int number) except -1:
        if number < 0 or number >= self.end or self.hosts[number].state == ABSENT:
            raise KeyError(number)
        return 0
