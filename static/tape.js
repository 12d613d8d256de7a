// The connection to a tape: start one, read it, cancel it. Knows the wire and nothing of the page.

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

/** False only if the server says so; a server out of reach may still hold the tape. */
export async function exists(location) {
  try {
    await ask(location, { headers: { Accept: "application/json" } });
  } catch (error) {
    return error.status !== 404;
  }
  return true;
}

/**
 * Read a tape from after entry `after` on; returns a function that stops reading.
 * Within one reading the browser resumes by itself: it sends Last-Event-ID when a connection breaks.
 */
export function read(location, after, on) {
  const source = new EventSource(after > 0 ? `${location}?after=${after}` : location);
  const hear = (name, act) =>
    source.addEventListener(name, (event) => act(JSON.parse(event.data), entryOf(event)));

  hear("token", on.token);
  hear("status", on.status);
  hear("gap", on.gap);
  hear("done", (end, entry) => {
    source.close();
    on.done(end, entry);
  });
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) on.lost();
    else on.reconnecting();
  });
  return () => source.close();
}

/** An event id is `<tape>:<n>`; n is the last entry the frame carries. */
function entryOf(event) {
  return Number(event.lastEventId.split(":").pop());
}

async function ask(url, options) {
  const response = await reach(url, options);
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
