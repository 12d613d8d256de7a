// Presets that come with the page.

export const BUILT_IN = [
  { name: "Exact", system: "", values: { temperature: "0" } },
  { name: "Lively", system: "", values: { temperature: "1", min_p: "0.05" } },
  { name: "One sentence", system: "Answer in one short sentence.", values: {} },
  {
    name: "JSON: a city",
    system: "",
    values: {
      schema: JSON.stringify({
        type: "object",
        properties: { city: { type: "string" }, country: { type: "string" } },
        required: ["city", "country"],
        additionalProperties: false,
      }, null, 1),
    },
  },
];
