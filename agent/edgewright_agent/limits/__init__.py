"""What the agent may use of its device, and what it gives up to stay within that."""
