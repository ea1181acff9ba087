"""What is exported: preprocessing, the net, its head and the monitor, in one graph that takes raw rows."""
