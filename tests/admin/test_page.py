"""The page in a real browser: Chromium, on the admin server, with a scripted daemon behind it.

ATTACHD_SCREENSHOTS=FOLDER keeps pictures of it.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from attachd.admin.server import AdminServer
from attachd.metrics import Metrics
from attachd.model import Reason, Status, Step

from .conftest import TOKEN, Health, serving
from .scripted import NOW, Scripted, delivery, failed, inbox, journey, pause, sent, under_way

playwright_api = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
expect = playwright_api.expect

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]  # Chromium may have to be installed

_ALONE = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
          "--disable-component-update", "--disable-sync"]  # fmt: skip

HOSTILE = (
    "<img src=x onerror=document.title='owned'>.pdf",
    "</script><script>document.title='owned'</script>",
    "javascript:document.title='owned'",
    "\"'><svg onload=document.title='owned'>",
    "invoice\u202efdp.exe",
    "two\nlines\r\n\x1b[31mred.pdf",
    "latin-1 \udce4\udcff.pdf",
    "{{constructor.constructor('document.title=1')()}}",
    "__proto__",
    "a" * 240 + ".pdf",
)


def _chromium() -> str | None:
    return next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium, installed if that can be done."""
    found = _chromium()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(["apt-get", "-qq", *command], capture_output=True, timeout=120)
        found = _chromium()
    if found is None:
        pytest.skip("no Chromium here, and none could be installed with apt-get")
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(chromium: str) -> AsyncIterator[Any]:
    """One Chromium for all tests here."""
    async with playwright_api.async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=_ALONE)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def site(daemon: Scripted, metrics: Metrics, health: Health) -> AsyncIterator[AdminServer]:
    """The admin server, on this module's loop."""
    async with serving(daemon, metrics, health) as server:
        yield server


Open = Callable[..., Awaitable[Any]]


@pytest.fixture
def wrong() -> list[str]:
    """What went wrong in the browser: nothing may be left here at the end of a test."""
    return []


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(browser: Any, site: AdminServer, wrong: list[str]) -> AsyncIterator[Open]:
    """Opens the page in a browser of its own; at the end nothing may have gone wrong in it."""
    contexts = []

    async def open_it(*, token: bool = True, hurry: bool = False, **given: Any) -> Any:
        context = await browser.new_context(**{"viewport": {"width": 1180, "height": 900}} | given)
        contexts.append(context)
        if hurry:
            quick = "for (const name of ['setTimeout', 'setInterval']) { const slow = window[name];"
            await context.add_init_script(f"{quick} window[name] = (f, ms) => slow(f, ms / 10) }}")
        page = await context.new_page()
        page.set_default_timeout(5000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
        page.on("dialog", lambda dialog: wrong.append(f"dialog {dialog.message}"))
        page.on("request", lambda asked: asked.url.startswith((site.address, "data:")) or wrong.append(asked.url))
        await page.goto(f"{site.address}/#token={TOKEN}" if token else site.address)
        await expect(page.locator("#link-words")).to_have_text("live")
        return page

    yield open_it
    for context in contexts:
        await context.close()
    assert wrong == []


async def fits(page: Any) -> bool:
    """Whether nothing is wider than the window."""
    return bool(await page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


async def photograph(page: Any, name: str) -> None:
    """Keep a picture, if somebody wants one."""
    folder = os.environ.get("ATTACHD_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        await page.screenshot(path=f"{folder}/{name}.png", full_page=True)


async def test_what_changes_shows_without_a_reload(open_page: Open, daemon: Scripted) -> None:
    page = await open_page()
    await page.evaluate("window.same = true")
    await expect(page.locator("#banner")).to_have_text("")
    await expect(page.locator("#legend")).to_be_hidden()
    waiting = replace(daemon.told.inboxes[0], waiting=12, oldest_waiting_s=300.0)
    begun = delivery(1, "claim form.pdf", 4_000_000)
    daemon.told = replace(
        daemon.told, platform=pause(), inboxes=(waiting,), under_way=(under_way(begun, Step.PUT, 1_000_000),)
    )
    await expect(page.locator("#inboxes .waiting dd")).to_have_text("12")
    await expect(page.locator("#inboxes .foot")).to_contain_text("5 min")
    await expect(page.locator("#banner h3")).to_have_text("Everything is paused: unreachable")
    await expect(page.locator("#banner .why")).to_have_text("api.example.org: no answer")
    await expect(page.locator("#banner .when")).to_contain_text("Tries next at")
    bar = page.locator("#under-way progress")
    await expect(bar).to_have_js_property("value", 1_000_000)
    daemon.told = replace(daemon.told, under_way=(under_way(begun, Step.PUT, 3_000_000),))
    await expect(bar).to_have_js_property("value", 3_000_000)
    by_hand = pause(Reason.PAUSED_BY_OPERATOR, "Somebody paused it.", retry_in_s=None)
    daemon.told = replace(daemon.told, platform=by_hand)
    await expect(page.locator("#banner h3")).to_have_text("Everything is paused by an operator")
    await expect(page.locator("#banner button")).to_have_text("Resume")
    daemon.told = replace(daemon.told, platform=None, under_way=(), latest=(journey(sent(begun)),))
    await expect(page.locator("#latest .name")).to_have_text("claim form.pdf")
    await expect(page.locator("#latest .words")).to_contain_text("put 180 ms")
    await expect(page.locator("#banner")).to_have_text("")
    assert await page.evaluate("window.same")


async def test_a_failed_file_is_sent_again_from_the_page(open_page: Open, daemon: Scripted) -> None:
    one = daemon.add_failure(failed(delivery(1, "a.exe"), Reason.REFUSED, "the platform refuses this type"))
    page = await open_page()
    assert "token" not in page.url, "the token is out of the address bar and the history"
    item = page.locator("#failures li")
    await expect(item).to_contain_text("the platform refuses this type")
    await expect(item).to_contain_text("mend the file")
    await item.get_by_role("button").click()
    await expect(item.locator(".done")).to_have_text("Back in claims as a.exe.")
    assert ("retry", one, "claims") in daemon.asked


async def test_a_file_that_cannot_go_back_says_why(open_page: Open, daemon: Scripted) -> None:
    daemon.add_failure(failed(delivery(1, "a.exe"), Reason.REFUSED, "refused"))
    daemon.retried = [replace(daemon.retried[0], name=None, problem="the inbox is not writable")]
    page = await open_page()
    await page.locator("#failures button").click()
    await expect(page.locator("#failures .problem")).to_have_text("the inbox is not writable")


async def test_without_the_token_the_page_asks_for_it(open_page: Open, daemon: Scripted) -> None:
    """A wrong one is asked for again; it is kept for this tab."""
    daemon.add_failure(failed(delivery(1, "a.exe"), Reason.REFUSED, "refused"))
    page = await open_page(token=False)
    await page.locator("#failures button").click()
    await page.keyboard.type("wrong €")
    await page.keyboard.press("Enter")
    await expect(page.locator("#token")).to_have_value("")
    assert daemon.asked == []
    await page.keyboard.type(TOKEN)
    await page.keyboard.press("Enter")
    await expect(page.locator("#failures .done")).to_be_visible()
    await page.locator("#inboxes button").click()
    async with asyncio.timeout(5):
        while ("pause", "claims", None) not in daemon.asked:
            await asyncio.sleep(0.02)
    await page.reload()
    assert await page.evaluate("sessionStorage.length") == 1
    assert await page.evaluate("localStorage.length") == 0


async def test_hostile_names_are_inert_text(open_page: Open, daemon: Scripted) -> None:
    """Each shows as what it is, escaped, in every place where a name shows."""
    for number, name in enumerate(HOSTILE, 1):
        daemon.add_failure(failed(delivery(number, name), Reason.REFUSED, f"refused: {name}"))
    begun = [delivery(100 + number, name) for number, name in enumerate(HOSTILE)]
    daemon.told = replace(
        daemon.told,
        platform=pause(detail=HOSTILE[0]),
        inboxes=(*daemon.told.inboxes, *(inbox(name, pause=pause(detail=name), ignored={name: 1}) for name in HOSTILE)),
        under_way=tuple(under_way(one, Step.PUT, 10) for one in begun),
        latest=tuple(journey(sent(delivery(200 + n, name, in_inbox="mail"))) for n, name in enumerate(HOSTILE)),
    )
    page = await open_page()
    await expect(page.locator("#failures li")).to_have_count(len(HOSTILE))
    shown = await page.locator("#failures .what .name").all_text_contents()
    assert shown[:4] == list(HOSTILE[:4])
    assert shown[4:7] == ["invoice\\u202efdp.exe", "two\\x0alines\\x0d\\x0a\\x1b[31mred.pdf", "latin-1 \\xe4\\xff.pdf"]
    text = await page.evaluate("document.body.innerText")
    assert not set(text) & set("\u202e\x1b\r")
    count = "document.querySelectorAll('img, iframe, a, [onload], [onerror], script').length"
    assert await page.evaluate(count) == 1, "our own script, and nothing that came from a name"
    assert await page.title() == "attachd: paused"
    assert await fits(page)
    await page.set_viewport_size({"width": 360, "height": 740})
    assert await fits(page)
    await page.locator("#failures button").first.click()
    await expect(page.locator("#failures .done")).to_contain_text("onerror")
    await photograph(page, "hostile")


async def test_even_a_mistake_in_the_script_could_run_nothing(open_page: Open, wrong: list[str]) -> None:
    """The policy refuses markup from text, and what it might fetch."""
    page = await open_page()
    refused = "() => { try { document.body.innerHTML = '<b>x</b>'; return false } catch { return true } }"
    assert await page.evaluate(refused)
    script = "() => new Promise(done => { const s = document.createElement('img'); s.onerror = () => done(true);"
    assert await page.evaluate(f"{script} s.onload = () => done(false); s.src = '/x.png'; }})")
    assert len(wrong) == 1
    assert "img-src" in wrong.pop()


async def test_a_page_from_elsewhere_can_neither_change_nor_read_nor_frame(
    browser: Any, site: AdminServer, daemon: Scripted
) -> None:
    """A form that posts, a script that fetches, a frame: what any page in the operator's browser could try."""
    daemon.add_failure(failed(delivery(1, "private.pdf"), Reason.REFUSED, "refused"))
    context = await browser.new_context()
    body = f"""<form method=post enctype=text/plain action="{site.address}/api/retry"><input name='{{"what":null,"x":"'
      value='"}}'></form><iframe src="{site.address}/"></iframe>"""
    answer = {"content_type": "text/html", "body": body}
    await context.route("http://evil.example/**", lambda route: route.fulfill(**answer))
    page = await context.new_page()
    page.set_default_timeout(5000)
    await page.goto("http://evil.example/")
    assert "private" not in (await page.frames[1].content())
    read = "url => fetch(url).then(answer => answer.text()).catch(() => 'refused')"
    assert await page.evaluate(read, f"{site.address}/api/status") == "refused"
    with contextlib.suppress(playwright_api.Error):
        async with page.expect_response("**/api/retry") as posted:
            await page.evaluate("document.forms[0].submit()")
        assert (await posted.value).status == 403
    assert daemon.asked == []
    await context.close()


async def test_the_keyboard_reaches_everything_and_keeps_its_place(open_page: Open, daemon: Scripted) -> None:
    daemon.add_failure(failed(delivery(1, "a.exe"), Reason.REFUSED, "refused"))
    daemon.told = replace(daemon.told, platform=pause())
    page = await open_page()
    reached = []
    for _ in range(3):
        await page.keyboard.press("Tab")
        reached.append(await page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent"))
    assert reached == ["Try now", "Pause claims", "Send again: a.exe"]
    daemon.add_failure(failed(delivery(2, "b.exe"), Reason.REFUSED, "refused"))
    await expect(page.locator("#failures li")).to_have_count(2)
    focused = "document.activeElement.ariaLabel"
    assert await page.evaluate(focused) == reached[-1], "an update does not take the focus away"
    await page.keyboard.press("Enter")
    await expect(page.locator("#failures .done")).to_be_focused()
    assert daemon.asked[0][0] == "retry"
    assert await page.locator("#banner").get_attribute("aria-live") == "polite"


async def test_a_lost_connection_is_said_and_found_again(open_page: Open, daemon: Scripted, site: AdminServer) -> None:
    page = await open_page(hurry=True)
    context = page.context
    await context.route("**/api/events", lambda route: route.abort())
    site._closing.set()  # every stream ends, as at a proxy's timeout; looking still works
    await expect(page.locator("#link-words")).to_contain_text("live updates broke off", timeout=8000)
    daemon.told = replace(daemon.told, inboxes=(inbox(waiting=77),))
    await expect(page.locator("#inboxes .waiting dd")).to_have_text("77")
    await context.set_offline(True)
    await expect(page.locator("#link-words")).to_contain_text("connection lost")
    site._closing.clear()
    await context.set_offline(False)
    await context.unroute("**/api/events")
    await expect(page.locator("#link-words")).to_have_text("live", timeout=10_000)


def a_day_in_the_office(daemon: Scripted, metrics: Metrics) -> None:
    """A telling state: most is well, one inbox waits for its share, two files need somebody."""
    names = ("claim-form-4711.pdf", "damage photo kitchen.jpg", "police report.pdf", "invoice 2026-118.pdf")
    for number, (name, reason, said, step) in enumerate(
        (
            (
                "setup.exe",
                Reason.REFUSED,
                "The platform does not take files of this type (application/x-dosexec).",
                Step.UPLOAD,
            ),
            ("scan_0093.pdf", Reason.EMPTY, "The file has no content.", Step.CHECK),
        ),
        1,
    ):
        one = failed(delivery(number, name, 0 if reason is Reason.EMPTY else 3_400_000), reason, said, step)
        daemon.add_failure(one, ago_s=60 * 23 * number)
    latest = [
        journey(sent(delivery(50 + number, name, 180_000 + 730_000 * number)), 20 + 47 * number, 0.31 + 0.17 * number)
        for number, name in enumerate(names)
    ]
    latest.insert(2, journey(daemon.entries[0].delivery, 95, 0.21))
    latest.append(journey(sent(delivery(60, "statement_2026-10.xlsx", 48_200, "statements")), 260, 0.27))
    moving = under_way(
        replace(delivery(70, "expert opinion with annexes.pdf", 9_600_000), tries=0), Step.PUT, 6_100_000
    )
    posting = under_way(delivery(71, "receipt-0412.png", 310_000), Step.MESSAGE, 310_000)
    waits = replace(delivery(72, "fax 2026-11-02 09.14.tif", 870_000), last_failure=None)
    daemon.told = Status(
        True,
        "1.0.0",
        None,
        (
            inbox("claims", waiting=3, under_way=3, sent=4812, failed=2, oldest_waiting_s=4.0,
                  ignored={"temporary_name": 1, "hidden": 2}),
            inbox("statements", sent=1377),
            inbox("fax", waiting=41, sent=928, oldest_waiting_s=760.0,
                  pause=pause(Reason.FOLDER_MISSING, "/srv/attachd/fax: the folder is not there.", retry_in_s=24.0,
                              paused_s=730.0)),
        ),
        (moving, posting, under_way(waits, None, 0, 0.0)),
        tuple(latest),
    )  # fmt: skip
    quantities = "2 3 3 5 9 14 22 31 28 35 41 38 44 40 47 52 49 36 30 18 9 12 25 38 45 51 48 46 50 43 39 45 42 47 33"
    past = NOW - timedelta(hours=6)
    ended = [
        (past.timestamp() + 620 + 600 * at, True)
        for at, many in enumerate(quantities.split())
        for _ in range(int(many))
    ]
    ended += [(past.timestamp() + 620 + 600 * at, False) for at in (9, 9, 10, 24, 31, 33)]
    metrics.remembered(ended, all_since=None)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_is_readable_in_light_and_dark_wide_and_narrow(
    open_page: Open, daemon: Scripted, metrics: Metrics, scheme: str
) -> None:
    a_day_in_the_office(daemon, metrics)
    page = await open_page(color_scheme=scheme)
    await expect(page.locator("#inboxes article")).to_have_count(3)
    await expect(page.locator("#hours-count")).to_contain_text("sent")
    ground, text = [
        sum(
            int(part)
            for part in (await page.evaluate(f"getComputedStyle(document.documentElement).{name}"))[4:-1].split(",")
        )
        for name in ("backgroundColor", "color")
    ]
    assert (ground > text) is (scheme == "light")
    for name in (".soft, .sub", "#failures .reason", ".notice h3", ".pill", ".path", ".foot"):
        assert await contrast(page, name) >= 4.5, name
    assert await fits(page)
    await photograph(page, f"page-{scheme}")
    for width in (320, 390, 768):
        await page.set_viewport_size({"width": width, "height": 800})
        assert await fits(page), width
        if width == 390:
            await photograph(page, f"phone-{scheme}")


async def contrast(page: Any, selector: str) -> float:
    """WCAG's contrast of an element's text to what is behind it."""
    return float(
        await page.evaluate(
            """selector => {
              const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
              const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92
                : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
              const element = document.querySelector(selector);
              let behind = element, ground = [0, 0, 0, 0];
              while (behind && (ground = numbers(getComputedStyle(behind).backgroundColor))[3] === 0)
                behind = behind.parentElement;
              const [a, b] = [light(numbers(getComputedStyle(element).color)), light(ground)].sort((x, y) => y - x);
              return (a + 0.05) / (b + 0.05);
            }""",
            selector,
        )
    )
