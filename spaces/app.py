"""The Space: the same app as `python app.py`, for strangers. On ZeroGPU it draws with the real checkpoints.

`spaces` is Hugging Face's package, never the folder of that name next to it; on ZeroGPU it must be imported before
torch.
"""

import os

ZEROGPU = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")  # as the package itself reads it
if ZEROGPU:
    import spaces

from koala.console import quiet  # noqa: E402

quiet()  # before Gradio and transformers are imported

from koala.models.cards import CARDS  # noqa: E402
from koala.ui.build import launch  # noqa: E402
from koala.ui.session import Session  # noqa: E402

REAL = ("sdxl-base", "koala-lightning-700m", "koala-1b")
EMBEDDED = tuple(name for name, card in CARDS.items() if card.embedded)
MEMORY = 48 * 10**9  # bytes of the GPU that ZeroGPU lends
EXPORTS = os.environ.get("KOALA_EXPORT") == "1"  # a variable of the Space: visitors may export the embedded models


def on_zerogpu() -> Session:
    """Every model is put on the GPU before the page is served: the forks that draw inherit them."""
    from functools import partial

    from koala.models.downloads import fetch
    from koala.models.library import Library
    from koala.models.locate import availability
    from koala.ui import zerogpu

    for name in REAL:
        if not availability(CARDS[name])[0]:
            fetch(CARDS[name], tiny_vae=True)
    library = Library("cuda", memory=MEMORY, dtype="float16")
    library.settle((*REAL, *EMBEDDED))

    @spaces.GPU(duration=zerogpu.seconds)
    def drawn(requests, draw):
        """Requests and how to draw them -> what happens, step by step."""
        yield from zerogpu.events(requests, draw, library)

    wrap = partial(zerogpu.drawing, drawn)
    return Session(REAL[:2], local=False, exports=EXPORTS, library=library, wrap=wrap)


# local=False: visitors are strangers, so Distill is limited, and paths, LoRAs and downloads are refused.
session = on_zerogpu() if ZEROGPU else Session(local=False, exports=EXPORTS)
if __name__ == "__main__":
    launch(session, os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0")).block_thread()
