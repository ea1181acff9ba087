"""What is spoken over HTTPS: the API, the pages, and what devices ask for."""
