"""The labs' library: profiles, engines, benchmark, telemetry, KV cache, checks, the tiny model."""
