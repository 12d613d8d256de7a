// What npm's `openai` makes of the server at argv[2]: one object of JSON.
import OpenAI, {
  APIError,
  AuthenticationError,
  BadRequestError,
  NotFoundError,
  RateLimitError,
} from "openai";

const [, , url] = process.argv;
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "any", maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "Tell me about the sea." }];
const drawn = { model, temperature: 1.3, seed: 7, max_tokens: 12 };

async function gather(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

/** Texts, reasons and usage of chunks, by choice. */
function joined(chunks) {
  const choices = [];
  for (const chunk of chunks)
    for (const { index, text, delta, finish_reason } of chunk.choices) {
      choices[index] ??= { text: "" };
      choices[index].text += text ?? delta.content ?? "";
      choices[index].reason = finish_reason;
    }
  return { choices, usage: chunks.at(-1).usage };
}

function told({ choices, usage }) {
  const texts = choices.map((choice) => ({
    text: choice.text ?? choice.message.content,
    reason: choice.finish_reason,
  }));
  return { choices: texts, usage };
}

async function bothWays(api, fields) {
  const chunks = await gather(
    await api.create({ ...fields, stream: true, stream_options: { include_usage: true } }),
  );
  return { whole: told(await api.create(fields)), streamed: joined(chunks) };
}

async function responses() {
  const fields = { model, input: "Tell me about the sea.", temperature: 0, max_output_tokens: 12 };
  const whole = await client.responses.create(fields);
  const events = await gather(await client.responses.create({ ...fields, stream: true }));
  const { id } = events[0].response;
  const resumed = await Promise.all(
    events.map(async ({ sequence_number }) =>
      gather(
        await client.responses.retrieve(id, { stream: true, starting_after: sequence_number }),
      ),
    ),
  );
  const begun = await client.responses.create({ ...fields, background: true });
  await gather(await client.responses.retrieve(begun.id, { stream: true }));
  const background = await client.responses.retrieve(begun.id);
  return { whole: whole.output_text, background: background.output_text, events, resumed };
}

const KINDS = { BadRequestError, NotFoundError, AuthenticationError, RateLimitError, APIError };

async function failure(attempt) {
  try {
    await attempt();
  } catch (error) {
    const kind = Object.keys(KINDS).find((name) => error instanceof KINDS[name]);
    return { kind, status: error.status, param: error.param, code: error.code };
  }
  return null;
}

const chat = client.chat.completions;
const timeout = { timeout: 0.2, max_tokens: 4000, ignore_eos: true };
console.log(
  JSON.stringify({
    chat: await bothWays(chat, { ...drawn, messages }),
    threeChats: await bothWays(chat, { ...drawn, messages, n: 3 }),
    completions: await bothWays(client.completions, { ...drawn, prompt: ["Once", "The sea"] }),
    responses: await responses(),
    failures: {
      range: await failure(() => chat.create({ model, messages, temperature: 3 })),
      model: await failure(() => chat.create({ model: "gpt-17", messages })),
      response: await failure(() => client.responses.retrieve("resp_unknown")),
      late: await failure(async () =>
        gather(await chat.create({ ...drawn, messages, ...timeout, stream: true })),
      ),
    },
  }),
);
