// The reference of the API: reads /openapi.json and shows every route, to read and to try.

import { operationCard } from "/static/docs/operation.js";
import { byId, el } from "/static/dom.js";

const GROUPS = {
  native: "Generate",
  tapes: "Tapes",
  openai: "For OpenAI's clients",
  tokens: "Tokens",
  operation: "Operation",
};

async function show() {
  const response = await fetch("/openapi.json");
  if (!response.ok) throw new Error(`The server answered ${response.status} for /openapi.json. Reload the page.`);
  const document_ = await response.json();
  byId("base-url").textContent = `${location.origin}/v1`;
  byId("key-field").hidden = !document_.components.securitySchemes;

  const groups = new Map();
  for (const [path, operations] of Object.entries(document_.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      const name = operation.tags?.[0] ?? "other";
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(operationCard(method, path, operation, document_));
    }
  }
  byId("operations").replaceChildren(...[...groups].map(([name, cards]) => (
    el("section", { class: "reference-group", "aria-label": GROUPS[name] ?? name }, el("h2", {}, GROUPS[name] ?? name), ...cards)
  )));
  byId("filter").addEventListener("input", filter);
  openTarget();
}

function filter() {
  const words = byId("filter").value.trim().toLowerCase();
  for (const group of document.querySelectorAll(".reference-group")) {
    const cards = [...group.querySelectorAll(".operation")];
    for (const card of cards) card.hidden = !card.dataset.words.includes(words);
    group.hidden = cards.every(({ hidden }) => hidden);
  }
}

/** /docs#create_tape opens that route. */
function openTarget() {
  const target = document.getElementById(location.hash.slice(1));
  if (!target?.classList.contains("operation")) return;
  target.open = true;
  target.scrollIntoView();
}

addEventListener("hashchange", openTarget);
show().catch((error) => {
  byId("problem").textContent = error.message;
  byId("problem").hidden = false;
});
