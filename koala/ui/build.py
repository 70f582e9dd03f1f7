"""The whole app: tabs, endpoints, queue and launch settings."""

from collections.abc import Sequence

import gradio as gr
from gradio.utils import get_space
from starlette.middleware import Middleware

from koala.ui import widgets
from koala.ui.architecture import tab as architecture
from koala.ui.attention import tab as attention
from koala.ui.benchmark import tab as bench
from koala.ui.compare import tab as compare
from koala.ui.distill import tab as distill
from koala.ui.endpoints import add_endpoints
from koala.ui.export import tab as export
from koala.ui.gate.body_limit import BodyLimit
from koala.ui.gate.calls import Calls
from koala.ui.gate.guard import guard
from koala.ui.gate.same_origin import Rules, SameOrigin, bracketed
from koala.ui.gate.uploads import Allowance, Ledger, Uploads
from koala.ui.limits import PUBLIC_UPLOAD
from koala.ui.session import Session
from koala.ui.sessions import CAPACITY, Sessions, Visits, bound
from koala.ui.theme import ASSETS, Eucalyptus
from koala.ui.visitors import Share

# title, build(session); a new tab is one line here
TABS = (
    ("Compare", compare.build),
    ("Attention", attention.build),
    ("Distill", distill.build),
    ("Architecture", architecture.build),
    ("Benchmark", bench.build),
    ("Export", export.build),
)
THREADS = 64  # of handlers; every run that waits for the device occupies one, and other handlers must not wait for it
LOCAL = ("127.0.0.1", "localhost", "::1", "[::1]")


def build(session: Session) -> gr.Blocks:
    """The page; no model is in memory yet."""
    with gr.Blocks(title="KOALA", analytics_enabled=False, delete_cache=(3600, 86400)) as demo:
        gr.HTML(widgets.header(), apply_default_css=False)
        with gr.Tabs(elem_classes="k-tabs", overflow_behavior="wrap"):
            for title, fill in TABS:
                with gr.Tab(title):
                    fill(session)
        add_endpoints(session)
    demo.queue(api_open=False, max_size=20)
    if not session.local:
        session.device.share = Share(demo._queue, session.device.line)
    return demo


def gates(rules: Rules, sessions: Sessions, *, local: bool) -> list[Middleware]:
    """The middleware between a request and Gradio, outermost first.

    A Space appears in a frame of huggingface.co and answers any origin: it has no password, and no private network that
    another page could reach through it.
    """
    return [
        *([] if get_space() else [Middleware(SameOrigin, rules=rules)]),
        Middleware(Visits, sessions=sessions),
        Middleware(BodyLimit),
        Middleware(Uploads, ledger=Ledger(Allowance.of(local=local))),
        Middleware(Calls),
    ]


def launch(
    session: Session,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    users: list[tuple[str, str]] | None = None,
    allow: Sequence[str] = (),
) -> gr.Blocks:
    """Serve the page, then start to load the models. Returns at once; `block_thread` waits.

    `users` are names and passwords; with None no password is needed. `allow` are further host names, NAME or NAME:PORT,
    that the app answers to; UserError for anything else.
    """
    rules, sessions = Rules.of(host, allow, local=session.local), Sessions()
    demo = build(session)
    bound(demo)
    guard(demo)
    demo.launch(
        server_name=bracketed(host),
        server_port=port,
        share=share,
        auth=users,
        theme=Eucalyptus(),
        js=(ASSETS / "keys.js").read_text(),
        favicon_path=ASSETS / "favicon.png",
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        pwa=False,
        max_file_size="2gb" if session.local else f"{PUBLIC_UPLOAD}mb",  # a LoRA, or only a PNG
        allowed_paths=[],
        max_threads=THREADS,
        footer_links=["api"],
        state_session_capacity=CAPACITY,
        app_kwargs={"middleware": gates(rules, sessions, local=session.local), "lifespan": sessions.serve},
    )
    session.start()
    return demo
