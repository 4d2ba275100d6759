// SPDX-License-Identifier: Apache-2.0
// What the tests share: where the server is, a client without retries, plain HTTP, and the model's own files.
// scripts/clients.sh sets the environment. Nothing here skips: a test that lacks what it needs fails.
import { readFileSync } from 'node:fs';
import path from 'node:path';

import OpenAI from 'openai';

function setting(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set; scripts/clients.sh runs these tests`);
  return value;
}

export const URL = setting('HEARTH_CLIENTS_URL'); // http://127.0.0.1:PORT
export const KEY = setting('HEARTH_CLIENTS_KEY');
export const OTHER_KEY = setting('HEARTH_CLIENTS_OTHER_KEY'); // of another client, counted by itself
export const REQUESTS_PER_KEY = Number(setting('HEARTH_CLIENTS_REQUESTS_PER_KEY'));
const modelDir = setting('HEARTH_CLIENTS_MODEL_DIR');
export const MODEL = path.basename(modelDir);

const read = (name) => JSON.parse(readFileSync(path.join(modelDir, name), 'utf8'));
export const GOLDEN = read('golden.json');
export const VOCAB = read('tokenizer.json').model.vocab;
// Tokens of nothing but white space, banned: a small model likes to fill JSON with it, as far as the grammar lets it.
export const COMPACT = Object.fromEntries(
  Object.entries(VOCAB).filter(([text]) => /^[ĠĊčĉ]+$/.test(text)).map(([, token]) => [token, -100]),
);
export const CONTEXT = read('config.json').max_position_embeddings;

export { OpenAI };
export const TIMEOUT_MS = 300_000;

export function client(apiKey = KEY, more = {}) {
  return new OpenAI({ baseURL: `${URL}/v1`, apiKey, maxRetries: 0, timeout: TIMEOUT_MS, ...more });
}

// One plain HTTP exchange; any status is an answer.
export async function http(route, body, headers = {}) {
  const reply = await fetch(URL + route, {
    method: body === undefined ? 'GET' : 'POST',
    headers: { Authorization: `Bearer ${KEY}`, 'Content-Type': 'application/json', ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  return { status: reply.status, headers: reply.headers, text: await reply.text() };
}

export async function tokensOf(text, more = {}) {
  return JSON.parse((await http('/tokenize', { prompt: text, ...more })).text).tokens;
}

// The sum of the metric's samples that have this text in their labels.
export async function metric(name, label = '') {
  const lines = (await http('/metrics')).text.split('\n');
  const found = lines.filter((line) => line.split(/[{ ]/)[0] === name && line.includes(label));
  if (found.length === 0) throw new Error(`/metrics has no ${name} with ${label}`);
  return found.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' '))), 0);
}

export async function until(condition, what, seconds = 30) {
  const end = Date.now() + seconds * 1000;
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`after ${seconds} s still not: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

// Nothing runs, nothing waits and all KV memory is free.
export async function untilIdle() {
  await until(async () => {
    for (const name of ['vllm:num_requests_running', 'vllm:num_requests_waiting', 'vllm:kv_cache_usage_perc'])
      if ((await metric(name)) !== 0) return false;
    return true;
  }, 'no request in the engine, KV memory free');
}
