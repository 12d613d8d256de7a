// The panel at the side: On the wire, or the settings, or nothing.

import { byId } from "/static/dom.js";

const KEY = "tickertape.panel";
const root = document.documentElement;
const BUTTONS = { wire: "show-wire", settings: "show-settings" };

export class SidePanel {
  constructor(shown) {
    this.shown = shown;
    for (const [name, id] of Object.entries(BUTTONS)) byId(id).addEventListener("click", () => this.toggle(name));
    byId("close-panel").addEventListener("click", () => {
      const name = root.dataset.panel;
      this.open("none");
      byId(BUTTONS[name])?.focus();
    });
    this.mark();
  }

  get current() {
    return root.dataset.panel;
  }

  toggle(name) {
    this.open(this.current === name ? "none" : name);
  }

  open(name) {
    root.dataset.panel = name;
    try {
      localStorage.setItem(KEY, name);
    } catch {
      // It opens as by default next time.
    }
    this.mark();
    this.shown(name);
  }

  mark() {
    for (const [name, id] of Object.entries(BUTTONS)) byId(id).setAttribute("aria-pressed", String(this.current === name));
    byId("wire").hidden = this.current !== "wire";
    byId("settings").hidden = this.current !== "settings";
    byId("panel-title").textContent = this.current === "settings" ? "Settings" : "On the wire";
  }
}
