"""Float files to smaller and faster ones: what is worth trying on a device, and how each is made."""
