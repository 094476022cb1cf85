// The openai package for Node against a server: models, chat, streams, completions, errors, retries.

import assert from "node:assert/strict";
import OpenAI from "openai";

const { BASE_URL, MODEL, ADAPTER, OVERLOAD_URL, OPENAI_API_KEY } = process.env;
const client = new OpenAI({ baseURL: `${BASE_URL}/v1`, maxRetries: 0, timeout: 120_000 });
const messages = [{ role: "user", content: "Name a colour." }];
const chat = (more = {}) =>
  client.chat.completions.create({ model: MODEL, messages, temperature: 0, max_completion_tokens: 24, ...more });

async function refused(kind, call) {
  try {
    await call();
  } catch (error) {
    assert.ok(error instanceof kind, `${error.constructor.name}: ${error.message}`);
    return error;
  }
  assert.fail(`no ${kind.name}`);
}

const checks = {
  async models() {
    const cards = [];
    for await (const card of client.models.list()) cards.push(card);
    assert.ok(cards.some((card) => card.id === MODEL));
    assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
  },

  async chat() {
    const { data: answer, request_id: requestId } = await chat().withResponse();
    assert.ok(requestId);
    const [choice] = answer.choices;
    assert.equal(choice.message.role, "assistant");
    assert.ok(choice.message.content.length > 0);
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);

    const chunks = [];
    for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) chunks.push(chunk);
    assert.equal(chunks[0].choices[0].delta.role, "assistant");
    assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), choice.message.content);
    assert.deepEqual(chunks.at(-1).choices, []);
    assert.equal(chunks.at(-1).usage.completion_tokens, answer.usage.completion_tokens);
    assert.equal(chunks.at(-2).choices[0].finish_reason, choice.finish_reason);

    const runner = client.chat.completions.stream({ model: MODEL, messages, temperature: 0, max_completion_tokens: 24 });
    assert.equal(await runner.finalContent(), choice.message.content);
  },

  async logprobs() {
    const answer = await chat({ logprobs: true, top_logprobs: 2, max_completion_tokens: 3 });
    for (const row of answer.choices[0].logprobs.content) {
      assert.equal(row.top_logprobs.length, 2);
      assert.equal(row.top_logprobs[0].logprob, row.logprob);
    }
  },

  async completions() {
    const options = { model: MODEL, prompt: "abcdefg", max_tokens: 6, temperature: 0 };
    const answer = await client.completions.create(options);
    let text = "";
    for await (const chunk of await client.completions.create({ ...options, stream: true })) {
      text += chunk.choices[0].text;
    }
    assert.equal(text, answer.choices[0].text);
  },

  async errors() {
    const unknown = await refused(OpenAI.NotFoundError, () => chat({ model: "no-such-model" }));
    assert.equal(unknown.code, "model_not_found");
    assert.ok(unknown.requestID);
    const long = [{ role: "user", content: "word ".repeat(200_000) }];
    const exceeded = await refused(OpenAI.BadRequestError, () => chat({ messages: long }));
    assert.equal(exceeded.code, "context_length_exceeded");
    const tools = [{ type: "function", function: { name: "f g", parameters: {} } }];
    assert.equal((await refused(OpenAI.BadRequestError, () => chat({ tools }))).param, "tools");
    if (OPENAI_API_KEY !== "none") {
      const stranger = new OpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: "wrong", maxRetries: 0 });
      await refused(OpenAI.AuthenticationError, () => stranger.models.list());
    }
  },

  async tools() {
    const parameters = { type: "object", properties: { days: { type: "integer" } }, required: ["days"], additionalProperties: false };
    const tools = [{ type: "function", function: { name: "weather", parameters, strict: true } }];
    const options = { tools, tool_choice: "required", parallel_tool_calls: false, max_completion_tokens: 200, seed: 1 };
    const [call] = (await chat(options)).choices[0].message.tool_calls;
    assert.equal(typeof JSON.parse(call.function.arguments).days, "number");
    let streamed = "";
    for await (const chunk of await chat({ ...options, stream: true })) {
      for (const part of chunk.choices[0]?.delta.tool_calls ?? []) streamed += part.function.arguments;
    }
    assert.equal(streamed, call.function.arguments);
  },

  async adapter() {
    if (!ADAPTER) return console.log("SKIPPED: adapters (no ADAPTER given)");
    const [own, base] = [await chat({ model: ADAPTER }), await chat()];
    assert.notEqual(own.choices[0].message.content, base.choices[0].message.content);
  },

  async abort() {
    const stream = await chat({ stream: true, max_completion_tokens: 500 });
    for await (const _ of stream) break;
    stream.controller.abort();
    assert.ok((await chat({ max_completion_tokens: 1 })).choices.length);
  },

  async retries() {
    if (!OVERLOAD_URL) return;
    const single = new OpenAI({ baseURL: `${OVERLOAD_URL}/v1`, maxRetries: 0, timeout: 120_000 });
    const long = { model: MODEL, prompt: "x", max_tokens: 1000, ignore_eos: true, stream: true };
    const short = { model: MODEL, prompt: "x", max_tokens: 1 };
    const first = await single.completions.create(long);
    const full = await refused(OpenAI.RateLimitError, () => single.completions.create(short));
    assert.equal(full.code, "rate_limit_exceeded");
    setTimeout(() => first.controller.abort(), 300);
    const answer = await single.completions.create(short, { maxRetries: 4 });
    assert.ok(answer.choices.length);
  },
};

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log(`ok ${name}`);
}
