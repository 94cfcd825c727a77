"""`app` for any ASGI server: `uvicorn control_plane.asgi:app`.

Talks to the Triton and the Redis of the settings, and starts neither; `python -m control_plane serve` does that.
"""

from control_plane.app import create_app
from control_plane.settings import load_settings
from control_plane.telemetry.logs import configure_logs

_settings = load_settings()
configure_logs(debug=_settings.api.debug, log_format=_settings.log_format)
app = create_app(_settings)
