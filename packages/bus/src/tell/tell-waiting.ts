/** What a dataset or run waits for, published as its event: once for each reason, however many messages and replicas meet it. */
import { createHash } from "node:crypto";
import type { datasetWaiting, EventAddress, EventData, runWaiting } from "@loraline/contracts";
import type { Bus } from "../bus.ts";

/**
 * The same code with another message is published only after so long. Messages of S3 differ each time in an address, the stream keeps
 * every event, and hundreds of runs may wait for days.
 */
const sameNewsMs = 10 * 60_000;

/** Publishes it unless the last event says the same. `reason: null` means that it goes on, and is published only after a reason. */
export async function tellWaiting(
  bus: Pick<Bus, "last" | "publish">,
  event: typeof datasetWaiting | typeof runWaiting,
  at: EventAddress,
  data: EventData<typeof runWaiting>,
): Promise<void> {
  const last = await bus.last(event, at);
  const previous = last?.data.stage === data.stage ? last.data.reason : null;
  const { reason } = data;
  if (previous === null && reason === null) return;
  if (previous !== null && reason !== null && previous.code === reason.code) {
    if (previous.message === reason.message || Date.now() - Date.parse(last?.time ?? "") < sameNewsMs) return;
  }
  // Several replicas that see the same publish the same id, so one event is stored.
  const what = createHash("sha256").update(JSON.stringify(data)).digest("hex").slice(0, 16);
  await bus.publish(event, at, data, { key: `after-${last?.seq ?? 0}-${what}` });
}
