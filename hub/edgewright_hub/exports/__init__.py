"""What the hub tells other systems: every window to InfluxDB, sums and states to Prometheus."""
