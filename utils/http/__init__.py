"""HTTP and server-sent events, shared by the benchmark client and the gateway."""
