// What Vercel's `ai` makes of the server at argv[2]: one object of JSON.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const [, , url] = process.argv;
const [{ id }] = (await (await fetch(`${url}/v1/models`)).json()).data;
const provider = createOpenAICompatible({
  name: "tickertape",
  baseURL: `${url}/v1`,
  includeUsage: true,
});
const asked = {
  model: provider(id),
  prompt: "Tell me about the sea.",
  temperature: 0,
  maxOutputTokens: 12,
  maxRetries: 0,
};

const told = async ({ text, finishReason, usage }) => ({
  text: await text,
  finishReason: await finishReason,
  usage: await usage,
});

const pieces = [];
const stream = streamText(asked);
for await (const piece of stream.textStream) pieces.push(piece);

const errors = [];
const failing = streamText({
  ...asked,
  maxOutputTokens: 4000,
  providerOptions: { tickertape: { timeout: 0.2, ignore_eos: true } },
  onError: ({ error }) => errors.push(error.message ?? String(error)),
});
await failing.consumeStream();

console.log(
  JSON.stringify({
    whole: await told(await generateText(asked)),
    streamed: await told(stream),
    pieces,
    errors,
  }),
);
