// SPDX-License-Identifier: Apache-2.0
// Streams with the Node client: their form, errors on the way, clients that leave; and refusals as exceptions.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  client,
  CONTEXT,
  GOLDEN,
  metric,
  MODEL,
  OpenAI,
  OTHER_KEY,
  REQUESTS_PER_KEY,
  until,
  untilIdle,
  VOCAB,
} from './support.mjs';

const { completions } = client();
const ids = GOLDEN.prompts.map((prompt) => prompt.ids);
const long = { model: MODEL, prompt: ids[0], temperature: 0, max_tokens: 900, ignore_eos: true };
const ended = (reason) => metric('vllm:request_success_total', `finished_reason="${reason}"`);
// Six letters, then ones, every token of which is banned until min_tokens are written: no token is left.
const deadEnd = {
  structured_outputs: { regex: '[a-z]{6}1{9}' },
  stop_token_ids: Object.keys(VOCAB).filter((text) => /^1+$/.test(text)).map((text) => VOCAB[text]),
  min_tokens: 10,
};
const keys = ['code', 'message', 'param', 'type'];

test('a stream says what the whole answer says', async () => {
  const ask = { model: MODEL, prompt: ids.slice(0, 2), max_tokens: 20, temperature: 1, seed: 5, n: 2, logprobs: 1 };
  const whole = await completions.create(ask);
  const chunks = [];
  for await (const chunk of await completions.create({ ...ask, stream: true, stream_options: { include_usage: true } }))
    chunks.push(chunk);
  const last = chunks.pop();
  assert.deepEqual(last.choices, []);
  assert.equal(last.usage.completion_tokens, whole.usage.completion_tokens);
  assert.equal(last.usage.prompt_tokens, whole.usage.prompt_tokens);
  for (const choice of whole.choices) {
    const own = chunks.map((chunk) => chunk.choices[0]).filter((one) => one.index === choice.index);
    assert.equal(own.map((one) => one.text).join(''), choice.text);
    assert.equal(own.at(-1).finish_reason, choice.finish_reason);
    assert.deepEqual(own.flatMap((one) => one.logprobs?.token_logprobs ?? []), choice.logprobs.token_logprobs);
  }
});

test('an event for each token even without text', async () => {
  const bias = { [VOCAB['â']]: 100 };
  const said = [];
  const ask = { model: MODEL, prompt: ids[0], temperature: 0, max_tokens: 5, logit_bias: bias, stream: true };
  for await (const chunk of await completions.create(ask)) said.push(chunk.choices[0].text);
  assert.equal(said.length, 5);
  assert.equal(said.join(''), '\ufffd'.repeat(5));
});

test('an error on the way is an exception', async () => {
  const before = await ended('error');
  const said = [];
  const stream = await completions.create({ model: MODEL, prompt: ids[0], max_tokens: 40, seed: 1, stream: true, ...deadEnd });
  await assert.rejects(
    async () => {
      for await (const chunk of stream) said.push(chunk.choices[0].text);
    },
    (error) => {
      assert.ok(error instanceof OpenAI.APIError);
      assert.equal(error.status, undefined);
      assert.deepEqual(Object.keys(error.error).sort(), keys);
      return true;
    },
  );
  assert.match(said.join(''), /^[a-z]{1,6}$/);
  await until(async () => (await ended('error')) === before + 1, 'one more choice ended by an error');
  await untilIdle();
});

test('leaving a stream cancels it', async () => {
  await untilIdle();
  const before = await ended('abort');
  for await (const _ of await completions.create({ ...long, n: 3, stream: true })) break;
  const controlled = await completions.create({ ...long, stream: true });
  for await (const _ of controlled) {
    controlled.controller.abort();
    break;
  }
  await untilIdle();
  assert.equal((await ended('abort')) - before, 4);
});

test('leaving before the whole answer cancels it', async () => {
  await untilIdle();
  const before = await ended('abort');
  const abort = new AbortController();
  const asked = assert.rejects(completions.create({ ...long, n: 8 }, { signal: abort.signal }), OpenAI.APIUserAbortError);
  await until(async () => (await metric('vllm:num_requests_running')) === 8, 'eight choices running');
  abort.abort();
  await asked;
  await untilIdle();
  await assert.rejects(completions.create({ ...long, n: 16 }, { timeout: 500 }), OpenAI.APIConnectionTimeoutError);
  await untilIdle();
  assert.equal((await ended('abort')) - before, 24);
});

test('refusals are the exceptions of the client', async () => {
  const ask = { model: MODEL, prompt: 'It was', max_tokens: 2 };
  const refused = async (promise, kind, status, code, param) => {
    await assert.rejects(promise, (error) => {
      assert.ok(error instanceof kind, String(error));
      assert.equal(error.status, status);
      assert.deepEqual(Object.keys(error.error).sort(), keys);
      assert.equal(error.code, code);
      assert.equal(error.param, param);
      assert.ok(error.requestID);
      return true;
    });
  };
  const wrong = client('a-key-that-is-not-the-servers');
  await refused(wrong.completions.create(ask), OpenAI.AuthenticationError, 401, 'invalid_api_key', null);
  await refused(completions.create({ ...ask, model: 'nobody' }), OpenAI.NotFoundError, 404, 'model_not_found', 'model');
  await refused(completions.create({ ...ask, n: 0 }), OpenAI.BadRequestError, 400, null, 'n');
  await refused(
    completions.create({ ...ask, max_tokens: CONTEXT }),
    OpenAI.BadRequestError, 400, 'context_length_exceeded', 'max_tokens',
  );
  await refused(completions.create({ ...ask, best_of: 2 }), OpenAI.BadRequestError, 400, null, 'best_of');
  await refused(
    client().embeddings.create({ model: MODEL, input: 'x' }),
    OpenAI.NotFoundError, 404, 'not_found', null,
  );
});

test('more requests at once than a key may have', async () => {
  await untilIdle();
  const other = client(OTHER_KEY).completions;
  const streams = [];
  try {
    for (let i = 0; i < REQUESTS_PER_KEY; ++i) streams.push(await other.create({ ...long, stream: true }));
    await assert.rejects(other.create({ model: MODEL, prompt: 'x' }), (error) => {
      assert.ok(error instanceof OpenAI.RateLimitError, String(error));
      assert.equal(error.code, 'rate_limit_exceeded');
      assert.ok(Number(error.headers.get('retry-after')) >= 1);
      return true;
    });
    await completions.create({ model: MODEL, prompt: 'x', max_tokens: 1 });
  } finally {
    for (const stream of streams) stream.controller.abort();
  }
  await untilIdle();
});
