// The connection to /v1/dash: reads it for as long as the page is open. Knows nothing of the page.

import { ask } from "/static/http.js";
import { eventsOf } from "/static/stream.js";

const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 8000;

// A sample comes every second: after so long without any, the connection is dead.
const SILENCE_MS = 10_000;

/**
 * `on` hears `history` and `sample`; `away` with what has happened, and the seconds to the next try;
 * and `keyWanted`, which resolves when there is one to try. Returns what cuts a wait short.
 */
export function follow(on) {
  const feed = { tries: 0, wake: null };
  keepReading(feed, on);
  return () => feed.wake?.();
}

async function keepReading(feed, on) {
  for (;;) {
    const error = await readOnce(feed, on).catch((failed) => failed);
    if (error.status === 401) {
      await on.keyWanted();
      continue;
    }
    const wait = Math.min(FIRST_RETRY_MS * 2 ** feed.tries, LONGEST_RETRY_MS);
    feed.tries += 1;
    on.away(error.message, wait / 1000);
    await new Promise((wake) => {
      feed.wake = wake;
      setTimeout(wake, wait);
    });
  }
}

/** One connection: gives what it brings. Returns why it ended; throws ServerError for a refusal. */
async function readOnce(feed, on) {
  const controller = new AbortController();
  let silence = null;
  const expectMore = () => {
    clearTimeout(silence);
    silence = setTimeout(() => controller.abort(), SILENCE_MS);
  };
  expectMore();
  try {
    const headers = { Accept: "text/event-stream" };
    const response = await ask("/v1/dash", { headers, signal: controller.signal });
    for await (const { name, data } of untilBroken(eventsOf(response))) {
      expectMore();
      feed.tries = 0;
      if (name === "end") return new Error("The server has shut down.");
      hear(on[name], JSON.parse(data));
    }
    return new Error("The connection was lost.");
  } finally {
    clearTimeout(silence);
  }
}

/** A connection that breaks has ended. */
async function* untilBroken(events) {
  try {
    yield* events;
  } catch {
    // What there was to say of it, the caller says.
  }
}

/** A fault of the page is no fault of the connection. */
function hear(listener, data) {
  try {
    listener?.(data);
  } catch (error) {
    reportError(error);
  }
}
