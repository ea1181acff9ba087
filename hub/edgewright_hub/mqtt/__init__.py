"""The brokers: one inside the hub, and the configuration of one beside it."""
