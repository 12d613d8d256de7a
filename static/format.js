// Numbers as people read them.

export const NONE = "–";

export function figure(value, digits = 0) {
  return Number.isFinite(value) ? value.toFixed(digits) : NONE;
}
