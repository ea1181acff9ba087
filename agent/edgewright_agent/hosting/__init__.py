"""The agent as a service of its machine: systemd, logs, and what the running process says of itself."""
