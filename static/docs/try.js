// A form that sends one request to this server and shows the answer as it comes.

import { copyFrom, el, iconButton, ICONS } from "/static/dom.js";
import { authorization } from "/static/key.js";

const LONGEST = 200_000; // characters of an answer that are shown

export function tryForm(method, path, operation, example) {
  const id = operation.operationId;
  const inputs = (operation.parameters ?? []).filter(({ in: place }) => place !== "cookie").map((parameter) => inputFor(parameter, id));
  const body = example === null ? null : el("textarea", { id: `${id}-body`, class: "code", rows: 8, spellcheck: false, value: JSON.stringify(example, null, 2) });
  const output = el("pre", { class: "try-output", hidden: true, tabIndex: 0, role: "region", "aria-label": "Answer" });
  const status = el("p", { class: "note", role: "status" });
  const send = el("button", { type: "submit", class: "primary small" }, "Send");
  const stop = el("button", { type: "button", class: "quiet small", hidden: true }, "Stop");
  const copy = iconButton(ICONS.copy, "Copy as curl", () => copyFrom(copy, curl(request())));
  let controller = null;

  const request = () => {
    const headers = { ...authorization() };
    const query = new URLSearchParams();
    let address = path;
    for (const { parameter, input } of inputs) {
      const value = input.value.trim();
      if (parameter.in === "path") address = address.replace(`{${parameter.name}}`, encodeURIComponent(value).replaceAll("%2F", "/"));
      else if (value && parameter.in === "query") query.set(parameter.name, value);
      else if (value && parameter.in === "header") headers[parameter.name] = value;
    }
    if (body) headers["Content-Type"] = "application/json";
    const search = query.size ? `?${query}` : "";
    return { method: method.toUpperCase(), url: address + search, headers, body: body?.value };
  };

  const run = async () => {
    controller = new AbortController();
    stop.hidden = false;
    output.hidden = false;
    output.textContent = "";
    try {
      const { url, ...options } = request();
      const response = await fetch(url, { ...options, signal: controller.signal });
      status.textContent = `${response.status} ${response.statusText} · ${response.headers.get("Content-Type") ?? "no body"}`;
      await showBody(response, output);
    } catch (error) {
      if (!controller.signal.aborted) status.textContent = `The server cannot be reached. Check that it runs. (${error.message})`;
    } finally {
      stop.hidden = true;
    }
  };
  stop.addEventListener("click", () => controller.abort());

  return el(
    "form", { class: "try", novalidate: "", onsubmit: (event) => { event.preventDefault(); run(); } },
    el("h3", {}, "Try it"),
    inputs.length ? el("div", { class: "grid" }, ...inputs.map(({ node }) => node)) : null,
    body ? el("div", { class: "field" }, el("label", { for: `${id}-body` }, "Body"), body) : null,
    el("div", { class: "row" }, send, stop, copy, status),
    output,
  );
}

function inputFor(parameter, operation) {
  const id = `${operation}-${parameter.name}`;
  const input = el("input", { id, autocomplete: "off", spellcheck: false });
  const known = parameter.schema?.enum;
  if (known?.length === 1) [input.value] = known;
  if (parameter.name === "prompt") input.value = "Once upon a time";
  return { parameter, input, node: el("div", { class: "field" }, el("label", { for: id }, parameter.name, el("small", {}, ` ${parameter.in}`)), input) };
}

async function showBody(response, output) {
  if (!response.body) return;
  const text = document.createTextNode("");
  output.append(text);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (text.length < LONGEST) text.appendData(value.slice(0, LONGEST));
  }
  if (response.headers.get("Content-Type")?.startsWith("application/json") && text.length < LONGEST) {
    text.data = JSON.stringify(JSON.parse(text.data), null, 2);
  }
}

function curl({ method, url, headers, body }) {
  const quoted = (part) => `'${part.replaceAll("'", "'\\''")}'`;
  const lines = [`curl -N -X ${method} ${quoted(location.origin + url)}`, ...Object.entries(headers).map(([name, value]) => `-H ${quoted(`${name}: ${value}`)}`)];
  if (body) lines.push(`-d ${quoted(body)}`);
  return lines.join(" \\\n  ");
}
