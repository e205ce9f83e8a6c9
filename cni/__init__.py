"""The runtime's door: the launcher, its frames, the words of the CNI specification, the spool.

Standard library only. What a verb does to addresses, leases or the kernel does not belong here.
"""
