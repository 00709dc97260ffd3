// Reading a stream with fetch: for pages that must send headers (a token), for workers, and for
// programs outside a browser. What EventSource does by itself is done here: parse, reconnect, resume.
//
//   for await (const { type, data, id } of follow("/events/news", { signal })) …
//
// It ends when `signal` aborts, and throws `Refused` for what will not get better (400, 401, 403, 404).

export class Refused extends Error {}

/**
 * Follows a stream for ever, over reconnects, without losing or repeating an event.
 *
 * @param {string} url
 * @param {{headers?: Record<string, string>, signal?: AbortSignal, cursor?: string}} options
 * @yields {{type: string, data: string, id: string}} also the gateway's own: gateway.open, gateway.gap …
 */
export async function* follow(url, { headers = {}, signal, cursor = "" } = {}) {
  let retryMs = 3000; // until the gateway says otherwise
  let failures = 0;
  while (!signal?.aborted) {
    try {
      const response = await fetch(url, {
        headers: { ...headers, Accept: "text/event-stream", ...(cursor && { "Last-Event-ID": cursor }) },
        cache: "no-store",
        signal,
      });
      if (response.status >= 400 && response.status < 500 && ![408, 425, 429].includes(response.status)) {
        throw new Refused(`${response.status} ${await response.text()}`);
      }
      if (!response.ok) throw new Error(`status ${response.status}`);
      for await (const block of blocks(response.body)) {
        failures = 0;
        if (block.retryMs !== undefined) retryMs = block.retryMs;
        if (block.id !== undefined) cursor = block.id;
        if (block.data !== undefined) yield { type: block.type, data: block.data, id: cursor };
      }
    } catch (error) {
      if (signal?.aborted) return;
      if (error instanceof Refused) throw error;
      failures += 1;
    }
    // `retry` of the gateway is jittered already; beyond the first failure wait longer, at random.
    await sleep(retryMs * Math.min(2 ** Math.max(0, failures - 1), 10) * (failures > 1 ? 0.5 + Math.random() : 1), signal);
  }
}

// Parses a body into blocks. A block counts only when its blank line has come, so that a cut in the
// middle of one is resumed from the block before.
async function* blocks(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let fields = {};
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n"); // the gateway ends lines with LF only
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          yield { ...fields, type: fields.type ?? "message", data: fields.data?.join("\n") };
          fields = {};
        } else {
          take(fields, line);
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => {}); // also when the caller leaves its loop
  }
}

function take(fields, line) {
  const colon = line.indexOf(":");
  if (colon === 0) return; // a comment
  const name = colon < 0 ? line : line.slice(0, colon);
  const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
  if (name === "data") (fields.data ??= []).push(value);
  if (name === "event") fields.type = value;
  if (name === "id") fields.id = value;
  if (name === "retry" && /^\d+$/.test(value)) fields.retryMs = Number(value);
}

function sleep(ms, signal) {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, ms);
    signal?.addEventListener("abort", end);
  });
}
