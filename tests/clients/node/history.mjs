// Answers that npm's `openai` gives are sent back as they are, to the server at argv[2] with tools
// at argv[3]: how many tokens the conversation then has, for each way to get an answer.
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const [, , url, withTools] = process.argv;
const at = (baseURL) => new OpenAI({ baseURL: `${baseURL}/v1`, apiKey: "any", maxRetries: 0 });
const client = at(url);
const caller = at(withTools);
const question = { role: "user", content: "Who wrote the first program?" };
const next = { role: "user", content: "And then?" };

async function body(client, extra = {}) {
  const model = (await client.models.list()).data[0].id;
  return { model, messages: [question], temperature: 0, max_completion_tokens: 100, ...extra };
}

const plain = await body(client);
const json = zodResponseFormat(z.object({ name: z.string().max(10) }), "person");
const add = zodFunction({
  name: "add",
  parameters: z.object({ numbers: z.array(z.number().int().min(0).max(9)).max(2) }),
  function: ({ numbers }) => String(numbers.length),
});
const forced = await body(caller, {
  tools: [add],
  tool_choice: { type: "function", function: { name: "add" } },
  max_completion_tokens: 600,
});

async function goesOn(client, fields, message) {
  const { tools, tool_choice, response_format, ...rest } = fields;
  const results = (message.tool_calls ?? []).map(({ id }) => ({
    role: "tool",
    tool_call_id: id,
    content: "3",
  }));
  const messages = [question, message, ...results, next];
  const answer = await client.chat.completions.create({ ...rest, messages });
  return { keys: Object.keys(message).sort(), prompt: answer.usage.prompt_tokens };
}

const said = (answer) => answer.choices[0].message;
const { completions } = client.chat;
const formatted = { ...plain, response_format: json };

async function runTools() {
  const runner = caller.chat.completions.runTools(forced);
  const messages = (await runner.done(), runner.messages);
  const { tools, tool_choice, ...rest } = forced;
  const answer = await caller.chat.completions.create({ ...rest, messages: [...messages, next] });
  return { roles: messages.map(({ role }) => role), prompt: answer.usage.prompt_tokens };
}

console.log(
  JSON.stringify({
    plain: {
      create: await goesOn(client, plain, said(await completions.create(plain))),
      finalMessage: await goesOn(client, plain, await completions.stream(plain).finalMessage()),
      finalChatCompletion: await goesOn(
        client,
        plain,
        said(await completions.stream(plain).finalChatCompletion()),
      ),
    },
    parsed: {
      parse: await goesOn(client, formatted, said(await completions.parse(formatted))),
      stream: await goesOn(client, formatted, await completions.stream(formatted).finalMessage()),
    },
    called: {
      create: await goesOn(caller, forced, said(await caller.chat.completions.create(forced))),
      parse: await goesOn(caller, forced, said(await caller.chat.completions.parse(forced))),
      stream: await goesOn(
        caller,
        forced,
        await caller.chat.completions.stream(forced).finalMessage(),
      ),
    },
    runTools: await runTools(),
  }),
);
