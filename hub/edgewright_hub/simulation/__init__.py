"""Virtual fleets: what the hub decides about devices whose truth is known."""
