"""The chat page in a real browser, in front of fake servers."""

import asyncio

import pytest
from chromium import PROGRAM, browser
from fake_openai import FakeServer
from gateway_case import MODEL, case

from utils.gateway.auth import digest

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="not run here: there is no Chromium")
ANSWERS = "document.querySelectorAll('.message.assistant').length"
LAST = "document.querySelector('.message:last-child').textContent"


def run(coroutine):
    async def limited():
        async with asyncio.timeout(90):
            await coroutine

    asyncio.run(limited())


async def send(page, text):
    await page.js("document.getElementById('text').focus()")
    await page.type(text)
    await page.press("Enter", 13)


def test_send_stream_stop_and_keep():
    async def work():
        fake = FakeServer(tokens=6, gap_s=0.02)
        async with case(fake) as c, browser() as page:
            await page.open(c.url)
            await page.until(f"document.getElementById('model').value === '{MODEL}'")
            await page.js("document.getElementById('system').value = 'be short'")
            await send(page, "hello <b>you</b>")
            await page.until(f"{ANSWERS} === 1 && !document.getElementById('send').disabled")
            assert "<b>you</b> <b>you</b>" in await page.js(LAST), "as text, not as HTML"
            figures = await page.js("document.querySelector('#status').textContent")
            assert "TTFT" in figures
            assert "tokens/s" in figures
            assert "6 tokens" in figures
            asked = fake.requests[-1]
            assert asked["messages"][0] == {"role": "system", "content": "be short"}
            assert asked["temperature"] == 0

            fake.tokens, fake.gap_s = 10_000, 0.01
            await send(page, "more")
            await page.until("document.getElementById('status').textContent.includes('TTFT')")
            await page.press("Escape", 27)
            await page.until("document.getElementById('status').textContent === 'Stopped.'")
            await c.until(lambda: fake.cancelled == 1)
            assert len(fake.requests[-1]["messages"]) == 4, "the conversation goes with it"

            await page.open(c.url)
            await page.until("document.querySelectorAll('.message').length === 4")
            await page.js("document.getElementById('new').click()")
            assert await page.js("document.querySelectorAll('.message').length") == 0
            assert page.errors == []

    run(work())


def test_errors_are_said_and_engines_switched():
    async def work():
        fake = FakeServer()
        async with case(fake) as c, browser() as page:
            await page.phone(360, 640)
            await page.open(c.url)
            await page.until("document.getElementById('engine').options.length === 2")
            await page.js(
                "const e = document.getElementById('engine'); e.value = 'llama_cpp';"
                "e.dispatchEvent(new Event('change'))"
            )
            await send(page, "one")
            await page.until(f"{ANSWERS} === 1")
            fake.mode = "cut"
            await send(page, "two")
            await page.until(
                "document.querySelector('.message.error')?.textContent.includes('broke off')"
            )
            fake.mode = "sick"
            await c.until(lambda: not c.gateway.pools[MODEL].backends[0].up)
            await send(page, "three")
            await page.until(f"{LAST}.includes('No engine')")
            await page.until("document.getElementById('engine').textContent.includes('(down)')")
            wide = await page.js("document.documentElement.scrollWidth")
            assert wide <= 360, "it fits on a phone"

    run(work())


def test_a_missing_key_is_asked_for():
    async def work():
        async with case(keys=[{"name": "k", "sha256": digest("gw-page")}]) as c, browser() as page:
            await page.open(c.url)
            await page.until(
                "document.getElementById('status').textContent.includes('needs a key')"
            )
            assert await page.js("document.querySelector('details').open")
            await page.js(
                "const k = document.getElementById('key'); k.value = 'gw-page';"
                "k.dispatchEvent(new Event('change'))"
            )
            await page.until(f"document.getElementById('model').value === '{MODEL}'")
            await send(page, "hello")
            await page.until(f"{ANSWERS} === 1")
            assert "gw-page" not in await page.js("JSON.stringify(localStorage)")

    run(work())


def test_everything_has_a_name_and_a_key_reaches_it():
    async def work():
        async with case() as c, browser() as page:
            await page.open(c.url)
            await page.until(f"document.getElementById('model').value === '{MODEL}'")
            await page.call("Accessibility.enable")
            nodes = (await page.call("Accessibility.getFullAXTree"))["nodes"]
            roles = {"button", "textbox", "combobox", "spinbutton", "log"}
            named = [
                n for n in nodes if n.get("role", {}).get("value") in roles and not n["ignored"]
            ]
            assert len(named) >= 6
            assert all(n["name"]["value"].strip() for n in named), named
            assert await page.js("document.activeElement.id") == "text"
            assert await page.js("document.querySelector('[role=status]').id") == "status"

    run(work())
