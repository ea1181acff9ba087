"""What a variant costs and how right it is: metrics and bounds on rows, times and memory on a machine.

`bench`, `evidence`, `footprint`, `latency` and `machine` need numpy and msgspec only: they also run on a device.
"""
