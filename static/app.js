// The page: wires the form, the tape and the display together. At most one tape is read at a time.

import * as controls from "/static/controls.js";
import { figure, NONE } from "/static/figures.js";
import { askForKey } from "/static/key.js";
import { Meter } from "/static/meter.js";
import { Printer } from "/static/printer.js";
import * as server from "/static/server.js";
import { load, save } from "/static/storage.js";
import * as tape from "/static/tape.js";
import { Ticker } from "/static/ticker.js";

const KEY = "tickertape.tape";
const ENDINGS = {
  stop: "Finished: the model ended the text.",
  length: "Finished: the length was reached.",
  cancelled: "Stopped.",
  timeout: "The server ran out of time for this text.",
  shutdown: "The server shut down before the end.",
  error: "The generation failed.",
};

const byId = (id) => document.getElementById(id);
const generateButton = byId("generate");
const stopButton = byId("stop");
const retryButton = byId("retry");
const copyButton = byId("copy");
const output = byId("output");
const status = byId("status");

const printer = new Printer({
  output,
  given: byId("given"),
  continuation: byId("continuation"),
  ticker: new Ticker(byId("ticker")),
});

let ready = false;
let blank = true; // this tab has not shown any answer
let run = null; // {prompt, location, reader, last, hole, stopping, meter} until the terminal entry

// ---- one run, from the click to the terminal entry

async function generate() {
  if (run || !ready) return;
  const body = controls.requestBody();
  if (!body) return;

  run = begun({ prompt: body.prompt }, performance.now());
  show("starting", "Sending …");
  try {
    run.location = await tape.start(body);
  } catch (error) {
    refuse(error);
    return;
  }
  attach();
  save("localStorage", KEY, kept(run));
  if (run.stopping) await cancel();
}

/** A reload does not lose the answer: the tape is still there and is read again from its start. */
async function reattach() {
  const own = load("sessionStorage", KEY);
  if (own && await tape.isKept(own.location)) take(own);
  else await join();
}

/** A tab that has shown nothing yet types what another tab of this browser is typing. */
async function join() {
  const newest = load("localStorage", KEY);
  if (newest && blank && await tape.isRunning(newest.location)) take(newest);
}

/** Reads a tape that was started before, unless a click was faster. */
function take(started) {
  if (run || !blank) return;
  run = begun(started);
  attach();
}

function begun(what, sentAt) {
  return { ...what, last: 0, hole: "", stopping: false, meter: new Meter(sentAt) };
}

function kept({ prompt, location }) {
  return { prompt, location };
}

/** Shows a blank sheet, then reads the tape of the run onto it; it is this tab's own from here on. */
function attach() {
  blank = false;
  save("sessionStorage", KEY, kept(run));
  printer.begin(run.prompt);
  copyButton.disabled = false;
  byId("receipt").hidden = true;
  showMeter();
  announce("Generating.");
  follow();
}

function follow() {
  progress("Waiting for the first token …");
  run.reader = tape.read(run.location, run.last, {
    token: onToken,
    status: onStatus,
    gap: onGap,
    done: onDone,
    reconnecting: (seconds) => progress(`Connection lost after entry ${run.last}. Next try in ${seconds} s …`),
    lost: onLost,
  });
}

function onToken({ text, token_ids: ids }, entry) {
  run.last = entry;
  run.meter.count(ids.length, performance.now());
  printer.push(entry, text);
  showMeter();
  progress(`Typing …${run.hole}`);
}

/** The reader must know of the hole for as long as the text is on the page. */
function onGap({ from, to }) {
  run.hole = ` Entries ${from} to ${to} are no longer kept: the text has a hole.`;
  progress(`Typing …${run.hole}`);
}

function onStatus({ state, position, done, total }) {
  const messages = {
    queued: `Queued at position ${position}.`,
    prefill: `Reading the prompt: ${done} of ${total} tokens.`,
    recovering: "The engine is restarting. The text will go on where it is.",
  };
  if (messages[state]) progress(messages[state]);
}

function onDone({ finish_reason: reason, usage, timings, error }, entry) {
  const { location, hole } = run;
  printer.end(entry, reason);
  printer.keepEnd(() => showReceipt(reason, usage, timings, location));
  const ending = error?.message ?? ENDINGS[reason] ?? `Finished: ${reason}.`;
  finish(reason === "error" ? "error" : "done", ending + hole);
}

/** The server answers, and will not let this tape be read. */
function onLost(error) {
  const lost = run;
  printer.flush();
  if (error.status === 404) {
    finish("error", "The server no longer has this tape.");
    offer("Generate again", generate);
    return;
  }
  if (error.status === 401) wantKey();
  else finish("error", error.message);
  offer("Resume", () => {
    run = { ...lost, stopping: false };
    follow();
  });
}

function wantKey() {
  finish("error", "This server wants an API key; type it above.");
  askForKey();
}

function stop() {
  if (!run || run.stopping) return;
  run.stopping = true;
  show("typing", "Stopping …");
  if (run.location) cancel();
}

/** The terminal frame ends the run; only if the server cannot be told does the page end it alone. */
async function cancel() {
  const cancelled = run;
  try {
    await tape.cancel(cancelled.location);
    cancelled.reader.hurry();
  } catch (error) {
    if (run !== cancelled) return;
    run.reader.close();
    printer.flush();
    finish("error", `Reading stopped. ${error.message}`);
  }
}

function refuse(error) {
  if (error.status === 401) {
    wantKey();
    return;
  }
  const away = error.status === 503 || error.status === undefined;
  if (away) awaitServer();
  if (controls.showError(error.param, error.message)) {
    finish("error", `Refused: ${error.message}`);
    return;
  }
  const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  finish("error", error.message + wait);
}

function finish(state, message) {
  run = null;
  show(state, message);
  announce(message);
}

// ---- what the page shows

/** How the run goes; one that is being stopped says so until it has. */
function progress(message) {
  if (!run.stopping) show("typing", message);
}

function show(state, message) {
  status.dataset.state = state;
  status.textContent = message;
  output.setAttribute("aria-busy", String(run !== null));
  retryButton.hidden = true;
  swapButtons();
}

/** The hidden one of the two must not take the keyboard focus with it. */
function swapButtons() {
  const [shown, gone] = run ? [stopButton, generateButton] : [generateButton, stopButton];
  const focused = document.activeElement === gone;
  generateButton.disabled = !ready;
  shown.hidden = false;
  gone.hidden = true;
  if (focused) shown.focus();
}

function offer(label, act) {
  retryButton.textContent = label;
  retryButton.onclick = act;
  retryButton.hidden = false;
}

/** Screen readers hear the start and the end, never each token. */
function announce(message) {
  byId("announcer").textContent = message;
}

function showMeter() {
  const { ttft, rate, tokens } = run.meter;
  byId("ttft").textContent = figure(ttft);
  byId("rate").textContent = figure(rate, 1);
  byId("tokens").textContent = String(tokens);
}

function showReceipt(reason, usage = {}, timings = {}, location) {
  const rows = [
    ["Finish", reason],
    ["Prompt", figure(usage.prompt_tokens), "tokens"],
    ["Cached", figure(usage.cached_tokens), "tokens"],
    ["Completion", figure(usage.completion_tokens), "tokens"],
    ["Queue", figure(timings.queue_ms, 1), "ms"],
    ["First token", figure(timings.ttft_ms, 1), "ms"],
    ["Total", figure(timings.total_ms), "ms"],
    ["Rate", figure(timings.tokens_per_second, 1), "tokens/s"],
    ["Tape", location.split("/").pop()],
  ];
  byId("receipt").replaceChildren(...rows.map(receiptRow));
  byId("receipt").hidden = false;
}

function receiptRow([name, value, unit]) {
  const row = document.createElement("div");
  row.append(element("dt", name), element("dd", value));
  if (unit && value !== NONE) row.lastChild.append(" ", element("small", unit));
  return row;
}

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

async function copy() {
  await copyText(output.textContent);
  copyButton.textContent = "Copied";
  setTimeout(() => { copyButton.textContent = "Copy"; }, 1500);
}

/** The clipboard API exists on https and localhost only; a plain http host still has the selection. */
async function copyText(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  getSelection().selectAllChildren(output);
  document.execCommand("copy");
}

// ---- the server

async function awaitServer() {
  ready = false;
  swapButtons();
  await server.untilReady((state) => {
    showServer(state === "loading" ? "loading the model" : "server out of reach");
  });
  ready = true;
  swapButtons();
  await introduceServer();
}

async function introduceServer() {
  const { version, model, dtype, torch, max_model_len: context } = await server.version();
  showServer([model ?? "model ready", dtype].filter(Boolean).join(" · "));
  const facts = [
    version && `Tickertape ${version}`,
    torch && `torch ${torch}`,
    context && `context ${context} tokens`,
  ];
  byId("colophon").textContent = facts.filter(Boolean).join(" · ");
}

function showServer(text) {
  byId("model").textContent = text;
  byId("server").dataset.ready = String(ready);
}

// ---- the keyboard and the buttons

function onKey(event) {
  if (event.key === "Escape") stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) generate();
}

if (navigator.platform.startsWith("Mac")) byId("modifier").textContent = "⌘";
controls.prepare();
byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
stopButton.addEventListener("click", stop);
copyButton.addEventListener("click", copy);
document.addEventListener("keydown", onKey);
addEventListener("online", () => run?.reader?.hurry());
awaitServer();
const reattached = reattach();
addEventListener("storage", async ({ key }) => {
  await reattached; // what this tab has had goes before what another tab starts
  if (key === KEY) join();
});
