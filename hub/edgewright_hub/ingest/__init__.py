"""From a message of a device to sums that count it exactly once."""
