"""What pages show: figures and words for the templates, read from the two databases. Nothing here writes."""
