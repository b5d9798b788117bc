"""A notebook in JupyterLab as a person works with it: by menus, buttons, keys, and what is shown then."""

import asyncio
import json
from dataclasses import dataclass

_LOOK = """
(() => {
  const all = (e, what) => [...e.querySelectorAll(what)];
  return CELLS.map((cell, index) => {
    const outputs = all(cell, '.jp-OutputArea-output');
    const kind = e => e.dataset.mimeType || '';
    const text = outputs.filter(e => /stdout|stderr|text.plain|jupyter.error/.test(kind(e)))
      .map(e => e.textContent).join('\\n');
    return {
      index,
      code: cell.classList.contains('jp-CodeCell'),
      text: all(cell, '.jp-OutputArea-output').map(e => e.textContent).join('\\n'),
      lines: text.split('\\n').filter(line => line.trim()).length,
      errors: outputs.map(e => e.textContent).filter(e => /Traceback \\(most recent|^✘ /.test(e)),
      warnings: outputs.filter(e => kind(e).includes('stderr')).map(e => e.textContent),
      ran: /\\[\\d+\\]/.test(cell.querySelector('.jp-InputPrompt')?.textContent),
      pictures: all(cell, '.jp-OutputArea-output img, .jp-OutputArea-output .jp-RenderedSVG svg').map(e => [
        e.naturalWidth ?? e.getBoundingClientRect().width,
        Math.round(e.getBoundingClientRect().right - cell.getBoundingClientRect().right), e.alt || '']),
      tables: all(cell, '.jp-OutputArea-output table').map(e => all(e, 'tbody tr').length),
      wide: outputs.filter(e => e.scrollWidth > e.clientWidth + 2).length,
      raw: all(cell, '.jp-MarkdownOutput .MathJax_Error, .jp-MarkdownOutput mjx-merror').length,
    };
  });
})()
"""
_FRONT = (
    "(document.getElementById(document.querySelector('#jp-main-dock-panel .lm-mod-current')?.dataset.id)"
    " ?? document.createElement('p'))"
)
_CELLS = f"[...{_FRONT}.querySelectorAll('.jp-Notebook .jp-Cell')]"


@dataclass(frozen=True)
class Cell:
    """What a cell shows.

    Attributes:
        index: its place, from 0 on.
        code: whether it is a code cell.
        text: all that its outputs say.
        lines: lines of plain text among them.
        errors: exceptions, and checks that say no.
        warnings: what went to stderr, exceptions among it.
        ran: whether it has the number of an execution.
        pictures: of each: width in points of the picture itself, points by which it reaches over the
            cell's right edge, alt text.
        tables: of each: rows.
        wide: outputs that have to be scrolled sideways.
        raw: formulas that MathJax could not set.
    """

    index: int
    code: bool
    text: str
    lines: int
    errors: list
    warnings: list
    ran: bool
    pictures: list
    tables: list
    wide: int
    raw: int


class NotebookPage:
    """One notebook, open in front."""

    def __init__(self, page):
        self.page = page

    async def open(self, url, cells):
        """Goes to a notebook and waits for all of its cells and a kernel."""
        await self.page.open(url)
        await self.page.until(f"{_CELLS}.length === {cells}", 90)
        await self.page.until(f"({_CELLS}[0].textContent || '').includes('Lab 3.3.')", 30)
        await self.page.until(self._status("idle"), 90)

    def _status(self, word):
        return f"{_FRONT}.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === '{word}'"

    def cell(self, index):
        return f"{_CELLS}[{index}]"

    async def dialogs(self):
        """Texts of dialogs and of messages that report an error."""
        return await self.page.js(
            "[...document.querySelectorAll('.jp-Dialog, .Toastify__toast--error')].map(e => e.innerText)"
        )

    async def menu(self, name, command):
        """Chooses an entry of the menu bar."""
        bar = "[...document.querySelectorAll('.lm-MenuBar-item')]"
        await self.page.click(f"{bar}.find(e => e.innerText.trim() === '{name}')")
        await self.page.click(
            f"document.querySelector('.lm-Menu-item[data-command=\"{command}\"]')"
        )

    async def button(self, name):
        """Presses a button of the notebook's tool bar."""
        await self.page.click(
            f"{_FRONT}.querySelector('.jp-NotebookPanel-toolbar [data-jp-item-name={name}] jp-button')"
        )

    async def select(self, index):
        """Makes a code cell the one that keys go to, ready to be written in."""
        await self.page.click(f"{self.cell(index)}.querySelector('.cm-content')")
        await self.page.until(f"{self.cell(index)}.classList.contains('jp-mod-active')")

    async def write(self, index, code):
        """Replaces what a code cell holds, by typing."""
        await self.select(index)
        await self.page.press("a", 65, modifiers=2)
        await self.page.type(code)

    async def run_selected(self):
        await self.page.press("Enter", 13, modifiers=8)

    async def settled(self, patience_s):
        """Waits until no cell is waiting or running.

        Raises:
            AssertionError: it takes longer; names the cell.
        """
        waiting = f"{_CELLS}.findIndex(e => e.querySelector('.jp-InputPrompt')?.textContent.includes('*'))"
        deadline = asyncio.get_running_loop().time() + patience_s
        await asyncio.sleep(0.5)
        while (index := await self.page.js(waiting)) >= 0 or not await self.page.js(
            f"Boolean({self._status('idle')})"
        ):
            assert asyncio.get_running_loop().time() < deadline, f"cell {index} runs on"
            await asyncio.sleep(0.5)

    async def shown(self):
        """All cells, as they are shown now."""
        found = await self.page.js(_LOOK.replace("CELLS", _CELLS))
        return [Cell(**entry) for entry in found]

    async def contents(self):
        """Opens the table of contents; its headings."""
        entries = "[...document.querySelectorAll('.jp-TableOfContents .jp-tocItem-content')]"
        if not await self.page.js(f"{entries}.some(e => e.getClientRects().length)"):
            await self.page.click(
                "document.querySelector('.lm-TabBar-tab[data-id=\"table-of-contents\"]')"
            )
        await self.page.until(f"{entries}.length")
        return await self.page.js(f"{entries}.map(e => e.innerText.trim())")

    async def go_to(self, heading):
        """Clicks on an entry of the table of contents; waits until its heading is on the screen."""
        entries = "[...document.querySelectorAll('.jp-TableOfContents .jp-tocItem-content')]"
        name = json.dumps(heading)
        await self.page.click(f"{entries}.find(e => e.innerText.trim() === {name})")
        await self.page.until(
            f"[...{_FRONT}.querySelectorAll(':is(h1,h2,h3,h4)')]"
            f".some(e => e.textContent.replace('¶', '').trim() === {name} &&"
            " e.getBoundingClientRect().top > 0 && e.getBoundingClientRect().bottom < innerHeight)"
        )

    async def open_hint(self):
        """Unfolds the first hint; its text."""
        hint = f"{_CELLS}.map(e => e.querySelector('details')).find(e => e)"
        await self.page.click(f"{hint}.querySelector('summary')")
        await self.page.until(f"{hint}.open")
        return await self.page.js(f"{hint}.innerText.trim()")

    async def scroll_to(self, element):
        """Puts an element into the middle of the screen; what comes into view is laid out anew."""
        for _ in range(3):
            await self.page.js(f"{element}.scrollIntoView({{block: 'center'}})")
            await asyncio.sleep(0.5)

    async def close(self):
        """Closes the notebook and its kernel, without saving."""
        name = await self.page.js(f"{_FRONT}.id")
        await self.menu("File", "filemenu:close-and-cleanup")
        gone = f"!document.getElementById('{name}')"
        accept = "document.querySelector('.jp-Dialog .jp-mod-accept, .jp-Dialog .jp-mod-warn')"
        await self.page.until(f"{accept} || {gone}")
        if not await self.page.js(gone):
            await self.page.click(accept)
            await self.page.until(gone)
