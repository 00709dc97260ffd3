// npm eventsource-client: one callback for all types.
import { createEventSource } from "eventsource-client";

import { end, error, event, lastEventId, url } from "./report.mjs";

const client = createEventSource({
  url,
  initialLastEventId: lastEventId || undefined,
  onMessage: (message) => event(message.event ?? "message", message.data, client.lastEventId),
  onScheduleReconnect: ({ delay }) => error(`disconnected, back in ${delay} ms`),
  onDisconnect: () => {
    // Its state is only settled after this callback.
    setTimeout(() => client.readyState === "closed" && end("readyState is closed"), 0);
  },
});
