"""The daemon of a cluster: chooses the host of each new VM, and knows where each VM is."""
