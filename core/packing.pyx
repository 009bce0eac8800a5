# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""VMs put on servers that do not exist: what a plan is made with.

A server admits what the host's own core admits (``core.allocator`` with policy ``reference``), or what the simulator
of the paper does (``core.paper_accounting``). Which of them gets a VM, the policies of ``core.host_policy`` say.
"""

from libc.math cimport INFINITY, fabs
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memmove, memset

from cpython.exc cimport PyErr_CheckSignals

from core.host_figures cimport (
    HIGHEST, KNOWN, MAX_CPUS, MAX_VCPUS, UNIT, WORTH, Host, Subset, subset_of,
)
from core.host_search cimport HostSearch, Slot
from core.paper_accounting cimport paper_cpus
from core.worth cimport Worth

from core.demand import Demand, Supply
from core.status import HostStatus, level_status

ACCOUNTINGS = ("host", "paper")
PAPER_LEVELS = (1000, 2000, 3000)
"""Those that the paper's accounting knows."""

cdef enum:
    KEPT_CELLS = 1 << 22  # of tables of worth

KERNELS = {"constant": 0, "progress": 1, "worth": 2}

cdef int64_t MAX_MEMORY = 1LL << 40

# VMs of one width in a level of a server.
ctypedef struct Width:
    int32_t level
    int32_t vcpus
    int32_t count


ctypedef struct Widths:
    Width *entries
    int32_t count
    int32_t space


ctypedef struct Request:
    int32_t level
    int32_t vcpus
    int64_t memory
    double arrival


cdef int64_t within(object value, str name, int64_t least, int64_t most) except? -1:
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}, not from {least} to {most}")
    return value


cdef class Events:
    """The arrivals and departures of VMs (``core.workload.WorkloadVm``) in order, for ``Packing.run``.

    VMs that leave before t are gone when the first of t arrives; those that leave at t are there. ValueError for
    arrivals that go back.
    """

    cdef Request *requests
    cdef int32_t *leaving  # VMs in order of departure
    cdef double *departures  # in that order
    cdef int count
    cdef int leaving_count
    cdef dict worths  # by market: the runs of one workload learn the same

    def __cinit__(self, vms):
        cdef int k
        cdef double before = -INFINITY
        self.worths = {}
        self.count = len(vms)
        self.requests = <Request *>calloc(max(1, self.count), sizeof(Request))
        self.leaving = <int32_t *>calloc(max(1, self.count), sizeof(int32_t))
        self.departures = <double *>calloc(max(1, self.count), sizeof(double))
        if self.requests is NULL or self.leaving is NULL or self.departures is NULL:
            raise MemoryError()
        for k, vm in enumerate(vms):
            self.requests[k].level = within(vm.level, "level", UNIT, HIGHEST)
            self.requests[k].vcpus = within(vm.vcpus, "vcpus", 1, MAX_CPUS)
            self.requests[k].memory = within(vm.memory_mib, "memory_mib", 0, MAX_MEMORY)
            self.requests[k].arrival = vm.arrival
            if not before <= vm.arrival <= vm.departure:
                raise ValueError(f"VM {k} arrives at {vm.arrival}, after {before} and before {vm.departure}?")
            before = vm.arrival
        ends = [(vm.departure, number) for number, vm in enumerate(vms) if vm.departure != INFINITY]
        ends.sort()
        self.leaving_count = len(ends)
        for k, (departure, number) in enumerate(ends):
            self.departures[k] = departure
            self.leaving[k] = number

    def __dealloc__(self):
        free(self.requests)
        free(self.leaving)
        free(self.departures)

    def __len__(self):
        return self.count


cdef class Packing:
    """Servers by number, from 0, all empty at first; (CPUs, MiB) each.

    policy: one of ``core.host_policy``, with a kernel. critical_size: of all levels. accounting: of ACCOUNTINGS.
    ValueError for what is none of these.
    """

    cdef Host *hosts
    cdef Widths *widths
    cdef int count
    cdef int kernel
    cdef bint paper
    cdef int32_t critical
    cdef HostSearch search
    cdef readonly object demand
    """What the policy has learnt (``core.demand.Demand``)."""
    cdef dict sold
    cdef int64_t sold_mib
    cdef dict worths
    cdef tuple supply

    def __cinit__(self, servers, policy, *, critical_size=2, accounting="host"):
        cdef int k
        cdef Host *host
        if policy.kernel not in KERNELS:
            raise ValueError(f"policy {policy.name} has no kernel")
        if accounting not in ACCOUNTINGS:
            raise ValueError(f"accounting is {accounting!r}, not one of {', '.join(ACCOUNTINGS)}")
        self.kernel = KERNELS[policy.kernel]
        self.paper = accounting == "paper"
        self.critical = within(critical_size, "critical_size", 0, MAX_VCPUS)
        self.demand = Demand()
        self.sold = {}
        self.worths = {}
        self.count = len(servers)
        self.hosts = <Host *>calloc(max(1, self.count), sizeof(Host))
        self.widths = <Widths *>calloc(max(1, self.count), sizeof(Widths))
        if self.hosts is NULL or self.widths is NULL:
            raise MemoryError()
        for k, (cpus, memory_mib) in enumerate(servers):
            host = self.hosts + k
            host.cpus = host.free = within(cpus, "cpus", 1, MAX_CPUS)
            host.memory = host.free_mib = within(memory_mib, "memory_mib", 0, MAX_MEMORY)
            host.critical = self.critical
            host.optimal = <double>host.memory / <double>host.cpus
            host.state = KNOWN
        self.supply = (
            self.count,
            sum([cpus for cpus, _ in servers]),
            sum([memory_mib for _, memory_mib in servers]),
            max([cpus for cpus, _ in servers], default=0),
            max([memory_mib for _, memory_mib in servers], default=0),
        )
        self.search = HostSearch(self.kernel, self.paper)
        self.search.cover(self.hosts, self.count)

    def __dealloc__(self):
        cdef int k
        for k in range(self.count):
            free(self.hosts[k].subsets)
            free(self.widths[k].entries)
        free(self.hosts)
        free(self.widths)

    def __len__(self):
        return self.count

    def run(self, Events events):
        """Place the VMs as they come and go, until one fits nowhere: its place in the workload; -1 if all are placed."""
        cdef int32_t *places = <int32_t *>malloc(max(1, events.count) * sizeof(int32_t))
        cdef int k, left, number
        cdef int next_leaving = 0
        cdef Request *request
        if places is NULL:
            raise MemoryError()
        try:
            self.worths = events.worths
            for k in range(events.count):
                request = events.requests + k
                if k % 4096 == 0:
                    PyErr_CheckSignals()  # so that Ctrl-C is not noticed at the end only
                while next_leaving < events.leaving_count and events.departures[next_leaving] < request.arrival:
                    left = events.leaving[next_leaving]
                    self.take(places[left], events.requests + left)
                    next_leaving += 1
                number = self.put(request)
                if number < 0:
                    return k
                places[k] = number
            return -1
        finally:
            free(places)

    def place(self, level, vcpus, memory_mib):
        """Put a VM on a server: its number, or -1 if none admits it, which changes nothing but what is learnt."""
        cdef Request request
        self.ask(&request, level, vcpus, memory_mib)
        return self.put(&request)

    def remove(self, int server, level, vcpus, memory_mib):
        """Take a VM of this size from the server that has one; ValueError if that is not so."""
        cdef Request request
        cdef int k
        self.ask(&request, level, vcpus, memory_mib)
        if 0 <= server < self.count:
            for k in range(self.widths[server].count):
                if (
                    self.widths[server].entries[k].level == request.level
                    and self.widths[server].entries[k].vcpus == request.vcpus
                    and self.hosts[server].allocated >= request.memory
                ):
                    self.take(server, &request)
                    return
        raise ValueError(f"server {server} has no VM of {vcpus} vCPUs and {memory_mib} MiB at level {level}")

    def status(self, int server):
        """The figures of a server as a host would tell them. Of the paper's accounting only those of each level's VMs
        and of the whole server hold, for its CPUs belong to no level. IndexError if there is no such server.
        """
        cdef Host *host
        cdef Subset *subset
        cdef int k
        if not 0 <= server < self.count:
            raise IndexError(server)
        host = self.hosts + server
        levels = []
        for k in range(host.subset_count):
            subset = host.subsets + k
            levels.append(
                level_status(
                    level=subset.level,
                    ratio=subset.level if subset.vms >= subset.critical else UNIT,
                    following=subset.following,
                    cpus=subset.cpus,
                    vcpus=subset.vcpus,
                    vms=subset.vms,
                    widest=subset.widest,
                    free_cpus=host.free,
                )
            )
        return HostStatus(
            cpus=host.cpus,
            free_cpus=host.free,
            held_cpus=0,
            memory_mib=host.memory,
            allocated_mib=host.allocated,
            free_mib=host.free_mib,
            vms=host.vms,
            generation=0,
            levels=tuple(levels),
            critical_size=host.critical,
        )

    def used(self):
        """(CPUs in use, MiB in use, {level: (vCPUs sold, CPUs of its subsets)}) over all servers.

        A server of the paper's accounting may use more CPUs than it has (after a departure).
        """
        cdef int k, at
        cdef int64_t cpus = 0
        cdef Host *host
        levels = {}
        for k in range(self.count):
            host = self.hosts + k
            cpus += host.used
            for at in range(host.subset_count):
                vcpus, owned = levels.get(host.subsets[at].level, (0, 0))
                levels[host.subsets[at].level] = (vcpus + host.subsets[at].vcpus, owned + host.subsets[at].cpus)
        return cpus, self.sold_mib, dict(sorted(levels.items()))

    # Within

    cdef int ask(self, Request *request, level, vcpus, memory_mib) except -1:
        request.level = within(level, "level", UNIT, HIGHEST)
        request.vcpus = within(vcpus, "vcpus", 1, MAX_CPUS)
        request.memory = within(memory_mib, "memory_mib", 0, MAX_MEMORY)
        return 0

    cdef int put(self, const Request *request) except -2:
        cdef int number
        cdef Slot *slot
        if self.paper and (request.level % UNIT or request.level > 3 * UNIT):
            raise ValueError(f"level {request.level} is not one of {PAPER_LEVELS}, which the paper's accounting knows")
        if self.kernel == WORTH and self.demand.arrived(request.level, request.vcpus, request.memory) and self.count:
            self.learn()
        slot = self.search.slot_of(request.level, request.vcpus, request.memory)
        number = self.search.cheapest(slot)
        if number >= 0:
            self.give(number, request)
        return number

    cdef int learn(self) except -1:
        cdef Worth worth
        market = self.demand.look(Supply(*self.supply, tuple(sorted(self.sold.items())), self.sold_mib))
        worth = self.worths.get(market)
        if worth is None:
            worth = Worth(market)
            if sum([(<Worth>kept).filled for kept in self.worths.values()]) > KEPT_CELLS:
                self.worths.clear()
            self.worths[market] = worth
        self.search.value_by(worth)
        return 0

    cdef int give(self, int number, const Request *request) except -1:
        cdef Host *host = self.hosts + number
        cdef Subset *subset = subset_of(host, request.level)
        cdef Subset *grown
        cdef int64_t extra = self.search.growth(host, request.level, request.vcpus)
        self.widen(self.widths + number, request.level, request.vcpus)
        if subset is NULL:
            grown = <Subset *>realloc(host.subsets, (host.subset_count + 1) * sizeof(Subset))
            if grown is NULL:
                raise MemoryError()
            host.subsets = grown
            subset = host.subsets + host.subset_count
            memset(subset, 0, sizeof(Subset))
            subset.level = request.level
            subset.critical = self.critical
            host.subset_count += 1
        subset.vcpus += request.vcpus
        subset.vms += 1
        subset.widest = max(subset.widest, request.vcpus)
        if not self.paper:
            subset.cpus += extra
        self.sell(request, 1)
        host.vms += 1
        host.allocated += request.memory
        self.settle(number, subset, extra)
        return 0

    cdef int take(self, int number, const Request *request) except -1:
        """The VM leaves, and its level gives up what it can spare, as ``core.capacity.surplus`` says."""
        cdef Host *host = self.hosts + number
        cdef Subset *subset = subset_of(host, request.level)
        cdef int64_t freed = 0
        cdef int64_t ratio, unused
        subset.widest = self.narrow(self.widths + number, request.level, request.vcpus)
        subset.vcpus -= request.vcpus
        subset.vms -= 1
        self.sell(request, -1)
        host.vms -= 1
        host.allocated -= request.memory
        if subset.vms == 0:
            freed = subset.cpus
            host.subset_count -= 1
            memmove(subset, subset + 1, (host.subsets + host.subset_count - subset) * sizeof(Subset))
            subset = NULL
        elif not self.paper:
            ratio = subset.level if subset.vms >= subset.critical else UNIT
            unused = subset.cpus * ratio - subset.vcpus * <int64_t>UNIT
            if unused > 0:
                freed = max(<int64_t>0, min(unused // ratio, <int64_t>(subset.cpus - subset.widest)))
                subset.cpus -= freed
        self.settle(number, subset, -freed)
        return 0

    cdef void settle(self, int number, Subset *changed, int64_t extra) noexcept nogil:
        """Bring the figures that follow from others up to date."""
        cdef Host *host = self.hosts + number
        cdef int64_t sold[3]
        cdef int64_t vms[3]
        cdef int k, at
        cdef double current
        if changed is not NULL:
            changed.following = changed.level if changed.vms + 1 >= changed.critical else UNIT
        if self.paper:
            for at in range(3):
                sold[at] = vms[at] = 0
            for k in range(host.subset_count):
                at = host.subsets[k].level // UNIT - 1
                sold[at] = host.subsets[k].vcpus
                vms[at] = host.subsets[k].vms
            host.used = paper_cpus(sold, vms, self.critical)
        else:
            host.used += extra
        host.free = host.cpus - host.used
        host.free_mib = host.memory - host.allocated
        current = <double>host.allocated / <double>host.used if host.used else host.optimal
        host.distance = fabs(current - host.optimal)
        self.search.change(number)

    cdef int sell(self, const Request *request, int sign) except -1:
        left = self.sold.get(request.level, 0) + sign * request.vcpus
        if left:
            self.sold[request.level] = left
        else:
            del self.sold[request.level]
        self.sold_mib += sign * request.memory
        return 0

    cdef int widen(self, Widths *widths, int32_t level, int32_t vcpus) except -1:
        cdef int k
        cdef Width *grown
        for k in range(widths.count):
            if widths.entries[k].level == level and widths.entries[k].vcpus == vcpus:
                widths.entries[k].count += 1
                return 0
        if widths.count == widths.space:
            grown = <Width *>realloc(widths.entries, max(8, 2 * widths.space) * sizeof(Width))
            if grown is NULL:
                raise MemoryError()
            widths.entries = grown
            widths.space = max(8, 2 * widths.space)
        widths.entries[widths.count].level = level
        widths.entries[widths.count].vcpus = vcpus
        widths.entries[widths.count].count = 1
        widths.count += 1
        return 0

    cdef int32_t narrow(self, Widths *widths, int32_t level, int32_t vcpus) noexcept nogil:
        """One VM less of this width; returns that of the widest left."""
        cdef int k
        cdef int32_t widest = 0
        for k in range(widths.count - 1, -1, -1):
            if widths.entries[k].level != level:
                continue
            if widths.entries[k].vcpus == vcpus:
                widths.entries[k].count -= 1
                if widths.entries[k].count == 0:
                    widths.count -= 1
                    widths.entries[k] = widths.entries[widths.count]
                    continue
            widest = max(widest, widths.entries[k].vcpus)
        return widest
