"""The chat page in a real browser, in front of fake servers."""

import asyncio
import json

import pytest
from chromium import PROGRAM, browser
from fake_openai import FakeServer
from gateway_case import MODEL, case
from misbehaving_engine import DONE, Engine, event, usage

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
            assert await page.js("document.querySelector('header details').open")
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


def says(selector):
    return f"document.querySelector('.message:last-child {selector}').textContent"


IDLE = "!document.getElementById('send').disabled && document.querySelector('.message.assistant, .error')"


async def opened(page, c):
    await page.open(c.url)
    await page.until(f"document.getElementById('model').value === '{MODEL}'")


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thinking_is_shown_folded_and_limit_is_named(field):
    async def work():
        thoughts = [event(f"Okay, they ask {i}. ", field) for i in range(40)]
        parts = [*thoughts, event("", finish_reason="length"), usage(256), DONE]
        async with case(Engine(parts=parts)) as c, browser() as page:
            await opened(page, c)
            await page.js("document.getElementById('tokens').value = 256")
            await send(page, "why?")
            await page.until(IDLE)
            folded = "document.querySelector('.message:last-child .thinking')"
            assert await page.js(f"{folded}.open") is False
            assert await page.js(f"{folded}.hidden") is False
            assert await page.js(says("summary")) == "Thinking, 160 words"
            assert "they ask 39." in await page.js(says(".thinking div"))
            assert "Stopped at the limit of 256 tokens" in await page.js(says(".limit"))

    run(work())


def test_thoughts_in_text_are_folded_too():
    async def work():
        parts = [event("<think>well"), event(" now</think>\n\nFour"), event("."), usage(3), DONE]
        async with case(Engine(parts=parts)) as c, browser() as page:
            await opened(page, c)
            await send(page, "2 + 2?")
            await page.until(IDLE)
            assert await page.js(says(".thinking div")) == "well now"
            assert await page.js(says(".text")) == "Four."

    run(work())


MARKDOWN = """# Title

Some **bold** and `x < y` and [a link](https://a.example/) and [bad](javascript:alert(1)).

```python
print("<b>")
```

| a | b |
|---|---|
| 1 | 2 |

1. one
2. two

<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>
"""


def test_markdown_becomes_elements_and_never_html():
    async def work():
        parts = [event(MARKDOWN[i : i + 7]) for i in range(0, len(MARKDOWN), 7)]
        async with case(Engine(parts=[*parts, usage(9), DONE])) as c, browser() as page:
            await page.phone(390, 800)
            await opened(page, c)
            await send(page, "show")
            await page.until(IDLE)
            text = "document.querySelector('.message:last-child .text')"

            async def one(selector):
                return await page.js(f"{text}.querySelector('{selector}')?.textContent")

            assert await one("h3") == "Title"
            assert await one("strong") == "bold"
            assert await one("p code") == "x < y"
            assert await one("pre code") == 'print("<b>")'
            assert await one(".code header span") == "python"
            assert await one("td") == "1"
            assert await one("ol li") == "one"
            assert await page.js(f"{text}.querySelectorAll('a').length") == 1
            assert await page.js(f"{text}.querySelectorAll('img, script').length") == 0
            assert "onerror=" in await page.js(f"{text}.textContent")
            assert await page.js("document.title") == "Chat"
            assert await page.js("document.documentElement.scrollWidth") <= 390
            assert page.errors == []

    run(work())


def test_copy_button_copies_code():
    async def work():
        parts = [event("```\na = 1\n```"), usage(3), DONE]
        async with case(Engine(parts=parts)) as c, browser() as page:
            await opened(page, c)
            # The clipboard of a headless browser is empty, so the page's own call is looked at.
            await page.js(
                "Object.defineProperty(navigator, 'clipboard', {value: "
                "{writeText: async text => { window.copied = text; }}})"
            )
            await send(page, "show")
            await page.until(IDLE)
            await page.click("document.querySelector('.code .copy')")
            await page.until("window.copied === 'a = 1'")
            await page.until("document.querySelector('.code .copy').textContent === 'Copied'")

    run(work())


def test_history_alternates_and_failed_message_comes_back():
    async def work():
        fake = FakeServer(mode="http_400")
        async with case(fake) as c, browser() as page:
            await opened(page, c)
            await send(page, "first try")
            await page.until("document.querySelector('.message.error')")
            assert await page.js("document.getElementById('text').value") == "first try"
            assert await page.js("document.querySelectorAll('.message.user.failed').length") == 1
            fake.mode = "ok"
            await page.press("Enter", 13)
            await page.until(f"{ANSWERS} === 1")
            await page.until(IDLE)
            await send(page, "again")
            await page.until(f"{ANSWERS} === 2")
            roles = [[m["role"] for m in asked["messages"]] for asked in fake.requests]
            assert roles == [["user"], ["user"], ["user", "assistant", "user"]]

    run(work())


def test_answer_without_text_does_not_break_the_history():
    async def work():
        parts = [event("hm", "reasoning"), event("", finish_reason="length"), usage(1), DONE]
        engine = Engine(parts=parts)
        async with case(engine) as c, browser() as page:
            await opened(page, c)
            for text in ("one", "two"):
                await send(page, text)
                await page.until(IDLE)
                await page.until("document.getElementById('text').value === ''")
            await page.until(f"{ANSWERS} === 2")
            asked = json.loads(engine.requests[-1][-1])
            assert [message["content"] for message in asked["messages"]] == ["two"]

    run(work())


def test_scroll_position_is_left_alone():
    async def work():
        fake = FakeServer(tokens=400, gap_s=0.002, filler=" word" * 20)
        async with case(fake) as c, browser() as page:
            await page.phone(390, 500)
            await opened(page, c)
            await send(page, "long")
            log = "document.getElementById('log')"
            await page.until(f"{log}.scrollHeight > {log}.clientHeight + 800")
            await page.js(f"{log}.scrollTop = 100")
            before = await page.js(f"{log}.scrollHeight")
            await page.until(f"{log}.scrollHeight > {before} + 400")
            assert await page.js(f"{log}.scrollTop") == 100
            await page.press("Escape", 27)

    run(work())


STREAM = "data: a\r\n\r\ndata:b\n\r\n: ping\n\ndata: c\ndata:  d\n\ndata: [DONE]\n"


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_page_reads_events_as_the_gateway_does(size):
    async def work():
        async with case() as c, browser() as page:
            await opened(page, c)
            found = await page.js(
                f"""(async () => {{
                    const text = {json.dumps(STREAM)}, found = [];
                    const body = new ReadableStream({{ start(control) {{
                        for (let i = 0; i < text.length; i += {size})
                            control.enqueue(new TextEncoder().encode(text.slice(i, i + {size})));
                        control.close();
                    }} }});
                    for await (const data of events({{ body }})) found.push(data);
                    return found;
                }})()"""
            )
            assert found == ["a", "b", "c\n d", "[DONE]"]

    run(work())
