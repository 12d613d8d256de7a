// Reads the server's event streams over fetch: an EventSource could not send an API key.

/** Yields `{name, id, data}` for every block with data; one that breaks off is never given. */
export async function* eventsOf(response) {
  for await (const block of blocksOf(response)) {
    const event = parse(block);
    if (event.data) yield event;
  }
}

/** Yields every whole block as it stands on the wire, comments too. */
export async function* blocksOf(response) {
  const text = response.body.pipeThrough(new TextDecoderStream());
  let rest = "";
  for await (const chunk of chunksOf(text)) {
    const blocks = (rest + chunk).split("\n\n");
    rest = blocks.pop();
    yield* blocks;
  }
}

/** Not every browser can iterate over a stream itself. */
async function* chunksOf(stream) {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {}); // the connection may be broken already
  }
}

/** Our server writes each field on one line, as `name: value`. */
export function parse(block) {
  const fields = Object.fromEntries(block.split("\n").map((line) => {
    const colon = line.indexOf(":");
    return [line.slice(0, colon), line.slice(colon + 2)];
  }));
  return { name: fields.event, id: fields.id ?? null, data: fields.data ?? "" };
}
