"""Many clients at once: each gets the very picture that it asked for, or is told why not and asks again."""

import io
import time
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from koala.models.library import Library
from koala.request import GenerationRequest
from koala.sampling.generate import generate
from recipes.measure.hostile import QUICK, STUDENT
from recipes.measure.reliability.running import LONGEST, App, Refused
from recipes.measure.reliability.trial import Trial

PROMPTS = ("a red circle", "a blue square", "a green star", "a yellow triangle")
AGAIN = 0.5  # s before a client that was told of a full queue asks again


def asked(client: int) -> dict:
    """What client number `client` asks for: no two ask for the same picture."""
    return {"model": STUDENT, **QUICK, "prompt": PROMPTS[client % len(PROMPTS)], "seed": 1000 + client}


def at_once(app: App, clients: int) -> Trial:
    """`clients` ask at the same moment, each from an address of its own."""
    model = Library("cpu").get(STUDENT)
    expected = [generate(GenerationRequest(**asked(k)), model).images[0].tobytes() for k in range(clients)]
    refusals: list[str] = []

    def client(k: int) -> str:
        """Empty where the client got its own picture."""
        visitor, deadline = app.visitor(k), time.monotonic() + LONGEST
        while time.monotonic() < deadline:
            try:
                answer = visitor.call("generate", asked(k))
            except Refused as refused:
                if "full" not in str(refused):
                    return f"client {k} was refused: {refused}"
                refusals.append(str(refused))
                time.sleep(AGAIN)
                continue
            own = Image.open(io.BytesIO(visitor.picture(answer))).tobytes() == expected[k]
            return "" if own else f"client {k} got a picture that is not its own"
        return f"client {k} got nothing within {LONGEST} s"

    begun = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        ended = list(pool.map(client, range(clients)))
    failures = tuple(filter(None, ended))
    return Trial(
        what=f"{clients} clients ask for {clients} different pictures at the same moment",
        tried=clients,
        survived=clients - len(failures),
        figures={
            "seconds": round(time.monotonic() - begun, 1),
            "answers that the queue is full": len(refusals),
            "pictures mixed up": sum("not its own" in failure for failure in failures),
        },
        failures=failures,
    )
