"""Headless Chromium over its DevTools protocol: just enough for one page."""

import asyncio
import base64
import contextlib
import itertools
import shutil
import tempfile

import aiohttp

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Page:
    """One tab. `errors` are exceptions and failed policies of the page."""

    def __init__(self, socket):
        self._socket, self._ids, self._waiting = socket, itertools.count(1), {}
        self.errors = []

    async def listen(self):
        async for message in self._socket:
            data = message.json()
            if "id" in data:
                self._waiting.pop(data["id"]).set_result(data)
            elif data["method"] == "Runtime.exceptionThrown":
                self.errors.append(data["params"]["exceptionDetails"]["text"])

    async def call(self, method, **params):
        number = next(self._ids)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        answer = self._waiting[number]
        await self._socket.send_json({"id": number, "method": method, "params": params})
        data = await asyncio.wait_for(answer, 60)
        assert "error" not in data, data
        return data["result"]

    async def phone(self, width, height):
        """A small screen: a window cannot be narrower than 500 points."""
        size = {"width": width, "height": height}
        await self.call(
            "Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=2, mobile=True
        )

    async def screen(self, width, height):
        size = {"width": width, "height": height}
        await self.call(
            "Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=False
        )

    async def picture(self, path):
        """What the screen shows, as PNG."""
        found = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))

    async def open(self, url):
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def js(self, expression):
        found = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression, patience_s=30):
        deadline = asyncio.get_running_loop().time() + patience_s
        while not await self.js(f"Boolean({expression})"):
            if asyncio.get_running_loop().time() > deadline:
                text = await self.js("document.body.innerText")
                raise AssertionError(f"never: {expression}\n{text}")
            await asyncio.sleep(0.05)

    async def press(self, key, code, modifiers=0):
        """A key; modifiers: 2 is Ctrl, 8 is Shift."""
        for kind in ("keyDown", "keyUp"):
            plain = key == "Enter" and kind == "keyDown" and not modifiers
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                modifiers=modifiers,
                **({"text": "\r"} if plain else {}),
            )

    async def click(self, element):
        """Moves to an element, given by JavaScript, and clicks it, once it is there and stands still."""
        await self.until(f"{element}?.getClientRects().length")
        await self.js(f"{element}.scrollIntoView({{block: 'nearest'}})")
        before, place = None, None
        async with asyncio.timeout(30):
            while place is None or place != before:
                before, place = place, await self._place(element)
                await asyncio.sleep(0.1)
        at = dict(zip("xy", place, strict=True))
        await self.call("Input.dispatchMouseEvent", type="mouseMoved", **at)
        for kind in ("mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at
            )

    async def _place(self, element):
        """A point on it, [x, y], where no other element lies above it; None if there is none."""
        return await self.js(
            f"(() => {{ const e = {element}; const r = e.getBoundingClientRect();"
            "const at = [r.x + Math.min(r.width / 2, 200), r.y + Math.min(r.height / 2, 20)];"
            "const top = document.elementFromPoint(...at);"
            "if (e.contains(top)) return at;"
            "e.scrollIntoView({block: 'center'}); return null })()"
        )

    async def type(self, text):
        await self.call("Input.insertText", text=text)


@contextlib.asynccontextmanager
async def browser():
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-proxy-server"]
        options += ["--remote-debugging-port=0", f"--user-data-dir={folder}", "--no-first-run"]
        options += ["--disable-dev-shm-usage", "--disable-background-networking"]
        options += ["--disable-component-update", "--disable-sync"]
        process = await asyncio.create_subprocess_exec(
            PROGRAM, *options, "about:blank", stderr=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(40):
                while b"DevTools listening on" not in (line := await process.stderr.readline()):
                    assert line, "Chromium ended"
            address = line.decode().split("//")[1].split("/")[0]
            async with aiohttp.ClientSession(trust_env=False) as session:
                async with session.get(f"http://{address}/json/list") as answer:
                    tabs = await answer.json()
                url = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
                async with session.ws_connect(url, max_msg_size=0) as socket:
                    page = Page(socket)
                    listening = asyncio.create_task(page.listen())
                    await page.call("Page.enable")
                    await page.call("Runtime.enable")
                    yield page
                    listening.cancel()
        finally:
            process.terminate()
            await process.wait()
