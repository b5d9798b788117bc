"""The gateway's commands.

python -m utils.gateway [--config gateway.yaml]     serves
python -m utils.gateway new-key NAME                makes a key: prints it once, and the lines for the file
python -m utils.gateway check [--config ...]        reads the settings and reports errors

At SIGHUP a running gateway reads its settings again, and goes on if they are wrong.

OpenTelemetry traces, if wanted, are FastAPI's own: `pip install 'fastapi[opentelemetry]'`, and set
FASTAPI_OTEL_AUTO_CONFIGURE=true, OTEL_SERVICE_NAME=gateway, OTEL_EXPORTER_OTLP_ENDPOINT=http://HOST:4318. The
engine gets the gateway's span as its parent.
"""

from __future__ import annotations

import argparse
import sys

from utils.gateway.auth import new_key
from utils.gateway.server import run
from utils.gateway.settings import SettingsError, load_settings


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m utils.gateway", description="Serves an API.")
    parser.add_argument(
        "command", nargs="?", default="serve", choices=["serve", "check", "new-key"]
    )
    parser.add_argument("name", nargs="?", help="of new-key: whose key it is")
    parser.add_argument("--config", help="YAML file (or set GATEWAY_CONFIG)")
    arguments = parser.parse_args()
    if arguments.command == "new-key":
        if not arguments.name:
            parser.error("new-key needs a name")
        key, sha256 = new_key()
        print(f"The key, shown this once: {key}", file=sys.stderr)
        print(f"keys:\n  - name: {arguments.name}\n    sha256: {sha256}")
        return
    try:
        settings = load_settings(arguments.config)
    except SettingsError as error:
        sys.exit(str(error))
    if arguments.command == "check":
        print("The settings are fine.")
        return
    run(settings, lambda: load_settings(arguments.config))


if __name__ == "__main__":
    main()
