"""The node as a real container runtime sees it: Debian's containerd and runc, the stock chained plugins."""
