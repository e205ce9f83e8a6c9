"""How fast a pod gets its network, beside the kernel's own floor and Debian's ptp, in one run."""
