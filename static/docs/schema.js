// Reads JSON schemas of /openapi.json: types in words, and examples.

const EXAMPLES = {
  prompt: "Once upon a time",
  messages: [{ role: "user", content: "What is the capital of France?" }],
  input: "What is the capital of France?",
  tokens: [504, 1423],
  max_length: 60,
  max_tokens: 60,
  after: 4,
};
// Of fields that may be left out, those that a first try wants to see.
const SHOWN = { "/v1/tapes/{tape_id}/fork": ["after"], "/tokenize": ["prompt"] };
const COMMON = ["model", "messages", "prompt", "input", "tokens", "max_length", "max_tokens"];

export function resolve(schema, document_) {
  let found = schema;
  while (found?.$ref) found = found.$ref.split("/").slice(1).reduce((at, name) => at[name], document_);
  return found ?? {};
}

export const propertiesOf = (schema, document_) => resolve(schema, document_).properties ?? {};

export function isRequired(schema, name, document_) {
  return resolve(schema, document_).required?.includes(name) ?? false;
}

export function typeOf(schema, document_) {
  const found = resolve(schema, document_);
  const some = (found.anyOf ?? found.oneOf)?.map((one) => typeOf(one, document_)).filter((type) => type !== "null");
  if (some) return [...new Set(some)].join(" or ");
  if (found.enum) return found.enum.map((one) => JSON.stringify(one)).join(" | ");
  if (found.const !== undefined) return JSON.stringify(found.const);
  if (found.type === "array") return `list of ${found.items ? typeOf(found.items, document_) : "values"}`;
  const bounds = [
    found.minimum !== undefined && `from ${found.minimum}`,
    found.maximum !== undefined && `to ${found.maximum}`,
    found.default !== undefined && `default ${JSON.stringify(found.default)}`,
  ];
  return [found.type ?? "any", ...bounds.filter(Boolean)].join(", ");
}

/** A body that works as it stands, as far as names tell. */
export function exampleOf(schema, document_, path) {
  const properties = propertiesOf(schema, document_);
  const wanted = SHOWN[path] ?? COMMON;
  const names = Object.keys(properties).filter((name) => wanted.includes(name) || isRequired(schema, name, document_));
  const has = (name) => names.includes(name);
  const kept = names.filter((name) => !(name === "prompt" && has("messages")) && !(name === "max_length" && path === "/tokenize"));
  return Object.fromEntries(kept.map((name) => [name, EXAMPLES[name] ?? resolve(properties[name], document_).enum?.[0] ?? nameOfModel(properties[name], document_) ?? ""]));
}

function nameOfModel(schema, document_) {
  const some = resolve(schema, document_).anyOf ?? [];
  return some.map((one) => resolve(one, document_).enum?.[0]).find(Boolean);
}
