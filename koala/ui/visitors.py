"""Each visitor's share of a public app's queue, so that one alone cannot keep the others out."""

import os

from gradio.queueing import Queue

MOST = 4  # requests of one visitor that wait or run; the queue has five times as many places
TOO_MANY = (
    f"you have {MOST} requests here that wait or run, the most that this public server takes of one visitor; "
    "wait until one of them is done, or stop it"
)


def visitor(request, username: str | None) -> str:
    """Who asks: the name that came with a password, or the address.

    On a Space every address is its proxy's, and what that forwards can be forged: nobody is taken for another there,
    but whoever wants to can be many.
    """
    forwarded = request.headers.get("x-forwarded-for") if os.environ.get("SYSTEM") == "spaces" else None
    return username or forwarded or (request.client.host if request.client else "")


def share(queue: Queue) -> None:
    """Refuse what a visitor asks for beyond their share; events that nobody waits behind are free."""
    push = queue.push

    async def pushed(body, request, username):
        asked = queue.blocks.fns.get(body.fn_index)
        if asked and asked.concurrency_limit is not None:
            who = visitor(request, username)
            theirs = [
                event
                for event in queue.event_ids_to_events.values()
                if event.fn.concurrency_limit is not None and visitor(event.request, event.username) == who
            ]
            if len(theirs) >= MOST:
                return False, TOO_MANY, "error"
        return await push(body=body, request=request, username=username)

    queue.push = pushed
