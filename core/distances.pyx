# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Distances between the CPUs of a host, and the few loops over them that decide placements.

Compiled because choosing one CPU looks at every free CPU of the host. Inside, a CPU is its position
in the topology's list; outside, its kernel id.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport int32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

cdef int32_t SELF = 10
cdef int32_t STEP = 10
# CPython shares bytes objects of length 0 and 1; a mask, which is filled in after it is made, must never be one.
cdef int PADDING = 8
# Above every sum of distances: at most 8192 CPUs, a few hundred each.
cdef int32_t OUT_OF_REACH = 1 << 29


cdef class Distances:
    """The distance table of one host.

    cpus: kernel ids in list order. caches: for each CPU its cache instance per cache level, innermost
    first, -1 where it has none. nodes: for each CPU the row of its NUMA node in node_distances.
    """

    cdef readonly int size
    cdef readonly tuple cpus
    cdef int32_t *table
    cdef int32_t *position
    cdef int span

    def __cinit__(self, tuple cpus, list caches, list nodes, list node_distances):
        cdef int n = len(cpus)
        cdef int depth = len(caches[0]) if n else 0
        cdef int node_count = len(node_distances)
        cdef int i, j, k
        cdef int32_t walked
        cdef int32_t *cache = NULL
        cdef int32_t *node = NULL
        cdef int32_t *between = NULL
        self.size = n
        self.cpus = cpus
        self.span = (max(cpus) if n else 0) + 1
        self.table = <int32_t *>malloc(max(n * n, 1) * sizeof(int32_t))
        self.position = <int32_t *>malloc(self.span * sizeof(int32_t))
        cache = <int32_t *>malloc(max(n * depth, 1) * sizeof(int32_t))
        node = <int32_t *>malloc(max(n, 1) * sizeof(int32_t))
        between = <int32_t *>malloc(max(node_count * node_count, 1) * sizeof(int32_t))
        try:
            if not (self.table and self.position and cache and node and between):
                raise MemoryError()
            memset(self.position, 0xFF, self.span * sizeof(int32_t))
            for i in range(n):
                self.position[<int>cpus[i]] = i
                node[i] = nodes[i]
                row = caches[i]
                for k in range(depth):
                    cache[i * depth + k] = row[k]
            for i in range(node_count):
                row = node_distances[i]
                for j in range(node_count):
                    between[i * node_count + j] = row[j]
            for i in range(n):
                for j in range(n):
                    if i == j:
                        self.table[i * n + j] = SELF
                        continue
                    walked = 0
                    for k in range(depth):
                        walked += STEP
                        if cache[i * depth + k] >= 0 and cache[i * depth + k] == cache[j * depth + k]:
                            break
                    else:
                        walked += between[node[i] * node_count + node[j]]
                    self.table[i * n + j] = walked
        finally:
            free(cache)
            free(node)
            free(between)

    def __dealloc__(self):
        free(self.table)
        free(self.position)

    cdef int where(self, object cpu) except -1:
        cdef long long wanted = cpu
        if wanted < 0 or wanted >= self.span or self.position[wanted] < 0:
            raise KeyError(f"CPU {cpu} is not in this topology")
        return self.position[wanted]

    def between(self, first, second):
        """Distance from one CPU to another; 10 from a CPU to itself. KeyError for an unknown id."""
        return self.table[self.where(first) * self.size + self.where(second)]

    def pool(self, cpus=None):
        """A CpuPool of these CPUs, of all of them without an argument."""
        cdef CpuPool made = CpuPool.__new__(CpuPool)
        made.distances = self
        made.mask = bytes(self.size + PADDING)
        return made.plus(self.cpus if cpus is None else tuple(cpus))

    def sums(self, tuple cpus=()):
        """DistanceSums of the set of these CPUs."""
        cdef DistanceSums made = DistanceSums.__new__(DistanceSums)
        made.distances = self
        made.values = bytes(self.size * sizeof(int32_t))
        return made.shifted(cpus, 1)


cdef class CpuPool:
    """An unchangeable set of CPUs of one host."""

    cdef Distances distances
    cdef bytes mask
    cdef readonly int count

    def __init__(self):
        raise TypeError("pools are made by Distances.pool")

    cdef CpuPool marked(self, tuple cpus, char mark):
        cdef CpuPool made
        cdef Py_ssize_t k
        cdef int at
        cdef char *mask
        if PyTuple_GET_SIZE(cpus) == 0:
            return self
        made = CpuPool.__new__(CpuPool)
        made.distances = self.distances
        made.mask = PyBytes_FromStringAndSize(PyBytes_AS_STRING(self.mask), self.distances.size + PADDING)
        made.count = self.count
        mask = PyBytes_AS_STRING(made.mask)
        for k in range(PyTuple_GET_SIZE(cpus)):
            at = self.distances.where(<object>PyTuple_GET_ITEM(cpus, k))
            if mask[at] == mark:
                raise ValueError(f"CPU {cpus[k]} is {'already' if mark else 'not'} in the pool")
            mask[at] = mark
            made.count += 1 if mark else -1
        return made

    def plus(self, tuple cpus):
        """The pool with these CPUs added. ValueError if one is there already."""
        return self.marked(cpus, 1)

    def minus(self, tuple cpus):
        """The pool without these CPUs. ValueError if one is not in it."""
        return self.marked(cpus, 0)

    def ids(self):
        """Kernel ids in list order."""
        cdef int i
        return tuple([self.distances.cpus[i] for i in range(self.distances.size) if PyBytes_AS_STRING(self.mask)[i]])

    def __contains__(self, cpu):
        cdef long long wanted = cpu
        if wanted < 0 or wanted >= self.distances.span or self.distances.position[wanted] < 0:
            return False
        return PyBytes_AS_STRING(self.mask)[self.distances.position[wanted]] != 0

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter(self.ids())

    def __eq__(self, other):
        if not isinstance(other, CpuPool):
            return NotImplemented
        return self.ids() == other.ids()

    def __hash__(self):
        return hash(self.mask)

    def __repr__(self):
        return f"CpuPool({self.ids()!r})"


cdef class DistanceSums:
    """For every CPU of a host, the sum of the distances from the members of one set to it.

    Comparing sums over the same set is comparing means (SEMANTICS 3). Unchangeable.
    """

    cdef Distances distances
    cdef bytes values

    def __init__(self):
        raise TypeError("sums are made by Distances.sums")

    cdef DistanceSums shifted(self, tuple cpus, int sign):
        cdef DistanceSums made
        cdef int n = self.distances.size
        cdef Py_ssize_t k
        cdef int j
        cdef int32_t *values
        cdef int32_t *row
        if PyTuple_GET_SIZE(cpus) == 0:
            return self
        made = DistanceSums.__new__(DistanceSums)
        made.distances = self.distances
        made.values = PyBytes_FromStringAndSize(PyBytes_AS_STRING(self.values), n * sizeof(int32_t))
        values = <int32_t *>PyBytes_AS_STRING(made.values)
        for k in range(PyTuple_GET_SIZE(cpus)):
            row = self.distances.table + self.distances.where(<object>PyTuple_GET_ITEM(cpus, k)) * n
            if sign > 0:
                for j in range(n):
                    values[j] += row[j]
            else:
                for j in range(n):
                    values[j] -= row[j]
        return made

    def plus(self, tuple cpus):
        """The sums of the set with these CPUs added."""
        return self.shifted(cpus, 1)

    def minus(self, tuple cpus):
        """The sums of the set without these CPUs, which must be members."""
        return self.shifted(cpus, -1)

    def __eq__(self, other):
        if not isinstance(other, DistanceSums):
            return NotImplemented
        return self.values == (<DistanceSums>other).values

    def __hash__(self):
        return hash(self.values)


cdef int same_host(Distances distances, DistanceSums sums) except -1:
    if sums.distances is not distances:
        raise ValueError("the sums are of another host")
    return 0


def farthest(CpuPool pool, list sums):
    """The CPU of the pool with the largest distance to all sets of sums together.

    Ties, and all CPUs where sums is empty, go to the first in list order. ValueError for an empty pool.
    """
    cdef Distances distances = pool.distances
    cdef int n = distances.size
    cdef int i
    cdef int best = -1
    cdef int32_t *total
    cdef int32_t *values
    cdef char *mask = PyBytes_AS_STRING(pool.mask)
    if pool.count == 0:
        raise ValueError("the pool is empty")
    total = <int32_t *>calloc(max(n, 1), sizeof(int32_t))
    if not total:
        raise MemoryError()
    try:
        for one in sums:
            same_host(distances, one)
            values = <int32_t *>PyBytes_AS_STRING((<DistanceSums>one).values)
            for i in range(n):
                total[i] += values[i]
        for i in range(n):
            if mask[i] and (best < 0 or total[i] > total[best]):
                best = i
    finally:
        free(total)
    return distances.cpus[best]


def nearest(CpuPool pool, cpu, int count):
    """The count CPUs of the pool nearest to one CPU, nearest first, ties in list order.

    The CPU itself is never among them. ValueError if the pool holds too few others.
    """
    cdef Distances distances = pool.distances
    cdef int n = distances.size
    cdef int start = distances.where(cpu)
    cdef int32_t *row = distances.table + start * n
    cdef char *mask = PyBytes_AS_STRING(pool.mask)
    cdef int i
    cdef int32_t ring = -1
    cdef int32_t following
    cdef list found = []
    while len(found) < count:
        following = -1
        for i in range(n):
            if mask[i] and i != start and row[i] > ring and (following < 0 or row[i] < following):
                following = row[i]
        if following < 0:
            raise ValueError("the pool holds too few CPUs")
        ring = following
        for i in range(n):
            if mask[i] and i != start and row[i] == ring:
                found.append(distances.cpus[i])
                if len(found) == count:
                    break
    return tuple(found)


def nearest_one_by_one(CpuPool pool, DistanceSums sums, int count):
    """count CPUs of the pool, each the nearest to the set of sums with those before it added.

    Ties in list order. ValueError if the pool holds too few.
    """
    cdef Distances distances = pool.distances
    cdef int n = distances.size
    cdef int i, k, best
    cdef bytes copy = PyBytes_FromStringAndSize(PyBytes_AS_STRING(sums.values), n * sizeof(int32_t))
    cdef char *mask = PyBytes_AS_STRING(pool.mask)
    cdef int32_t *values = <int32_t *>PyBytes_AS_STRING(copy)
    cdef int32_t *row
    cdef int32_t least
    cdef list found = []
    same_host(distances, sums)
    if count > pool.count:
        raise ValueError("the pool holds too few CPUs")
    for i in range(n):
        if not mask[i]:
            values[i] = OUT_OF_REACH
    for k in range(count):
        least = OUT_OF_REACH
        for i in range(n):
            least = min(least, values[i])
        best = 0
        while values[best] != least:
            best += 1
        found.append(distances.cpus[best])
        if len(found) == count:
            break
        row = distances.table + best * n
        for i in range(n):
            values[i] += row[i]
        values[best] = OUT_OF_REACH
    return tuple(found)
