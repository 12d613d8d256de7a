// The connection to a tape: start one, read it, cancel it. Knows the wire and nothing of the page.

import { authorization } from "/static/key.js";
import { eventsOf } from "/static/stream.js";

const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 8000; // the server keeps a generation that nobody reads for ten seconds

export class ServerError extends Error {
  constructor(response, { message, param } = {}) {
    super(message ?? `The server answered ${response.status}.`);
    this.status = response.status;
    this.param = param ?? null;
    this.retryAfter = Number(response.headers.get("Retry-After")) || null;
  }
}

export async function start(body) {
  const response = await ask("/v1/tapes", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  return response.headers.get("Location");
}

export async function cancel(location) {
  await ask(location, { method: "DELETE" });
}

/** The tape as it is now. */
export async function snapshot(location) {
  const response = await ask(location, { headers: { Accept: "application/json" } });
  return response.json();
}

/**
 * Read a tape from after entry `after` to its end, over as many connections as it takes; returns a
 * function that stops reading. Each entry is given once.
 */
export function read(location, after, on) {
  const controller = new AbortController();
  follow(location, after, on, controller.signal);
  return () => controller.abort();
}

async function follow(location, after, on, signal) {
  const reader = { after, ended: false, tries: 0 };
  while (!reader.ended) {
    try {
      await readOnce(location, reader, on, signal);
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ServerError) {
        on.lost(error);
        return;
      }
    }
    if (reader.ended || signal.aborted) return;
    on.reconnecting();
    await pause(Math.min(FIRST_RETRY_MS * 2 ** reader.tries, LONGEST_RETRY_MS));
    reader.tries += 1;
  }
}

/** One connection: gives what it brings, and returns when it ends. */
async function readOnce(location, reader, on, signal) {
  const headers = { Accept: "text/event-stream" };
  const response = await ask(`${location}?after=${reader.after}`, { headers, signal });
  for await (const { name, id, data } of eventsOf(response)) {
    if (signal.aborted) return;
    reader.tries = 0;
    const entry = id === null ? reader.after : entryOf(id);
    if (id !== null && entry <= reader.after) continue;
    reader.after = entry;
    reader.ended = name === "done";
    on[name]?.(JSON.parse(data), entry);
    if (reader.ended) return;
  }
}

/** An event id is `<tape>:<n>`; n is the last entry the frame carries. */
function entryOf(id) {
  return Number(id.split(":").pop());
}

function pause(ms) {
  return new Promise((wake) => setTimeout(wake, ms));
}

async function ask(url, { headers, ...options } = {}) {
  const response = await reach(url, { ...options, headers: { ...headers, ...authorization() } });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new ServerError(response, body.error);
}

async function reach(url, options) {
  try {
    return await fetch(url, options);
  } catch {
    throw new Error("The server cannot be reached.");
  }
}
