// One chart of the last minutes: lines by uPlot, a legend with the figures, and the same in words.

import { figure } from "/static/format.js";
import uPlot from "/static/vendor/uplot/uPlot.esm.js";

const SHORTEST_S = 60;
const LONGEST_S = 600;
const HEIGHT = 160;
const FONT = "12px system-ui, sans-serif";
const DASHES = [[], [7, 4], [2, 3]]; // colours alone would not tell lines apart

/**
 * `lines` are `{label, read}`, where `read` takes a sample to a number or null. `top` is the end of
 * the scale where that is fixed, else it is at least `least`.
 */
export class Chart {
  constructor(parent, { title, unit, digits, lines, top, least }) {
    Object.assign(this, { title, unit, digits, lines, top, least });
    this.columns = [[], ...lines.map(() => [])];
    this.hovered = null;
    this.build(parent);
    this.plot = new uPlot(this.options(), this.columns, this.box);
    new ResizeObserver(() => this.fit()).observe(this.box);
  }

  show(history) {
    this.columns = history.columns(this.lines.map(({ read }) => read));
    this.plot.setData(this.columns);
    this.label();
    this.box.setAttribute("aria-label", this.inWords());
  }

  /** In the colours of the theme as it is now. */
  repaint() {
    this.plot.redraw(false, true);
  }

  /** `[name, now, lowest, mean, highest]` of each line, as text. */
  summary() {
    return this.lines.map(({ label }, index) => {
      const values = this.columns[index + 1];
      const known = values.filter((value) => value !== null);
      const mean = known.reduce((sum, value) => sum + value, 0) / known.length;
      const figures = known.length
        ? [values.at(-1), Math.min(...known), mean, Math.max(...known)]
        : [null, null, null, null];
      const name = this.lines.length > 1 ? `${this.title}: ${label}` : this.title;
      return [name, ...figures.map((value) => this.text(value))];
    });
  }

  text(value) {
    const number = figure(value, this.digits);
    return Number.isFinite(value) && this.unit ? `${number} ${this.unit}` : number;
  }

  inWords() {
    return this.summary()
      .map(([name, now, lowest, , highest]) => `${name} now ${now}, from ${lowest} to ${highest}.`)
      .join(" ");
  }

  build(parent) {
    const root = element("figure", "chart");
    const caption = element("figcaption");
    const legend = element("ul", "legend");
    this.values = this.lines.map(({ label }, index) => {
      const item = element("li", `line-${index}`);
      const value = element("b");
      item.append(element("span", "swatch"), label, " ", value);
      legend.append(item);
      return value;
    });
    this.time = element("li", "time");
    legend.append(this.time);
    const heading = element("h3", "", this.title);
    if (this.unit) heading.append(" ", element("small", "", this.unit));
    caption.append(heading, legend);
    this.box = element("div", "plot");
    this.box.setAttribute("role", "img");
    this.box.setAttribute("aria-label", this.title);
    root.append(caption, this.box);
    parent.append(root);
    this.swatches = [...legend.querySelectorAll(".swatch")];
  }

  options() {
    const axis = {
      font: FONT,
      stroke: () => getComputedStyle(this.box).color,
      grid: { stroke: () => getComputedStyle(this.box).borderTopColor, width: 1 },
      ticks: { show: false },
    };
    return {
      padding: [8, 12, 0, 0],
      width: this.box.clientWidth || 300,
      height: HEIGHT,
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false } },
      scales: { x: { time: true, range: lastMinutes }, y: { range: (_, __, max) => [0, this.end(max)] } },
      axes: [
        { ...axis, space: 76, size: 28, values: (_, times) => times.map(clock) },
        { ...axis, space: 26, size: 46, values: (_, marks) => marks.map(short) },
      ],
      series: [{}, ...this.lines.map((_, index) => this.stroke(index))],
      hooks: { setCursor: [({ cursor }) => this.hover(cursor.idx ?? null)] },
    };
  }

  stroke(index) {
    return {
      stroke: () => getComputedStyle(this.swatches[index]).color,
      width: 1.75,
      dash: DASHES[index],
      points: { show: false },
    };
  }

  end(max) {
    return this.top ?? Math.max(max * 1.15, this.least);
  }

  hover(index) {
    this.hovered = index;
    this.label();
  }

  /** The figures under the pointer, or the newest. */
  label() {
    const at = this.hovered ?? this.columns[0].length - 1;
    this.values.forEach((value, index) => {
      value.textContent = figure(this.columns[index + 1][at], this.digits);
    });
    this.time.textContent = this.hovered === null ? "" : clock(this.columns[0][at]);
  }

  fit() {
    const width = this.box.clientWidth;
    if (width) this.plot.setSize({ width, height: HEIGHT });
  }
}

export function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

function lastMinutes(_, first, last) {
  const end = last ?? Date.now() / 1000;
  return [Math.max(Math.min(first ?? end, end - SHORTEST_S), end - LONGEST_S), end];
}

function clock(seconds) {
  return new Date(seconds * 1000).toTimeString().slice(0, 8);
}

function short(value) {
  return value >= 10_000 ? `${value / 1000}k` : String(value);
}
