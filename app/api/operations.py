"""/health, /ready, /metrics and /version: whether it lives, takes work, how it does, what it is."""

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import PlainTextResponse, Response

from app.api.documented_responses import refusals
from app.api.operation_types import Health, Ready, Version
from app.errors import APIError
from app.guard.loopback import is_loopback
from app.services import CallerDep, ServicesDep

router = APIRouter(tags=["operation"])

_OWN_SITE = ("none", "same-origin")


@router.get("/health", response_model=Health, operation_id="health")
async def health(services: ServicesDep) -> dict[str, Any]:
    """Always 200 while this process lives; how the engine is, and how busy."""
    link = services.link
    return {
        "status": "ok",
        "engine": link.state,
        "engine_pid": link.pid,
        "running": link.gauges.running,
        "waiting": link.gauges.waiting,
        "paused": link.gauges.paused,
        "tapes": len(services.registry.store.retention),
        "kv_blocks_used": link.gauges.kv_blocks_used,
        "kv_blocks_total": link.info.kv_blocks_total if link.info else 0,
    }


@router.get("/ready", response_model=Ready, operation_id="ready", responses=refusals(503))
async def ready(services: ServicesDep) -> dict[str, str]:
    """200 when new work is taken, 503 with Retry-After when not."""
    services.admission.check_ready()
    return {"status": "ready"}


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    operation_id="metrics",
    response_description="docs/metrics.md lists them.",
)
async def metrics(request: Request, services: ServicesDep) -> Response:
    """What is counted and measured, in Prometheus's text format; it names no key and no content."""
    await services.turns.take(request.state.client)  # to write it takes 3 ms
    return Response(services.metrics.text(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


@router.post(
    "/v1/demo/kill-engine",
    status_code=204,
    operation_id="kill_engine",
    responses=refusals(403, 404),
)
async def kill_engine(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """With --demo, and from this machine: kill the engine, to see every stream go on."""
    if not services.settings.demo:
        raise APIError(404, "this server was not started with --demo", code="not_found")
    if (
        not is_loopback(caller.address)
        or request.headers.get("Sec-Fetch-Site", "none") not in _OWN_SITE
    ):
        raise APIError(403, "only a page or a program of this machine may do this", code="not_here")
    services.link.kill()
    return Response(status_code=204)


@router.get("/version", response_model=Version, operation_id="version")
async def versions(services: ServicesDep) -> dict[str, Any]:
    """This server's version, its model and how it runs it."""
    info = services.link.info
    return {
        "version": version("tickertape"),
        "model": services.model_name,
        "dtype": info.dtype if info else None,
        "device": info.device if info else None,
        "max_model_len": services.admission.context,
        "torch": info.torch_version if info else None,
    }
