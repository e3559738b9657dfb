"""Sends the outcome of a job to a URL: `python -m jobs.webhook`, with URL and body in its environment."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import httpx

from cluster.errors import InputError
from cluster.settings import webhook_order
from cluster.tls import trusted

TRIES = 3
TIMEOUT_S = 20.0  # of one request
_PAUSE_S = 5.0  # before the second try; the pause before the third is twice as long
_SHOWN = 300  # characters of an answer or an error that are shown


def send(url: str, body: str, sleep: Callable[[float], None] = time.sleep) -> str | None:
    """Post the JSON; try again if the server cannot be reached, is overloaded or has an internal error.

    Returns:
        What went wrong at the last try; None if the server accepted it.
    """
    said = ""
    for number in range(TRIES):
        if number:
            sleep(_PAUSE_S * number)
        said, final = _try(url, body)
        if not said:
            return None
        if final:
            break
    return said


def _try(url: str, body: str) -> tuple[str, bool]:
    """Post once. Returns what went wrong ('' for nothing) and whether trying again is useless.

    The message shows only the start of the URL, because its end may hold a secret.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "fleetune"}
    try:
        certificates = trusted() if url.lower().startswith("https:") else False
        answer = httpx.post(
            url, content=body, headers=headers, timeout=TIMEOUT_S, follow_redirects=False, verify=certificates
        )
    except InputError as error:
        return str(error), True
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError):  # the last of the codec of host names
        return f"{_place(url)} is not a URL that something can be sent to", True
    except httpx.HTTPError as error:
        return f"{_place(url)} cannot be reached: {type(error).__name__}: {error}"[:_SHOWN], False
    if answer.is_success:
        return "", True
    text = " ".join(answer.text.split())[:_SHOWN]
    final = answer.status_code < 500 and answer.status_code != 429
    return f"{_place(url)} answers {answer.status_code}{': ' + text if text else ''}", final


def _place(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return "the webhook's URL"
    return f"{parsed.scheme}://{parsed.host}"


def main() -> int:
    order = webhook_order()
    if order is None:
        print("nothing to send: FLEETUNE_WEBHOOK_URL and FLEETUNE_WEBHOOK_BODY are not set", file=sys.stderr)
        return 2
    said = send(*order)
    if said is not None:
        print(f"the outcome of the job could not be sent: {said}. See queue.on_end.webhook", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
