"""The production API of lab 3.3.7: one OpenAI-compatible address in front of the course's engines.

    request ─▶ Observe (request id, times) ─▶ Authenticator (key, rates), ParsedRequest (size, fields)
            ─▶ Pool (queue, choice of a backend) ─▶ Relay (retry, deadline, stream) ─▶ engine

Small rules stand alone and are pure: `bucket`, `balance`, `circuit`, `drain`, `sse`, `timing`. They are the
references of the lab's exercises, and what the gateway itself runs. `python -m utils.gateway` serves.

On a public network, put a reverse proxy (nginx, Caddy) in front, for TLS and against clients that are slow on
purpose.
"""
