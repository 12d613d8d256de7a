// Vercel's `ai` with its own provider for OpenAI, which talks to /v1/responses: several turns.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, streamText } from "ai";

const [, , url] = process.argv;
const [{ id }] = (await (await fetch(`${url}/v1/models`)).json()).data;
const sent = [];
const openai = createOpenAI({
  baseURL: `${url}/v1`,
  apiKey: "any",
  fetch: (address, options) => {
    sent.push(JSON.parse(options.body));
    return fetch(address, options);
  },
});
const asked = { model: openai(id), temperature: 0, maxOutputTokens: 20, maxRetries: 0 };

async function talk(options) {
  const messages = [];
  const turns = [];
  for (const content of ["Just say: hi", "And now say: bye", "Again"]) {
    messages.push({ role: "user", content });
    const answer = await generateText({ ...asked, ...options, messages });
    messages.push(...answer.response.messages);
    turns.push({ text: answer.text, tokens: answer.usage.inputTokens });
  }
  return turns;
}

const stored = await talk({});
const kinds = sent.map(({ input }) => input.map(({ type, role }) => type ?? role));
const unstored = await talk({ providerOptions: { openai: { store: false } } });

const first = streamText({ ...asked, prompt: "Just say: hi" });
await first.consumeStream();
const streamed = streamText({
  ...asked,
  messages: [
    { role: "user", content: "Just say: hi" },
    ...(await first.response).messages,
    { role: "user", content: "And now say: bye" },
  ],
});
await streamed.consumeStream();
console.log(JSON.stringify({ stored, unstored, kinds, streamed: await streamed.text }));
