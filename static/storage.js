// JSON in web storage. A browser that refuses storage only forgets.

export function load(area, key) {
  try {
    return JSON.parse(window[area].getItem(key));
  } catch {
    return null;
  }
}

export function save(area, key, value) {
  try {
    window[area].setItem(key, JSON.stringify(value));
  } catch {
    // Storage is full or forbidden: nothing on the page depends on it.
  }
}
