// The official npm client against a running `pmkvq serve`. Usage: node openai_client.mjs BASE_URL KEY QUESTION
// NODE_PATH does not reach ES modules: the client is found through OPENAI_MODULE.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(process.env.OPENAI_MODULE);
const OpenAI = require("openai");
const [baseURL, apiKey, question] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey });
const model = (await client.models.list()).data[0].id;
const body = { model, messages: [{ role: "user", content: question }], temperature: 0, max_tokens: 400, seed: 1 };

assert.equal((await client.models.retrieve(model)).id, model);

const whole = await client.chat.completions.create(body);
assert.match(whole.choices[0].message.content, /103, 156, 406, 697/);
assert.ok(whole.choices[0].message.reasoning_content.length > 0);
assert.equal(whole.kv.seed, "1");

let text = "";
let usage = null;
for await (const chunk of await client.chat.completions.create({ ...body, stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.deepEqual(usage, whole.usage);

const completion = await client.completions.create({ model, prompt: "Sort", max_tokens: 3, echo: true, logprobs: 1, temperature: 0 });
assert.ok(completion.choices[0].text.startsWith("Sort"));
assert.equal(completion.choices[0].logprobs.token_logprobs[0], null);

const asked = { model, input: question, temperature: 0, max_output_tokens: 400 };
const response = await client.responses.create(asked);
assert.match(response.output_text, /103, 156, 406, 697/);
let streamed = "";
for await (const event of await client.responses.create({ ...asked, stream: true })) {
  if (event.type === "response.output_text.delta") streamed += event.delta;
}
assert.equal(streamed, response.output_text);

await assert.rejects(client.chat.completions.create({ ...body, temperature: 3 }), OpenAI.BadRequestError);
await assert.rejects(client.chat.completions.create({ ...body, model: "gpt-4" }), OpenAI.NotFoundError);
await assert.rejects(new OpenAI({ baseURL, apiKey: "wrong" }).models.list(), OpenAI.AuthenticationError);
await assert.rejects(client.embeddings.create({ model, input: "x" }), OpenAI.NotFoundError);
console.log(`node ${process.version}, openai ${require("openai/version").VERSION ?? require("openai/package.json").version}: all answered as expected`);
