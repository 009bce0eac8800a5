"""A whole cluster in one process, on a clock that only the simulation moves: everything follows from one seed.

The engines, the daemons' protocol, globald and everything below them are the real ones. Simulated are time
(``clock``), the network between globald and the hosts (``network``), and the hypervisor with its VMs (``machine``).
``world`` joins them, ``chaos`` does what users, faults and strangers do, ``ledger`` keeps what users were told, and
``audit`` compares it with what the machines really have. ``mistakes`` are planted to see that they are found.
"""
