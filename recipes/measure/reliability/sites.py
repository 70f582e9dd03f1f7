"""Pages of other sites against an app on one's own machine, in Chromium: none may read, drive, fill or frame it."""

import json
import shutil
from pathlib import Path

from recipes.measure.foreign_pages import (
    ANSWERS,
    ATTACK,
    REBOUND,
    foreign_site,
    framed,
    rebinding_browser,
    start_of_a_distillation,
)
from recipes.measure.reliability.running import served
from recipes.measure.reliability.trial import Trial

ATTACKERS = {  # where a foreign page lives -> the names by which it calls the app
    "localhost": ("127.0.0.1", "localhost", "x.localhost"),
    "127.0.0.1": ("localhost", "localhost.", "[::1]"),
    REBOUND: ("127.0.0.1", "localhost.", REBOUND),
}
OTHER_NAMES = ("x.localhost", "localhost.", REBOUND)  # by which nobody may open the page itself


def cross_site(folder: Path) -> Trial:
    """Requests, uploads and frames of foreign pages, and the page by names that others may have given this machine."""
    chromium = shutil.which("chromium")
    if not chromium:
        raise RuntimeError("no Chromium found; install one with: sudo apt-get install chromium")
    tried, failures = 0, []
    with served(folder, host="127.0.0.1") as app, foreign_site() as site, rebinding_browser(chromium) as browser:
        port, start = app.url.rstrip("/").rpartition(":")[2], start_of_a_distillation(app.url)
        for home, names in ATTACKERS.items():
            page = browser.new_page()
            page.goto(f"http://{home}:{site}/")
            for name in names:
                answers = page.evaluate(ATTACK, [f"http://{name}:{port}/", start])
                tried += len(answers) + 1
                failures += [f"{home} -> {name}: {what}: {a}" for what, a in answers.items() if a not in ANSWERS]
            failures += [f"{home}: a frame shows the app" for shown in framed(page) if shown]
            page.close()
        for name in OTHER_NAMES:
            page = browser.new_page()
            answer = page.goto(f"http://{name}:{port}/")
            tried += 1
            if answer is None or answer.status != 403:
                failures.append(f"the page opens as {name}")
            page.close()
        runs = [path.name for path in (folder / "runs").glob("*")]
        planted = list((folder / "files").rglob("planted.png"))
        page = browser.new_page()
        page.goto(app.url)
        page.wait_for_selector("#k-prompt")
        own = page.evaluate("async () => (await fetch('config')).status")
        page.close()
    if own != 200:
        failures.append(f"the app's own page was answered {own}")
    return Trial(
        what="requests, uploads and frames of pages of other sites, in Chromium, and the page by foreign names",
        tried=tried,
        survived=tried - len(failures),
        figures={"distillations begun": len(runs), "files planted": len(planted)},
        failures=(*failures, *(f"run {r}" for r in runs), *(json.dumps(str(f.name)) for f in planted)),
    )
