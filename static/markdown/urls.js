// Which addresses a model's text may link to.

const ALLOWED = new Set(["http:", "https:", "mailto:"]);

/** The address if a link may lead there, else null: javascript:, data: and their like are not followed. */
export function safeUrl(address) {
  const cleaned = String(address ?? "").trim();
  if (cleaned.length > 2000) return null;
  try {
    const { protocol, href } = new URL(cleaned);
    return ALLOWED.has(protocol) ? href : null;
  } catch {
    return null; // relative addresses would lead into our own server
  }
}
