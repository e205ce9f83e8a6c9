"""Tag keys on interfaces: upstream's names, so that its tools and policies keep matching, and one of ours.

What is concluded from a tag does not belong here.
"""

from __future__ import annotations

from typing import Final

INSTANCE: Final = "node.k8s.amazonaws.com/instance_id"
"""The instance an interface was made for."""
CREATED: Final = "node.k8s.amazonaws.com/createdAt"
"""When it was made, RFC 3339; in a CreateEni, milliseconds since the epoch."""
NO_MANAGE: Final = "node.k8s.amazonaws.com/no_manage"
"""'true' keeps the CNI's hands off."""
CLUSTER: Final = "cluster.k8s.amazonaws.com/name"
OWNER: Final = "eks:eni:owner"
INTENT: Final = "vpcledger/intent"
"""The token of the intent that made it."""
