"""``GET /scaling`` on the operations port: what the autoscaler is held to, what it saw, what it decided and why."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from janus_placement_controller.autoscaling import Scaling

PATH = "/scaling"


def scaling_route(scaling: Scaling) -> Route:
    """Return the route."""

    async def serve(_: Request) -> Response:
        # Not starlette's encoder: a TPOT may be infinite, which JSON has no word for but null.
        return Response(msgspec.json.encode(scaling.report()), media_type="application/json")

    return Route(PATH, serve)
