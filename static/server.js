// What the server says about itself: does it live, does it take work, and what does it run?

import { ask } from "/static/http.js";

const POLL_MS = 1500;
const TIMEOUT_MS = 4000;

export async function version() {
  return json("/version").catch(() => ({}));
}

/** The model that is served: `{id, max_model_len, chat, sampling, demo}`. Throws ServerError 401. */
export async function model() {
  const response = await ask("/v1/models", { cache: "no-store" });
  return (await response.json()).data[0] ?? {};
}

/**
 * Watches the server for as long as the page is open: `on(state, health)` at every change, with "ready",
 * "loading", "recovering", "draining" or "unreachable". Returns what asks at once.
 */
export function watch(on) {
  let state = null;
  let timer = null;
  let asking = null;

  const look = async () => {
    clearTimeout(timer);
    asking ??= health().finally(() => { asking = null; });
    const found = await asking;
    if (found.engine !== state) {
      state = found.engine;
      on(state, found);
    }
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(look, POLL_MS);
  };

  for (const event of ["online", "offline", "server-unreachable", "focus"]) addEventListener(event, look);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
  look();
  return look;
}

async function health() {
  try {
    return await json("/health");
  } catch {
    return { engine: "unreachable" };
  }
}

async function json(url) {
  const signal = AbortSignal.timeout(TIMEOUT_MS);
  const response = await fetch(url, { cache: "no-store", signal });
  if (!response.ok) throw new Error(`The server answered ${response.status}.`);
  return response.json();
}
