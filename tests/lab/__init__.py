"""A neighbour that behaves like EC2, IMDS and the VPC, for tests and for a cloud on a laptop.

It imports nothing of the product; whatever the product does, the lab answers as AWS would.
Start it with `python -m tests.lab`. What of AWS and of a node is there, and what is not:

    simulated                                             by            not simulated
    EC2's API: interfaces, addresses, prefixes, tags,     cloud and     what the CNI never calls; IAM
      elastic IPs, security groups' rules, its limits,      the nouns     policies; prefix lists
      lag, throttling, faults                               beside it
    instance metadata, version 2, with its hop limit      imds          user data, spot events
    delivery to the interface that owns an address;       fabric        network ACLs, route tables per
      the source/destination check, counted                               subnet, NAT gateways, branch
                                                                          interfaces, latency, path MTU
    security groups, tracked per interface                firewall      filtering of what lives in the VPC
                                                                          itself (API, metadata, router)
    the internet gateway, one to one, by elastic IP       beyond        egress-only gateways
    a second VPC, peered, with a fabric of its own        peering       asking for a peering, more than two
    a network on premises, one host                       beyond        BGP
    kube-proxy: ClusterIP, NodePort, both external        kubeproxy     affinity, load balancers, IPVS,
      policies; iptables-legacy, iptables-nft, nftables                   the API server it listens to
    a node: boot, reboot, its folders, the daemon         node          systemd, udev
    kubelet and runtime: sandboxes, CNI chains            kubelet       containers, probes

systemd's own udevd and networkd, where they are installed, run on a node by `systemd`.

What observes rather than simulates: `hops` (each hook a packet passed, with its marks), `ear` (what the
kernel announces), `stream` (what of a stream of pings was lost), `talk` (whom the far end sees).

Product code and the product's tests do not belong here.
"""
