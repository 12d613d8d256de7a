// One route of the reference: what it does, what it takes, what it answers, and a form to try it.

import { exampleOf, isRequired, propertiesOf, typeOf } from "/static/docs/schema.js";
import { tryForm } from "/static/docs/try.js";
import { el } from "/static/dom.js";

export function operationCard(method, path, operation, document_) {
  const summary = operation.description ?? operation.summary ?? "";
  const first = summary.split("\n")[0];
  const card = el(
    "details", { class: "operation", id: operation.operationId, data: { words: `${method} ${path} ${summary}`.toLowerCase() } },
    el("summary", {}, el("span", { class: `method ${method}` }, method.toUpperCase()), el("code", { class: "path" }, path), el("span", { class: "operation-summary" }, plain(first))),
  );
  // Forty routes with their tables would be long to lay out: each is built when it is opened.
  card.addEventListener("toggle", () => {
    if (card.open && card.childElementCount === 1) card.append(details(method, path, operation, document_, summary));
  });
  return card;
}

function details(method, path, operation, document_, summary) {
  const rest = summary.split("\n").slice(1).join("\n").trim();
  const body = operation.requestBody?.content?.["application/json"];
  const example = body ? body.example ?? exampleOf(body.schema, document_, path) : null;
  return el(
    "div", { class: "operation-body" },
    rest ? el("p", {}, plain(rest)) : null,
    operation.parameters?.length ? parameters(operation.parameters, document_) : null,
    body ? fields(body.schema, document_) : null,
    tryForm(method, path, operation, example),
    answers(operation.responses),
  );
}

function parameters(all, document_) {
  const rows = all.map((one) => row(one.name, `${one.in} · ${typeOf(one.schema ?? one.content?.["application/json"]?.schema ?? {}, document_)}`, one.description ?? "", one.required));
  return el("div", {}, el("h3", {}, "Parameters"), table(rows, "Parameters"));
}

function fields(schema, document_) {
  const rows = Object.entries(propertiesOf(schema, document_))
    .map(([name, one]) => row(name, typeOf(one, document_), one.description ?? "", isRequired(schema, name, document_)));
  return rows.length ? el("div", {}, el("h3", {}, "Body"), table(rows, "Fields of the body")) : null;
}

function answers(responses) {
  const rows = Object.entries(responses).map(([status, { description, content }]) => (
    row(status, Object.keys(content ?? {}).join(", ") || "no body", description ?? "", false)
  ));
  return el("details", { class: "fold" }, el("summary", {}, "Answers"), table(rows, "Answers"));
}

function row(name, type, description, required) {
  return el(
    "tr", {},
    el("th", { scope: "row" }, el("code", {}, name), required ? el("span", { class: "required" }, " required") : null),
    el("td", { class: "type" }, type),
    el("td", {}, plain(description)),
  );
}

function table(rows, label) {
  return el("div", { class: "table-scroll", tabIndex: 0, role: "region", "aria-label": label }, el("table", { class: "reference-table" }, el("tbody", {}, ...rows)));
}

/** Descriptions mark code with backticks. */
function plain(text) {
  const span = el("span");
  text.split("`").forEach((part, place) => span.append(place % 2 ? el("code", {}, part) : part));
  return span;
}
