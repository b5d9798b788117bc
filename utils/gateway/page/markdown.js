// Markdown as elements. marked.js only splits the text into tokens. The elements are made here, one by one, so no text of
// a model ever becomes HTML, and there is nothing to sanitise.
"use strict";
const SAFE_LINK = /^(https?:|mailto:)/i;

function element(name, content, options = {}) {
  const made = Object.assign(document.createElement(name), options);
  made.append(...[content].flat());
  return made;
}
function copyButton(text) {
  const button = element("button", "Copy", { type: "button", className: "copy" });
  button.addEventListener("click", async () => {
    await copy(text);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return button;
}
async function copy(text) {
  if (navigator.clipboard) { await navigator.clipboard.writeText(text); return; }
  // Without https a browser has no clipboard for pages of other machines, but it still knows this old command.
  const box = element("textarea", text);
  document.body.append(box);
  box.select();
  document.execCommand("copy");
  box.remove();
}
function inline(tokens) {
  return (tokens || []).map(token => {
    switch (token.type) {
      case "strong": case "em": case "del": return element(token.type, inline(token.tokens));
      case "codespan": return element("code", token.text);
      case "br": return element("br", []);
      case "link":
        if (!SAFE_LINK.test(token.href)) return token.raw;
        return element("a", inline(token.tokens), { href: token.href, target: "_blank", rel: "noopener noreferrer" });
      case "text": return token.tokens ? element("span", inline(token.tokens)) : token.text;
      case "escape": return token.text;
      default: return token.raw;  // pictures and HTML are shown as they were written
    }
  });
}
function item(token) {
  const made = element("li", token.loose ? blocks(token.tokens) : token.tokens.flatMap(inner =>
    inner.type === "text" ? inline(inner.tokens || [inner]) : blocks([inner])));
  if (token.task) made.prepend(element("input", [], { type: "checkbox", checked: token.checked, disabled: true }));
  return made;
}
function blocks(tokens) {
  return tokens.flatMap(token => {
    switch (token.type) {
      case "space": case "def": case "checkbox": return [];
      case "heading": return [element("h" + Math.min(6, token.depth + 2), inline(token.tokens))];
      case "paragraph": return [element("p", inline(token.tokens))];
      case "text": return [element("p", inline(token.tokens || [token]))];
      case "hr": return [element("hr", [])];
      case "blockquote": return [element("blockquote", blocks(token.tokens))];
      case "list":
        return [element(token.ordered ? "ol" : "ul", token.items.map(item), token.ordered ? { start: token.start || 1 } : {})];
      case "code": {
        const head = element("header", [element("span", token.lang || "code"), copyButton(token.text)]);
        return [element("div", [head, element("pre", element("code", token.text))], { className: "code" })];
      }
      case "table": {
        const row = (cells, name) => element("tr", cells.map(cell => element(name, inline(cell.tokens))));
        const table = element("table", [
          element("thead", row(token.header, "th")), element("tbody", token.rows.map(cells => row(cells, "td"))),
        ]);
        return [element("div", table, { className: "wide" })];
      }
      default: return [element("p", token.raw, { className: "plain" })];
    }
  });
}
function markdown(text) { return blocks(marked.lexer(text, { gfm: true, breaks: true })); }
