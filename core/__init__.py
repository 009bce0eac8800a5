"""Every decision of vmstack, compiled, without I/O, clock, randomness or logging.

Values go in, a plan or a refusal comes out. The same input always gives the same answer.

``level``       oversubscription levels as exact integers
``cpuset``      CPU lists as text
``topology``    a host's CPUs, caches and NUMA nodes; ``distances`` is its compiled distance table
``model``       VM, subset, host state, plan, refusal
``capacity``    how many CPUs a subset needs
``policy``      which CPUs it gets
``allocator``   deploy, remove, progress
``status``      the figures of a host
``invariants``  what must hold in every state
"""
