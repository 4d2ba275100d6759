// SPDX-License-Identifier: Apache-2.0
// /v1/chat/completions with the Node client.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { client, COMPACT, MODEL } from './support.mjs';

const chat = client().chat.completions;
const messages = [
  { role: 'system', content: 'You tell stories.' },
  { role: 'user', content: 'Tell me of the sea.' },
];
const greedy = { model: MODEL, temperature: 0, messages };

test('continues what the template writes', async () => {
  const reply = await chat.create({ ...greedy, max_completion_tokens: 24 });
  assert.equal(reply.object, 'chat.completion');
  assert.equal(reply.choices[0].message.role, 'assistant');
  const rendered =
    messages.map((m) => `<|im_start|>${m.role}\n${m.content}<|im_end|>\n`).join('') + '<|im_start|>assistant\n';
  const byHand = await client().completions.create({
    model: MODEL,
    temperature: 0,
    prompt: rendered,
    add_special_tokens: false,
    max_tokens: 24,
  });
  assert.equal(reply.choices[0].message.content, byHand.choices[0].text);
  assert.deepEqual(reply.usage, byHand.usage);
});

test('n, seed, stop and logprobs', async () => {
  const ask = { model: MODEL, messages, max_tokens: 20, temperature: 1, seed: 14, n: 2, logprobs: true, top_logprobs: 2 };
  const [one, two] = await Promise.all([chat.create(ask), chat.create(ask)]);
  const said = one.choices.map((choice) => choice.message.content);
  assert.notEqual(said[0], said[1]);
  assert.deepEqual(two.choices.map((choice) => choice.message.content), said);
  for (const choice of one.choices) {
    const bytes = choice.logprobs.content.flatMap((token) => token.bytes);
    assert.equal(Buffer.from(bytes).toString(), choice.message.content);
    for (const token of choice.logprobs.content) assert.equal(token.top_logprobs.length, 2);
  }
  const stop = said[0].slice(4, 9);
  const cut = await chat.create({ ...ask, n: 1, stop });
  assert.equal(cut.choices[0].message.content, said[0].slice(0, said[0].indexOf(stop)));
});

test('a message that keeps a JSON schema, streaming and not', async () => {
  const schema = {
    type: 'object',
    properties: { kind: { enum: ['bird', 'fish'] }, tame: { type: 'boolean' } },
    required: ['kind', 'tame'],
    additionalProperties: false,
  };
  const ask = {
    model: MODEL,
    messages,
    max_tokens: 120,
    seed: 4,
    logit_bias: COMPACT,
    response_format: { type: 'json_schema', json_schema: { name: 'animal', strict: true, schema } },
  };
  const parsed = await chat.parse(ask);
  const value = parsed.choices[0].message.parsed ?? JSON.parse(parsed.choices[0].message.content);
  assert.ok(['bird', 'fish'].includes(value.kind));
  assert.equal(typeof value.tame, 'boolean');
  const runner = chat.stream({ ...ask, stream: true });
  assert.equal(await runner.finalContent(), parsed.choices[0].message.content);
});

test('a stream says what the whole answer says', async () => {
  const ask = { model: MODEL, messages, max_tokens: 24, temperature: 1, seed: 15, n: 2 };
  const whole = await chat.create(ask);
  const chunks = [];
  for await (const chunk of await chat.create({ ...ask, stream: true, stream_options: { include_usage: true } }))
    chunks.push(chunk);
  const last = chunks.pop();
  assert.deepEqual(last.choices, []);
  assert.equal(last.usage.completion_tokens, whole.usage.completion_tokens);
  for (const choice of whole.choices) {
    const own = chunks.map((chunk) => chunk.choices[0]).filter((one) => one.index === choice.index);
    assert.equal(own[0].delta.role, 'assistant');
    assert.equal(own.map((one) => one.delta.content ?? '').join(''), choice.message.content);
    assert.equal(own.at(-1).finish_reason, choice.finish_reason);
  }
  assert.ok(chunks.every((chunk) => chunk.usage === null));
});

test('unknown fields are tolerated', async () => {
  const plain = await chat.create({ ...greedy, max_tokens: 8 });
  const more = await chat.create({
    ...greedy,
    max_tokens: 8,
    metadata: { a: 'b' },
    modalities: ['text'],
    prompt_cache_key: 'k',
    reasoning_effort: 'low',
    service_tier: 'auto',
    verbosity: 'low',
    no_such_field: [{ a: 1 }],
  });
  assert.equal(more.choices[0].message.content, plain.choices[0].message.content);
});
