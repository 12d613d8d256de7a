// What the server says about itself: is it ready, and what does it run?

const POLL_MS = 1000;

/** Resolves once the server takes work; `onWait` hears "loading" or "unreachable" until then. */
export async function untilReady(onWait) {
  for (;;) {
    const state = await readiness();
    if (state === "ready") return;
    onWait(state);
    await new Promise((wake) => setTimeout(wake, POLL_MS));
  }
}

export async function version() {
  try {
    const response = await fetch("/version");
    return response.ok ? await response.json() : {};
  } catch {
    return {};
  }
}

async function readiness() {
  try {
    const response = await fetch("/ready", { cache: "no-store" });
    return response.ok ? "ready" : "loading";
  } catch {
    return "unreachable";
  }
}
