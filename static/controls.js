// The form: sampling controls <-> the fields of a request. Ranges are the server's to judge.

import { load, save } from "/static/storage.js";

const KEY = "tickertape.settings";

const byId = (id) => document.getElementById(id);
const prompt = byId("prompt");
const settings = byId("settings");
const sampling = byId("sampling");
const greedy = byId("mode-greedy");
const sample = byId("mode-sample");
const fields = [...document.querySelectorAll("[data-param]")];
const numbers = fields.filter((field) => field !== prompt);

export function prepare() {
  restore();
  settings.open = matchMedia("(min-width: 60rem)").matches;
  settings.addEventListener("input", changed);
  byId("defaults").addEventListener("click", resetToDefaults);
  prompt.addEventListener("input", () => clearError(prompt));
  changed();
}

/** The request body, or null when a field holds something that is not a number. */
export function requestBody() {
  fields.forEach(clearError);
  const malformed = numbers.find((field) => field.validity.badInput);
  if (malformed) {
    showError(malformed.dataset.param, "This is not a number.");
    return null;
  }
  const set = numbers.filter((field) => field.value !== "" && !field.matches(":disabled"));
  const values = set.map((field) => [field.dataset.param, Number(field.value)]);
  return {
    prompt: prompt.value,
    ...(greedy.checked && { temperature: 0 }),
    ...Object.fromEntries(values),
  };
}

/** Shows `message` beside the control of `param`; false when there is no such control. */
export function showError(param, message) {
  const field = fields.find((one) => one.dataset.param === param);
  if (!field) return false;
  if (settings.contains(field)) settings.open = true;
  const note = errorOf(field);
  note.textContent = message;
  note.hidden = false;
  field.setAttribute("aria-invalid", "true");
  field.focus();
  return true;
}

function clearError(field) {
  errorOf(field).hidden = true;
  field.removeAttribute("aria-invalid");
}

function errorOf(field) {
  return byId(`${field.id}-error`);
}

function changed(event) {
  if (numbers.includes(event?.target)) clearError(event.target);
  sampling.disabled = greedy.checked;
  byId("settings-digest").textContent = digest();
  const values = Object.fromEntries(numbers.map((field) => [field.id, field.value]));
  save("localStorage", KEY, { greedy: greedy.checked, values });
}

function restore() {
  const kept = load("localStorage", KEY);
  if (!kept) return;
  greedy.checked = kept.greedy === true;
  sample.checked = !greedy.checked;
  for (const field of numbers) field.value = kept.values?.[field.id] ?? field.defaultValue;
}

function resetToDefaults() {
  sample.checked = true;
  for (const field of numbers) {
    field.value = field.defaultValue;
    clearError(field);
  }
  changed();
}

function digest() {
  const heat = byId("temperature").value;
  const length = byId("max-length").value;
  const mode = greedy.checked ? "greedy" : heat && `temperature ${heat}`;
  return [mode, length && `${length} tokens`].filter(Boolean).join(" · ");
}
