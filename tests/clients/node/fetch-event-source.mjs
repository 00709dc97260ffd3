// @microsoft/fetch-event-source, made for browsers: Node lacks only `window` and `document`.
//
// With --throw-on-close the adapter follows the advice to treat a clean end as an error.
import { createRequire } from "node:module";

import { end, error, event, lastEventId, url } from "./report.mjs";

globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
const { fetchEventSource } = createRequire(import.meta.url)("@microsoft/fetch-event-source");

fetchEventSource(url, {
  headers: lastEventId ? { "last-event-id": lastEventId } : {},
  onmessage: (message) => event(message.event || "message", message.data, message.id),
  onerror: (trouble) => {
    error(trouble); // a value returned would be taken for the time to wait
  },
  onclose: () => {
    if (process.argv.includes("--throw-on-close")) throw new Error("the stream ended");
  },
}).then(() => end("resolved"), (trouble) => end(`rejected: ${trouble.message}`));
