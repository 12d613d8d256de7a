// The settings panel: system prompt, presets and every sampling field. Kept in this browser.

import { FIELDS, PAGE_DEFAULTS, partOf } from "/static/chat/fields.js";
import { BUILT_IN } from "/static/chat/presets.js";
import { announce, button, byId, el } from "/static/dom.js";
import { load, save } from "/static/storage.js";

const KEY = "tickertape.sampling";
const PRESETS = "tickertape.presets";
const DIGEST = 3; // settings that the line under the composer names
const GROUPS = [
  ["length", null],
  ["sampling", "Sampling"],
  ["penalties", "Penalties"],
  ["json", "JSON schema"],
  ["more", "More"],
];

export class Settings extends EventTarget {
  constructor(root) {
    super();
    this.root = root;
    this.controls = new Map();
    this.presets = load("localStorage", PRESETS) ?? [];
    this.build();
    this.restore(load("localStorage", KEY) ?? {});
    this.usualSystem = this.system; // what a new chat begins with
    root.addEventListener("input", ({ target }) => this.onInput(target));
    root.addEventListener("change", ({ target }) => this.onInput(target));
  }

  // ---- what the rest of the page asks

  get system() {
    return byId("system").value;
  }

  /** The system prompt of the chat that is shown. A new chat begins with the one that was typed last. */
  set system(text) {
    byId("system").value = text;
    this.dispatchEvent(new Event("change"));
  }


  /** The fields of a request, or null when one is malformed: then it says so. */
  body() {
    for (const field of FIELDS) this.clearError(field.name);
    let parts = { ...PAGE_DEFAULTS };
    for (const field of FIELDS) {
      try {
        Object.assign(parts, partOf(field, this.valueOf(field)));
      } catch (error) {
        this.showError(field.param ?? field.name, error.message);
        return null;
      }
    }
    return parts;
  }

  /** Shows `message` beside the control of `param`; false when there is none. */
  showError(param, message) {
    const field = FIELDS.find(({ name, param: other }) => (other ?? name) === param);
    if (!field) return false;
    this.dispatchEvent(new Event("reveal"));
    const { input, error } = this.controls.get(field.name);
    input.closest("details")?.setAttribute("open", "");
    error.textContent = message;
    error.hidden = false;
    input.setAttribute("aria-invalid", "true");
    input.focus();
    return true;
  }

  focus(name) {
    this.dispatchEvent(new Event("reveal"));
    const { input } = this.controls.get(name);
    input.closest("details")?.setAttribute("open", "");
    input.focus();
  }

  /** What the model takes where a field is empty. */
  introduce({ sampling = {} }) {
    for (const field of FIELDS.filter(({ model }) => model)) {
      const value = sampling[field.name];
      const isOff = { top_k: 0, top_p: 1, min_p: 0, repetition_penalty: 1 }[field.name] === value;
      if (value !== undefined) this.controls.get(field.name).input.placeholder = isOff ? `${value} (off)` : String(value);
    }
  }

  /** What is not as the model has it, in a few words for the line under the composer. */
  digest() {
    const changed = FIELDS.filter((field) => !["", false].includes(this.valueOf(field)));
    const named = changed.map((field) => (isShort(field) ? `${field.label.toLowerCase()} ${this.valueOf(field)}` : field.label));
    if (this.system.trim()) named.unshift("system prompt");
    const rest = named.length - DIGEST;
    return named.length ? named.slice(0, DIGEST).join(" · ") + (rest > 0 ? ` · ${rest} more` : "") : "the model's defaults";
  }

  // ---- the form

  build() {
    const groups = GROUPS.map(([name, title]) => this.group(name, title));
    this.root.append(this.presetBar(), ...groups, el("p", {}, button("Back to the model's defaults", () => this.reset(), { class: "quiet", id: "defaults" })));
  }

  presetBar() {
    const choice = el("select", { id: "preset", onchange: ({ target }) => this.applyPreset(target.value) });
    this.presetChoice = choice;
    this.fillPresets();
    const keep = button("Save as preset", () => this.savePreset(), { class: "quiet" });
    this.removeButton = button("Delete", () => this.removePreset(), { class: "quiet", hidden: true });
    const system = el("textarea", { id: "system", rows: 3, placeholder: "For example: You are a helpful assistant. Answer in one sentence." });
    return el(
      "div", { class: "preset-bar" },
      el("div", { class: "field" }, el("label", { for: "preset" }, "Preset"), choice),
      el("div", { class: "row" }, keep, this.removeButton),
      el("div", { class: "field" }, el("label", { for: "system" }, "System prompt"), system),
    );
  }

  group(name, title) {
    const fields = FIELDS.filter(({ group }) => group === name).map((field) => this.field(field));
    if (!title) return el("div", { class: "grid" }, ...fields);
    const details = el("details", { class: "fold", open: name === "sampling" }, el("summary", {}, title), el("div", { class: name === "json" ? "" : "grid" }, ...fields));
    return details;
  }

  field(field) {
    const id = `set-${field.name.replaceAll("_", "-")}`;
    const input = inputOf(field, id);
    input.dataset.name = field.name;
    const help = el("p", { id: `${id}-help`, class: "field-help" }, field.help);
    const error = el("p", { id: `${id}-error`, class: "field-error", hidden: true });
    input.setAttribute("aria-describedby", `${id}-help ${id}-error`);
    this.controls.set(field.name, { input, error });
    const unit = field.unit ? el("small", {}, ` ${field.unit}`) : null;
    const wide = ["lines", "text", "choice", "check", "code"].includes(field.kind) ? " wide" : "";
    if (field.kind === "check") {
      return el("div", { class: "field wide check" }, input, el("label", { for: id }, field.label), help, error);
    }
    return el("div", { class: `field${wide}` }, el("label", { for: id }, field.label, unit), input, help, error);
  }

  valueOf({ name, kind }) {
    const { input } = this.controls.get(name);
    if (kind === "check") return input.checked;
    return input.validity?.badInput ? "not a number" : input.value;
  }

  values() {
    const kept = FIELDS.map((field) => [field.name, this.valueOf(field)]);
    return Object.fromEntries(kept.filter(([, value]) => value !== "" && value !== false));
  }

  restore({ system = "", values = {} }) {
    byId("system").value = system;
    for (const field of FIELDS) {
      const { input } = this.controls.get(field.name);
      if (field.kind === "check") input.checked = values[field.name] === true;
      else input.value = values[field.name] ?? "";
      this.clearError(field.name);
    }
  }

  reset() {
    this.restore({ system: this.system });
    this.presetChoice.value = "";
    this.store();
  }

  onInput(target) {
    if (target.dataset.name) this.clearError(target.dataset.name);
    if (target.id === "system") this.usualSystem = target.value;
    this.store();
  }

  clearError(name) {
    const { input, error } = this.controls.get(name);
    error.hidden = true;
    input.removeAttribute("aria-invalid");
  }

  store() {
    save("localStorage", KEY, { system: this.usualSystem, values: this.values() });
    this.dispatchEvent(new Event("change"));
  }

  // ---- presets

  fillPresets(selected = "") {
    const option = (value, label) => el("option", { value }, label);
    const own = this.presets.map(({ name }) => option(`own:${name}`, name));
    this.presetChoice.replaceChildren(
      option("", "none"),
      el("optgroup", { label: "Built in" }, ...BUILT_IN.map(({ name }) => option(`built-in:${name}`, name))),
      ...(own.length ? [el("optgroup", { label: "Yours" }, ...own)] : []),
    );
    this.presetChoice.value = selected;
  }

  applyPreset(value) {
    const [kind, name] = [value.split(":")[0], value.slice(value.indexOf(":") + 1)];
    this.removeButton.hidden = kind !== "own";
    const preset = (kind === "own" ? this.presets : BUILT_IN).find((one) => one.name === name);
    if (!preset) return;
    this.restore(preset);
    this.usualSystem = this.system;
    this.store();
  }

  savePreset() {
    const name = prompt("Name of the preset")?.trim().slice(0, 60);
    if (!name) return;
    const preset = { name, system: this.system, values: this.values() };
    this.presets = [...this.presets.filter((one) => one.name !== name), preset];
    save("localStorage", PRESETS, this.presets);
    this.fillPresets(`own:${name}`);
    this.removeButton.hidden = false;
    announce(`Preset ${name} saved.`);
  }

  removePreset() {
    const name = this.presetChoice.value.slice("own:".length);
    this.presets = this.presets.filter((one) => one.name !== name);
    save("localStorage", PRESETS, this.presets);
    this.fillPresets();
    this.removeButton.hidden = true;
    this.presetChoice.focus();
  }
}

const isShort = ({ kind }) => kind === undefined || kind === "choice";

function inputOf({ kind, step, min, max, placeholder, choices }, id) {
  if (kind === "lines") return el("textarea", { id, rows: 2, placeholder, spellcheck: false });
  if (kind === "code") return el("textarea", { id, rows: 5, placeholder, spellcheck: false, class: "code" });
  if (kind === "text") return el("input", { id, placeholder, spellcheck: false, autocomplete: "off" });
  if (kind === "check") return el("input", { id, type: "checkbox" });
  if (kind === "choice") return el("select", { id }, ...choices.map(([value, label]) => el("option", { value }, label)));
  const input = el("input", { id, type: "number", placeholder: placeholder ?? "", autocomplete: "off" });
  input.step = String(step);
  if (min !== undefined) input.min = String(min);
  if (max !== undefined) input.max = String(max);
  input.inputMode = Number.isInteger(step) && (min ?? 0) >= 0 ? "numeric" : "decimal";
  return input;
}
