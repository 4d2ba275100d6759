// SPDX-License-Identifier: Apache-2.0
// /v1/completions with the Node client: prompts, choices, logprobs, ends, forms, fields.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { client, COMPACT, GOLDEN, http, MODEL, tokensOf, VOCAB } from './support.mjs';

const { completions } = client();
const greedy = { model: MODEL, temperature: 0 };
const texts = GOLDEN.prompts.map((prompt) => prompt.text);
const ids = GOLDEN.prompts.map((prompt) => prompt.ids);
const wanted = GOLDEN.prompts.map((prompt) => prompt.greedy48_text);

test('a text, ids, and lists of both give the reference texts', async () => {
  for (const prompts of [texts, ids]) {
    const reply = await completions.create({ ...greedy, prompt: prompts, max_tokens: 48 });
    assert.equal(reply.object, 'text_completion');
    assert.equal(reply.model, MODEL);
    assert.deepEqual(reply.choices.map((choice) => choice.index), prompts.map((_, i) => i));
    assert.deepEqual(reply.choices.map((choice) => choice.text), wanted);
    assert.equal(reply.usage.prompt_tokens, ids.flat().length);
    assert.equal(reply.usage.total_tokens, reply.usage.prompt_tokens + reply.usage.completion_tokens);
    const one = await completions.create({ ...greedy, prompt: prompts[1], max_tokens: 48 });
    assert.equal(one.choices[0].text, wanted[1]);
    assert.equal(one.usage.prompt_tokens, ids[1].length);
  }
});

test('n choices differ and a seed repeats them', async () => {
  const ask = { model: MODEL, prompt: texts[0], max_tokens: 24, temperature: 1, seed: 31, n: 4 };
  const [one, two] = await Promise.all([completions.create(ask), completions.create(ask)]);
  const said = one.choices.map((choice) => choice.text);
  assert.equal(new Set(said).size, 4);
  assert.deepEqual(two.choices.map((choice) => choice.text), said);
});

test('logprobs and echo', async () => {
  const golden = GOLDEN.prompts[0];
  for (const max_tokens of [0, 1]) {
    const reply = await completions.create({ ...greedy, prompt: golden.ids, max_tokens, echo: true, logprobs: 1 });
    const { token_logprobs: found, top_logprobs: tops, tokens, text_offset: offsets } = reply.choices[0].logprobs;
    assert.equal(found.length, golden.ids.length + max_tokens);
    assert.equal(tokens.length, found.length);
    assert.equal(offsets.length, found.length);
    assert.equal(found[0], null);
    assert.equal(tops[0], null);
    const first = golden.ids.length - golden.token_logprobs.length;
    golden.token_logprobs.forEach((logprob, i) => {
      if (logprob !== null) assert.ok(Math.abs(found[first + i] - logprob) < 2e-4, `token ${i}`);
    });
    for (let i = 1; i < found.length; ++i) {
      assert.ok(Object.values(tops[i]).includes(found[i]));
      assert.ok(found[i] <= Math.max(...Object.values(tops[i])));
    }
  }
  const five = await completions.create({ ...greedy, prompt: texts[0], max_tokens: 6, logprobs: 5 });
  assert.equal(five.choices[0].logprobs.tokens.join(''), five.choices[0].text);
  assert.deepEqual(five.choices[0].logprobs.top_logprobs.map((top) => Object.keys(top).length), Array(6).fill(5));
});

test('stop strings and stop ids', async () => {
  const stop = wanted[0].slice(13, 21);
  const reply = await completions.create({ ...greedy, prompt: texts[0], max_tokens: 48, stop: ['not there', stop] });
  assert.equal(reply.choices[0].text, wanted[0].slice(0, wanted[0].indexOf(stop)));
  assert.equal(reply.choices[0].finish_reason, 'stop');
  const id = GOLDEN.prompts[0].greedy48_ids[10];
  const by = await completions.create({ ...greedy, prompt: texts[0], max_tokens: 48, stop_token_ids: [id] });
  assert.equal(by.choices[0].finish_reason, 'stop');
  assert.equal(by.choices[0].stop_reason, id);
});

test('logit_bias, min_tokens and ignore_eos', async () => {
  const bias = { [GOLDEN.prompts[0].ids[0] + 1]: 100 }; // the id after BOS ends a text
  const ask = { ...greedy, prompt: ids[0], max_tokens: 12, logit_bias: bias };
  assert.equal((await completions.create(ask)).usage.completion_tokens, 1);
  assert.equal((await completions.create({ ...ask, min_tokens: 5 })).usage.completion_tokens, 6);
  assert.equal((await completions.create({ ...ask, ignore_eos: true })).usage.completion_tokens, 12);
  const sea = await completions.create({ ...greedy, prompt: ids[0], max_tokens: 3, logit_bias: { [VOCAB['Ġsea']]: 100 } });
  assert.equal(sea.choices[0].text, ' sea sea sea');
});

test('a text that keeps a JSON schema', async () => {
  const schema = {
    type: 'object',
    properties: { legs: { type: 'integer', minimum: 0, maximum: 99 }, kind: { enum: ['bird', 'fish'] } },
    required: ['legs', 'kind'],
    additionalProperties: false,
  };
  const reply = await completions.create({
    model: MODEL,
    prompt: 'The animal is ',
    max_tokens: 120,
    seed: 8,
    n: 3,
    logit_bias: COMPACT,
    response_format: { type: 'json_schema', json_schema: { name: 'animal', schema } },
  });
  for (const choice of reply.choices) {
    assert.equal(choice.finish_reason, 'stop');
    const value = JSON.parse(choice.text);
    assert.deepEqual(Object.keys(value).sort(), ['kind', 'legs']);
    assert.ok(Number.isInteger(value.legs) && value.legs >= 0 && value.legs <= 99);
    assert.ok(['bird', 'fish'].includes(value.kind));
  }
});

test('unknown fields are tolerated', async () => {
  const reply = await completions.create({
    ...greedy,
    prompt: texts[0],
    max_tokens: 48,
    user: 'someone',
    no_such_field: { deep: [1, { x: null }] },
    store: true,
    metadata: { a: 'b' },
  });
  assert.equal(reply.choices[0].text, wanted[0]);
});

test('models, tokens, health and version', async () => {
  const all = [];
  for await (const model of client().models.list()) all.push(model);
  assert.deepEqual(all.map((model) => model.id), [MODEL]);
  const one = await client().models.retrieve(MODEL);
  assert.deepEqual(one, all[0]);
  assert.deepEqual(await tokensOf(texts[0]), ids[0]);
  const back = await http('/detokenize', { tokens: ids[0].slice(1) });
  assert.deepEqual(JSON.parse(back.text), { prompt: texts[0] });
  assert.equal((await http('/health', undefined, { Authorization: '' })).status, 200);
  assert.match(JSON.parse((await http('/version')).text).version, /^\d+\.\d+/);
});
