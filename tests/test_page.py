"""The chat page in real Chromium, with a running service: mouse, keyboard and reload."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from store import Catalog, Item
from tests.helpers.faults import Text
from tests.helpers.recommending import modelled
from tests.helpers.services import missing
from tests.helpers.serving import DEAD, served, until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The system's Chromium."""
    if CHROMIUM is None:
        missing("Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, timeout=120_000)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any) -> Iterator[Any]:
    """Open the page of a service. After the test, there must be no script error and no request to another host."""
    pages = []

    def visit(url: str, query: str = "", **options: Any) -> Any:
        page = chromium.new_context(reduced_motion="reduce", **options).new_page()
        page.set_default_timeout(120_000)
        page.requested, page.errors = [], []
        page.on("request", lambda request: page.requested.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda entry: page.errors.append(entry.text) if "Content Security" in entry.text else None)
        page.on("dialog", lambda dialog: (page.errors.append(dialog.message), dialog.dismiss()))
        page.goto(f"{url}/{query}")
        pages.append((page, url))
        return page

    yield visit
    for page, url in pages:
        assert page.errors == []
        assert [one for one in page.requested if not one.startswith(f"{url}/")] == []
        page.context.close()


@pytest.fixture
def url(films: Path) -> Iterator[str]:
    """The service with the demo films and without a model server."""
    with served(store=films, base_url=DEAD) as service:
        yield service.url


def ask(page: Any, message: str) -> Any:
    """Send a message by keyboard. Return the complete answer."""
    page.get_by_role("textbox", name="Your message").fill(message)
    page.keyboard.press("Enter")
    answer = page.locator(".answer").last
    page.locator(".user-message", has_text=message).last.wait_for()
    page.get_by_role("button", name="Send").wait_for()
    return answer


def titles(answer: Any) -> list[str]:
    return answer.get_by_role("heading", level=3).all_text_contents()


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def wait_for_status(page: Any, pattern: str) -> None:
    page.get_by_role("status").filter(has_text=re.compile(pattern)).wait_for()


def test_chat_with_feedback_reasons_constraints_and_reload(opened: Any, url: str) -> None:
    page = opened(url, "?user=mara")
    answer = ask(page, "heist films after 1980, no horror")
    first = titles(answer)
    assert len(first) >= 5
    assert answer.locator(".facts").first.text_content().strip() and answer.locator(".words").text_content().strip()
    assert "1. " not in answer.locator(".words").text_content(), "the cards show the list"
    assert "language model" in answer.locator(".degraded summary").text_content(), (
        "the model is down, and the page says so"
    )

    why = button(answer, f"Why this? {first[0]}")
    assert why.get_attribute("aria-expanded") == "false"
    why.click()
    assert why.get_attribute("aria-expanded") == "true"
    reasons = answer.locator(".reasons").first
    assert reasons.get_by_text("How it was found").is_visible() and reasons.get_by_text("Score").is_visible()
    assert reasons.get_by_text("place ").count() >= 1

    button(answer, f"Dislike: {first[1]}").click()
    wait_for_status(page, f"Disliked {re.escape(first[1])}")
    assert button(answer, f"Dislike: {first[1]}").get_attribute("aria-pressed") == "true"
    button(answer, f"Seen: {first[2]}").click()
    wait_for_status(page, "will not be shown again")
    button(answer, f"Like: {first[0]}").click()
    wait_for_status(page, f"Liked {re.escape(first[0])}")
    second = titles(ask(page, "show me others"))
    assert second and not set(first) & set(second)

    chips = page.get_by_role("list", name="Constraints of every answer")
    assert [chip.strip("× ") for chip in chips.get_by_role("button").all_text_contents()] == ["after 1980", "no Horror"]
    button(page, "Remove: after 1980").click()
    wait_for_status(page, "Constraint removed: after 1980")
    assert chips.get_by_role("button").count() == 1

    page.reload()
    page.locator(".answer").nth(1).wait_for()
    assert titles(page.locator(".answer").first) == first and titles(page.locator(".answer").last) == second
    assert page.locator(".answer").first.locator(".facts").first.text_content().strip()
    assert button(page, f"Dislike: {first[1]}").get_attribute("aria-pressed") == "true"
    assert chips.get_by_role("button").count() == 1
    third = titles(ask(page, "more"))
    assert third and not {*first, *second} & set(third)

    button(page, "Start over").click()
    assert (
        page.locator(".answer").count() == 0 and page.get_by_role("heading", name="What do you feel like?").is_visible()
    )
    page.reload()
    assert page.locator(".answer").count() == 0


def test_page_works_with_the_keyboard_alone(opened: Any, url: str) -> None:
    page = opened(url)

    def tab_to(name: str) -> None:
        for _ in range(80):
            page.keyboard.press("Tab")
            focus = page.evaluate(
                "[document.activeElement].map((e) => e === document.body ? '' : e.ariaLabel ?? e.textContent)[0]"
            )
            if focus.strip().startswith(name):
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline == "solid", "the focus is visible"
                return
        raise AssertionError(f"{name} is not reached by Tab")

    page.keyboard.type("westerns after 1950")  # the field has the focus at the start
    page.keyboard.press("Enter")
    page.locator(".card").first.wait_for()
    page.get_by_role("button", name="Send").wait_for()
    tab_to("Skip to your message")
    tab_to("Like: ")
    page.keyboard.press("Enter")
    wait_for_status(page, "Liked ")
    tab_to("Why this?")
    page.keyboard.press("Space")
    assert page.locator(".reasons").first.is_visible()
    tab_to("Remove: after 1950")
    page.keyboard.press("Enter")
    wait_for_status(page, "Constraint removed")
    page.keyboard.type("more")  # the focus is back in the field
    page.keyboard.press("Enter")
    page.locator(".user-message").nth(1).wait_for()


def test_items_appear_before_the_text_and_stop_stops_the_model(opened: Any, service: Any) -> None:
    slow = Text(
        "\n".join(f"{i}: A careful crime story in the night." for i in range(1, 6)) + " and on" * 500, pause=0.1
    )

    def behave(body: dict[str, Any]) -> Any:
        return slow if body.get("stream") else modelled()(body)

    running = service(behave, reading=0.0, deadline=120)
    page = opened(running.url, "?user=mara")
    page.get_by_role("textbox", name="Your message").fill("heist films")
    page.keyboard.press("Enter")
    page.locator(".card").nth(4).wait_for()
    stop = button(page, "Stop")
    assert stop.is_visible() and not button(page, "Send").is_visible()
    until(lambda: running.model.pieces)
    stop.click()
    wait_for_status(page, "Stopped")
    assert running.model.left.wait(30)
    assert page.locator(".card").count() == 5, "items that were shown stay"
    assert running.model.pieces < 400 and button(page, "Send").is_visible()


def test_reasons_include_the_users_profile(opened: Any, service: Any) -> None:
    page = opened(service().url, "?user=mara")
    answer = ask(page, "heist films")
    answer.get_by_role("button", name="Why this?").first.click()
    reasons = answer.locator(".reasons").first
    assert reasons.get_by_text("Your profile").is_visible()
    assert reasons.get_by_text(re.compile("^(Enjoys|Likes) ")).is_visible()


def test_markup_in_titles_is_shown_as_text(opened: Any, tmp_path: Path, embedder: Any) -> None:
    attack = "<img src=x onerror=\"alert('owned')\"><script>alert(1)</script>"
    catalog = Catalog.open(tmp_path / "store", embedder=embedder)
    catalog.upsert(
        [
            Item(
                f"item-{i}",
                f"Red door {i} {attack}",
                f"A door. {attack}",
                {"year": 1990 + i, "genres": ["Drama", attack]},
            )
            for i in range(3)
        ]
    )
    catalog.close()
    with served(store=tmp_path / "store", base_url=DEAD) as service:
        page = opened(service.url, f"?user={attack}")
        answer = ask(page, f"a red door {attack}")
        assert attack in titles(answer)[0] and attack in page.locator(".user-message").text_content()
        button(answer, f"Why this? {titles(answer)[0]}").click()
        button(answer, f"Like: {titles(answer)[0]}").click()
        wait_for_status(page, "onerror")
        page.reload()
        page.locator(".card").first.wait_for()
        assert page.locator("body img, body script").count() == 0


def test_api_key_is_asked_for_only_if_needed(opened: Any, films: Path) -> None:
    with served(tenants={"shop": {"store": str(films), "keys": ["right-key-0123456789"]}}, base_url=DEAD) as service:
        page = opened(service.url)
        field = page.get_by_label("This service asks for an API key.")
        assert not field.is_visible()
        page.get_by_role("textbox", name="Your message").fill("heist films")
        page.keyboard.press("Enter")
        field.fill("wrong-key-0123456789")
        page.keyboard.press("Enter")
        field.wait_for()
        field.fill("right-key-0123456789")
        page.keyboard.press("Enter")
        page.locator(".card").first.wait_for()
        assert not field.is_visible()
        page.get_by_role("button", name="Send").wait_for()
        page.keyboard.press("Enter")  # the field is empty, so nothing is sent again
        assert page.get_by_role("textbox", name="Your message").input_value() == ""
        assert page.locator(".user-message").count() == 1
        assert "right-key" not in page.evaluate("JSON.stringify(localStorage) + location.href + document.cookie")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_and_text_has_enough_contrast(opened: Any, url: str, scheme: str) -> None:
    page = opened(url, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    answer = ask(page, "heist films after 1980")
    answer.get_by_role("button", name="Why this?").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate(_LEAST_CONTRAST) >= 4.5


# The smallest WCAG contrast of any visible text to its background.
_LEAST_CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } };
  const texts = [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() &&
    [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
  return Math.min(...texts.map((e) => {
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort();
    return (b + .05) / (a + .05);
  }));
}"""
