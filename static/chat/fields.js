// The sampling fields of a request, as the settings show them. Ranges are the server's to judge.

/**
 * `default` names the model's default that an empty field stands for. `read` turns the typed text into
 * the value that is sent; it throws Error with what is wrong.
 */
export const FIELDS = [
  { name: "max_length", label: "Length", unit: "tokens", group: "length", step: 1, min: 1, placeholder: "1024", help: "Maximum number of tokens in an answer." },
  { name: "temperature", label: "Temperature", group: "sampling", step: 0.1, min: 0, max: 2, model: true, help: "0 always takes the most likely token. Higher is more random." },
  { name: "top_p", label: "Top-p", group: "sampling", step: 0.05, min: 0, max: 1, model: true, help: "Sample from the smallest set of tokens whose probabilities reach this sum." },
  { name: "top_k", label: "Top-k", group: "sampling", step: 1, min: 0, model: true, help: "Sample from the k most likely tokens. 0 turns this off." },
  { name: "min_p", label: "Min-p", group: "sampling", step: 0.01, min: 0, max: 1, model: true, help: "Drop tokens below this fraction of the most likely token's probability." },
  { name: "seed", label: "Seed", group: "sampling", step: 1, placeholder: "random", help: "The same seed and request give the same answer." },
  { name: "repetition_penalty", label: "Repetition penalty", group: "penalties", step: 0.05, min: 0.01, max: 10, model: true, help: "Above 1 makes tokens of the prompt and the answer less likely." },
  { name: "presence_penalty", label: "Presence penalty", group: "penalties", step: 0.1, min: -2, max: 2, placeholder: "0", help: "Makes every token that the answer has used less likely, once." },
  { name: "frequency_penalty", label: "Frequency penalty", group: "penalties", step: 0.1, min: -2, max: 2, placeholder: "0", help: "Makes a token less likely each time the answer uses it." },
  { name: "stop", label: "Stop texts", group: "more", kind: "lines", placeholder: "one a line", help: "The answer ends before any of these texts.", read: lines },
  { name: "stop_token_ids", label: "Stop token ids", group: "more", kind: "text", placeholder: "2, 50256", help: "The answer ends at any of these tokens.", read: integers },
  { name: "min_tokens", label: "Minimum tokens", group: "more", step: 1, min: 0, placeholder: "0", help: "The answer does not end earlier." },
  { name: "logit_bias", label: "Logit bias", group: "more", kind: "text", placeholder: "{\"42\": -100}", help: "JSON: a number to add to the logit of each token id.", read: object },
  { name: "logprobs", label: "Alternatives", unit: "per token", group: "more", step: 1, min: 0, max: 20, placeholder: "5", help: "Number of likely tokens that the tape keeps beside each one." },
  { name: "on_disconnect", label: "When nobody reads", group: "more", kind: "choice", choices: [["", "pause (default)"], ["continue", "continue to the end"], ["abort", "stop at once"]], help: "What the engine does when the last connection closes." },
  { name: "grace", label: "Grace", unit: "seconds", group: "more", step: 1, min: 0, placeholder: "300", help: "How long a paused tape waits for a reader." },
  { name: "timeout", label: "Time limit", unit: "seconds", group: "more", step: 1, min: 0.001, placeholder: "none", help: "The answer ends after this time with what there is." },
  { name: "ignore_eos", label: "Continue past the end of text", group: "more", kind: "check", help: "The model's end-of-text token does not end the answer." },
  { name: "schema", param: "response_format", label: "JSON schema", group: "json", kind: "code", placeholder: "{\"type\": \"object\", \"properties\": {\"city\": {\"type\": \"string\"}}, \"required\": [\"city\"]}", help: "The answer is JSON of this form. Leave it empty for ordinary text.", read: schema },
];

/** Fields that the page fills in where the user leaves them empty. */
export const PAGE_DEFAULTS = { max_length: 1024, logprobs: 5, on_disconnect: "pause", grace: 300 };

/** The part of a request body that one field stands for; {} where it is empty. */
export function partOf(field, typed) {
  if (field.kind === "check") return typed ? { [field.name]: true } : {};
  const text = String(typed ?? "").trim();
  if (!text) return {};
  if (field.name === "schema") return { response_format: field.read(text) };
  if (field.read) return { [field.name]: field.read(text) };
  if (field.kind === "choice") return { [field.name]: text };
  const number = Number(text);
  if (!Number.isFinite(number)) throw new Error("This is not a number. Type digits, such as 0.7.");
  return { [field.name]: number };
}

function lines(text) {
  return text.split("\n").filter((line) => line !== "").map((line) => line.replaceAll("\\n", "\n"));
}

function integers(text) {
  const parts = text.split(/[\s,]+/).filter(Boolean);
  if (!parts.every((part) => /^\d+$/.test(part))) throw new Error("Type token ids with commas between them, such as 2, 50256.");
  return parts.map(Number);
}

function object(text) {
  const value = json(text);
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new Error("Type a JSON object, such as {\"42\": -100}.");
  return value;
}

function schema(text) {
  return { type: "json_schema", json_schema: { name: "answer", schema: object(text) } };
}

function json(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`This is not JSON: ${error.message}`);
  }
}
