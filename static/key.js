// The API key, for a server that wants one. It is asked for when the server says so, and kept until
// the tab is closed.

import { load, save } from "/static/storage.js";

const KEY = "tickertape.key";

const field = document.getElementById("key-field");
const input = document.getElementById("key");

input.value = load("sessionStorage", KEY) ?? "";
input.addEventListener("input", () => save("sessionStorage", KEY, input.value));

export function authorization() {
  return input.value ? { Authorization: `Bearer ${input.value}` } : {};
}

export function askForKey() {
  field.hidden = false;
  input.focus();
}

export function hideKeyField() {
  field.hidden = true;
}

/** What to tell a reader whom the server answered 401. */
export function keyProblem() {
  return input.value
    ? "The server does not know this API key. Check it for typing errors, or ask the operator for another."
    : "This server wants an API key. Type it below, then press Enter.";
}
