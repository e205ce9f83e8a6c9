"""Random stories of one node's life, told to the real daemon's parts, and what must be true throughout."""
