// Replaces the server's tapes by one that is written here: each of `tokens` is an entry.
({ tokens, perSecond }) => {
  const real = window.fetch;
  const frame = (name, n, data) => (
    `id: T:${n}\nevent: ${name}\ndata: ${JSON.stringify(data)}\n\n`
  );
  const json = (body, status) => new Response(JSON.stringify(body), {
    status, headers: { "Content-Type": "application/json" },
  });
  const tokenFrame = (place) => {
    const token = { token_id: place, token: tokens[place], logprob: -0.1 };
    const top = [token, { token_id: 1, token: "x", logprob: -3 }];
    const logprobs = [{ ...token, top }];
    const data = { text: tokens[place], token_ids: [place], index: 0, logprobs };
    return frame("token", place + 1, data);
  };
  const end = {
    finish_reason: "stop",
    usage: { prompt_tokens: 1, completion_tokens: tokens.length },
    timings: {},
  };
  const stream = () => new ReadableStream({
    start(controller) {
      const encoder = new TextEncoder();
      const send = (text) => controller.enqueue(encoder.encode(text));
      const began = performance.now();
      let sent = 0;
      const timer = setInterval(() => {
        const due = Math.ceil(((performance.now() - began) * perSecond) / 1000);
        for (; sent < Math.min(tokens.length, due); sent += 1) send(tokenFrame(sent));
        if (sent < tokens.length) return;
        clearInterval(timer);
        send(frame("done", sent + 1, end));
        controller.close();
      }, 1000 / 300);
    },
  });
  window.fetch = async (url, options = {}) => {
    if (url === "/v1/tapes") return json({ tape: "T" }, 201);
    if (url === "/v1/tapes/T/heads") return json({ error: {} }, 404);
    if (url !== "/v1/tapes/T") return real(url, options);
    return new Response(stream(), { headers: { "Content-Type": "text/event-stream" } });
  };
}
