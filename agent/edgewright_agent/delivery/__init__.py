"""The way to the hub and back: the spool, the link, the thread that feeds them, what the hub wishes."""
