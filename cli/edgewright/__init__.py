"""The `edgewright` command: the only part that may import all others, and it imports each only when it is asked for."""
