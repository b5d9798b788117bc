"""The production API of lab 3.3.7: one OpenAI-compatible address in front of the course's engines.

    request ─▶ middleware (request id, times) ─▶ guard (key, rates, size, parameters)
            ─▶ pool (queue, choice of a backend) ─▶ relay (retry, deadline, stream) ─▶ engine

Small rules stand alone and are pure: `bucket`, `balance`, `circuit`, `drain`, `sse`, `timing`. They are the
references of the lab's exercises, and what the gateway itself runs. `python -m utils.gateway` serves.
"""

from utils.gateway.app import create_app
from utils.gateway.settings import Settings, SettingsError, load_settings

__all__ = ["Settings", "SettingsError", "create_app", "load_settings"]
