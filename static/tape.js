// The connection to a tape: start one, read it, cancel it. Knows the wire and nothing of the page.

import { ask, ServerError } from "/static/ask.js";
import { eventsOf } from "/static/stream.js";

// The first four tries fall within the ten seconds that the server keeps a generation nobody reads.
const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 8000;

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

/** Whether the tape may still be read: only a 404 says that the server has it no longer. */
export function isKept(location) {
  return snapshot(location).then(() => true, (error) => error.status !== 404);
}

/** Whether the server says that the tape still grows. */
export function isRunning(location) {
  return snapshot(location).then(({ status }) => status !== "done", () => false);
}

async function snapshot(location) {
  const response = await ask(location, { headers: { Accept: "application/json" } });
  return response.json();
}

/**
 * Read a tape from after entry `after` to its end, over as many connections as it takes. Each entry
 * is given once. Returns `{close, hurry}`: to stop reading, and to cut a wait for the next try short.
 */
export function read(location, after, on) {
  const controller = new AbortController();
  const reader = { after, ended: false, tries: 0, wake: null };
  follow(location, reader, on, controller.signal);
  return { close: () => controller.abort(), hurry: () => reader.wake?.() };
}

async function follow(location, reader, on, signal) {
  while (!reader.ended) {
    try {
      await readOnce(location, reader, on, signal);
    } catch (error) {
      if (signal.aborted) return;
      if (isRefusal(error)) {
        on.lost(error);
        return;
      }
    }
    if (reader.ended || signal.aborted) return;
    const wait = Math.min(FIRST_RETRY_MS * 2 ** reader.tries, LONGEST_RETRY_MS);
    reader.tries += 1;
    on.reconnecting(wait / 1000);
    await new Promise((wake) => {
      reader.wake = wake;
      setTimeout(wake, wait);
    });
  }
}

/** A proxy answers 5xx for a server that is out of reach; that is no answer about the tape. */
function isRefusal(error) {
  return error instanceof ServerError && error.status < 500;
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
