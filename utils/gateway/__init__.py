"""The production API of lab 3.3.7: one OpenAI-compatible address in front of the course's engines.

    request ─▶ Observe (request id, times) ─▶ Authenticator (key, rates), ParsedRequest (size, fields)
            ─▶ Pool (queue, choice of a backend) ─▶ Relay (retry, deadline, stream) ─▶ engine

Small rules are pure functions in files of their own: `bucket`, `balance`, `circuit`, `drain`, `sse`,
`timing`. They are the references of the lab's exercises, and the gateway runs them.
`python -m utils.gateway` serves.
"""
