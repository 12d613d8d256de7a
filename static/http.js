// Asks the server, with the API key where there is one.

import { authorization } from "/static/key.js";

export class ServerError extends Error {
  constructor(response, { message, param, code } = {}) {
    super(message ?? `The server answered ${response.status}.`);
    this.status = response.status;
    this.param = param ?? null;
    this.code = code ?? null;
    this.retryAfter = Number(response.headers.get("Retry-After")) || null;
  }
}

/** The answer. Throws ServerError for a refusal, Error when there is no answer. */
export async function ask(url, { headers, ...options } = {}) {
  const response = await reach(url, { ...options, headers: { ...headers, ...authorization() } });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new ServerError(response, body.error);
}

async function reach(url, options) {
  try {
    return await fetch(url, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    dispatchEvent(new Event("server-unreachable"));
    throw new Error("The server cannot be reached. Check that it runs, then try again.");
  }
}
