// The same answer from elsewhere: the requests of this page as curl, Python and JavaScript.

import { copyFrom, el, iconButton, ICONS } from "/static/dom.js";

export function snippetsOf(body, tape, entry) {
  const origin = location.origin;
  const key = document.getElementById("key").value ? "YOUR_KEY" : null;
  return { curl: curl(origin, body, tape, entry, key), Python: python(origin, body, key), JavaScript: javascript(origin, body, key) };
}

function curl(origin, body, tape, entry, key) {
  const auth = key ? ` \\\n  -H 'Authorization: Bearer ${key}'` : "";
  const data = JSON.stringify(body).replaceAll("'", "'\\''");
  return `# Start a tape and read it. Ctrl-C, then run the second command: not one token is lost.
curl -N ${origin}/generate${auth} \\
  -H 'Accept: text/event-stream' \\
  -H 'Content-Type: application/json' \\
  -d '${data}'

# Read this page's tape on from entry ${entry}.
curl -N ${origin}/v1/tapes/${tape ?? "TAPE"}${auth} \\
  -H 'Last-Event-ID: ${tape ?? "TAPE"}:${entry}'
`;
}

function python(origin, body, key) {
  const header = key ? `, headers={"Authorization": "Bearer ${key}"}` : "";
  return `# pip install httpx
import json

import httpx

body = json.loads(${JSON.stringify(JSON.stringify(body))})

with httpx.Client(base_url="${origin}", timeout=None${header}) as http:
    tape = http.post("/v1/tapes", json=body).raise_for_status().json()["tape"]
    last, ended = f"{tape}:0", False
    while not ended:
        try:
            with http.stream("GET", f"/v1/tapes/{tape}", headers={"Last-Event-ID": last}) as answer:
                answer.raise_for_status()
                event = {}
                for line in answer.iter_lines():
                    name, _, value = line.partition(": ")
                    if name:
                        event[name] = value
                        continue
                    last = event.get("id", last)
                    if event.get("event") == "token":
                        print(json.loads(event["data"])["text"], end="", flush=True)
                    ended = event.get("event") == "done"
                    event = {}
        except httpx.TransportError:
            continue  # the next connection goes on after \`last\`
`;
}

function javascript(origin, body, key) {
  const auth = key ? `, Authorization: "Bearer ${key}"` : "";
  const note = key ? "\n// EventSource cannot send a key: read with fetch where the server wants one." : "";
  return `const answer = await fetch("${origin}/v1/tapes", {
  method: "POST",
  headers: { "Content-Type": "application/json"${auth} },
  body: JSON.stringify(${JSON.stringify(body)}),
});
const { tape } = await answer.json();

// EventSource reconnects by itself, and its Last-Event-ID resumes the tape.${note}
const source = new EventSource("${origin}/v1/tapes/" + tape);
source.addEventListener("token", ({ data }) => console.log(JSON.parse(data).text));
source.addEventListener("done", () => source.close());
`;
}

/** A dialog with one tab for each language. */
export function showSnippets(body, tape, entry) {
  const texts = snippetsOf(body, tape, entry);
  const code = el("code");
  const pre = el("pre", { tabIndex: 0, role: "region", "aria-label": "Code" }, code);
  const copy = iconButton(ICONS.copy, "Copy this code", () => copyFrom(copy, code.textContent));
  const tabs = Object.keys(texts).map((name) => el("button", { type: "button", class: "quiet", onclick: () => choose(name) }, name));
  const choose = (name) => {
    code.textContent = texts[name];
    for (const tab of tabs) tab.setAttribute("aria-pressed", String(tab.textContent === name));
  };
  const close = iconButton(ICONS.close, "Close", () => dialog.close());
  const dialog = el(
    "dialog", { class: "dialog wide", "aria-label": "This request as code" },
    el("div", { class: "dialog-head" }, el("h2", {}, "This request as code"), close),
    el("div", { class: "row" }, ...tabs, copy),
    pre,
  );
  choose("curl");
  openDialog(dialog);
}

/** Shows a dialog that goes when it is closed. */
export function openDialog(dialog) {
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", ({ target }) => { if (target === dialog) dialog.close(); });
  document.body.append(dialog);
  dialog.showModal();
}
