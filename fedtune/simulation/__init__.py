"""A whole federation on one machine: virtual clients, the same server and client code."""
