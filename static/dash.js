// The operations page: wires the feed, the charts and the table together.

import { Chart, element } from "/static/dashboard/chart.js";
import { follow } from "/static/dashboard/feed.js";
import { figure } from "/static/format.js";
import { History } from "/static/dashboard/samples.js";
import { askForKey } from "/static/key.js";
import { Rows } from "/static/dashboard/tape_table.js";
import * as server from "/static/server.js";
import * as tape from "/static/tape/client.js";

const ENGINE = {
  ready: "engine ready",
  loading: "engine loads the model",
  recovering: "engine restarts",
  draining: "server shuts down",
};

const percent = (part, whole) => (whole ? (100 * part) / whole : null);
const kv = (sample) => percent(sample.kv_blocks_used, sample.kv_blocks_total);
const hits = (share) => (share === null ? null : 100 * share);
const times = (name) => ["p50", "p95", "p99"].map((label) => (
  { label, read: (sample) => sample[name]?.[label] }
));

const CHARTS = [
  {
    title: "Tokens per second", digits: 1, least: 10,
    lines: [{ label: "all", read: (sample) => sample.tokens_per_second }],
  },
  {
    title: "Sequences", digits: 0, least: 4,
    lines: ["running", "waiting", "paused"].map((label) => ({ label, read: (sample) => sample[label] })),
  },
  { title: "KV cache in use", unit: "%", digits: 1, top: 100, lines: [{ label: "used", read: kv }] },
  { title: "Time to first token", unit: "ms", digits: 0, least: 10, lines: times("ttft_ms") },
  { title: "Time between tokens", unit: "ms", digits: 1, least: 10, lines: times("itl_ms") },
  {
    title: "Prefix cache hits", unit: "%", digits: 0, top: 100,
    lines: [{ label: "hits", read: (sample) => hits(sample.prefix_hit_share) }],
  },
];

const byId = (id) => document.getElementById(id);
const problem = byId("problem");
const summary = byId("summary");

const history = new History();
const charts = CHARTS.map((chart) => new Chart(byId("charts"), chart));
const rows = new Rows({
  table: byId("tapes"),
  region: byId("tapes-region"),
  rest: byId("tapes-rest"),
  none: byId("no-tapes"),
  cancel: async (id) => {
    await tape.cancel(`/v1/tapes/${id}`);
    say("");
  },
  failed: (message) => say(`Not cancelled: ${message}`),
});

let state = null; // of the engine, or null when the server is out of reach
let model = "";
let latest = null; // {tapes, tapes_left_out}
let asked = false; // for a key

// ---- what the server says

function onHistory({ samples }) {
  history.take(samples);
}

function onSample({ sample, ...rest }) {
  if (state === null) onConnected();
  history.take([sample]);
  latest = rest;
  enter(sample.engine);
  draw();
}

async function onConnected() {
  say("");
  const { model: name, dtype } = await server.version();
  model = [name, dtype].filter(Boolean).join(" · ");
  showState();
}

function onAway(message, seconds) {
  enter(null);
  say(`Disconnected. ${message} Next try in ${seconds} s.`);
}

function onKeyWanted() {
  enter(null);
  say(asked ? "The server does not know this key." : "This server wants an API key.");
  asked = true;
  askForKey();
  return new Promise((resolve) => {
    byId("key-field").addEventListener("submit", () => {
      byId("key-field").hidden = true;
      byId("tapes-region").focus({ preventScroll: true });
      resolve();
    }, { once: true });
  });
}

// ---- what the page shows

/** Screen readers hear of the engine's state when it changes, and of nothing else. */
function enter(next) {
  if (next === state) return;
  const first = state === null && next === "ready" && !byId("announcer").textContent;
  state = next;
  showState();
  if (!first) byId("announcer").textContent = stateText();
}

function stateText() {
  return state === null ? "server out of reach" : ENGINE[state];
}

function showState() {
  byId("state").textContent = [state && model, stateText()].filter(Boolean).join(" · ");
  byId("server").dataset.ready = String(state === "ready");
}

function say(message) {
  problem.textContent = message;
  problem.hidden = !message;
}

/** A page that nobody sees is drawn when it is seen again. */
function draw() {
  if (document.hidden || !latest) return;
  showFigures(history.newest);
  for (const chart of charts) chart.show(history);
  if (summary.open) showSummary();
  rows.show(latest.tapes, latest.tapes_left_out);
}

function showFigures(sample) {
  const figures = {
    rate: figure(sample.tokens_per_second, 1),
    running: figure(sample.running),
    waiting: figure(sample.waiting),
    paused: figure(sample.paused),
    kv: figure(kv(sample), 1),
    ttft: figure(sample.ttft_ms?.p50),
    itl: figure(sample.itl_ms?.p50, 1),
    readers: figure(sample.readers),
  };
  for (const [id, text] of Object.entries(figures)) byId(id).textContent = text;
  byId("blocks").textContent = `${sample.kv_blocks_used} of ${sample.kv_blocks_total} blocks`;
}

function showSummary() {
  const lines = charts.flatMap((chart) => chart.summary()).map(([name, ...figures]) => {
    const head = element("th", "", name);
    head.scope = "row";
    const line = element("tr");
    line.append(head, ...figures.map((text) => element("td", "", text)));
    return line;
  });
  byId("summary-rows").replaceChildren(...lines);
}

function repaint() {
  for (const chart of charts) chart.repaint();
}

byId("key-field").addEventListener("submit", (event) => event.preventDefault());
summary.addEventListener("toggle", () => showSummary());
document.addEventListener("visibilitychange", draw);
new MutationObserver(repaint).observe(document.documentElement, { attributeFilter: ["data-theme"] });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
const hurry = follow({ history: onHistory, sample: onSample, away: onAway, keyWanted: onKeyWanted });
addEventListener("online", hurry);
