"""What a person at the device asks for, beside a running agent or without one."""
