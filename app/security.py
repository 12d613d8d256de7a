"""Who may ask: what is refused before anything is parsed."""

from typing import Annotated

from fastapi import Header

from app.errors import APIError


async def refuse_cross_site(sec_fetch_site: Annotated[str | None, Header()] = None) -> None:
    """Refuse a GET that starts work when another site's page makes the browser send it.

    Raises APIError 403 on `Sec-Fetch-Site: cross-site` (W3C Fetch Metadata). Programs that are
    no browsers do not send the header.
    """
    if sec_fetch_site == "cross-site":
        raise APIError(
            403,
            "GET /generate is not for other sites' pages; use POST",
            code="cross_site",
        )
