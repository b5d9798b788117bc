"use strict";
const at = id => document.getElementById(id);
const STORE = "gateway-chat", KEPT = ["model", "engine", "system", "temperature", "tokens"];
let history = [], models = [], running = null;

function save() {
  const fields = Object.fromEntries(KEPT.map(id => [id, at(id).value]));
  try {
    localStorage.setItem(STORE, JSON.stringify({ history, fields }));
    sessionStorage.setItem(STORE, at("key").value);
  } catch (error) { say("The history could not be kept: " + error.message, true); }
}
function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORE)) || {};
    history = Array.isArray(kept.history) ? kept.history : [];
    for (const id of ["system", "temperature", "tokens"]) if (kept.fields?.[id]) at(id).value = kept.fields[id];
    at("key").value = sessionStorage.getItem(STORE) || "";
    return kept.fields || {};
  } catch { return {}; }
}
function say(text, bad = false) { at("status").textContent = text; at("status").classList.toggle("bad", bad); }

// The log follows a stream only while its end is in view, so that you can read further up.
function following(change) {
  const log = at("log"), atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}
// Models without a reasoning parser write their thoughts between <think> and </think>.
function parts(message) {
  const found = /^\s*<think>([\s\S]*?)(?:<\/think>\s*|$)/.exec(message.content);
  if (!found) return { thought: message.thought || "", text: message.content };
  return { thought: (message.thought || "") + found[1], text: message.content.slice(found[0].length) };
}
function show(message) {
  const box = element("article", [], { className: "message " + message.role + (message.failed ? " failed" : "") });
  const who = message.role === "user" ? "You" : message.role === "error" ? "Error" : message.model || "Model";
  const summary = element("summary", "Thinking"), thought = element("div", []);
  const thinking = element("details", [summary, thought], { className: "thinking", hidden: true });
  const text = element("div", [], { className: "text" }), limit = element("span", [], { className: "limit" });
  const figures = element("span", [], { className: "figures" });
  box.append(element("span", who, { className: "who" }), thinking, text, limit, figures);
  const view = { box, draw };
  function draw() {
    const { thought: thoughts, text: said } = parts(message);
    thinking.hidden = !thoughts;
    summary.textContent = "Thinking, " + thoughts.trim().split(/\s+/).length + " words";
    thought.textContent = thoughts;
    if (message.role === "assistant") text.replaceChildren(...markdown(said));
    else { text.classList.add("plain"); text.textContent = said; }
    limit.textContent = message.limited ? "Stopped at the limit of " + message.limited + " tokens. Raise it in Settings." : "";
    figures.textContent = message.figures || "";
    if (message.role === "assistant" && said && message.figures !== undefined) figures.append(" ", copyButton(said));
    box.classList.toggle("failed", Boolean(message.failed));
  }
  draw();
  at("log").append(box);
  at("log").scrollTop = at("log").scrollHeight;
  return view;
}
function redraw() { at("log").replaceChildren(); history.forEach(show); }
function headers() {
  const found = { "content-type": "application/json" };
  if (at("key").value) found.authorization = "Bearer " + at("key").value;
  if (at("engine").value) found["x-gateway-engine"] = at("engine").value;
  return found;
}
async function problem(answer) {
  try { return (await answer.json()).error.message; } catch { return "HTTP " + answer.status; }
}
async function listModels(wanted = {}) {
  try {
    const answer = await fetch("v1/models", { headers: headers() });
    if (answer.status === 401) document.querySelector("header details").open = true;
    if (!answer.ok) throw new Error(await problem(answer));
    models = (await answer.json()).data;
  } catch (error) { say(error.message, true); return; }
  at("model").replaceChildren(...models.map(model => new Option(model.id, model.id)));
  if (models.some(model => model.id === wanted.model)) at("model").value = wanted.model;
  listEngines(wanted.engine);
  say("");
}
function listEngines(wanted = "") {
  const model = models.find(model => model.id === at("model").value);
  const options = (model?.engines || []).map(engine => new Option(engine.name + (engine.up ? "" : " (down)"), engine.name));
  at("engine").replaceChildren(new Option("any", ""), ...options);
  if (options.some(option => option.value === wanted)) at("engine").value = wanted;
}
// Server-sent events as WHATWG's HTML standard has them (section 9.2.6): lines end with LF, CRLF or CR in any mix.
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", data = [];
  while (true) {
    const { value, done } = await reader.read();
    rest += done ? "\n\n" : value;  // some servers leave the last empty line out
    const held = !done && rest.endsWith("\r") ? "\r" : "";
    const lines = rest.slice(0, rest.length - held.length).split(/\r\n|\n|\r/);
    rest = lines.pop() + held;
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      else if (!line && data.length) { yield data.join("\n"); data = []; }
    }
    if (done) return;
  }
}
function figuresOf(clock) {
  const found = [];
  if (clock.first) found.push("TTFT " + Math.round(clock.first - clock.sent) + " ms");
  const seconds = (clock.last - clock.first) / 1000;
  if (clock.tokens > 1 && seconds > 0) found.push(((clock.tokens - 1) / seconds).toFixed(1) + " tokens/s");
  else if (clock.pieces > 1 && seconds > 0) found.push(((clock.pieces - 1) / seconds).toFixed(1) + " pieces/s");
  if (clock.tokens) found.push(clock.tokens + " tokens");
  return found.join(", ");
}
// User and assistant in turn, as the templates of Gemma and Mistral demand. A question without an answer is left out.
function conversation() {
  const found = [];
  for (const entry of history) {
    const content = entry.role === "assistant" ? parts(entry).text : entry.content;
    if (entry.role === "error" || entry.failed || !content) continue;
    if (entry.role === "user" && found.at(-1)?.role === "user") found.pop();
    if (entry.role === "user" || found.at(-1)?.role === "user") found.push({ role: entry.role, content });
  }
  return found;
}
// A chunk's text. Engines call thoughts `reasoning_content` (llama.cpp, SGLang) or `reasoning` (vLLM, Ollama).
function take(chunk, message) {
  const delta = chunk.choices?.[0]?.delta || {};
  const thought = delta.reasoning_content || delta.reasoning || "", text = delta.content || "";
  message.thought += thought;
  message.content += text;
  if (chunk.choices?.[0]?.finish_reason === "length") message.limited = Number(at("tokens").value);
  return thought || text;
}
async function stream(message, clock, changed) {
  const chat = conversation();
  if (at("system").value) chat.unshift({ role: "system", content: at("system").value });
  const body = { model: at("model").value, messages: chat, temperature: Number(at("temperature").value),
    max_tokens: Number(at("tokens").value), stream: true, stream_options: { include_usage: true } };
  const answer = await fetch("v1/chat/completions",
    { method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal });
  if (answer.status === 401) document.querySelector("header details").open = true;
  if (!answer.ok) throw new Error(await problem(answer));
  for await (const data of events(answer)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message || String(chunk.error));
    if (chunk.usage) clock.tokens = chunk.usage.completion_tokens;
    if (take(chunk, message)) {
      clock.last = performance.now();
      clock.first ||= clock.last;
      clock.pieces += 1;
    }
    changed();
  }
  throw new Error("The answer broke off.");
}
async function ask(text) {
  const mine = history, question = { role: "user", content: text };
  history.push(question);
  const asked = show(question);
  const message = { role: "assistant", content: "", thought: "", model: at("model").value };
  const view = show(message);
  const clock = { sent: performance.now(), first: 0, last: 0, pieces: 0, tokens: 0 };
  let frame = 0;
  const changed = () => {
    say((parts(message).text ? "" : message.thought ? "Thinking. " : "") + figuresOf(clock));
    frame ||= requestAnimationFrame(() => { frame = 0; following(view.draw); });  // one drawing for many pieces
  };
  running = new AbortController();
  busy(true);
  say("Waiting for the first token");
  let failure = "";
  try { await stream(message, clock, changed); } catch (error) {
    failure = error.name === "AbortError" ? "Stopped." : error.message;
  }
  cancelAnimationFrame(frame);
  running = null;
  if (mine !== history) { say(""); busy(false); return; }  // "New chat" came in between
  message.figures = figuresOf(clock) + (failure === "Stopped." ? " (stopped)" : "");
  if (message.content || message.thought || !failure) {
    if (!message.content && !message.thought) message.content = "(The model answered with an empty text.)";
    history.push(message);
    following(view.draw);
  } else {
    view.box.remove();
    question.failed = true;
    asked.draw();
    at("text").value ||= text;  // for another try
  }
  if (failure && failure !== "Stopped.") {
    history.push({ role: "error", content: failure });
    show(history.at(-1));
  }
  say(failure || figuresOf(clock), Boolean(failure) && failure !== "Stopped.");
  at("spoken").textContent = parts(message).text;
  save();
  busy(false);
  listModelsQuietly();
}
function listModelsQuietly() {
  const wanted = { model: at("model").value, engine: at("engine").value };
  fetch("v1/models", { headers: headers() }).then(answer => answer.ok ? answer.json() : null).then(found => {
    if (found) { models = found.data; listEngines(wanted.engine); }
  }).catch(() => {});
}
function busy(on) {
  at("send").disabled = on; at("stop").disabled = !on;
  at("log").setAttribute("aria-busy", on);
  if (!on) at("text").focus();
}
at("form").addEventListener("submit", event => {
  event.preventDefault();
  const text = at("text").value.trim();
  if (!text || running) return;
  at("text").value = "";
  ask(text);
});
at("text").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); at("form").requestSubmit(); }
});
document.addEventListener("keydown", event => { if (event.key === "Escape") running?.abort(); });
at("stop").addEventListener("click", () => running?.abort());
at("new").addEventListener("click", () => { running?.abort(); history = []; redraw(); save(); at("text").focus(); });
at("model").addEventListener("change", () => { listEngines(); save(); });
at("key").addEventListener("change", () => { save(); listModels(load()); });
for (const id of ["engine", "system", "temperature", "tokens"]) at(id).addEventListener("change", save);
const kept = load();
redraw();
listModels(kept);
at("text").focus();
