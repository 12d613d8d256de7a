// The requests about a tape: start, cancel, look at, fork. Knows the wire and nothing of the page.

import { ask } from "/static/http.js";

const JSON_HEADERS = { "Content-Type": "application/json", Accept: "application/json" };

export const locationOf = (tape) => `/v1/tapes/${encodeURIComponent(tape)}`;

async function post(url, body) {
  const response = await ask(url, {
    method: "POST", headers: JSON_HEADERS, body: JSON.stringify(body),
  });
  return response.status === 204 ? null : response.json();
}

/** The id of the new tape. */
export async function start(body) {
  return (await post("/v1/tapes", body)).tape;
}

/** Starts a tape whose first `after` entries are copies of those of `tape`; its id. */
export async function fork(tape, changes) {
  return (await post(`${locationOf(tape)}/fork`, changes)).tape;
}

export async function cancel(location) {
  await ask(location, { method: "DELETE" });
}

export async function snapshot(tape) {
  return (await ask(locationOf(tape), { headers: { Accept: "application/json" } })).json();
}

/** Where the engine writes and where everybody reads. */
export async function heads(tape) {
  return (await ask(`${locationOf(tape)}/heads`, { headers: { Accept: "application/json" } })).json();
}

export async function tokenCount(body) {
  return (await post("/tokenize", body)).count;
}

export async function killEngine() {
  await ask("/v1/demo/kill-engine", { method: "POST" });
}

/**
 * What a fork is asked for: the settings' `body` from entry `after` on. Its length counts the copied
 * entries, and must fit beside the prompt. A JSON schema belongs to the whole tape: it stays as it was.
 */
export function forkBody({ response_format: _, ...body }, changes, { message }, context = 1 << 20) {
  const room = context - (message.usage?.prompt_tokens ?? 0);
  return { ...body, ...changes, max_length: Math.min(body.max_length + changes.after, room) };
}
