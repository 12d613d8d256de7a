"""`tickertape serve | cluster | bench`: commands that hand over to a program of their own."""

from functools import partial
from typing import Any

import typer

from app.cli.options import with_options
from app.settings import ClusterSettings, Settings, load


@with_options(Settings)
def serve(flags: dict[str, Any]) -> None:
    """Serve a model over HTTP, with a live page at / and the API's documentation at /docs."""
    from app.start import run

    run(load(Settings, flags))


@with_options(ClusterSettings)
def cluster(flags: dict[str, Any]) -> None:
    """Serve a model by several replicas on Ray Serve, with Redis for the tapes."""
    from app.cluster.deploy import run

    run(partial(load, ClusterSettings, flags))


def bench(context: typer.Context) -> None:
    """Measure speed and memory on this machine, beside other servers if you like."""
    from bench.serve import main

    main(context.args)
